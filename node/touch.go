package node

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"fleet/node/fleet"
)

// Codes of the warnings about this host and the voters.
const (
	WarnUnreachable = "Unreachable"
	WarnVersion     = "VersionSkew"
)

// touch is what this host's heartbeats say of each voter: whether it answered
// the last one, and which version it runs. The zero value is empty.
type touch struct {
	mu   sync.Mutex // guards rows
	rows map[fleet.NodeID]touchRow
}

type touchRow struct {
	failed  time.Time // since when it has not answered; zero when it did
	at      time.Time // of the last try
	version string    // "" while it is not known
}

func (t *touch) change(voter fleet.NodeID, f func(*touchRow)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rows == nil {
		t.rows = map[fleet.NodeID]touchRow{}
	}
	row := t.rows[voter]
	f(&row)
	t.rows[voter] = row
}

// note records the end of one heartbeat.
func (t *touch) note(voter fleet.NodeID, now time.Time, err error) {
	t.change(voter, func(r *touchRow) {
		r.at = now
		switch {
		case err == nil:
			r.failed = time.Time{}
		case r.failed.IsZero():
			r.failed = now
		}
	})
}

func (t *touch) runs(voter fleet.NodeID, version string) {
	if version != "" {
		t.change(voter, func(r *touchRow) { r.version = version })
	}
}

// of gives the rows of hosts that vote now.
func (t *touch) of(voters []fleet.NodeID) map[fleet.NodeID]touchRow {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.rows, func(id fleet.NodeID, _ touchRow) bool { return !slices.Contains(voters, id) })
	return maps.Clone(t.rows)
}

// unreached decides at now whether the voter counts as not reached. One
// heartbeat that failed is no news: a voter, this host too, may just be starting.
func (r touchRow) unreached(now time.Time, interval time.Duration) bool {
	return !r.failed.IsZero() && r.at.Sub(r.failed) >= interval/2 && now.Sub(r.at) < touchFresh*interval
}

// touchFresh is for how long a heartbeat that was not answered counts, in
// heartbeats: a voter in second place is not asked again while others answer.
const touchFresh = 4

// touchWarnings says which voters this host cannot reach, and whether it runs
// another version than they do.
func (n *Node) touchWarnings() []fleet.Warning {
	voters := n.voters()
	rows := n.touch.of(voters)
	now := n.cfg.Now()
	var unreached, versions []string
	for _, id := range slices.SortedFunc(maps.Keys(rows), func(a, b fleet.NodeID) int { return cmp.Compare(n.nameOf(a), n.nameOf(b)) }) {
		row := rows[id]
		if row.unreached(now, n.heartbeatInterval()) {
			unreached = append(unreached, strings.TrimSpace(n.nameOf(id)+" "+n.view.anyAddress(id)))
		}
		if row.version != "" && !slices.Contains(versions, row.version) {
			versions = append(versions, row.version)
		}
	}
	return slices.Concat(unreachableWarning(unreached, len(voters)), skewWarning(n.cfg.Version, versions))
}

func unreachableWarning(unreached []string, voters int) []fleet.Warning {
	if len(unreached) == 0 {
		return nil
	}
	return []fleet.Warning{{
		Code: WarnUnreachable, Message: fmt.Sprintf("this host cannot reach %d of %d voters: %s", len(unreached), voters, strings.Join(unreached, ", ")),
		Remedy: "check that fleet runs there, and the way to the port: fleet doctor IP:PORT",
	}}
}

func skewWarning(mine string, voters []string) []fleet.Warning {
	if len(voters) == 0 || len(voters) == 1 && voters[0] == mine {
		return nil
	}
	message := fmt.Sprintf("this host runs fleet %s, the voters run %s", mine, strings.Join(voters, " and "))
	return []fleet.Warning{{
		Code: WarnVersion, Message: message,
		Remedy: "install one version everywhere, the voters first and one after the other",
	}}
}

// nameOf is a host's name as this host knows it, else its ID.
func (n *Node) nameOf(id fleet.NodeID) string {
	if name := n.name(id); name != string(id) {
		return name
	}
	return cmp.Or(n.view.name(id), string(id))
}

// anyAddress is where a host may answer.
func (v *view) anyAddress(id fleet.NodeID) string {
	if addr := v.address(id); addr != "" {
		return addr
	}
	return v.peer(id)
}
