#!/usr/bin/env bash
# Keeps the golden bytes of the wire and log formats of one release beside those
# of the releases before: testdata/corpus/VERSION in each package that has them.
# The tests TestCorpus decode all of them; a release that cannot is none.
#
#   scripts/upgrade/corpus.sh 1.2.3
#   scripts/upgrade/corpus.sh unreleased    only until there is a release
set -euo pipefail

cd "$(dirname "$0")/../.."
version=${1:?which version?}
[[ $version =~ ^[0-9A-Za-z][0-9A-Za-z.-]*$ ]] || { echo "corpus: \"$version\" is no version" >&2; exit 64; }

keep() { # keep PACKAGE FILE...
  local package=$1 to=$1/testdata/corpus/$version
  shift
  # While there is no release, formats may change in place, and this one with them.
  [ "$version" = unreleased ] && rm -rf "$to"
  if [ -d "$to" ]; then
    echo "corpus: $to is there already: what a release wrote is never rewritten" >&2
    exit 1
  fi
  mkdir -p "$to"
  for f in "$@"; do cp "$package/testdata/$f" "$to/"; done
  echo "$to: $(ls "$to" | wc -l) files"
}

keep raftfsm/entry entries.txt
keep raftfsm log.hex snapshot.hex
keep node/rpc frames.golden
keep node/ticket cancel.hex cancel-all.hex release.hex result.hex ticket.hex ticket-nested.hex ticket-signed.hex ticket-staged.hex
