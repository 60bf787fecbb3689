package cosign

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/raftfsm/state"
)

func key(kind byte, n int) identity.PrivateKey { return identity.KeyFromSeed([32]byte{kind, byte(n)}) }

func node(n int) fleet.NodeID { return fleet.NodeIDOf(key('A', n).Public()) }

var (
	root    = key('R', 0)
	fleetID = fleet.IDOf(root.Public())
)

const (
	second  = int64(time.Second)
	command = fleet.CommandID("00000000-0000-4000-8000-000000000001")
)

// trustOf is a trust.json with this many voters.
func trustOf(t *testing.T, voters int, epoch uint32) *identity.Trust {
	t.Helper()
	tr := identity.Trust{Fleet: fleetID, Epoch: epoch, Version: 2, K: identity.ThresholdFor(voters)}
	for n := range voters {
		tr.Voters = append(tr.Voters, identity.TrustVoter{Node: node(n), Key: key('Q', n).Public()})
		tr.Issuers = append(tr.Issuers, identity.TrustIssuer{Node: node(n), Key: key('I', n).Public()})
	}
	b, err := identity.SignTrust(root, tr)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := identity.ParseTrust(b, root.Public())
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// row is an open command that was created now.
func row(now time.Time) *fleet.Command {
	at := now.UnixNano()
	return &fleet.Command{
		ID: command, Attempt: 1, Document: fleet.Sum([]byte("document")), Targets: []fleet.NodeID{node(5), node(6)},
		Created: at, NotAfter: at + 600*second, Expires: at + 3600*second, Mint: fleet.Mint{N: 1, NotBefore: at},
		Counts: make([]uint32, 11), Index: 7,
	}
}

// voter is one voter with its own state and clock.
type voter struct {
	signer *Signer
	store  *state.Store
	off    time.Duration // of its clock
	waited uint64        // index of the last WaitApplied
	behind error         // answered by WaitApplied
}

func (v *voter) put(c *fleet.Command) {
	txn := v.store.Write()
	defer txn.Abort()
	txn.PutCommand(c)
	txn.Commit()
}

func (v *voter) putTrust(tr *identity.Trust) {
	txn := v.store.Write()
	defer txn.Abort()
	txn.PutTrust(tr)
	txn.Commit()
}

// quorum is n voters that hold the same command; number 0 leads.
func quorum(t *testing.T, n int, c *fleet.Command) []*voter {
	t.Helper()
	voters := make([]*voter, n)
	byID := map[fleet.NodeID]*voter{}
	trust := trustOf(t, n, 3)
	for i := range voters {
		v := &voter{store: state.New()}
		v.putTrust(trust)
		v.put(c)
		v.signer = New(Config{
			Self: node(i), Key: func() identity.PrivateKey { return key('Q', i) }, Store: func() *state.Store { return v.store },
			WaitApplied: func(_ context.Context, index uint64) error { v.waited = index; return v.behind },
			Ask: func(ctx context.Context, to fleet.NodeID, req *rpc.CoSignRequest) (*rpc.CoSignResponse, error) {
				return byID[to].signer.Answer(ctx, req)
			},
			Now: func() time.Time { return time.Now().Add(v.off) }, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		voters[i], byID[node(i)] = v, v
	}
	return voters
}

func wantError(t *testing.T, err error, kind fleet.Kind, part string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted; want an error of kind %s with %q", kind, part)
	}
	if fleet.KindOf(err) != kind || !strings.Contains(err.Error(), part) {
		t.Errorf("got %q of kind %s; want kind %s with %q", err, fleet.KindOf(err), kind, part)
	}
}

func TestSignable(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	remint := func(c *fleet.Command, at time.Duration) {
		c.Mint = fleet.Mint{N: 2, NotBefore: start.Add(at).UnixNano()}
	}
	for _, tc := range []struct {
		name   string
		now    time.Duration // since the command was created
		change func(*fleet.Command)
		kind   fleet.Kind // Other: it is signed
		stale  bool
	}{
		{"at once", 0, nil, fleet.Other, false},
		{"at the end of the window", Freshness, nil, fleet.Other, false},
		{"after the window", Freshness + 1, nil, fleet.Expired, true},
		{"this clock is behind", -Freshness, nil, fleet.Other, false},
		{"this clock is far behind", -Freshness - 1, nil, fleet.Expired, true},
		{"a fresh mint", 30 * time.Minute, func(c *fleet.Command) { remint(c, 30*time.Minute) }, fleet.Other, false},
		{"a mint of the future", 30 * time.Minute, func(c *fleet.Command) { remint(c, 32*time.Minute) }, fleet.Expired, true},
		{"past not-after, not expired", 30 * time.Minute, func(c *fleet.Command) { remint(c, 30*time.Minute) }, fleet.Other, false},
		{"just before it expires", time.Hour - 1, func(c *fleet.Command) { remint(c, time.Hour-1) }, fleet.Other, false},
		{"expired", time.Hour, func(c *fleet.Command) { remint(c, time.Hour) }, fleet.Expired, false},
		{"long expired", 48 * time.Hour, nil, fleet.Expired, false},
		{"ended", 0, func(c *fleet.Command) { c.Ended = start.UnixNano() }, fleet.Conflict, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := row(start)
			if tc.change != nil {
				tc.change(c)
			}
			err := Signable(c, start.Add(tc.now))
			if (err == nil) != (tc.kind == fleet.Other) || fleet.KindOf(err) != tc.kind || errors.Is(err, ErrStaleMint) != tc.stale {
				t.Errorf("got %v; want kind %s, stale %v", err, tc.kind, tc.stale)
			}
		})
	}
}

func TestAnswer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(v *voter, req *rpc.CoSignRequest)
		kind   fleet.Kind // Other: it is signed
		part   string
	}{
		{"as asked", nil, fleet.Other, ""},
		{"the row changed since, the mint did not", func(v *voter, _ *rpc.CoSignRequest) {
			c := *v.store.Command(command)
			c.Index, c.Counts = 9, []uint32{1, 1}
			v.put(&c)
		}, fleet.Other, ""},
		{"unknown command", func(_ *voter, r *rpc.CoSignRequest) { r.Command = "00000000-0000-4000-8000-000000000002" }, fleet.NotFound, "no command"},
		{"another attempt", func(_ *voter, r *rpc.CoSignRequest) { r.Attempt = 2 }, fleet.Conflict, "at attempt 1, mint 1 here, not 2, 1"},
		{"an attempt before the first", func(_ *voter, r *rpc.CoSignRequest) { r.Attempt = 0 }, fleet.Conflict, "not 0, 1"},
		{"a mint that is not there", func(_ *voter, r *rpc.CoSignRequest) { r.Mint = 2 }, fleet.Conflict, "not 1, 2"},
		{"a mint of before", func(v *voter, _ *rpc.CoSignRequest) {
			c := *v.store.Command(command)
			c.Mint.N = 2
			v.put(&c)
		}, fleet.Conflict, "mint 2 here, not 1, 1"},
		{"this voter is behind", func(v *voter, _ *rpc.CoSignRequest) { v.behind = context.DeadlineExceeded }, fleet.Unavailable, "not caught up to log index 7"},
		{"by its clock too old", func(v *voter, _ *rpc.CoSignRequest) { v.off = 2 * time.Minute }, fleet.Expired, "2m0s away from this voter's clock"},
		{"by its clock of the future", func(v *voter, _ *rpc.CoSignRequest) { v.off = -2 * time.Minute }, fleet.Expired, "-2m0s away"},
		{"ended", func(v *voter, _ *rpc.CoSignRequest) {
			c := *v.store.Command(command)
			c.Ended = 1
			v.put(&c)
		}, fleet.Conflict, "has ended"},
		{"before genesis", func(v *voter, _ *rpc.CoSignRequest) {
			c := v.store.Command(command)
			v.store = state.New()
			v.put(c)
		}, fleet.Unavailable, "founded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := quorum(t, 3, row(time.Now()))[1]
				req := &rpc.CoSignRequest{Command: command, Attempt: 1, Mint: 1, Index: 7}
				if tc.change != nil {
					tc.change(v, req)
				}
				resp, err := v.signer.Answer(t.Context(), req)
				if v.waited != 7 {
					t.Errorf("waited for index %d, want 7", v.waited)
				}
				if tc.kind != fleet.Other {
					wantError(t, err, tc.kind, tc.part)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				b := ticket.ForCommand(v.store.Command(command), fleetID, 3).Bytes()
				sig := ticket.Signature(resp.Signature)
				if sig.Key() != key('Q', 1).Public().ID() || sig != ticket.Sign(key('Q', 1), b) {
					t.Error("the signature is not this voter's over its own row")
				}
			})
		})
	}
}

func TestCollect(t *testing.T) {
	otherMint := func(v *voter) { // same number, another time: states that must not differ
		c := *v.store.Command(command)
		c.Mint.NotBefore++
		v.put(&c)
	}
	for _, tc := range []struct {
		name     string
		voters   int
		change   func(t *testing.T, voters []*voter)
		signers  [][]int // one of these sets signed; none: refused
		refusals []int
		kind     fleet.Kind
		part     string
	}{
		{"one voter", 1, nil, [][]int{{0}}, nil, 0, ""},
		{"three voters", 3, nil, [][]int{{0, 1}, {0, 2}}, nil, 0, ""},
		{"five voters", 5, nil, [][]int{{0, 1}, {0, 2}, {0, 3}, {0, 4}}, nil, 0, ""},
		{"one is behind", 3, func(_ *testing.T, v []*voter) { v[1].behind = io.EOF }, [][]int{{0, 2}}, nil, 0, ""},
		{"one has another clock", 3, func(_ *testing.T, v []*voter) { v[2].off = time.Hour }, [][]int{{0, 1}}, nil, 0, ""},
		{"one has another row", 3, func(_ *testing.T, v []*voter) { otherMint(v[1]) }, [][]int{{0, 2}}, nil, 0, ""},
		{"one has another epoch", 3, func(t *testing.T, v []*voter) { v[1].putTrust(trustOf(t, 3, 4)) }, [][]int{{0, 2}}, nil, 0, ""},
		{"one has another mint", 3, func(_ *testing.T, v []*voter) {
			c := *v[1].store.Command(command)
			c.Mint.N = 2
			v[1].put(&c)
		}, [][]int{{0, 2}}, nil, 0, ""},
		{"all others refuse", 3, func(_ *testing.T, v []*voter) {
			v[1].off = time.Hour
			v[2].behind = io.EOF
		}, nil, []int{1, 2}, fleet.Unavailable, "too few voters signed the ticket of command " + string(command) + " (2 are needed)"},
		{"all others differ", 3, func(_ *testing.T, v []*voter) { otherMint(v[1]); otherMint(v[2]) }, nil, []int{1, 2}, fleet.Unavailable, "their states differ"},
		{"four of five refuse", 5, func(_ *testing.T, v []*voter) {
			for _, v := range v[1:] {
				v.behind = io.EOF
			}
		}, nil, []int{1, 2, 3, 4}, fleet.Unavailable, "too few voters"},
		{"one answers with half a signature", 3, func(_ *testing.T, v []*voter) {
			v[0].asks(func(to fleet.NodeID, sig []byte) []byte {
				if to == node(1) {
					return sig[:71]
				}
				return sig
			})
		}, [][]int{{0, 2}}, nil, 0, ""},
		{"one answers with the leader's own signature", 3, func(_ *testing.T, v []*voter) {
			v[0].asks(func(to fleet.NodeID, sig []byte) []byte {
				if to == node(1) {
					own := ticket.Sign(key('Q', 0), ticket.ForCommand(v[0].store.Command(command), fleetID, 3).Bytes())
					return own[:]
				}
				return sig
			})
		}, [][]int{{0, 2}}, nil, 0, ""},
		{"all signatures are forged", 3, func(_ *testing.T, v []*voter) {
			v[0].asks(func(_ fleet.NodeID, sig []byte) []byte { sig[40] ^= 1; return sig })
		}, nil, []int{1, 2}, fleet.Unavailable, "their states differ"},
		{"this host does not vote", 1, func(_ *testing.T, v []*voter) {
			v[0].signer.cfg.Key = func() identity.PrivateKey { return key('Q', 9) }
		}, nil, nil, fleet.Unavailable, "own signature does not count"},
		{"ended", 3, func(_ *testing.T, v []*voter) {
			c := *v[0].store.Command(command)
			c.Ended = 1
			v[0].put(&c)
		}, nil, nil, fleet.Conflict, "has ended"},
		{"before genesis", 1, func(_ *testing.T, v []*voter) {
			c := v[0].store.Command(command)
			v[0].store = state.New()
			v[0].put(c)
		}, nil, nil, fleet.Unavailable, "founded"},
		{"by the leader's clock too old", 3, func(_ *testing.T, v []*voter) { v[0].off = time.Hour - 1 }, nil, nil, fleet.Expired, "mint 1"},
		{"by the leader's clock expired", 3, func(_ *testing.T, v []*voter) { v[0].off = time.Hour }, nil, nil, fleet.Expired, "expired"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				voters := quorum(t, tc.voters, row(time.Now()))
				trust := voters[0].store.Trust()
				if tc.change != nil {
					tc.change(t, voters)
				}
				c := voters[0].store.Command(command)
				signed, err := voters[0].signer.Collect(t.Context(), c)
				if tc.signers == nil {
					wantError(t, err, tc.kind, tc.part)
					got := slices.Sorted(maps.Keys(voters[0].signer.Refusals()))
					if want := sorted(tc.refusals); !slices.Equal(got, want) {
						t.Errorf("refusals of %v, want %v", got, want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				verified, err := signed.Verify(trust)
				if err != nil || verified.Command != command || verified.Mint != 1 {
					t.Errorf("ticket %+v, %v", verified, err)
				}
				var keys []fleet.KeyID
				for _, s := range signed.Signatures {
					keys = append(keys, s.Key())
				}
				if !slices.ContainsFunc(tc.signers, func(set []int) bool {
					var want []fleet.KeyID
					for _, n := range set {
						want = append(want, key('Q', n).Public().ID())
					}
					return slices.Equal(keys, want)
				}) {
					t.Errorf("signed by %v; want one of %v", keys, tc.signers)
				}
			})
		})
	}
}

// asks changes the signatures that others answer.
func (v *voter) asks(change func(to fleet.NodeID, sig []byte) []byte) {
	ask := v.signer.cfg.Ask
	v.signer.cfg.Ask = func(ctx context.Context, to fleet.NodeID, req *rpc.CoSignRequest) (*rpc.CoSignResponse, error) {
		resp, err := ask(ctx, to, req)
		if err == nil {
			resp.Signature = change(to, resp.Signature)
		}
		return resp, err
	}
}

func sorted(numbers []int) (ids []fleet.NodeID) {
	for _, n := range numbers {
		ids = append(ids, node(n))
	}
	slices.Sort(ids)
	return ids
}

func TestStaleMint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		voters := quorum(t, 3, row(time.Now()))
		time.Sleep(2 * time.Minute)
		if _, err := voters[0].signer.Collect(t.Context(), voters[0].store.Command(command)); !errors.Is(err, ErrStaleMint) {
			t.Fatalf("got %v, want ErrStaleMint", err)
		}
		for _, v := range voters {
			c := *v.store.Command(command)
			c.Mint = fleet.Mint{N: 2, NotBefore: time.Now().UnixNano()}
			v.put(&c)
		}
		signed, err := voters[0].signer.Collect(t.Context(), voters[0].store.Command(command))
		if err != nil {
			t.Fatal(err)
		}
		if tk, err := signed.Verify(voters[0].store.Trust()); err != nil || tk.Mint != 2 {
			t.Errorf("ticket %+v, %v", tk, err)
		}
	})
}

// TestRefusalsAreForgotten: a voter that signs again is no longer named.
func TestRefusalsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		voters := quorum(t, 3, row(time.Now()))
		voters[1].behind, voters[2].behind = io.EOF, io.EOF
		c := voters[0].store.Command(command)
		if _, err := voters[0].signer.Collect(t.Context(), c); err == nil {
			t.Fatal("collected")
		}
		if r := voters[0].signer.Refusals(); len(r) != 2 || !errors.Is(r[node(1)], io.EOF) {
			t.Errorf("refusals %v", r)
		}
		voters[1].behind = nil
		if _, err := voters[0].signer.Collect(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if r := voters[0].signer.Refusals(); r[node(1)] != nil || r[node(2)] == nil {
			t.Errorf("refusals %v; want that of the third only", r)
		}
	})
}

// TestSlowVoters: one signature is enough to go on; whoever is still asked is
// no longer waited for.
func TestSlowVoters(t *testing.T) {
	hang := func(v *voter, slow ...fleet.NodeID) {
		ask := v.signer.cfg.Ask
		v.signer.cfg.Ask = func(ctx context.Context, to fleet.NodeID, req *rpc.CoSignRequest) (*rpc.CoSignResponse, error) {
			if slices.Contains(slow, to) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return ask(ctx, to, req)
		}
	}
	for _, tc := range []struct {
		name   string
		slow   []fleet.NodeID
		cancel time.Duration // of the caller; 0: never
		takes  time.Duration
		ok     bool
	}{
		{"one", []fleet.NodeID{node(1)}, 0, 0, true},
		{"all", []fleet.NodeID{node(1), node(2)}, 0, askTimeout, false},
		{"all, and the caller gives up", []fleet.NodeID{node(1), node(2)}, time.Second, time.Second, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				voters := quorum(t, 3, row(time.Now()))
				hang(voters[0], tc.slow...)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tc.cancel > 0 {
					time.AfterFunc(tc.cancel, cancel)
				}
				begin := time.Now()
				_, err := voters[0].signer.Collect(ctx, voters[0].store.Command(command))
				if (err == nil) != tc.ok || time.Since(begin) != tc.takes {
					t.Errorf("after %s: %v; want %v after %s", time.Since(begin), err, tc.ok, tc.takes)
				}
			})
		})
	}
}
