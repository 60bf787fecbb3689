package transport

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"

	"fleet/node/fleet"
)

// Proto is an application protocol as ALPN names it.
type Proto string

// Protocols of the port.
const (
	RPC     Proto = "h2"            // methods between hosts
	Raft    Proto = "fleet-raft"    // the quorum's log
	Gossip  Proto = "fleet-gossip"  // the stream side of the ring
	Reverse Proto = "fleet-reverse" // opened by a host, so that the quorum can call methods of it
	API     Proto = "fleet-api"     // operators
	Join    Proto = "fleet-join"    // hosts that are not enrolled yet
)

// Server names that name no particular host.
const (
	nameJoin   = "join"   // whatever identity the host holds, the quorum one if it can
	nameQuorum = "quorum" // any quorum host; for API only
)

// rule says who may meet on a protocol.
type rule struct {
	servers []fleet.Role // identities that a server may present, the preferred one first
	clients []fleet.Role // identities that a client may present; none: it presents none
	names   []string     // server names accepted besides "<role>.<node ID>"
	byID    bool         // "<role>.<node ID>" is accepted
}

// table is the whole policy of the port. Its matrix test tries every identity
// on every line.
var table = map[Proto]rule{
	RPC: {
		servers: []fleet.Role{fleet.RoleAgent, fleet.RoleQuorum},
		clients: []fleet.Role{fleet.RoleAgent, fleet.RoleQuorum},
		byID:    true,
	},
	Raft: {
		servers: []fleet.Role{fleet.RoleQuorum},
		clients: raftClients,
		byID:    true,
	},
	Gossip: {
		servers: []fleet.Role{fleet.RoleAgent},
		clients: []fleet.Role{fleet.RoleAgent},
		byID:    true,
	},
	Reverse: {
		servers: []fleet.Role{fleet.RoleQuorum},
		clients: []fleet.Role{fleet.RoleAgent},
		byID:    true,
	},
	API: {
		servers: []fleet.Role{fleet.RoleQuorum},
		names:   []string{nameQuorum},
		byID:    true,
	},
	Join: {
		servers: []fleet.Role{fleet.RoleQuorum, fleet.RoleAgent},
		names:   []string{nameJoin},
	},
}

// serverName is the SNI that asks for a role of a node.
func serverName(role fleet.Role, node fleet.NodeID) string {
	return role.String() + "." + string(node)
}

// choose finds the identity that a server name asks for among those held: the
// certificate, or nil.
func (r rule) choose(name string, id fleet.ID, held func(fleet.Role) *tls.Certificate) *tls.Certificate {
	for _, role := range r.servers {
		cert := held(role)
		if cert == nil {
			continue
		}
		if slices.Contains(r.names, name) {
			return cert
		}
		if r.byID && name == serverName(role, nodeOf(cert, id, role)) {
			return cert
		}
	}
	return nil
}

// nodeOf is the node that a certificate of our own names; empty if it does not
// name one in that role, which matches no server name.
func nodeOf(cert *tls.Certificate, id fleet.ID, role fleet.Role) fleet.NodeID {
	leaf := cert.Leaf
	if leaf == nil {
		if len(cert.Certificate) == 0 {
			return ""
		}
		parsed, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			return ""
		}
		leaf = parsed
	}
	if len(leaf.URIs) != 1 {
		return ""
	}
	node, ok := strings.CutPrefix(leaf.URIs[0].String(), "fleet://"+string(id)+"/"+role.String()+"/")
	if !ok {
		return ""
	}
	return fleet.NodeID(node)
}
