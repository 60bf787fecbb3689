// Package lab builds hosts to break: N of them on one Linux machine, each with
// a network cable, a root file system, a package database, a host name,
// control groups and, when asked for, a systemd of its own, and the real fleet
// binary on it. Tests cut cables, slow them, fill disks, kill, pause, power off
// and set clocks, and look at what fleet makes of it.
//
//	l := lab.New(t, lab.Options{Hosts: 3, Systemd: true})
//	h := l.Hosts()
//	h[0].Fleet("init", "--name", "acme", "--root-key", "/media/acme.key").OK()
//	l.Cut(h[0], h[1])                   // both ways
//	l.CutOneWay(h[1], h[2])             // what h[1] sends does not arrive at h[2]
//	l.Isolate(h[0])                     // from all others
//	l.Heal()
//	h[2].DropInbound()                  // a firewall of its own; only what it opens itself
//	h[1].Slow(2 * lab.Mbit)
//	h[1].FillDisk("/var/lib/fleet")     // the data directory is a small disk of its own
//	h[1].Pause(); h[1].Resume()         // SIGSTOP and SIGCONT to fleet
//	h[1].Kill()                         // SIGKILL to fleet
//	h[1].PowerOff(); h[1].Boot()        // all of the host at once; its disk stays
//	h[1].SkewClock(-24 * time.Hour)     // fleet's clock alone (Options.Clocks)
//
// It needs root, Linux with overlayfs, and ip, tc, nft, unshare, nsenter and
// setpriv (Debian: iproute2 nftables util-linux); terminals need tmux. Run the
// tests with "make test-lab".
//
// # What a host is
//
// A world (world.sh) is a process, mount and network namespace with a bridge in
// it. Each host (host.sh) lives inside it in process, mount, network, UTS, IPC
// and control group namespaces of its own. Its root is an overlay over the
// machine's: it has the machine's programs and its own everything else. What is
// the machine's business is not there: of the top level only /bin, /etc, /lib,
// /sbin, /usr and /var shine through, and of those not the machine's keys,
// password hashes, units, logs or spools. A host cannot set the machine's clock,
// load modules or change its kernel's settings. It is no prison: it runs tests
// as root, not strangers.
//
// Addresses are 10.77.0.N and fd77::N, for host N from 1; they exist in no
// namespace of the machine. A cut is made in the bridge, one rule for each
// direction, so a host's own firewall is its own. A slow cable is a token
// bucket at both ends (netem is not in every kernel, so there is no delay).
//
// # Everything it makes it removes
//
// No namespace, mount or address of a lab has a name outside of it: they end
// with the processes, and the processes are in control groups fleetlab-PID-N,
// below that of the test. What removes a lab is clean.sh, and there is no other
// way to end one. A process that waits for the end of a pipe from the test runs
// it: when the test ends, panics, is interrupted or is killed with SIGKILL.
// "make lab-clean" removes what even that left (both killed at once).
package lab
