package enrol

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/memnet"
	"fleet/node/wire"
)

// bubble runs a test in fake time, with a fleet on an in-memory network. It
// also fails when a goroutine is left behind.
func bubble(t *testing.T, name string, f func(t *testing.T, w *world)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := memnet.New(1)
			t.Cleanup(n.Close)
			f(t, newWorld(t, n))
		})
	})
}

func TestJoin(t *testing.T) {
	bubble(t, "quorum host", func(t *testing.T, w *world) {
		w.quorumHost()
		token := w.activation(1, time.Hour, "10.0.0.1:7790")
		o := w.joinOptions(token)
		r := must[*JoinResult](t)(Join(t.Context(), o))
		checkJoined(t, w, o, r)
		if r.Name != "acme" || r.NodeName != "web01" || r.ClockOffset != 0 || len(r.Warnings) != 0 {
			t.Errorf("result %+v", r)
		}
		if row := w.fsm.Store().Node(r.Node); row.Labels["role"] != "web" || row.Address != o.Advertise {
			t.Errorf("row %+v", row)
		}
		if w.used(token) != 1 {
			t.Errorf("the activation was used %d times", w.used(token))
		}
		_, err := Join(t.Context(), o)
		wantError(t, err, fleet.Conflict, "already holds host")
		if w.used(token) != 1 {
			t.Error("joining an enrolled host counted")
		}
	})
	bubble(t, "ordinary host says where", func(t *testing.T, w *world) {
		w.quorumHost()
		w.serve("10.0.0.2", nil, w.agentCert(), func(c *ServerConfig) { c.Enrol = nil })
		o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.2:7790"))
		checkJoined(t, w, o, must[*JoinResult](t)(Join(t.Context(), o)))
	})
	bubble(t, "ordinary host is told nothing", func(t *testing.T, w *world) {
		var heard hello
		w.answering("10.0.0.2", nil, w.agentCert(), func(c net.Conn) {
			if err := readMessage(c, MaxMessage, &heard); err != nil {
				t.Error(err)
			}
		})
		_, err := Join(t.Context(), w.joinOptions(w.activation(1, time.Hour, "10.0.0.2:7790")))
		wantError(t, err, fleet.Unavailable, "10.0.0.2:7790")
		if heard.Version != 1 || len(heard.Request) != 0 {
			t.Errorf("an ordinary host heard %+v", heard)
		}
	})
	bubble(t, "a chain of redirects", func(t *testing.T, w *world) {
		to := func(addrs ...string) func(*ServerConfig) {
			return func(c *ServerConfig) {
				c.Enrol = nil
				c.Peers = func() (peers []Peer) {
					for _, a := range addrs {
						peers = append(peers, Peer{Node: w.result.Node, Address: a})
					}
					return peers
				}
			}
		}
		w.quorumHost()
		w.serve("10.0.0.2", nil, w.agentCert(), to("10.0.0.2:7790", "10.0.0.3:7790", "nonsense", "-oProxy:1", ""))
		w.serve("10.0.0.3", nil, w.agentCert(), to("10.0.0.2:7790", "10.0.0.1:7790"))
		o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.2:7790"))
		checkJoined(t, w, o, must[*JoinResult](t)(Join(t.Context(), o)))
	})
	bubble(t, "quorum host that does not vote yet", func(t *testing.T, w *world) {
		w.quorumHost()
		w.serve("10.0.0.2", w.quorumCert(), nil, func(c *ServerConfig) {
			c.Issuing = func() (*Issuing, error) { return nil, fleet.Errorf(fleet.Unavailable, "this host does not vote yet") }
			c.Enrol = func(context.Context, []byte) (*fleet.Node, error) {
				t.Error("it enrolled whom it cannot certify")
				return nil, errors.New("no")
			}
		})
		o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.2:7790"))
		checkJoined(t, w, o, must[*JoinResult](t)(Join(t.Context(), o)))
	})
	bubble(t, "the first addresses do not work", func(t *testing.T, w *world) {
		w.quorumHost()
		other := newWorld(t, w.net)
		other.serve("10.0.0.3", other.quorumCert(), nil)
		w.net.Host("10.0.0.4") // nothing listens
		w.quorumHostAt("10.0.0.5", func(c *ServerConfig) {
			c.Enrol = func(context.Context, []byte) (*fleet.Node, error) {
				return nil, fleet.Errorf(fleet.NoQuorum, "there is no leader")
			}
		})
		o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.3:7790", "10.0.0.4:7790", "10.0.0.5:7790", "10.0.0.66:7790", "10.0.0.1:7790"))
		checkJoined(t, w, o, must[*JoinResult](t)(Join(t.Context(), o)))
	})
	bubble(t, "without a name", func(t *testing.T, w *world) {
		w.quorumHost()
		o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.1:7790"))
		o.NodeName = ""
		if r := must[*JoinResult](t)(Join(t.Context(), o)); r.NodeName != "box" {
			t.Errorf("name %q; want the activation's", r.NodeName)
		}
	})
	bubble(t, "the same key again", func(t *testing.T, w *world) {
		// The first answer is lost after the row was decided.
		lost := errors.New("disk on fire")
		w.quorumHost(func(c *ServerConfig) {
			c.Enrol = func(ctx context.Context, request []byte) (*fleet.Node, error) {
				n, err := w.enrol(ctx, request)
				if lost != nil {
					n, err = nil, lost
					lost = nil
				}
				return n, err
			}
		})
		token := w.activation(1, time.Hour, "10.0.0.1:7790")
		o := w.joinOptions(token)
		_, err := Join(t.Context(), o)
		wantError(t, err, fleet.Other, "could not decide")
		if strings.Contains(err.Error(), "fire") {
			t.Errorf("the joiner was told %q", err)
		}
		notEnrolled(t, o.DataDir)
		row := w.fsm.Store().NodesByActivation(token.Activation)
		r := must[*JoinResult](t)(Join(t.Context(), o))
		checkJoined(t, w, o, r)
		if len(row) != 1 || row[0].ID != r.Node || w.used(token) != 1 {
			t.Errorf("rows %v, joined as %s, the activation was used %d times", row, r.Node, w.used(token))
		}
	})
	for name, off := range map[string]time.Duration{
		"an hour behind": -time.Hour, "an hour ahead": time.Hour, "a minute behind": -time.Minute, "a day behind": -23 * time.Hour,
		"forty days ahead": 40 * 24 * time.Hour, // the new certificate has ended by it
	} {
		bubble(t, "clock "+name, func(t *testing.T, w *world) {
			w.quorumHost()
			o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.1:7790"))
			o.Now = func() time.Time { return time.Now().Add(off) }
			r := must[*JoinResult](t)(Join(t.Context(), o))
			checkJoined(t, w, o, r)
			if r.ClockOffset != -off {
				t.Errorf("clock offset %s, want %s", r.ClockOffset, -off)
			}
			if off.Abs() <= ClockWarning {
				if len(r.Warnings) != 0 {
					t.Errorf("warnings %q", r.Warnings)
				}
				return
			}
			part := map[bool]string{true: " ahead of the fleet's", false: " behind the fleet's"}[off > 0]
			if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], off.Abs().String()+part) {
				t.Errorf("warnings %q; want one with %q", r.Warnings, part)
			}
		})
	}
}

func (w *world) quorumHostAt(ip string, change ...func(*ServerConfig)) {
	w.serve(ip, w.quorumCert(), nil, change...)
}

// TestTakenName: a second host of a name is enrolled, and told.
func TestTakenName(t *testing.T) {
	bubble(t, "twin", func(t *testing.T, w *world) {
		var twins []fleet.NodeID
		w.quorumHost(func(c *ServerConfig) { c.Twins = func(*fleet.Node) []fleet.NodeID { return twins } })
		token := w.activation(2, time.Hour, "10.0.0.1:7790")
		o := w.joinOptions(token)
		first := must[*JoinResult](t)(Join(t.Context(), o))
		if len(first.Warnings) != 0 {
			t.Errorf("the first of its name is warned: %q", first.Warnings)
		}
		twins, o.DataDir = []fleet.NodeID{first.Node, "no ID"}, t.TempDir()
		r := must[*JoinResult](t)(Join(t.Context(), o))
		want := "another host is called web01 too (" + string(first.Node) + "): "
		rename := "fleet node rename " + string(r.Node) + " NAME"
		if len(r.Warnings) != 1 || !strings.HasPrefix(r.Warnings[0], want) || !strings.HasSuffix(r.Warnings[0], rename) {
			t.Errorf("warnings %q, want one that begins with %q and ends with %q", r.Warnings, want, rename)
		}
	})
}

// TestWaits: while one address is silent and others are left, it is said which.
func TestWaits(t *testing.T) {
	bubble(t, "two of three are silent", func(t *testing.T, w *world) {
		w.quorumHost()
		var waited []string
		o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.1:7790"))
		o.Token.Addresses = []string{"10.0.0.2:7790", "10.0.0.3:7790"}
		o.Waits = func(addr string) { waited = append(waited, addr) }
		_, err := Join(t.Context(), o)
		wantError(t, err, fleet.Unavailable, "10.0.0.2:7790")
		if len(waited) != 1 { // of the last there is nothing to wait for
			t.Errorf("waited for %q", waited)
		}
	})
}

// TestSilentHostsCostLittle: who does not answer is not waited for, whichever is
// asked first, nor while another says where the quorum is.
func TestSilentHostsCostLittle(t *testing.T) {
	for _, tc := range []struct {
		name      string
		addresses []string
		most      time.Duration
	}{
		{"two silent, one answers", []string{"10.0.0.7:7790", "10.0.0.8:7790", "10.0.0.1:7790"}, 2*joinPatience + time.Second},
		{"one silent, one sends to the quorum", []string{"10.0.0.7:7790", "10.0.0.2:7790"}, joinPatience + time.Second},
	} {
		for range 5 { // the order is random
			bubble(t, tc.name, func(t *testing.T, w *world) {
				w.quorumHost()
				for _, ip := range []string{"10.0.0.7", "10.0.0.8"} {
					w.answering(ip, w.quorumCert(), nil, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
				}
				w.serve("10.0.0.2", nil, w.agentCert(), func(c *ServerConfig) {
					c.Enrol = nil
					c.Peers = func() []Peer { return []Peer{{Address: "10.0.0.7:7790"}, {Address: "10.0.0.1:7790"}} }
				})
				o := w.joinOptions(w.activation(1, time.Hour, tc.addresses...))
				begin := time.Now()
				checkJoined(t, w, o, must[*JoinResult](t)(Join(t.Context(), o)))
				if took := time.Since(begin); took > tc.most {
					t.Errorf("it took %s, want at most %s", took, tc.most)
				}
			})
		}
	}
}

// TestDiskFull: what a full disk stops says so, and what to do.
func TestDiskFull(t *testing.T) {
	d := &Dir{path: "/var/lib/fleet"}
	err := d.writeError("trust.json", &fs.PathError{Op: "write", Path: "/var/lib/fleet/.new-1", Err: syscall.ENOSPC})
	wantError(t, err, fleet.Unavailable, "the disk of /var/lib/fleet is full")
	if hint := fleet.HintOf(err); !strings.Contains(hint, "free some space") {
		t.Errorf("hint %q", hint)
	}
	if err := d.writeError("trust.json", fs.ErrPermission); fleet.HintOf(err) != "" || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
}

// TestClockTooWrong: before its clock is set such a host cannot even check whom
// it speaks to.
func TestClockTooWrong(t *testing.T) {
	for name, off := range map[string]time.Duration{"three days behind": -72 * time.Hour, "two years ahead": 2 * 365 * 24 * time.Hour} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.quorumHost()
			o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.1:7790"))
			o.Now = func() time.Time { return time.Now().Add(off) }
			_, err := Join(t.Context(), o)
			wantError(t, err, fleet.Expired, "10.0.0.1:7790")
			if n := strings.Count(err.Error(), "10.0.0.1:7790"); n != 1 {
				t.Errorf("the address stands %d times in %q", n, err)
			}
			if hint := fleet.HintOf(err); !strings.Contains(hint, "clock") {
				t.Errorf("hint %q", hint)
			}
			notEnrolled(t, o.DataDir)
		})
	}
}

// TestServerDecides is what costs an activation and what does not.
func TestServerDecides(t *testing.T) {
	named := func(t *testing.T, name string) []byte {
		p, _, err := identity.ParseJoinRequest(fixedHello(t).Request)
		if err != nil {
			t.Fatal(err)
		}
		p.Name = name
		return must[[]byte](t)(identity.NewJoinRequest(p, testKey('A', 1), identity.Code{4, 5, 6}))
	}
	own := string(fleet.NodeIDOf(testKey('A', 1).Public()))
	request := func(t *testing.T, addr string) []byte {
		h := fixedHello(t)
		p, _, err := identity.ParseJoinRequest(h.Request)
		if err != nil {
			t.Fatal(err)
		}
		p.Address = addr
		return must[[]byte](t)(identity.NewJoinRequest(p, testKey('A', 1), identity.Code{4, 5, 6}))
	}
	broken := errors.New("no issuing key")
	for _, tc := range []struct {
		name    string
		hello   *hello
		issuing error
		asked   bool
		kind    fleet.Kind // Other: an answer
		part    string
	}{
		{"only asks where", &hello{Version: 1}, nil, false, fleet.Other, ""},
		{"another version", &hello{Version: 2}, nil, false, fleet.Invalid, "version 2"},
		{"no version", &hello{Request: request(t, "10.0.0.9:7790")}, nil, false, fleet.Invalid, "version 0"},
		{"garbage", &hello{Version: 1, Request: []byte("x")}, nil, false, fleet.Invalid, "join request"},
		{"an address that fits no node record", &hello{Version: 1, Request: request(t, "web01.example.org:7790")}, nil, false, fleet.Invalid, "not IP:PORT"},
		{"named as another's ID", &hello{Version: 1, Request: named(t, "mi-0123456789abcdef0")}, nil, false, fleet.Invalid, "form of a node ID"},
		{"named as its own ID", &hello{Version: 1, Request: named(t, own)}, nil, true, fleet.Denied, "says the quorum"},
		{"this host does not vote", &hello{Version: 1, Request: request(t, "10.0.0.9:7790")}, fleet.Errorf(fleet.Unavailable, "not yet"), false, fleet.Other, ""},
		{"this host cannot sign", &hello{Version: 1, Request: request(t, "10.0.0.9:7790")}, broken, false, fleet.Other, "no issuing key"},
		{"in order", &hello{Version: 1, Request: request(t, "10.0.0.9:7790")}, nil, true, fleet.Denied, "says the quorum"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked := false
			s := NewServer(ServerConfig{
				Peers: func() []Peer { return testPeers },
				Enrol: func(context.Context, []byte) (*fleet.Node, error) {
					asked = true
					return nil, fleet.Errorf(fleet.Denied, "no, says the quorum")
				},
				Issuing: func() (*Issuing, error) { return &Issuing{}, tc.issuing },
				Now:     func() time.Time { return testStart }, Logger: quiet(),
			})
			a, err := s.decide(t.Context(), tc.hello)
			if asked != tc.asked {
				t.Errorf("the quorum was asked: %v, want %v", asked, tc.asked)
			}
			if tc.part != "" {
				wantError(t, err, tc.kind, tc.part)
			} else if err != nil || len(a.Peers) != len(testPeers) || len(a.Certificate) != 0 {
				t.Errorf("answer %+v, %v; want the quorum's addresses", a, err)
			}
		})
	}
}

// TestOrigin: a host whose row is older than this enrolment has lost its data,
// and may have run what was sent to it since.
func TestOrigin(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		key := testKey('A', 5)
		token := w.activation(1, 24*time.Hour)
		request := must[[]byte](t)(identity.NewJoinRequest(identity.JoinPayload{
			Fleet: w.result.Fleet, Activation: token.Activation, Key: key.Public(), Address: "10.0.0.9:7790", Epoch: uint32(time.Now().Unix()),
		}, key, token.Code))
		s := NewServer(w.config())
		first := time.Now().UnixNano()
		for _, tc := range []struct {
			after time.Duration
			want  int64
		}{
			{0, first}, {maxSkew, first}, {time.Hour, first + int64(maxSkew+time.Hour)},
		} {
			time.Sleep(tc.after)
			a := must[*answer](t)(s.decide(t.Context(), &hello{Version: 1, Request: request}))
			if a.Origin != tc.want {
				t.Errorf("%s later: origin %d, want %d", tc.after, a.Origin, tc.want)
			}
		}
	})
}

// checkJoined checks that a host is enrolled as the result says.
func checkJoined(t *testing.T, w *world, o JoinOptions, r *JoinResult) {
	t.Helper()
	d, f, err := OpenDir(o.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if f.Fleet != w.result.Fleet || r.Fleet != w.result.Fleet || f.Node != r.Node || f.Name != "acme" || f.Root() != w.result.Root || f.NodeName != r.NodeName {
		t.Errorf("fleet.json %+v, result %+v", f, r)
	}
	id := must[*Identity](t)(d.LoadIdentity(Agent))
	row := w.fsm.Store().Node(r.Node)
	if row == nil || row.Key != id.Key.Public() {
		t.Errorf("row %+v", row)
	}
	if _, err := os.Stat(d.File("journal")); err != nil {
		t.Errorf("journal: %v", err)
	}
	record := must[[]byte](t)(os.ReadFile(d.File("keys/node.record")))
	trust := must[*identity.Trust](t)(d.Trust(f.Root()))
	if rec, err := identity.VerifyNodeRecord(record, trust, time.Now()); err != nil || rec.Node != r.Node || rec.Addr.String() != o.Advertise {
		t.Errorf("node record %+v, %v", rec, err)
	}
	want := []Peer{{Node: w.result.Node, Address: "10.0.0.1:7790"}}
	if peers, err := d.Peers(); err != nil || !slices.Equal(peers, want) || !slices.Equal(r.Quorum, want) {
		t.Errorf("peers %v, %v; result %v", peers, err, r.Quorum)
	}
	if keys, err := d.GossipKeys(); err != nil || len(keys) != 1 || string(keys[0]) != string(w.fsm.Store().GossipKeys().Raw()[0]) {
		t.Errorf("gossip keys: %v", err)
	}
	for _, name := range files(t, d.Path()) {
		if info, err := os.Stat(d.File(name)); err != nil || name != "trust.json" && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, %v; others may read it", name, info.Mode(), err)
		}
	}
}

func TestJoinRefused(t *testing.T) {
	const at = "10.0.0.1:7790"
	for _, tc := range []struct {
		name string
		set  func(t *testing.T, w *world) identity.JoinToken
		kind fleet.Kind
		part string
		hint string
	}{
		{"expired activation", func(_ *testing.T, w *world) identity.JoinToken {
			token := w.activation(1, time.Hour, at)
			time.Sleep(2 * time.Hour)
			return token
		}, fleet.Expired, "expired at", "activation create"},
		{"spent activation", func(t *testing.T, w *world) identity.JoinToken {
			token := w.activation(1, time.Hour, at)
			must[*JoinResult](t)(Join(t.Context(), w.joinOptions(token)))
			return token
		}, fleet.Throttled, "is spent: 1 of 1", "activation create --limit N"},
		{"unknown activation", func(_ *testing.T, w *world) identity.JoinToken {
			token := w.activation(1, time.Hour, at)
			token.Activation = "00000000-0000-4000-8000-ffffffffffff"
			return token
		}, fleet.NotFound, "activation", ""},
		{"wrong code", func(_ *testing.T, w *world) identity.JoinToken {
			token := w.activation(1, time.Hour, at)
			token.Code[5] ^= 1
			return token
		}, fleet.Unauthenticated, "code is wrong", "whole token"},
		{"another fleet's token", func(t *testing.T, w *world) identity.JoinToken {
			token := newWorld(t, w.net).activation(1, time.Hour, at)
			return token
		}, fleet.Unauthenticated, "belongs to another fleet (root fingerprint", "addresses in the token"},
		{"another fleet's and a dead address", func(t *testing.T, w *world) identity.JoinToken {
			token := newWorld(t, w.net).activation(1, time.Hour, "10.0.0.4:7790", at, "10.0.0.5:7790")
			w.net.Host("10.0.0.4")
			w.net.Host("10.0.0.5")
			return token
		}, fleet.Unauthenticated, "belongs to another fleet (root fingerprint", "addresses in the token"},
		{"nobody there", func(_ *testing.T, w *world) identity.JoinToken {
			w.net.Host("10.0.0.4")
			return w.activation(1, time.Hour, "10.0.0.4:7790")
		}, fleet.Unavailable, "10.0.0.4:7790", "check that these hosts run"},
		{"no address", func(_ *testing.T, w *world) identity.JoinToken { return w.activation(1, time.Hour) }, fleet.Invalid, "names no address", "--address"},
		{"redirected in a circle", func(_ *testing.T, w *world) identity.JoinToken {
			w.serve("10.0.0.2", nil, w.agentCert(), func(c *ServerConfig) {
				c.Enrol = nil
				c.Peers = func() []Peer { return []Peer{{Address: "10.0.0.2:7790"}} }
			})
			return w.activation(1, time.Hour, "10.0.0.2:7790")
		}, fleet.Unavailable, "10.0.0.2:7790: it is not of the quorum and knows no other address", ""},
		{"redirected nowhere", func(_ *testing.T, w *world) identity.JoinToken {
			w.serve("10.0.0.2", nil, w.agentCert(), func(c *ServerConfig) { c.Enrol, c.Peers = nil, func() []Peer { return nil } })
			return w.activation(1, time.Hour, "10.0.0.2:7790")
		}, fleet.Unavailable, "not of the quorum", ""},
		{"no leader", func(_ *testing.T, w *world) identity.JoinToken {
			w.quorumHostAt("10.0.0.2", func(c *ServerConfig) {
				c.Enrol = func(context.Context, []byte) (*fleet.Node, error) {
					return nil, fleet.Errorf(fleet.NoQuorum, "there is no leader").WithHint("wait for two of three")
				}
			})
			return w.activation(1, time.Hour, "10.0.0.2:7790")
		}, fleet.NoQuorum, "there is no leader", "wait for two of three"},
		{"an error without a message", func(_ *testing.T, w *world) identity.JoinToken {
			w.quorumHostAt("10.0.0.2", func(c *ServerConfig) {
				c.Enrol = func(context.Context, []byte) (*fleet.Node, error) {
					return nil, &fleet.Error{Kind: fleet.Corrupt, Err: errors.New("secret detail")}
				}
			})
			return w.activation(1, time.Hour, "10.0.0.2:7790")
		}, fleet.Corrupt, "corrupt", ""},
	} {
		bubble(t, tc.name, func(t *testing.T, w *world) {
			w.quorumHost()
			token := tc.set(t, w)
			o := w.joinOptions(token)
			r, err := Join(t.Context(), o)
			wantError(t, err, tc.kind, tc.part)
			if hint := fleet.HintOf(err); !strings.Contains(hint, tc.hint) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "%!") {
				t.Errorf("error %q, hint %q; want %q", err, hint, tc.hint)
			}
			if r != nil {
				t.Error("a result beside the error")
			}
			notEnrolled(t, o.DataDir)
		})
	}
}

// TestJoinChecksOptions: a mistake shows before anything is written or sent.
func TestJoinChecksOptions(t *testing.T) {
	for name, change := range map[string]func(*JoinOptions){
		"no address":   func(o *JoinOptions) { o.Advertise = "" },
		"a host name":  func(o *JoinOptions) { o.Advertise = "web01:7790" },
		"any address":  func(o *JoinOptions) { o.Advertise = "0.0.0.0:7790" },
		"a wrong name": func(o *JoinOptions) { o.NodeName = "web 01" },
		"an ID":        func(o *JoinOptions) { o.NodeName = "mi-0123456789abcdef0" },
	} {
		t.Run(name, func(t *testing.T) {
			o := JoinOptions{
				DataDir: filepath.Join(t.TempDir(), "data"), Advertise: "10.0.0.9:7790", Token: identity.JoinToken{Addresses: []string{"10.0.0.1:7790"}},
				Dial: func(context.Context, string, string) (net.Conn, error) {
					t.Error("it dialled")
					return nil, io.EOF
				},
			}
			change(&o)
			_, err := Join(t.Context(), o)
			wantError(t, err, fleet.Invalid, "")
			if _, err := os.Stat(o.DataDir); err == nil {
				t.Error("a data directory was made")
			}
		})
	}
}

// TestJoinAgainstStrangeServers: hosts that hold a certificate of the fleet
// and do not keep to the protocol.
func TestJoinAgainstStrangeServers(t *testing.T) {
	frame := func(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
	for _, tc := range []struct {
		name   string
		answer func(w *world) []byte // as it is written
		hold   bool                  // keep the connection open afterwards
		part   string
		waits  time.Duration
	}{
		{"never answers", func(*world) []byte { return nil }, true, "read the answer", joinTimeout},
		{"stops in the middle", func(*world) []byte { return append(frame(100), "half"...) }, true, "read the answer", joinTimeout},
		{"hangs up", func(*world) []byte { return nil }, false, "read the answer", 0},
		{"over the limit", func(*world) []byte { return frame(maxAnswer + 1) }, true, "over the limit", 0},
		{"garbage", func(*world) []byte { return append(frame(5), 0xdd, 0xff, 0xff, 0xff, 0xff) }, false, "read the answer", 0},
		{"another version", func(*world) []byte { return framed(&answer{Version: 2}) }, false, "version 2 of the join protocol", 0},
		{"nothing in it", func(*world) []byte { return framed(&answer{Version: 1}) }, false, "not of the quorum", 0},
		{"another root", func(w *world) []byte {
			a := w.goodAnswer()
			a.Root = must[[]byte](w.t)(identity.NewRootCertificate(testKey('R', 9), "acme", time.Now()))
			return framed(a)
		}, false, "another root key", 0},
		{"no root", func(w *world) []byte { a := w.goodAnswer(); a.Root = nil; return framed(a) }, false, "root certificate", 0},
		{"another trust.json", func(w *world) []byte {
			a := w.goodAnswer()
			a.Trust = testTrust(w.t).Raw()
			return framed(a)
		}, false, "not signed by the root key", 0},
		{"certificate for another key", func(w *world) []byte { return framed(w.goodAnswer()) }, false, "for another key", 0},
		{"certificate of another issuer", func(w *world) []byte {
			a := w.goodAnswer()
			a.Issuer = a.Root
			return framed(a)
		}, false, "certificate", 0},
	} {
		bubble(t, tc.name, func(t *testing.T, w *world) {
			out := tc.answer(w)
			w.answering("10.0.0.1", w.quorumCert(), nil, func(c net.Conn) {
				var h hello
				if err := readMessage(c, MaxMessage, &h); err != nil || len(h.Request) == 0 {
					t.Errorf("hello %+v, %v", h, err)
				}
				if _, err := c.Write(out); err != nil {
					t.Error(err)
				}
				if tc.hold {
					_, _ = io.Copy(io.Discard, c) // until the joiner hangs up
				}
			})
			o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.1:7790"))
			begin := time.Now()
			_, err := Join(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), tc.part) {
				t.Errorf("got %v; want an error with %q", err, tc.part)
			}
			if took := time.Since(begin); took != tc.waits {
				t.Errorf("took %s, want %s", took, tc.waits)
			}
			notEnrolled(t, o.DataDir)
		})
	}
}

// goodAnswer is an answer to a joiner with another key.
func (w *world) goodAnswer() *answer {
	issuing := must[*Issuing](w.t)(w.issuing())
	key := testKey('A', 88).Public()
	cert, record, err := issuing.Certify(&fleet.Node{ID: fleet.NodeIDOf(key), Key: key, Address: "10.0.0.9:7790"}, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return &answer{
		Version: 1, Time: time.Now().UnixNano(), FleetName: "acme", NodeName: "web01", Certificate: cert, Issuer: issuing.Issuer,
		Root: issuing.Root, Trust: issuing.Trust, GossipKeys: issuing.GossipKeys, NodeRecord: record,
	}
}

func framed(a *answer) []byte {
	b := wire.MustMarshal(a)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// TestOrdinaryHostDecidesNothing: an enrolled host that answers with an error
// must not keep others from joining.
func TestOrdinaryHostDecidesNothing(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.quorumHost()
		agent := w.agentCert()
		for _, ip := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"} {
			w.answering(ip, nil, agent, func(c net.Conn) {
				var h hello
				_ = readMessage(c, MaxMessage, &h)
				_ = writeMessage(c, &answer{Version: 1, Kind: uint8(fleet.Denied), Message: "go away", Code: codeActivation})
			})
		}
		o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.2:7790", "10.0.0.3:7790", "10.0.0.4:7790", "10.0.0.5:7790", "10.0.0.1:7790"))
		checkJoined(t, w, o, must[*JoinResult](t)(Join(t.Context(), o)))
	})
}

// TestRedirectsAreBounded: a host may not send joiners round the whole network.
func TestRedirectsAreBounded(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.serve("10.0.0.2", nil, w.agentCert(), func(c *ServerConfig) {
			c.Enrol = nil
			c.Peers = func() (peers []Peer) {
				for i := range 200 {
					peers = append(peers, Peer{Address: net.JoinHostPort(net.IPv4(10, 1, 0, byte(i)).String(), "7790")})
				}
				return peers
			}
		})
		o := w.joinOptions(w.activation(1, time.Hour, "10.0.0.2:7790"))
		dials := 0
		dial := o.Dial
		o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials++
			if addr != "10.0.0.2:7790" {
				return nil, errors.New("refused")
			}
			return dial(ctx, network, addr)
		}
		_, err := Join(t.Context(), o)
		wantError(t, err, fleet.Unavailable, "no host of the fleet's quorum answered")
		if dials > 1+maxRedirects {
			t.Errorf("%d dials", dials)
		}
	})
}

func TestJoinIsCancelled(t *testing.T) {
	bubble(t, "while it waits for the answer", func(t *testing.T, w *world) {
		w.answering("10.0.0.1", w.quorumCert(), nil, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		if r, err := Join(ctx, w.joinOptions(w.activation(1, time.Hour, "10.0.0.1:7790"))); err == nil || r != nil {
			t.Errorf("got %v, %v", r, err)
		}
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("it went on for %s", took)
		}
	})
	bubble(t, "while it is redirected", func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		w.answering("10.0.0.2", nil, w.agentCert(), func(c net.Conn) {
			var h hello
			_ = readMessage(c, MaxMessage, &h)
			_ = writeMessage(c, &answer{Version: 1, Peers: []wirePeer{{Address: "10.0.0.1:7790"}}})
			cancel()
		})
		if r, err := Join(ctx, w.joinOptions(w.activation(1, time.Hour, "10.0.0.2:7790"))); err == nil || r != nil {
			t.Errorf("got %v, %v", r, err)
		}
	})
}

// TestServerEnds: Serve returns when its context ends, with joiners under way.
func TestServerEnds(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		l := w.listen("10.0.0.1", w.quorumCert(), nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		cfg := w.config()
		cfg.Enrol = func(ctx context.Context, _ []byte) (*fleet.Node, error) {
			cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		go func() { done <- NewServer(cfg).Serve(ctx, l) }()
		if _, err := Join(t.Context(), w.joinOptions(w.activation(1, time.Hour, "10.0.0.1:7790"))); err == nil {
			t.Error("joined")
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// TestServerAnswersNobodyForLong: whoever says nothing, or half, is dropped.
func TestServerAnswersNobodyForLong(t *testing.T) {
	for name, out := range map[string]string{"silent": "", "half a frame": "\x00\x00\x00\x50abc"} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.quorumHost()
			conn := w.dialRaw("10.0.0.1:7790")
			defer conn.Close()
			if _, err := io.WriteString(conn, out); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if b, err := io.ReadAll(conn); len(b) > 0 {
				t.Errorf("answered %x, %v", b, err)
			}
			if took := time.Since(begin); took != serverDeadline {
				t.Errorf("dropped after %s, want %s", took, serverDeadline)
			}
		})
	}
	for name, out := range map[string]string{
		"over the limit": "\x00\x00\x40\x01", "not msgpack": "\x00\x00\x00\x05\xdd\xff\xff\xff\xff",
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.quorumHost()
			conn := w.dialRaw("10.0.0.1:7790")
			defer conn.Close()
			if _, err := io.WriteString(conn, out); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if b, _ := io.ReadAll(conn); len(b) > 0 || time.Since(begin) > 0 {
				t.Errorf("answered %x after %s", b, time.Since(begin))
			}
		})
	}
}

// dialRaw opens a joiner's TLS connection that checks nothing.
func (w *world) dialRaw(addr string) net.Conn {
	w.t.Helper()
	raw := must[net.Conn](w.t)(w.net.Host("10.0.0.9").DialContext(w.t.Context(), "tcp", addr))
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: "join", NextProtos: []string{"fleet-join"}, InsecureSkipVerify: true, //nolint:gosec // a test
	})
	if err := conn.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	return conn
}

// TestServerIsBusy: beyond the budget a joiner is turned away at once.
func TestServerIsBusy(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		client, server := net.Pipe()
		defer client.Close()
		s := NewServer(w.config())
		for range maxEnrolments {
			s.busy <- struct{}{}
		}
		l := &oneConn{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
		l.conn <- server
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, l) }()
		if b, err := io.ReadAll(client); err != nil || len(b) > 0 {
			t.Errorf("answered %x, %v; want the connection closed", b, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

type oneConn struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error { close(l.closed); return nil }

func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }
