package identity

import (
	"testing"
	"time"

	"fleet/node/fleet"
)

func TestCheckIssued(t *testing.T) {
	w, other := newWorld(t, 1), newWorld(t, 101)
	quorum, issuer := w.quorum.Public(), w.issuer.Public()
	cases := []struct {
		name      string
		der, root []byte
		role      fleet.Role
		node      fleet.NodeID
		key       fleet.PublicKey
		now       time.Time
		kind      fleet.Kind
		part      string // empty: accepted
	}{
		{"quorum", w.quorumDER, w.rootDER, fleet.RoleQuorum, w.node, quorum, w.now, 0, ""},
		{"issuer", w.issuerDER, w.rootDER, fleet.RoleIssuer, w.node, issuer, w.now, 0, ""},
		{"issuer as quorum", w.issuerDER, w.rootDER, fleet.RoleQuorum, w.node, issuer, w.now,
			fleet.Unauthenticated, "role issuer"},
		{"quorum as issuer", w.quorumDER, w.rootDER, fleet.RoleIssuer, w.node, quorum, w.now,
			fleet.Unauthenticated, "role quorum"},
		{"another host", w.quorumDER, w.rootDER, fleet.RoleQuorum, other.node, quorum, w.now,
			fleet.Unauthenticated, "another host or key"},
		{"another key", w.quorumDER, w.rootDER, fleet.RoleQuorum, w.node, issuer, w.now,
			fleet.Unauthenticated, "another host or key"},
		{"another root", w.quorumDER, other.rootDER, fleet.RoleQuorum, w.node, quorum, w.now,
			fleet.Unauthenticated, "of fleet"},
		{"signed by an issuer", w.agentDER, w.rootDER, fleet.RoleAgent, w.node, w.agent.Public(), w.now,
			fleet.Unauthenticated, "another issuer"},
		{"no root", w.quorumDER, w.quorumDER, fleet.RoleQuorum, w.node, quorum, w.now,
			fleet.Unauthenticated, "self-signed"},
		{"no certificate", nil, w.rootDER, fleet.RoleQuorum, w.node, quorum, w.now,
			fleet.Unauthenticated, "quorum certificate"},
		{"malformed root", w.quorumDER, nil, fleet.RoleQuorum, w.node, quorum, w.now,
			fleet.Unauthenticated, "root certificate"},
		{"expired", w.quorumDER, w.rootDER, fleet.RoleQuorum, w.node, quorum, w.now.Add(QuorumValidity + 1),
			fleet.Expired, "valid until"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := CheckIssued(c.der, c.root, c.role, c.node, c.key, c.now)
			if c.part != "" {
				wantKind(t, err, c.kind, c.part)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}
