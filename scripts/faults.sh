#!/usr/bin/env bash
# Five real processes on loopback addresses: init, join, quorum add, run; then
# kill -9 of the leader and of an agent in the middle of commands, ROUNDS times
# each. It fails if a command ran twice on a host or if a target is left
# without a final state.
#
#   scripts/faults.sh            ROUNDS=3 by default
#   ROUNDS=20 scripts/faults.sh
#
# Every command appends a line to a witness file that fleet does not own: what
# ran is counted there, not in fleet's own books.
set -euo pipefail

cd "$(dirname "$0")/.."
ROUNDS=${ROUNDS:-3}
FLEET=$PWD/bin/fleet
[ -x "$FLEET" ] || { echo "build first: make build" >&2; exit 1; }

DIR=$(mktemp -d)
declare -A PID
cleanup() {
  status=$?
  for p in "${PID[@]}"; do kill "$p" 2>/dev/null || true; done
  for p in "${PID[@]}"; do wait "$p" 2>/dev/null || true; done
  if [ "$status" -ne 0 ]; then
    echo "FAILED; the last lines of each log:" >&2
    tail -n 15 "$DIR"/h*.log >&2 || true
    echo "kept: $DIR" >&2
  else
    rm -rf "$DIR"
  fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

export FLEET_CREDENTIAL=$DIR/credential
WITNESS=$DIR/witness
PORT=7790

say() { printf '\n== %s\n' "$*"; }
fail() { echo "FAIL: $*" >&2; exit 1; }

# until_true SECONDS WHAT COMMAND...: wait for a condition, with a bound.
until_true() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "waited too long for: $what"
    sleep 0.2
  done
}

start() { # start N: run host N's agent
  "$FLEET" agent --data-dir "$DIR/h$1" --listen "127.0.0.$1:$PORT" --advertise "127.0.0.$1:$PORT" >>"$DIR/h$1.log" 2>&1 &
  PID[$1]=$!
}

kill9() { # kill9 N: as a power cut would
  kill -9 "${PID[$1]}"
  wait "${PID[$1]}" 2>/dev/null || true
}

up() { FLEET_SOCKET=$DIR/h$1/fleet.sock "$FLEET" status -o json | grep -q '"QuorumReachable": true'; }

leader() { # the number of the host that leads
  "$FLEET" quorum ls -o json | tr -d ' \n' | grep -o '"Name":"h[0-9]*"[^}]*"Leader":true' | sed 's/.*"Name":"h\([0-9]*\)".*/\1/' | head -n 1
}
has_leader() { [ -n "$(leader)" ]; }

ended() { "$FLEET" command show "$1" -o json | tr -d ' \n' | grep -q '"CompletedCount":5[,}]'; }

# judge COMMAND: every target has one final state, nothing ran twice, what
# succeeded ran.
judge() {
  local id=$1 states node runs state
  states=$("$FLEET" command show "$id" -o json | tr -d ' \n' | grep -o '"InstanceId":"mi-[0-9a-f]*"[^}]*"StatusDetails":"[A-Za-z]*"' |
    sed 's/"InstanceId":"\(mi-[0-9a-f]*\)".*"StatusDetails":"\([A-Za-z]*\)"/\1 \2/' | sort -u)
  [ "$(wc -l <<<"$states")" -eq 5 ] || fail "command $id: not five targets with one state each:"$'\n'"$states"
  while read -r node state; do
    runs=$(grep -c "^$id $node\$" "$WITNESS" || true)
    case $state in
      Success) [ "$runs" -eq 1 ] || fail "command $id on $node: $state, but it ran $runs times" ;;
      Interrupted | DeliveryTimedOut | ExecutionTimedOut | Undeliverable | Failed) [ "$runs" -le 1 ] || fail "command $id on $node ran $runs times" ;;
      *) fail "command $id on $node: state $state is not final" ;;
    esac
  done <<<"$states"
  awk '{print $2}' <<<"$states" | sort | uniq -c | sed 's/^/   /'
}

send() { # send SECONDS: a command that leaves a witness and then takes a while
  "$FLEET" run --all --yes --detach -o name -- \
    "echo \$FLEET_COMMAND_ID \$FLEET_NODE_ID >> $WITNESS; sleep $1; echo done on \$FLEET_NODE_ID"
}

say "init on h1, join h2 to h5"
"$FLEET" init --name faults --enroll-only --data-dir "$DIR/h1" --node-name h1 --advertise "127.0.0.1:$PORT" \
  --root-key "$DIR/root.key" --credential "$FLEET_CREDENTIAL" --operator tester
start 1
until_true 30 "h1 to lead" up 1
"$FLEET" activation create --limit 4 --label env=test --token-file "$DIR/token"
for n in 2 3 4 5; do
  "$FLEET" join --enroll-only --data-dir "$DIR/h$n" --node-name "h$n" --advertise "127.0.0.$n:$PORT" --token-file "$DIR/token"
  start "$n"
done
for n in 2 3 4 5; do until_true 30 "h$n to hear from the quorum" up "$n"; done

say "quorum add h2 h3"
"$FLEET" quorum add h2 h3 --root-key "$DIR/root.key" --yes
"$FLEET" node ls
"$FLEET" run --all --yes -- 'uname -r'

for round in $(seq "$ROUNDS"); do
  say "round $round: kill -9 the leader in mid-command"
  until_true 60 "a leader" has_leader
  id=$(send 2)
  until_true 30 "the command to start" grep -q "^$id " "$WITNESS"
  victim=$(leader)
  [ -n "$victim" ] || fail "no leader to kill"
  kill9 "$victim"
  until_true 60 "another leader" has_leader
  start "$victim"
  until_true 60 "h$victim to come back" up "$victim"
  until_true 240 "command $id to end" ended "$id"
  judge "$id"

  say "round $round: kill -9 an agent in mid-command"
  id=$(send 2)
  node=$("$FLEET" node ls -o json | tr -d ' \n' | grep -o '"InstanceId":"mi-[0-9a-f]*","Name":"h5"' | sed 's/.*\(mi-[0-9a-f]*\)".*/\1/;s/","Name.*//')
  until_true 30 "the command to start on h5" grep -q "^$id $node\$" "$WITNESS"
  kill9 5
  start 5
  until_true 60 "h5 to come back" up 5
  until_true 240 "command $id to end" ended "$id"
  judge "$id"
done

say "all voters killed at once and started again"
id=$(send 1)
until_true 30 "the command to start" grep -q "^$id " "$WITNESS"
for n in 1 2 3; do kill9 "$n"; done
for n in 3 1 2; do start "$n"; done
for n in 1 2 3; do until_true 90 "h$n to come back" up "$n"; done
until_true 240 "command $id to end" ended "$id"
judge "$id"

doubles=$(sort "$WITNESS" | uniq -d | wc -l)
[ "$doubles" -eq 0 ] || fail "$doubles lines stand twice in the witness"
say "ok: $(wc -l <"$WITNESS") runs, 0 double, 0 without a final state"
