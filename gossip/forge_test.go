package gossip

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// memberlist's messages as its net.go declares them.
type (
	accusation struct {
		Incarnation uint32
		Node        string
		From        string
	}
	aliveMessage struct {
		Incarnation uint32
		Node        string
		Addr        []byte
		Port        uint16
		Meta        []byte
		Vsn         []uint8
	}
	nodeState struct {
		Name        string
		Addr        []byte
		Port        uint16
		Meta        []byte
		Incarnation uint32
		State       int
		Vsn         []uint8
	}
	pingMessage struct {
		SeqNo      uint32
		Node       string
		SourceAddr []byte `codec:",omitempty"`
		SourcePort uint16 `codec:",omitempty"`
		SourceNode string `codec:",omitempty"`
	}
)

const endOfRange = 1<<32 - 1

var goodVsn = []uint8{1, 5, 5, 1, 1, 1}

// encode writes messages of one kind as memberlist does, one after another.
func encode(t testing.TB, kind byte, values ...any) []byte {
	t.Helper()
	out := bytes.NewBuffer([]byte{kind})
	enc := codec.NewEncoder(out, &codec.MsgpackHandle{})
	for _, v := range values {
		if err := enc.Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func aliveAt(i int, addr netip.AddrPort, inc uint32, meta []byte) aliveMessage {
	return aliveMessage{
		Incarnation: inc, Node: string(nodeID(i)), Addr: addr.Addr().AsSlice(), Port: addr.Port(), Meta: meta, Vsn: goodVsn,
	}
}

func stateAt(i int, state int, inc uint32, meta []byte) nodeState {
	return nodeState{
		Name: string(nodeID(i)), Addr: hostAddr(i).Addr().AsSlice(), Port: hostAddr(i).Port(), Meta: meta,
		Incarnation: inc, State: state, Vsn: goodVsn,
	}
}

func pushPull(t testing.TB, states ...nodeState) []byte {
	t.Helper()
	values := []any{pushPullHeader{Nodes: len(states)}}
	for _, s := range states {
		values = append(values, s)
	}
	return encode(t, msgPushPull, values...)
}

// attacker is a member gone bad: it holds the gossip key and a way to the
// stream port, but no issuing key.
type attacker struct {
	t      *testing.T
	s      *sim
	socket net.PacketConn
	keys   *keyring
}

const evil = 666

func (s *sim) attacker(t *testing.T) *attacker {
	t.Helper()
	p, err := s.host(evil).ListenPacket(7790)
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKeyring(testKeys, label(testFleet, ""))
	if err != nil {
		t.Fatal(err)
	}
	return &attacker{t: t, s: s, socket: p, keys: k}
}

// say sends a sealed packet to hosts.
func (a *attacker) say(message []byte, to ...int) {
	a.t.Helper()
	for _, i := range to {
		if _, err := a.socket.WriteTo(a.keys.seal(message), net.UDPAddrFromAddrPort(hostAddr(i))); err != nil {
			a.t.Fatal(err)
		}
	}
}

// exchange sends a message over a stream and returns whether an answer came.
func (a *attacker) exchange(to int, message []byte) bool {
	a.t.Helper()
	conn, err := a.s.host(evil).DialContext(a.t.Context(), "tcp", hostAddr(to).String())
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	s := &stream{Conn: conn, label: label(testFleet, ""), limit: 64 << 20, onClose: func() {},
		believe: func(b []byte) ([]byte, error) { return b, nil }}
	if _, err := s.Write(message); err != nil {
		a.t.Fatal(err)
	}
	_, err = io.ReadAll(s)
	return err == nil
}

func everybody(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i + 1
	}
	return out
}

func converged(t *testing.T, rings []*Ring) {
	t.Helper()
	eventually(t, time.Minute, "everybody sees everybody", func() bool {
		for _, r := range rings {
			if alive(r) != len(rings) {
				return false
			}
		}
		return true
	})
}

// What a member gone bad says about a victim changes nothing that lasts. Each
// case says something once or for a while; afterwards every ring must show the
// victim alive at its own address, and a ring that starts later must join.
func TestForgedClaims(t *testing.T) {
	const n, victim = 6, 2
	elsewhere := netip.MustParseAddrPort("10.6.6.6:7790")
	cases := []struct {
		name   string
		attack func(a *attacker, s *sim, rings []*Ring)
		always bool // the victim may not even be doubted meanwhile
	}{
		{"dead at the end of the range", func(a *attacker, s *sim, _ []*Ring) {
			a.say(encode(t, msgDead, accusation{endOfRange, string(nodeID(victim)), string(nodeID(evil))}), everybody(n)...)
		}, true},
		{"dead just before the end", func(a *attacker, s *sim, _ []*Ring) {
			a.say(encode(t, msgDead, accusation{endOfRange - 1, string(nodeID(victim)), string(nodeID(evil))}), everybody(n)...)
		}, true},
		{"suspect at the end of the range", func(a *attacker, s *sim, _ []*Ring) {
			a.say(encode(t, msgSuspect, accusation{endOfRange, string(nodeID(victim)), string(nodeID(evil))}), everybody(n)...)
		}, true},
		{"alive at the end of the range", func(a *attacker, s *sim, _ []*Ring) {
			a.say(encode(t, msgAlive, aliveAt(victim, hostAddr(victim), endOfRange, s.records[victim])), everybody(n)...)
		}, true},
		{"dead", func(a *attacker, s *sim, _ []*Ring) {
			a.say(encode(t, msgDead, accusation{1000, string(nodeID(victim)), string(nodeID(evil))}), 1, 3, 4)
		}, true},
		{"left", func(a *attacker, s *sim, _ []*Ring) {
			a.say(encode(t, msgDead, accusation{1000, string(nodeID(victim)), string(nodeID(victim))}), 1, 3, 4)
		}, true},
		{"the highest accusation that counts, again and again", func(a *attacker, s *sim, _ []*Ring) {
			for i := range uint32(20) {
				a.say(encode(t, msgDead, accusation{maxAccused + i, string(nodeID(victim)), string(nodeID(evil))}), everybody(n)...)
				time.Sleep(100 * time.Millisecond)
			}
		}, true},
		{"the highest alive that counts, then dead", func(a *attacker, s *sim, _ []*Ring) {
			a.say(encode(t, msgAlive, aliveAt(victim, hostAddr(victim), maxAlive, s.records[victim])), everybody(n)...)
			a.say(encode(t, msgDead, accusation{maxAlive, string(nodeID(victim)), string(nodeID(evil))}), everybody(n)...)
		}, true},
		{"in a compound", func(a *attacker, s *sim, _ []*Ring) {
			dead := encode(t, msgDead, accusation{endOfRange, string(nodeID(victim)), string(nodeID(evil))})
			a.say(joinCompound([][]byte{dead, dead}), everybody(n)...)
			a.say(append([]byte{msgCRC, 0, 0, 0, 0}, joinCompound([][]byte{dead, dead})...), everybody(n)...)
			a.say(joinCompound([][]byte{joinCompound([][]byte{dead})}), everybody(n)...)
		}, true},
		{"in a state exchange", func(a *attacker, s *sim, _ []*Ring) {
			for i := range n {
				for state := range 4 {
					a.exchange(i+1, pushPull(t, stateAt(victim, state, endOfRange, s.records[victim])))
				}
				a.exchange(i+1, pushPull(t, stateAt(victim, stateLeft, 1000, s.records[victim])))
			}
		}, false}, // six suspect at once: the answer may miss one of them until the next state exchange
		{"takeover of the name", func(a *attacker, s *sim, _ []*Ring) {
			mine := s.record(evil, func(r *identity.NodeRecord) { r.Addr = elsewhere })
			for range 50 {
				a.say(encode(t, msgDead, accusation{1000, string(nodeID(victim)), string(nodeID(victim))}), 1, 3, 4)
				for _, meta := range [][]byte{nil, s.records[victim], mine} {
					a.say(encode(t, msgAlive, aliveAt(victim, elsewhere, 2000, meta)), everybody(n)...)
				}
				time.Sleep(100 * time.Millisecond)
			}
		}, true},
		{"an older record", func(a *attacker, s *sim, rings []*Ring) {
			old := s.records[victim]
			time.Sleep(time.Minute)
			s.mu.Lock()
			s.records[victim] = s.record(victim, nil)
			s.mu.Unlock()
			if err := rings[victim-1].UpdateRecord(); err != nil {
				t.Error(err)
			}
			converged(t, rings)
			time.Sleep(time.Minute)
			a.say(encode(t, msgAlive, aliveAt(victim, hostAddr(victim), 1<<30, old)), everybody(n)...)
			for range 100 {
				time.Sleep(time.Millisecond)
				for _, r := range rings {
					if m, _ := find(r, victim); m.Epoch != mustParse(t, s.records[victim]).Epoch {
						t.Fatalf("%s holds the record of %d", r.cfg.Self, m.Epoch)
					}
				}
			}
		}, false},
		{"versions that nobody shares", func(a *attacker, s *sim, rings []*Ring) {
			m := aliveAt(victim, hostAddr(victim), 3000, s.records[victim])
			for _, vsn := range [][]uint8{{1, 5, 5, 9, 9, 9}, {5, 5, 5, 0, 0, 0}, {1, 5, 2, 1, 1, 1}, {0, 0, 0, 0, 0, 0}, {1}, nil} {
				m.Vsn = vsn
				a.say(encode(t, msgAlive, m), everybody(n)...)
				st := stateAt(victim, stateAlive, 3000, s.records[victim])
				st.Vsn = vsn
				for i := range n {
					a.exchange(i+1, pushPull(t, st))
				}
			}
		}, true},
		{"a flood about everybody", func(a *attacker, s *sim, _ []*Ring) {
			for i := range 10 * 1000 {
				who := string(nodeID(i%n + 1))
				a.say(encode(t, []byte{msgDead, msgSuspect}[i%2], accusation{uint32(i), who, string(nodeID(evil))}), i/n%n+1)
				time.Sleep(time.Millisecond)
			}
		}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t)
				rings := s.ring(n)
				converged(t, rings)
				time.Sleep(time.Minute)
				doubts := 0
				watch := func() {
					for _, r := range rings {
						m, ok := find(r, victim)
						if !ok || m.State != Alive {
							doubts++
						}
						if ok && m.Addr != hostAddr(victim) {
							t.Fatalf("%s sees the victim at %s", r.cfg.Self, m.Addr)
						}
						if len(r.Members()) > n {
							t.Fatalf("%s has members that do not exist: %v", r.cfg.Self, r.Members())
						}
					}
				}
				stop := make(chan struct{})
				go func() {
					for {
						select {
						case <-stop:
							return
						case <-time.After(100 * time.Millisecond):
							watch()
						}
					}
				}()
				c.attack(s.attacker(t), s, rings)
				time.Sleep(time.Minute)
				close(stop)
				synctest.Wait()
				if c.always && doubts > 0 {
					t.Errorf("the victim was doubted in %d looks", doubts)
				}
				converged(t, rings)
				late := s.start(n+1, func(c *Config) { c.Seeds = func() []Seed { return s.seeds } })
				converged(t, append(rings, late))
			})
		})
	}
}

// memberlist refuses every join for the sake of one member with versions that
// do not overlap with the others'. A member that claims such for itself must
// not get that far.
func TestVersionsDoNotStopJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		rings := s.ring(3)
		converged(t, rings)
		a := s.attacker(t)
		m := aliveAt(evil, hostAddr(evil), 1, s.record(evil, nil))
		st := stateAt(evil, stateAlive, 1, m.Meta)
		for _, vsn := range [][]uint8{{1, 5, 5, 9, 9, 9}, {5, 5, 5, 1, 1, 1}, {1, 5, 2, 1, 1, 1}, {1, 4, 4, 1, 1, 1}, {1, 5, 5, 1, 1, 0}} {
			m.Vsn, st.Vsn = vsn, vsn
			m.Incarnation++
			a.say(encode(t, msgAlive, m), 1, 2, 3)
			a.exchange(1, pushPull(t, st))
			time.Sleep(time.Second)
			late := s.start(9, nil)
			if _, err := late.Join(t.Context(), []Seed{seedOf(1)}); err != nil {
				t.Errorf("versions %v: %v", vsn, err)
			}
			if got := alive(late); got != 4 {
				t.Errorf("versions %v: the joiner sees %d alive, want 4", vsn, got)
			}
			_ = late.Close()
			s.host(9).Kill()
			time.Sleep(10 * time.Minute) // until it is forgotten
		}
	})
}

// After all attacks a member that is really gone is still noticed.
func TestDeathAfterAttack(t *testing.T) {
	for name, inc := range map[string]uint32{"accused": maxAccused, "claimed alive": maxAlive} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t)
				rings := s.ring(6)
				converged(t, rings)
				a := s.attacker(t)
				a.say(encode(t, msgDead, accusation{min(inc, maxAccused), string(nodeID(2)), "x"}), everybody(6)...)
				a.say(encode(t, msgAlive, aliveAt(2, hostAddr(2), inc, s.records[2])), everybody(6)...)
				time.Sleep(time.Minute)
				converged(t, rings)
				s.host(2).Down()
				took := eventually(t, 3*time.Minute, "the death is noticed", func() bool {
					for i, r := range rings {
						if m, _ := find(r, 2); i != 1 && m.State != Suspect {
							return false
						}
					}
					return true
				})
				t.Logf("noticed in %s", took)
				_ = rings[1].Close()
				s.host(2).Up()
				rings[1] = s.start(2, func(c *Config) { c.Seeds = func() []Seed { return s.seeds } })
				took = eventually(t, 10*time.Minute, "it comes back", func() bool {
					for _, r := range rings {
						if alive(r) != 6 {
							return false
						}
					}
					return true
				})
				t.Logf("back in %s", took)
			})
		})
	}
}

func TestGhosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		rings := s.ring(3)
		converged(t, rings)
		a := s.attacker(t)
		stranger := identity.KeyFromSeed([32]byte{66})
		forged, err := identity.SignNodeRecord(stranger, identity.NodeRecord{
			Role: fleet.RoleAgent, Node: nodeID(50), Addr: hostAddr(50),
			Epoch: uint32(time.Now().Unix()), Expiry: uint32(time.Now().Unix()) + 1000,
		})
		if err != nil {
			t.Fatal(err)
		}
		broken := bytes.Clone(s.record(50, nil))
		broken[len(broken)-1] ^= 1
		now := time.Now()
		for name, meta := range map[string][]byte{
			"none": nil, "garbage": bytes.Repeat([]byte{1}, 110), "another's": s.records[1], "strange issuer": forged, "altered": broken,
			"expired": s.record(50, func(r *identity.NodeRecord) {
				r.Epoch, r.Expiry = uint32(now.Add(-2*time.Hour).Unix()), uint32(now.Add(-time.Hour).Unix())
			}),
			"from the future": s.record(50, func(r *identity.NodeRecord) { r.Epoch = uint32(now.Add(time.Hour).Unix()) }),
			"another cell":    s.record(50, func(r *identity.NodeRecord) { r.Cell = "b" }),
			"another address": s.record(50, func(r *identity.NodeRecord) { r.Addr = hostAddr(51) }),
			"too long":        bytes.Repeat([]byte{1}, 500),
		} {
			a.say(encode(t, msgAlive, aliveAt(50, hostAddr(50), 1, meta)), 1, 2, 3)
			a.exchange(1, pushPull(t, stateAt(50, stateAlive, 1, meta)))
			synctest.Wait()
			time.Sleep(time.Second)
			for _, r := range rings {
				if _, ok := find(r, 50); ok {
					t.Errorf("%s: %s took the ghost in", name, r.cfg.Self)
				}
			}
		}
		for _, bad := range []string{"", "x", "mi-", "MI-00000000000000050", "../../../../../etc/x"} {
			m := aliveAt(50, hostAddr(50), 1, s.record(50, nil))
			m.Node = bad
			a.say(encode(t, msgAlive, m), 1)
		}
		time.Sleep(time.Second)
		if got := len(rings[0].Members()); got != 3 {
			t.Errorf("%d members", got)
		}
		if st := rings[0].Stats(); st.RecordsRefused == 0 || st.ClaimsRefused == 0 {
			t.Errorf("nothing was counted: %+v", st)
		}
		// With a true record it is let in: the test above tests something.
		a.say(encode(t, msgAlive, aliveAt(50, hostAddr(50), 1, s.record(50, nil))), 1)
		time.Sleep(time.Second)
		if _, ok := find(rings[0], 50); !ok {
			t.Error("a true record was refused")
		}
	})
}

func TestMembersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		r := s.start(1, func(c *Config) { c.MaxMembers = 10 })
		a := s.attacker(t)
		for i := 100; i < 130; i++ { // true records of hosts that do not answer
			a.say(encode(t, msgAlive, aliveAt(i, hostAddr(i), 1, s.record(i, nil))), 1)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond)
		if got := len(r.Members()); got != 10 {
			t.Errorf("%d members, want 10", got)
		}
		time.Sleep(5 * time.Minute) // they turn out not to answer and make room
		if got := alive(r); got != 1 {
			t.Errorf("%d alive, want 1", got)
		}
		a.say(encode(t, msgAlive, aliveAt(200, hostAddr(200), 1, s.record(200, nil))), 1)
		time.Sleep(time.Millisecond)
		if _, ok := find(r, 200); !ok || len(r.Members()) > 10 {
			t.Errorf("no room was made: %v", r.Members())
		}
	})
}

func TestHostileStreamsAndPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		rings := s.ring(3)
		converged(t, rings)
		time.Sleep(time.Minute)
		before := rings[0].Stats()
		if before.PacketsRefused+before.ClaimsRefused+before.StreamsRefused+before.RecordsRefused+before.PacketsDropped != 0 {
			t.Errorf("honest members were refused: %+v", before)
		}
		a := s.attacker(t)
		raw := func(b []byte) {
			if _, err := a.socket.WriteTo(b, net.UDPAddrFromAddrPort(hostAddr(1))); err != nil {
				t.Fatal(err)
			}
		}
		other, err := newKeyring([][]byte{bytes.Repeat([]byte{8}, 32)}, label(testFleet, ""))
		if err != nil {
			t.Fatal(err)
		}
		cell, err := newKeyring(testKeys, label(testFleet, "b"))
		if err != nil {
			t.Fatal(err)
		}
		suspect := encode(t, msgSuspect, accusation{5, string(nodeID(2)), "x"})
		sealed := a.keys.seal(suspect)
		flipped := bytes.Clone(sealed)
		flipped[40] ^= 1
		version := bytes.Clone(sealed)
		version[0] = 2
		for _, b := range [][]byte{
			nil, {1}, suspect, other.seal(suspect), cell.seal(suspect), flipped, version, sealed[:len(sealed)-1],
			a.keys.seal(make([]byte, maxPacketSize)), bytes.Repeat([]byte{1}, 60000),
		} {
			raw(b)
		}
		time.Sleep(time.Second)
		if got := rings[0].Stats().PacketsRefused - before.PacketsRefused; got != 10 {
			t.Errorf("%d packets refused, want 10", got)
		}

		header := func(label string, n uint32) []byte {
			b := append([]byte{streamVersion, byte(len(label))}, label...)
			return binary.BigEndian.AppendUint32(b, n)
		}
		open := func() net.Conn {
			c, err := s.host(evil).DialContext(t.Context(), "tcp", hostAddr(1).String())
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(5 * time.Minute))
			return c
		}
		ring := label(testFleet, "")
		for name, b := range map[string][]byte{
			"another version": {9, 0},
			"another cell":    header(label(testFleet, "b"), 10),
			"too long":        header(ring, 1<<20+1),
			"very long":       header(ring, 1<<32-1),
			"user message":    append(header(ring, 2), 8, 0x80),
			"compressed":      append(header(ring, 2), 9, 0x80),
			"encrypted":       append(header(ring, 2), 10, 0x80),
			"nothing":         header(ring, 0),
		} {
			c := open()
			_, _ = c.Write(b)
			start := time.Now()
			if _, err := io.ReadAll(c); err != nil || time.Since(start) > time.Second {
				t.Errorf("%s: %v after %s", name, err, time.Since(start))
			}
			_ = c.Close()
		}
		for _, b := range [][]byte{nil, {streamVersion}, header(ring, 1<<20)} { // and silence
			c := open()
			_, _ = c.Write(b)
			start := time.Now()
			if _, err := io.ReadAll(c); err != nil || time.Since(start) > 11*time.Second {
				t.Errorf("silence after %d bytes: %v after %s", len(b), err, time.Since(start))
			}
			_ = c.Close()
		}
		refused := rings[0].Stats().StreamsRefused
		for range maxInbound + 5 {
			open()
			synctest.Wait()
		}
		if got := rings[0].Stats().StreamsRefused - refused; got != 5 {
			t.Errorf("%d streams refused, want 5", got)
		}
		time.Sleep(time.Minute)
		converged(t, rings)
	})
}

func mustParse(t testing.TB, raw []byte) identity.NodeRecord {
	t.Helper()
	r, err := identity.ParseNodeRecord(raw)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
