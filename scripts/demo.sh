#!/usr/bin/env bash
# Starts a fleet of five nodes, three of them voters, in one process on
# loopback, runs a command on every one and shows the answers. Ctrl-C stops it;
# with DEMO_ONCE=1 it stops by itself. Nothing is left behind.
#
#   FLEET=bin/fleet   the binary; it is built when absent
#   DEMO_NODES=5 DEMO_QUORUM=3 DEMO_WAIT=60 (seconds to wait for readiness)
set -euo pipefail
cd "$(dirname "$0")/.."

fleet=${FLEET:-$PWD/bin/fleet}
nodes=${DEMO_NODES:-5}
quorum=${DEMO_QUORUM:-3}
wait=${DEMO_WAIT:-60}

# A credential of another fleet in the caller's environment must not be used.
unset "${!FLEET_@}"

say() { printf '\n== %s\n' "$*"; }

[ -x "$fleet" ] || make build

dir=$(mktemp -d "${TMPDIR:-/tmp}/fleet-demo.XXXXXX")
child=

cleanup() {
	status=$?
	trap - EXIT INT TERM
	if [ -n "$child" ] && kill -0 "$child" 2>/dev/null; then
		kill -TERM "$child" 2>/dev/null || true
		for _ in $(seq 100); do
			kill -0 "$child" 2>/dev/null || break
			sleep 0.1
		done
		if kill -0 "$child" 2>/dev/null; then
			echo "demo: the fleet did not stop within 10 s: killed" >&2
			kill -KILL "$child" 2>/dev/null || true
			status=1
		fi
		wait "$child" 2>/dev/null || true
	fi
	# 130 and 143: stopped from outside, nothing went wrong.
	if [ "$status" -ne 0 ] && [ "$status" -ne 130 ] && [ "$status" -ne 143 ] && [ -s "$dir/fleet.log" ]; then
		echo "demo: the end of the fleet's log:" >&2
		tail -n 30 "$dir/fleet.log" >&2
	fi
	rm -rf "$dir"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "starting $nodes nodes, $quorum of them voters"
# In a process group of its own (set -m): Ctrl-C reaches only this script, which
# then stops the fleet once and waits for it.
set -m
"$fleet" dev --nodes "$nodes" --quorum "$quorum" --dir "$dir/fleet" >"$dir/fleet.log" 2>&1 &
child=$!
set +m

# The file appears, whole, when the fleet is ready.
deadline=$((SECONDS + wait))
until [ -s "$dir/fleet/env" ]; do
	if ! kill -0 "$child" 2>/dev/null; then
		echo "demo: the fleet ended before it was ready" >&2
		child=
		exit 1
	fi
	if [ "$SECONDS" -ge "$deadline" ]; then
		echo "demo: the fleet was not ready within $wait s" >&2
		exit 1
	fi
	sleep 0.1
done
# shellcheck disable=SC1091
. "$dir/fleet/env"

say "fleet run --all -- 'uname -sr; hostname'"
"$fleet" run --all -- 'uname -sr; hostname'

say "fleet node ls"
"$fleet" node ls

if [ "${DEMO_ONCE:-}" = 1 ]; then
	say "done; stopping the fleet"
	exit 0
fi

say "the fleet keeps running; in another terminal:"
cat <<TEXT

    . $dir/fleet/env
    $fleet status
    $fleet run --all -- 'date; uptime'
    $fleet command ls
    $fleet quorum ls

  Ctrl-C here stops it and removes $dir.
TEXT
trap 'exit 0' INT
wait "$child"
