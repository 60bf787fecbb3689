#!/usr/bin/env bash
# Times `hostname` on many targets with fleet and with others, one after another
# in one run on one machine, all targets on loopback. As root: it makes a user
# whose login shell reads no files, and removes him again. What is not installed
# is left out, and said.
#
#   TARGETS="100 200"   how many targets, one table row each
#   ROUNDS=5            of each; the median is printed, after one that does not count
#   FLEET=bin/fleet, SERF=serf   the programs
#   SETTLE=30           seconds between the start of a fleet and the first command
#   LIMIT=120           seconds after which one try counts as failed
#   ONLY="fleet clush"  nothing else
set -euo pipefail
cd "$(dirname "$0")/../.."
unset "${!FLEET_@}"
fleet=${FLEET:-$PWD/bin/fleet}
serf=${SERF:-$(command -v serf || true)}
rounds=${ROUNDS:-5} limit=${LIMIT:-120} only=${ONLY:-bare fleet clush pdsh ansible-raw ansible-command serf}
[ "$(id -u)" = 0 ] || { echo "bench-rivals needs root: it makes a user for ssh" >&2; exit 1; }
[ -x "$fleet" ] || { echo "no $fleet: make build" >&2; exit 1; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/fleet-rivals.XXXXXX")
user=fleetbench
pids=()
stop() { # the children that were started since, and wait for them
	for pid in "${pids[@]:-}"; do [ -z "$pid" ] || kill "$pid" 2>/dev/null || true; done
	for pid in "${pids[@]:-}"; do [ -z "$pid" ] || wait "$pid" 2>/dev/null || true; done
	pids=()
}
cleanup() {
	stop
	if [ -f "$dir/made-user" ]; then userdel "$user" 2>/dev/null || true; fi
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

chmod 755 "$dir"
wants() { case " $only " in *" $1 "*) return 0 ;; esac; return 1; }
has() { command -v "$1" >/dev/null; }

# median COMMAND...: the middle of so many times, in seconds, or why there is none.
median() {
	local times=() i t
	for i in $(seq 0 "$rounds"); do
		local begin end
		begin=$(date +%s%N)
		if ! timeout "$limit" "$@" >"$dir/out" 2>"$dir/err"; then
			echo "failed"
			{ echo "--- $*"; tail -3 "$dir/err"; tail -3 "$dir/out"; } >&2
			return
		fi
		end=$(date +%s%N)
		if [ "$(grep -c "$expect" "$dir/out")" -lt "$n" ]; then
			echo "incomplete ($(grep -c "$expect" "$dir/out") of $n)"
			return
		fi
		[ "$i" = 0 ] || times+=("$(((end - begin) / 1000000))")
	done
	t=$(printf '%s\n' "${times[@]}" | sort -n | sed -n "$(((rounds + 1) / 2))p")
	printf '%d.%03d\n' $((t / 1000)) $((t % 1000))
}

await() { # FILE-OR-COMMAND, at most two minutes
	for _ in $(seq 600); do
		if "$@" >/dev/null 2>&1; then return 0; fi
		sleep 0.1
	done
	echo "not ready: $*" >&2
	return 1
}

ssh_targets() {
	if ! id "$user" >/dev/null 2>&1; then
		useradd -r -p '*' -M -d "$dir/home" -s /bin/sh "$user"
		touch "$dir/made-user"
	fi
	mkdir -p "$dir/home/.ssh" /run/sshd
	ssh-keygen -q -t ed25519 -N '' -f "$dir/host_key"
	ssh-keygen -q -t ed25519 -N '' -f "$dir/user_key"
	cp "$dir/user_key.pub" "$dir/home/.ssh/authorized_keys"
	chown -R "$user" "$dir/home"; chmod 700 "$dir/home" "$dir/home/.ssh"
	cat >"$dir/sshd_config" <<-END
		ListenAddress 0.0.0.0:2299
		HostKey $dir/host_key
		PidFile none
		UsePAM no
		UseDNS no
		PasswordAuthentication no
		PrintMotd no
		PrintLastLog no
		MaxStartups 2000
		StrictModes no
		AllowUsers $user
	END
	cat >"$dir/ssh_config" <<-END
		Host *
		  User $user
		  Port 2299
		  IdentityFile $dir/user_key
		  IdentitiesOnly yes
		  StrictHostKeyChecking no
		  UserKnownHostsFile /dev/null
		  LogLevel ERROR
		  GSSAPIAuthentication no
	END
	"$(command -v sshd || echo /usr/sbin/sshd)" -D -f "$dir/sshd_config" &
	pids+=($!)
	for _ in $(seq 50); do timeout 5 ssh -F "$dir/ssh_config" 127.0.1.1 true 2>"$dir/err" && return; sleep 0.1; done
	echo "ssh to the targets: $(tail -1 "$dir/err")" >&2
	return 1
}

echo "| targets | $(for w in $only; do printf '%s | ' "$w"; done)"
echo "|---|$(for _ in $only; do printf -- '---|'; done)"
(cd scripts/bench/testdata/bare && CGO_ENABLED=0 go build -o "$dir/bare" .)
for n in ${TARGETS:-100 200}; do
	row="| $n |"
	me=$(hostname)
	expect=$me
	for what in $only; do
		got="not installed"
		case $what in
		bare)
			expect=answers
			mkfifo "$dir/hold"
			"$dir/bare" serve "$dir" "$n" <"$dir/hold" &
			pids+=($!)
			exec 9>"$dir/hold"
			await test -f "$dir/bare.addrs"
			saved=$n n=1 # one line for all
			got=$(median "$dir/bare" run "$dir")
			n=$saved
			exec 9>&-
			stop; rm -f "$dir/hold" "$dir/bare.addrs"
			expect=$me
			;;
		fleet)
			"$fleet" dev --nodes "$n" --quorum 3 --dir "$dir/fleet" >"$dir/dev.log" 2>&1 &
			pids+=($!)
			if await test -f "$dir/fleet/env"; then
				got=$(
					. "$dir/fleet/env"
					sleep "${SETTLE:-30}" # hundreds of hosts that joined at once get to know each other
					n=1 expect=. # its exit code says that all succeeded
					median "$fleet" run --all -- hostname
				)
			else
				got="failed"
			fi
			stop; rm -rf "$dir/fleet"
			;;
		clush | pdsh | ansible-*)
			if has "${what%%-*}" && has sshd || [ -x /usr/sbin/sshd ]; then
				[ -f "$dir/sshd_config" ] && rm -f "$dir"/*_key*
				ssh_targets
				list=$(seq -f '127.0.1.%g' 1 "$n")
				case $what in
				clush) got=$(median clush -w "127.0.1.[1-$n]" -f 64 -o "-F $dir/ssh_config" hostname) ;;
				pdsh) got=$(PDSH_SSH_ARGS="-F $dir/ssh_config %h" median pdsh -R ssh -f 64 -w "127.0.1.[1-$n]" hostname) ;;
				*)
					printf '%s\n' "$list" >"$dir/inventory"
					got=$(ANSIBLE_SSH_ARGS="-F $dir/ssh_config" ANSIBLE_LOCAL_TEMP="$dir/ansible" ANSIBLE_HOME="$dir/ansible" \
						median ansible all -i "$dir/inventory" -f 64 -m "${what#ansible-}" -a hostname \
						-e ansible_python_interpreter=/usr/bin/python3)
					;;
				esac
				stop
			fi
			;;
		serf)
			if [ -n "$serf" ]; then
				for i in $(seq 1 "$n"); do
					"$serf" agent -node="s$i" -bind="127.0.2.$i:7946" -rpc-addr="127.0.2.$i:7373" -join=127.0.2.1:7946 \
						-event-handler='query:hostname=hostname' -log-level=err >/dev/null 2>&1 &
					pids+=($!)
					[ "$i" = 1 ] && await "$serf" members -rpc-addr=127.0.2.1:7373
				done
				all() { [ "$("$serf" members -rpc-addr=127.0.2.1:7373 -status=alive | wc -l)" = "$n" ]; }
				if await all; then
					expect="Response from"
					got=$(median "$serf" query -rpc-addr=127.0.2.1:7373 -no-ack hostname)
					expect=$me
				else
					got="members do not find each other"
				fi
				stop
			fi
			;;
		esac
		row+=" $got |"
		echo "$n targets, $what: $got" >&2
	done
	echo "$row"
done
