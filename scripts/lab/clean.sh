#!/bin/sh
# Removes what a lab made: its processes (found by its control groups, never by
# a name), with them its namespaces and mounts, then the groups themselves and
# its directory. Nothing outside of them is touched. Labs call it themselves:
# there is no other way to end one, so what cleans up after a failure is what
# cleans up every time.
#
#   clean.sh NAME             remove one lab
#   clean.sh --on-eof NAME    wait for the end of the standard input, then remove it
#   clean.sh --dead           remove all labs whose test process is gone
#   clean.sh --all            remove all labs, running ones too
set -u

PREFIX=fleetlab-

groups() { # groups NAME: its control groups in every hierarchy
	find /sys/fs/cgroup -type d -name "$1" 2>/dev/null
}

procs() { # procs NAME: every process of it, in any of its hierarchies
	for g in $(groups "$1"); do
		find "$g" -name cgroup.procs -exec cat {} + 2>/dev/null
	done | sort -un
}

remove() { # remove NAME
	case $1 in
	$PREFIX[0-9]*-[0-9]*) ;;
	*) echo "clean.sh: $1 is not the name of a lab" >&2; return 1 ;;
	esac
	# A process that forks is caught in a later round: its children are born
	# into its groups. The first to die are the hosts' first processes, and
	# with each of them its whole process namespace.
	tries=0
	while pids=$(procs "$1") && [ -n "$pids" ]; do
		# One that has ended since is no failure.
		kill -9 $pids 2>/dev/null
		tries=$((tries + 1))
		if [ $tries -gt 200 ]; then
			echo "clean.sh: $1: these processes do not end:" $pids >&2
			return 1
		fi
		sleep 0.05
	done
	tries=0
	while g=$(groups "$1") && [ -n "$g" ]; do
		# Busy for a moment while the last process is taken off.
		find $g -depth -type d -exec rmdir {} + 2>/dev/null
		tries=$((tries + 1))
		if [ $tries -gt 200 ]; then
			echo "clean.sh: $1: cannot remove" $g >&2
			return 1
		fi
		[ -z "$(groups "$1")" ] || sleep 0.05
	done
	rm -rf "/run/$1"
}

every() { # every lab that has left something
	{
		find /run -maxdepth 1 -type d -name "$PREFIX[0-9]*-[0-9]*" 2>/dev/null
		groups "$PREFIX[0-9]*-[0-9]*"
	} | sed 's#.*/##' | sort -u
}

alive() { # alive NAME: the test process that made it still runs
	pid=${1#"$PREFIX"}
	kill -0 "${pid%%-*}" 2>/dev/null
}

case ${1-} in
--on-eof)
	trap '' HUP INT TERM
	cat >/dev/null
	remove "$2"
	;;
--dead | --all)
	status=0
	for name in $(every); do
		if [ "$1" = --dead ] && alive "$name"; then
			echo "clean.sh: $name is running: left alone" >&2
			continue
		fi
		remove "$name" && echo "removed $name" || status=1
	done
	exit $status
	;;
"$PREFIX"*) remove "$1" ;;
*)
	echo "usage: clean.sh NAME | --on-eof NAME | --dead | --all" >&2
	exit 64
	;;
esac
