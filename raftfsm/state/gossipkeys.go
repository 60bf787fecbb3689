package state

// GossipKeys are the keys of the ring. One is sealed with and, while a rotation
// goes on, one more is opened.
type GossipKeys struct {
	Version uint32      `msgpack:"v"` // rises with each step; 1 from genesis
	Keys    []GossipKey `msgpack:"k"` // one or two; the first seals, all open
	Stepped int64       `msgpack:"s"` // stamp of the last step
	Index   uint64      `msgpack:"i"` // log index at which the newest key was made; 0 for genesis
}

// GossipKey is one of them.
type GossipKey struct {
	N    uint32 `msgpack:"n"` // 1 from genesis; the next has the next number
	Key  []byte `msgpack:"k"` // it grants nothing
	Made int64  `msgpack:"m"` // stamp
}

// Spreading reports whether the newest key is opened but not yet sealed with.
func (g *GossipKeys) Spreading() bool { return len(g.Keys) == 2 && g.Keys[1].N > g.Keys[0].N }

// Retiring reports whether an old key is still opened.
func (g *GossipKeys) Retiring() bool { return len(g.Keys) == 2 && g.Keys[1].N < g.Keys[0].N }

// Newest is the key that was made last.
func (g *GossipKeys) Newest() GossipKey {
	if g.Spreading() {
		return g.Keys[1]
	}
	return g.Keys[0]
}

// Raw is the keys as a ring takes them.
func (g *GossipKeys) Raw() [][]byte {
	raw := make([][]byte, len(g.Keys))
	for i, k := range g.Keys {
		raw[i] = k.Key
	}
	return raw
}

// GossipKeys are the keys of the ring; nil before genesis.
func (v View) GossipKeys() *GossipKeys { return first[GossipKeys](v, "gossipkeys", "id", "") }

// WatchGossipKeys is closed when they change.
func (v View) WatchGossipKeys() <-chan struct{} { return v.watch("gossipkeys") }

// PutGossipKeys sets the keys of the ring.
func (t *Txn) PutGossipKeys(g *GossipKeys) { t.put("gossipkeys", g) }
