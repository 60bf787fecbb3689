#!/bin/sh
# The world of a lab: the first process of a process, mount and network
# namespace in which every host of the lab lives. When it ends, so does all
# inside. It makes the bridge between the hosts and the rules by which cables
# are cut. Started by lab.New: world.sh DIR.
set -eu
DIR=$1

mount -t proc proc /proc
# The hosts' disks: a host that is powered off and booted again finds them.
mount -t tmpfs -o mode=700 fleetlab "$DIR/disks"

ip link set lo up
ip link add lab0 type bridge mcast_snooping 0
echo 0 >/proc/sys/net/ipv6/conf/lab0/accept_dad
ip addr add 10.77.0.254/24 dev lab0
ip -6 addr add fd77::fe/64 dev lab0 nodad
ip link set lab0 up

# Cables are cut in the switch, where no host can see or undo it, and each
# direction for itself. Who is where (ARP, neighbour discovery) passes: without
# an answer to it a cut of one direction would soon be one of both.
nft -f - <<'NFT'
table bridge lab {
	set cut { type ifname . ifname; }
	chain forward {
		type filter hook forward priority 0; policy accept;
		meta protocol arp accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		iifname . oifname @cut drop
	}
}
NFT

: >"$DIR/ready"
# From here on it only takes over orphans.
while :; do
	sleep 86400 &
	wait
done
