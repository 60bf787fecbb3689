// Package cosign makes tickets: the orders, signed by k voters, without which
// no host starts anything.
//
// A ticket is a pure function of a committed command row and its newest mint,
// so every voter builds the bytes from its own state and signs those, never
// bytes that it was given. What a voter adds of its own is its clock: it signs
// only if the mint is fresh and the command has not expired by it. A leader
// that was stolen can therefore neither make up an order nor bring an old one
// back to life, as long as k is 2.
package cosign

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/raftfsm/state"
)

// Freshness is how far a mint's not-before may lie from a signing voter's
// clock, either way.
const Freshness = 60 * time.Second

// askTimeout bounds the wait for the other voters' signatures.
const askTimeout = 10 * time.Second

// ErrStaleMint is returned by Sign and Collect when the newest mint is too old
// to be signed: the caller proposes another.
var ErrStaleMint = errors.New("the newest mint is too old to sign")

// Config is what a voter signs with and whom it asks.
type Config struct {
	Self  fleet.NodeID
	Key   func() identity.PrivateKey // quorum key
	Store func() *state.Store

	// WaitApplied returns when the local state covers a log index.
	WaitApplied func(ctx context.Context, index uint64) error

	// Ask asks another voter for its signature.
	Ask func(ctx context.Context, voter fleet.NodeID, req *rpc.CoSignRequest) (*rpc.CoSignResponse, error)

	Now    func() time.Time
	Logger *slog.Logger
}

// Signer signs and collects signatures.
type Signer struct {
	cfg Config

	mu       sync.Mutex // guards refusals
	refusals map[fleet.NodeID]error
}

// New makes a signer.
func New(cfg Config) *Signer {
	return &Signer{cfg: cfg, refusals: map[fleet.NodeID]error{}}
}

// Answer is the RPC method by which another voter asks for a signature.
func (s *Signer) Answer(ctx context.Context, req *rpc.CoSignRequest) (*rpc.CoSignResponse, error) {
	if err := s.cfg.WaitApplied(ctx, req.Index); err != nil {
		return nil, fleet.Errorf(fleet.Unavailable, "this voter has not caught up to log index %d: %w", req.Index, err)
	}
	c := s.cfg.Store().Command(req.Command)
	if c == nil {
		return nil, fleet.Errorf(fleet.NotFound, "no command %s at log index %d", req.Command, req.Index)
	}
	if c.Attempt != req.Attempt || c.Mint.N != req.Mint {
		return nil, fleet.Errorf(fleet.Conflict, "command %s is at attempt %d, mint %d here, not %d, %d", c.ID, c.Attempt, c.Mint.N, req.Attempt, req.Mint)
	}
	_, sig, _, err := s.sign(c)
	if err != nil {
		return nil, err
	}
	return &rpc.CoSignResponse{Signature: sig[:]}, nil
}

// sign signs what this voter's own state says, if its own clock agrees. It
// also answers the trust.json that the ticket's epoch is from.
func (s *Signer) sign(c *fleet.Command) ([]byte, ticket.Signature, *identity.Trust, error) {
	var none ticket.Signature
	trust := s.cfg.Store().Trust()
	if trust == nil {
		return nil, none, nil, fleet.Errorf(fleet.Unavailable, "no fleet has been founded yet")
	}
	if err := Signable(c, s.cfg.Now()); err != nil {
		return nil, none, nil, err
	}
	b := ticket.ForCommand(c, trust.Fleet, trust.Epoch).Bytes()
	return b, ticket.Sign(s.cfg.Key(), b), trust, nil
}

// Signable decides whether a voter whose clock says now signs for the newest
// mint of c.
func Signable(c *fleet.Command, now time.Time) error {
	if !c.Open() {
		return fleet.Errorf(fleet.Conflict, "command %s has ended", c.ID)
	}
	if c.Cancelled() {
		return fleet.Errorf(fleet.Conflict, "command %s is cancelled", c.ID)
	}
	if now.UnixNano() >= c.Expires {
		return fleet.Errorf(fleet.Expired, "command %s expired by this voter's clock", c.ID)
	}
	if off := now.Sub(time.Unix(0, c.Mint.NotBefore)); off.Abs() > Freshness {
		return fleet.Errorf(fleet.Expired, "mint %d of command %s is %s away from this voter's clock: %w", c.Mint.N, c.ID, off.Round(time.Second), ErrStaleMint)
	}
	return nil
}

// Collect gives the ticket of c's newest mint with the signatures of k voters:
// this voter's and as many others' as are needed. It returns ErrStaleMint when
// another mint is needed first.
func (s *Signer) Collect(ctx context.Context, c *fleet.Command) (*ticket.Signed, error) {
	b, own, trust, err := s.sign(c)
	if err != nil {
		return nil, err
	}
	if trust.K <= 1 {
		alone := &ticket.Signed{Ticket: b, Signatures: []ticket.Signature{own}}
		if _, err := alone.Verify(trust); err != nil {
			return nil, fleet.Errorf(fleet.Unavailable, "this host's own signature does not count: %w", err)
		}
		return alone, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	type vote struct {
		voter fleet.NodeID
		sig   ticket.Signature
		err   error
	}
	votes := make(chan vote, len(trust.Voters))
	asked := 0
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, v := range trust.Voters {
		if v.Node == s.cfg.Self {
			continue
		}
		asked++
		wg.Go(func() {
			resp, err := s.cfg.Ask(ctx, v.Node, &rpc.CoSignRequest{Command: c.ID, Attempt: c.Attempt, Mint: c.Mint.N, Index: c.Index})
			out := vote{voter: v.Node, err: err}
			if err == nil {
				if len(resp.Signature) != len(out.sig) {
					out.err = fmt.Errorf("a signature of %d bytes", len(resp.Signature))
				}
				copy(out.sig[:], resp.Signature)
			}
			votes <- out
		})
	}
	var failures []error
	for range asked {
		v := <-votes
		if v.err == nil {
			// The other signed its own bytes: that they are the same shows only
			// in the signature.
			try := &ticket.Signed{Ticket: b, Signatures: []ticket.Signature{own, v.sig}}
			if _, err := try.Verify(trust); err == nil {
				s.note(v.voter, nil)
				return try, nil
			}
			v.err = errors.New("its signature does not fit this voter's ticket: their states differ")
		}
		s.note(v.voter, v.err)
		failures = append(failures, fmt.Errorf("%s: %w", v.voter, v.err))
	}
	return nil, fleet.Errorf(fleet.Unavailable, "too few voters signed the ticket of command %s (%d are needed): %w", c.ID, trust.K, errors.Join(failures...))
}

func (s *Signer) note(voter fleet.NodeID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.refusals, voter)
		return
	}
	if s.refusals[voter] == nil {
		s.cfg.Logger.Warn("voter did not sign", "peer", voter, "err", err)
	}
	s.refusals[voter] = err
}

// Refusals names the voters that refused or failed to sign when last asked.
func (s *Signer) Refusals() map[fleet.NodeID]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[fleet.NodeID]error, len(s.refusals))
	for id, err := range s.refusals {
		m[id] = err
	}
	return m
}
