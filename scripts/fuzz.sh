#!/usr/bin/env bash
# Runs every fuzz target of the module for FUZZTIME (default 60s) each. The
# targets are found by name, so that a new one needs no entry anywhere.
# FUZZ='regexp' limits the run to matching "package FuzzName" lines.
set -euo pipefail
cd "$(dirname "$0")/.."

go=${GO:-go}
fuzztime=${FUZZTIME:-60s}
only=${FUZZ:-.}

targets=$(grep -rEH --include='*_test.go' '^func Fuzz[A-Z_0-9]' . |
	sed -E 's#^(.*)/[^/]+_test\.go:func (Fuzz[A-Za-z0-9_]*).*#\1 \2#' | sort -u | grep -E "$only" || true)
if [ -z "$targets" ]; then
	echo "fuzz: no target matches '$only'" >&2
	exit 1
fi
count=$(wc -l <<<"$targets")
echo "fuzz: $count targets, $fuzztime each"

failed=()
n=0
while read -r package target; do
	n=$((n + 1))
	echo "fuzz: [$n/$count] $package $target"
	if ! "$go" test "$package" -run '^$' -fuzz "^${target}\$" -fuzztime "$fuzztime" -fuzzminimizetime 10x; then
		failed+=("$package $target")
	fi
done <<<"$targets"

if [ ${#failed[@]} -gt 0 ]; then
	printf 'fuzz: FAILED %s\n' "${failed[@]}" >&2
	exit 1
fi
echo "fuzz: $count targets, no finding"
