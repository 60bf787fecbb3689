//go:build linux

package lab

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"fleet/node/fleet"
)

// RootKey and Token are where Lab.Found keeps the fleet's root key and join
// token, on the first host and on all.
const (
	RootKey = "/media/acme.key"
	Token   = "/root/token"
)

// Found makes a fleet of all hosts and waits until every host has heard from
// the quorum. The first hosts vote: 1, 3 or 5. The first host holds the root
// key and the credential of the only operator. It is what most fault
// programmes begin with; the first hour itself is typed (TestFirstHour).
func (l *Lab) Found(voters int) {
	l.t.Helper()
	first := l.hosts[0]
	first.Fleet("init", "--name", "acme", "--root-key", RootKey, "--enroll-only").OK()
	first.StartAgent()
	first.WaitReady()
	if len(l.hosts) == 1 {
		return
	}
	first.Fleet("activation", "create", "--limit", fmt.Sprint(len(l.hosts)-1), "--token-file", Token).OK()
	l.each(func(h *Host) {
		if h != first {
			first.CopyTo(h, Token)
			h.Fleet("join", "--token-file", Token, "--enroll-only").OK()
			h.StartAgent()
			h.WaitReady()
		}
	})
	if voters > 1 {
		args := []string{"quorum", "add", "--root-key", RootKey, "--yes"}
		for _, h := range l.hosts[1:voters] {
			args = append(args, h.name)
		}
		first.Fleet(args...).OK()
	}
}

// StartAgent runs "fleet agent" on an enrolled host.
func (h *Host) StartAgent() *Proc {
	h.lab.t.Helper()
	return h.Start("fleet", "agent")
}

// Status is what the host's agent says about itself; no operator's key is used.
func (h *Host) Status() (*fleet.LocalStatus, error) {
	h.lab.t.Helper()
	// A home without a credential: the quorum is not asked, so that the
	// answer does not wait for one that is away.
	r := h.RunIn(Input{Env: []string{"HOME=/nonexistent"}}, "fleet", "status", "-o", "json")
	var s struct{ Host *fleet.LocalStatus }
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil || s.Host == nil {
		return nil, fmt.Errorf("%s: fleet status: exit code %d: %s%s", h.name, r.Code, r.Stdout, r.Stderr)
	}
	return s.Host, nil
}

// WaitReady waits until the host has heard from the quorum.
func (h *Host) WaitReady() {
	h.lab.t.Helper()
	h.lab.waitFor(h.name+" to hear from the quorum", func() bool {
		s, err := h.Status()
		return err == nil && s.QuorumReachable
	})
}

// Leader is the host that leads the quorum, as the given host says, or nil.
func (l *Lab) Leader(asked *Host) *Host {
	l.t.Helper()
	r := asked.Fleet("quorum", "ls", "-o", "json", "--timeout", "5s")
	if r.Code != 0 {
		return nil
	}
	var answer fleet.DescribeQuorumResult
	l.check(json.Unmarshal([]byte(r.Stdout), &answer))
	for _, m := range answer.Members {
		if i := slices.IndexFunc(l.hosts, func(h *Host) bool { return h.name == m.Name }); m.Leader && i >= 0 {
			return l.hosts[i]
		}
	}
	return nil
}

// WaitLeader waits until the quorum has a leader other than one that was.
func (l *Lab) WaitLeader(asked *Host, not *Host, limit time.Duration) *Host {
	l.t.Helper()
	var leader *Host
	l.Wait("a leader", limit, func() bool {
		leader = l.Leader(asked)
		return leader != nil && leader != not
	})
	return leader
}
