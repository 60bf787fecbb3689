#!/usr/bin/env bash
# Who tests the tests: each bug below is in the source behind a build tag of its
# own (files *_planted.go). For each, the program is built with it and the test
# that must find it is run. A bug that is not found makes this fail, and so does
# a test that fails without any bug.
#
#   scripts/planted.sh               all
#   scripts/planted.sh nofsync ...   some
set -uo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}

# tag | package | test | what is wrong
BUGS='
ackbeforecommit | ./node              | TestHistories                                | acknowledges before it is committed
noverify        | ./raftfsm/quorum    | TestLinearizable                             | reads without asking whether it still leads
nofsync         | ./node              | TestKillTable/S9/agent                       | the journal is not synced
clock           | ./raftfsm           | TestDeterminism                              | the state machine reads a clock
maporder        | ./raftfsm           | TestDeterminism                              | the state machine keeps the order of a map
agentraft       | ./node/transport    | TestMatrix                                   | an agent certificate opens Raft
onemore         | ./raftfsm           | TestRelease                                  | one more than MaxConcurrency is released
emptystore      | ./raftfsm/quorum    | TestDamage                                   | an empty store is taken for a new one
nodedupe        | ./raftfsm           | TestRetriedRequestIsAnsweredOnce             | a request that is sent again counts again
onesignature    | ./node/ticket       | TestSignedVerify                             | one voter signs for two
unsignedresult  | ./node/dispatch     | TestAccept                                   | the signature of a result is not checked
nowaitdelay     | ./node/process      | TestAGrandchildThatHoldsStdoutDoesNotHoldWait | waits for whoever holds the pipe
late            | ./node/runcmd       | TestLateInTheQueueIsDeliveryTimedOut         | a command starts after its time
ignoreio        | ./raftfsm/quorum    | TestStoreFails                               | an error of the disk is ignored
'

found=0 missed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

run() { # run TAGS PACKAGE TEST
	# Each part of the name is anchored: Test/part means that part alone.
	local pattern
	pattern="^$(sed 's#/#$/^#g' <<<"$3")\$"
	"$GO" test -vet=off -count=1 -timeout "$([ "$2" = ./node ] && echo 5m || echo 2m)" -tags "$1" -run "$pattern" "$2" >"$log" 2>&1
}

printf '%-16s %-18s %-46s %s\n' BUG PACKAGE TEST RESULT
while IFS='|' read -r tag package name what; do
	tag=$(xargs <<<"$tag") package=$(xargs <<<"$package") name=$(xargs <<<"$name") what=$(xargs <<<"$what")
	[ -n "$tag" ] || continue
	if [ $# -gt 0 ] && [[ " $* " != *" $tag "* ]]; then continue; fi
	[ -n "$(grep -rl --include='*_planted.go' "^//go:build planted_$tag\$" .)" ] || { echo "no file has the tag planted_$tag" >&2; exit 1; }
	verdict="found: $what"
	if ! run "" "$package" "$name" || grep -q 'no tests to run' "$log"; then
		verdict="THE TEST FAILS WITHOUT THE BUG"
	elif run "planted_$tag" "$package" "$name"; then
		verdict="NOT FOUND: $what"
	elif ! grep -q -- '--- FAIL: \|^panic: test timed out\|^fatal error: ' "$log"; then
		verdict="DOES NOT BUILD"
	fi
	printf '%-16s %-18s %-46s %s\n' "$tag" "$package" "$name" "$verdict"
	case $verdict in
	found:*)
		found=$((found + 1))
		# How it was found: the first word of the test about it.
		grep -v 'FLEET_SEED=[0-9]*$' "$log" | grep -m 1 -E '_test\.go:[0-9]+: |^panic: ' | sed 's/^ */    /' | cut -c1-160
		;;
	*)
		missed=$((missed + 1))
		tail -n 20 "$log"
		;;
	esac
done <<<"$BUGS"
echo "$found found, $missed not"
[ "$missed" -eq 0 ] && [ "$found" -gt 0 ]
