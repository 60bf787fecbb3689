#!/usr/bin/env bash
# Runs what Wine can run of the Windows program: the tests of the packages named
# below. Wine is not Windows; README says what was never run on one. Without
# Wine nothing is done, and that is said.
set -euo pipefail
cd "$(dirname "$0")/../.."

for tool in wine python3; do
	if ! command -v "$tool" >/dev/null 2>&1; then
		echo "test-windows: skipped: $tool is not installed (Debian: apt-get install wine wine64 python3)"
		exit 0
	fi
done

# Tests that Wine cannot pass. It neither replaces a file that is open nor
# removes one, as the journal and the blobs do, and it has no mode bits. What
# needs to know of Wine by itself is in node/process, see wine() there.
skip='^(TestAdmits|TestCompact|TestCompactShrinksAFileOfFinishedCommands|TestOpenAfterACrash|TestPutGetHasRemoveList)$'

# Wine keeps access lists as mode bits: what this leaves is what they can say.
umask 077

work=$(mktemp -d)
export CGO_ENABLED=0 GOOS=windows GOARCH=amd64
export WINEDEBUG=-all WINEPREFIX=$work/prefix WINEDLLOVERRIDES=mscoree,mshtml=
# The server of this prefix alone: every prefix has one of its own.
trap 'wineserver -k 2>/dev/null || true; rm -rf "$work"' EXIT
wineboot -i >/dev/null 2>&1
python3 scripts/wine/prng.py "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll"

# Wine before 9 does not know how Windows deletes a file since 2016. The library
# of Go can do it the older way, which it takes by itself on an older Windows;
# its own tests choose it by this variable.
at=$(go env GOROOT)/src/internal/syscall/windows/at_windows.go
sed 's/^var TestDeleteatFallback bool$/var TestDeleteatFallback = true/' "$at" >"$work/at_windows.go"
# Nor does it know one of the two wishes that Go has for a UDP socket: not to
# hear of networks that cannot be reached.
udp=$(go env GOROOT)/src/net/fd_windows.go
sed '/windows.SIO_UDP_NETRESET,/s/.*/err = nil; _ = windows.SIO_UDP_NETRESET/' "$udp" >"$work/fd_windows.go"
printf '{"Replace":{"%s":"%s","%s":"%s"}}\n' "$at" "$work/at_windows.go" "$udp" "$work/fd_windows.go" >"$work/overlay.json"

go build -overlay "$work/overlay.json" -o "$work/fleet.exe" .
wine "$work/fleet.exe" version

failed=0
echo "test-windows: not run under Wine: $skip"
for package in node/process node/private node/config node/journal node/blob node/identity node/logging node/service; do
	go test -overlay "$work/overlay.json" -c -o "$work/test.exe" "./$package"
	(cd "$package" && timeout 600 wine "$work/test.exe" -test.v -test.skip "$skip") >"$work/out" 2>&1 || failed=1
	grep -E '^ *--- (FAIL|SKIP)|^(PASS|FAIL|panic)|_test\.go:' "$work/out" | sed "s#^#$package: #" || true
done
exit $failed
