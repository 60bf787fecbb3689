#!/bin/sh
# One host of a lab, from its network cable to its first process. Started by
# Lab.boot in a new network namespace inside the world's namespaces:
#
#   host.sh wire DIR NAME NUMBER FAMILIES DISK INIT    the cable, then new namespaces for
#   host.sh root ...                                   the root file system and the first process
#
# FAMILIES is 4, 6 or 46, DISK the bytes of /var/lib/fleet, INIT systemd or none.
set -eu
stage=$1 DIR=$2 NAME=$3 NUMBER=$4 FAMILIES=$5 DISK=$6 INIT=$7
shift
disk=$DIR/disks/$NAME
new=$DIR/disks/$NAME/root

wire() {
	# Process 1 is the world's: the other end of the cable goes there.
	ip link add eth0 type veth peer name "$NAME" netns 1
	nsenter -t 1 -n ip link set "$NAME" master lab0 up
	ip link set lo up
	case $FAMILIES in
	*4*) ip addr add "10.77.0.$NUMBER/24" dev eth0 ;;
	esac
	case $FAMILIES in
	*6*) ip -6 addr add "fd77::$(printf %x "$NUMBER")/64" dev eth0 nodad ;;
	*) echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 ;;
	esac
	ip link set eth0 up
	case $FAMILIES in
	*4*) ip route add default via 10.77.0.254 ;;
	esac
	case $FAMILIES in
	*6*) ip -6 route add default via fd77::fe ;;
	esac
}

# install makes the disk of a new host: the machine's root below, and on top
# of it whatever differs. It runs before the disk is in use: what the host must
# not see of the machine is taken away first (a whiteout in the upper layer; an
# empty directory made over one later hides all below it).
install() {
	mkdir -p "$disk"
	mount -t tmpfs -o mode=755,size=1g fleetlab "$disk"
	mkdir "$disk/upper" "$disk/work" "$disk/root" "$disk/data"
	mount -t tmpfs -o "mode=700,size=$DISK" fleetlab "$disk/data"

	for d in /* /.[!.]*; do
		case ${d#/} in
		bin | dev | etc | lib | lib32 | lib64 | libx32 | proc | run | sbin | sys | usr | var | '.[!.]*') ;;
		*) hide "$d" ;;
		esac
	done
	for d in $private; do
		hide "/$d"
	done
}

# private is what a host has of its own and never sees of the machine.
private="etc/fleet etc/ssh etc/ssl/private etc/sudoers.d etc/cron.d etc/systemd/system etc/machine-id
	var/log var/lib/fleet var/lib/postgresql var/lib/mysql var/lib/docker var/lib/containerd var/lib/systemd
	var/mail var/spool var/tmp var/backups var/cache/debconf/passwords.dat usr/bin/fleet usr/local/bin"

hide() { # hide PATH
	[ -e "$1" ] || [ -L "$1" ] || return 0
	mkdir -p "$disk/upper$(dirname "$1")"
	mknod "$disk/upper$1" c 0 0
}

overlay() {
	mount -t overlay fleetlab -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$new"
}

# personalise gives the host what it has of its own.
personalise() {
	(
		cd "$new"
		mkdir -p boot root tmp home mnt media srv opt usr/local/bin etc/fleet etc/ssl/private etc/systemd/system \
			var/log/journal var/log/apt var/lib/fleet var/lib/systemd var/spool var/tmp var/backups
		chmod 700 root etc/ssl/private var/lib/fleet
		chmod 1777 tmp var/tmp
		echo "$NAME" >etc/hostname
		printf '%s' "$DIR/$NAME" | md5sum | cut -c 1-32 >etc/machine-id
		cp "$DIR/hosts" etc/hosts
		: >etc/resolv.conf
		: >etc/fstab
		# Nobody's password of the machine.
		sed -i -E 's/^([^:]+):[^:]*/\1:*/' etc/shadow
		cp "$DIR/fleet" usr/local/bin/fleet

		# What a unit would do to the machine it must not do from here, and
		# what a host without hardware has no use for.
		for unit in dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
			sys-kernel-config.mount sys-fs-fuse-connections.mount systemd-modules-load.service systemd-sysctl.service \
			systemd-udevd.service systemd-udev-trigger.service systemd-logind.service systemd-timesyncd.service \
			systemd-networkd.service systemd-update-utmp.service systemd-remount-fs.service systemd-oomd.service getty.target; do
			ln -s /dev/null "etc/systemd/system/$unit"
		done
		ln -s /lib/systemd/system/multi-user.target etc/systemd/system/default.target
	)
}

# kernel mounts what a kernel shows, with what is the machine's read-only.
kernel() {
	mount -t proc proc "$new/proc"
	for p in sys sysrq-trigger; do
		[ -e "$new/proc/$p" ] || continue
		mount --bind "$new/proc/$p" "$new/proc/$p"
		mount -o remount,bind,ro "$new/proc/$p"
	done
	mount -t sysfs sysfs "$new/sys"
	mount -t tmpfs -o mode=755 tmpfs "$new/sys/fs/cgroup"
	while read -r type at options; do
		mkdir -p "$new$at"
		mount -t "$type" ${options:+-o "$options"} cgroup "$new$at"
	done <"$DIR/hierarchies"
	mount -o remount,bind,ro "$new/sys"

	mount -t tmpfs -o mode=755 tmpfs "$new/dev"
	for d in null zero full random urandom tty; do
		: >"$new/dev/$d"
		mount --bind "/dev/$d" "$new/dev/$d"
	done
	mkdir "$new/dev/pts" "$new/dev/shm" "$new/dev/mqueue"
	mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$new/dev/pts"
	mount -t tmpfs -o mode=1777 tmpfs "$new/dev/shm"
	ln -s pts/ptmx "$new/dev/ptmx"
	ln -s /proc/self/fd "$new/dev/fd"
	ln -s /proc/self/fd/0 "$new/dev/stdin"
	ln -s /proc/self/fd/1 "$new/dev/stdout"
	ln -s /proc/self/fd/2 "$new/dev/stderr"
	mount -t tmpfs -o mode=755 tmpfs "$new/run"
	mkdir "$new/run/lock" "$new/run/lab"
	mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"
}

# drop takes from a host what would reach the machine: its clock, modules,
# hardware and kernel log.
drop="setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-syslog,-wake_alarm --inh-caps=-all"

case $stage in
wire)
	wire
	exec unshare --mount --uts --ipc --cgroup --pid --fork --kill-child --propagation private \
		/bin/sh "$0" root "$@"
	;;
root)
	hostname "$NAME"
	overlay
	[ -e "$disk/installed" ] || { personalise; : >"$disk/installed"; }
	kernel
	mount --bind "$disk/data" "$new/var/lib/fleet"
	cd "$new"
	mkdir -p .old
	pivot_root . .old
	umount -l /.old
	rmdir /.old
	# A new file in the host's own /run says that all of the above is done.
	: >/run/lab/up
	if [ "$INIT" = systemd ]; then
		exec env -i container=fleetlab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
			$drop -- /lib/systemd/systemd --log-target=journal --show-status=no
	fi
	exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		$drop -- /bin/sh -c 'while :; do sleep 86400 & wait; done'
	;;
install)
	install
	;;
esac
