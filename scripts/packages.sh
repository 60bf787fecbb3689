#!/usr/bin/env bash
# make packages: a deb and an rpm for each architecture into dist/, with
# service file, completions and man pages, and SHA256SUMS over them.
#
#   ARCHES="amd64 arm64"   what to build for
#   OUT=dist               where to
#   VERSION                as the Makefile finds it; without a tag 0.0.0-g<commit>
#   FLEET_CREDENTIAL       an operator's credential: signs SHA256SUMS with it
#
# The same commit gives the same bytes: times are the commit's, and what is
# compiled names no directory. CHECK=1 builds twice and compares.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-dist}
arches=${ARCHES:-amd64 arm64}
version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo unversioned)}
case $version in
v[0-9]* | [0-9]*.[0-9]*.[0-9]*) release=${version#v} ;;
*) release=0.0.0-g${version//-/.} ;;
esac
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0

echo "tools"
(cd scripts/packages && go build -o "$work/packages" .)
make --no-print-directory build VERSION="$version" >/dev/null
fleet=bin/fleet

# stage ARCH DIR: the files as they are to lie below /.
stage() {
	local to=$2
	mkdir -p "$to/usr/bin" "$to/usr/lib/systemd/system" "$to/usr/share/bash-completion/completions" "$to/usr/share/zsh/completions" \
		"$to/usr/share/fish/vendor_completions.d" "$to/usr/share/man/man1" "$to/usr/share/doc/fleet"
	GOOS=linux GOARCH=$1 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o "$to/usr/bin/fleet" .
	cp node/service/fleet.service "$to/usr/lib/systemd/system/fleet.service"
	$fleet completion bash >"$to/usr/share/bash-completion/completions/fleet"
	$fleet completion zsh >"$to/usr/share/zsh/completions/_fleet"
	$fleet completion fish >"$to/usr/share/fish/vendor_completions.d/fleet.fish"
	$fleet man "$to/usr/share/man/man1"
	cp LICENSE "$to/usr/share/doc/fleet/copyright"
	cp CHANGELOG.md "$to/usr/share/doc/fleet/changelog"
	gzip -n -9 "$to"/usr/share/man/man1/* "$to/usr/share/doc/fleet/changelog"
}

# build DIR: the packages of all architectures.
build() {
	mkdir -p "$1"
	rm -f "$1"/fleet[-_]*.deb "$1"/fleet[-_]*.rpm "$1"/SHA256SUMS "$1"/SHA256SUMS.sig
	for arch in $arches; do
		rm -rf "$work/stage"
		stage "$arch" "$work/stage"
		"$work/packages" -stage "$work/stage" -scripts scripts/packages -version "$release" -arch "$arch" -epoch "$epoch" -out "$1"
	done
	(cd "$1" && sha256sum fleet[-_]*.deb fleet[-_]*.rpm >SHA256SUMS)
}

build "$out"
if [ -n "${CHECK:-}" ]; then
	build "$work/again"
	cmp "$out/SHA256SUMS" "$work/again/SHA256SUMS" || {
		echo "packages: two builds of one commit differ" >&2
		exit 1
	}
	echo "the same bytes twice"
fi
if [ -n "${FLEET_CREDENTIAL:-}" ]; then
	$fleet debug sign "$out/SHA256SUMS"
else
	echo "SHA256SUMS is not signed: FLEET_CREDENTIAL names no operator's credential (fleet debug sign $out/SHA256SUMS)"
fi
