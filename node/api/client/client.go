// Package client speaks to the quorum for an operator: it finds a quorum host,
// proves the operator's key once for the connection, signs every mutation, and
// repeats what may be repeated.
//
// Invariants: nothing is sent before the host has shown a quorum certificate
// of the fleet in the credential; a mutation is repeated only with the same
// bytes and the same proof, so that the fleet does it once however often it
// arrives; what a host answers is bounded. Not built on the standard library's
// https support, because the certificates name nodes instead of DNS names and
// the proof must be bound to the TLS connection before HTTP begins.
//
// The package also holds what both sides of the connection must agree on: the
// preamble and the form of errors.
package client

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"fleet/node/authz"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/transport"
)

const (
	// ProofHeader carries the proof of a mutation, in base64url.
	ProofHeader = "Fleet-Proof"

	// ConsistencyHeader with the value ConsistencyStale asks a read to answer
	// from the memory of the host that was asked, also without a quorum. Without
	// it a read covers every write that was acknowledged before it began.
	ConsistencyHeader = "Fleet-Consistency"
	ConsistencyStale  = "stale"

	// DigestHeader is the SHA-256 of a body that is bytes, in hex.
	DigestHeader = "Fleet-Digest"

	// PathPrefix comes before the name of the operation.
	PathPrefix = "/v1/"

	dialTimeout      = 5 * time.Second        // for one address
	defaultTimeout   = 20 * time.Second       // for one call, repeats included
	patience         = 250 * time.Millisecond // with one address, before the next is tried as well
	otherVoters      = 4 * time.Second        // for all others, after one has said that there is no quorum
	firstBackoff     = 100 * time.Millisecond
	longestBackoff   = 2 * time.Second
	longestOperation = 3 * time.Minute // ChangeQuorum waits for logs to be copied
	maxAnswer        = 8 << 20
	maxQuorum        = 5
	maxAddresses     = 16
	maxError         = 64 << 10
)

// Options change how a Client works; the zero value is right for most.
type Options struct {
	// Addresses replace those of the credential.
	Addresses []string

	// Agent is the agent of this host, which passes connections on to a quorum
	// host when the credential's addresses do not answer. Nil, or with
	// Addresses, there is no other way.
	Agent *Local

	// Dial opens connections; nil is the system's.
	Dial transport.DialFunc

	// Now is the clock for certificates and proofs; nil is time.Now.
	Now func() time.Time

	// Timeout bounds a call, repeats included, whose context has no deadline;
	// 0 is 20 s.
	Timeout time.Duration

	// Stale makes reads answer without asking the quorum.
	Stale bool
}

// Client speaks to one fleet as one operator. Its methods may be called from
// any goroutine.
type Client struct {
	cred identity.Credential
	opts Options
	http *http.Client

	mu        sync.Mutex // guards what follows
	addresses []string   // the one that answered last comes first
	node      fleet.NodeID
	quorum    []string // where the voters answer, as the host says that answered last
}

// Open connects to a quorum host. Its errors list what each address said.
func Open(ctx context.Context, cred identity.Credential, opts Options) (*Client, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Timeout == 0 {
		opts.Timeout = defaultTimeout
	}
	if opts.Dial == nil {
		opts.Dial = new(net.Dialer).DialContext
	}
	c := &Client{cred: cred, opts: opts, addresses: slices.Clone(cred.Addresses)}
	if len(opts.Addresses) > 0 {
		c.addresses = slices.Clone(opts.Addresses)
	}
	agent := opts.Agent != nil && len(opts.Addresses) == 0 && opts.Agent.there()
	if len(c.addresses) == 0 && !agent {
		return nil, fleet.Errorf(fleet.Invalid, "the credential of %s names no address", cred.Operator).
			WithHint("name a quorum host: --connect IP:PORT or FLEET_ADDRESS")
	}
	rand.Shuffle(len(c.addresses), func(i, j int) { c.addresses[i], c.addresses[j] = c.addresses[j], c.addresses[i] })
	if agent {
		c.addresses = append(c.addresses, throughAgent) // the last to try
	}

	// The connection that is opened here is the first that HTTP will use:
	// errors of reaching anybody are found before a request is made.
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	first, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	ready := make(chan net.Conn, 1)
	ready <- first
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case conn := <-ready:
				return conn, nil
			default:
				return c.dial(ctx)
			}
		},
		DisableCompression:  true,
		MaxConnsPerHost:     8,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     time.Minute,

		MaxResponseHeaderBytes: 16 << 10,
		// A request answers within its operation's timeout; a stream begins at once.
		ResponseHeaderTimeout: longestOperation,
	}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// Close closes the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Fleet is the ID of the fleet that is spoken to.
func (c *Client) Fleet() fleet.ID { return c.cred.Fleet }

// FleetName is its name.
func (c *Client) FleetName() string { return c.cred.Name }

// Operator is who speaks.
func (c *Client) Operator() fleet.OperatorName { return c.cred.Operator }

// Node is the quorum host that answered last.
func (c *Client) Node() fleet.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node
}

// Quorum is where the voters answer, as the host says that answered last.
func (c *Client) Quorum() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.quorum)
}

// dial tries the addresses in order until one answers and accepts the operator.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	addresses := slices.Clone(c.addresses)
	c.mu.Unlock()
	skip, _ := ctx.Value(skipKey{}).(map[string]bool)
	addresses = slices.DeleteFunc(addresses, func(addr string) bool { return skip[addr] })
	var r reached
	if i := slices.Index(addresses, throughAgent); i > 0 {
		r = c.dialBoth(ctx, slices.Delete(addresses, i, i+1))
	} else {
		r = c.dialEach(ctx, addresses) // without the agent, or after it was the way the last time
	}
	if r.conn == nil {
		return nil, c.noneAnswered(r.failures)
	}
	c.prefer(r.addr, r.conn.Peer.Node, r.quorum)
	return r.conn, nil
}

// dialEach tries addresses in order until one answers and accepts the operator.
// One that has not answered after a moment is not waited for alone: hosts that
// are gone without a word must not take their time one after the other.
func (c *Client) dialEach(ctx context.Context, addresses []string) (r reached) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type attempt struct {
		index  int
		conn   *transport.Conn
		quorum []string
		err    error
	}
	attempts := make(chan attempt, len(addresses))
	errs := make([]error, len(addresses))
	begun, under := 0, 0
	next := time.NewTimer(0)
	defer next.Stop()
	for begun < len(addresses) || under > 0 {
		select {
		case <-next.C:
			if i := begun; i < len(addresses) {
				begun++
				under++
				next.Reset(patience)
				go func() { // awaited below
					conn, quorum, err := c.dialOne(ctx, addresses[i])
					attempts <- attempt{i, conn, quorum, err}
				}()
			}
		case a := <-attempts:
			under--
			switch errs[a.index] = a.err; {
			case a.err == nil && r.conn == nil:
				r = reached{conn: a.conn, addr: addresses[a.index], quorum: a.quorum}
				cancel()
			case a.err == nil:
				_ = a.conn.Close() // another was faster: nothing was asked over this one
			}
			if r.conn != nil || ctx.Err() != nil {
				begun = len(addresses)
			}
			next.Reset(0)
		}
	}
	if r.conn != nil {
		return r
	}
	for i, err := range errs {
		if err != nil {
			r.failures = append(r.failures, dialFailure{addresses[i], err})
		}
	}
	return r
}

func (c *Client) dialOne(ctx context.Context, addr string) (_ *transport.Conn, quorum []string, _ error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	began := time.Now() // elapsed time, not the fleet's
	late := func(err error) error {
		var timeout net.Error
		if kind := fleet.KindOf(err); kind != fleet.Other && kind != fleet.Unavailable {
			return err // an answer
		}
		if ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout() {
			return fleet.Errorf(fleet.Unavailable, "no answer within %s", time.Since(began).Round(100*time.Millisecond))
		}
		return err
	}
	conn, err := transport.DialAPI(ctx, c.dialer(addr), addr, c.cred.Fleet, "", c.opts.Now)
	var agent agentError
	switch {
	case errors.As(err, &agent):
		return nil, nil, agent
	case errors.Is(err, io.EOF):
		return nil, nil, errHungUp
	case err != nil:
		return nil, nil, late(err)
	}
	w, err := greet(ctx, conn, c.cred, c.opts.Now())
	if err != nil {
		_ = conn.Close() // the other error is the one that matters
		return nil, nil, late(err)
	}
	return conn, w.Quorum[:min(len(w.Quorum), maxQuorum)], nil
}

// prefer makes addr the first to try, and the voters' addresses the last,
// unless the caller named addresses: those may be the only ones that lead
// anywhere from here.
func (c *Client) prefer(addr string, node fleet.NodeID, quorum []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node, c.quorum = node, quorum
	if len(c.opts.Addresses) == 0 {
		for _, q := range quorum {
			if !slices.Contains(c.addresses, q) && len(c.addresses) < maxAddresses {
				c.addresses = append(c.addresses, q)
			}
		}
	}
	c.addresses = append([]string{addr}, slices.DeleteFunc(c.addresses, func(a string) bool { return a == addr })...)
}

// current is the address that answered last.
func (c *Client) current() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addresses[0]
}

// avoid drops the idle connections and makes the address that answered last
// the last to try.
func (c *Client) avoid() {
	c.mu.Lock()
	c.addresses = append(slices.Clone(c.addresses[1:]), c.addresses[0])
	c.mu.Unlock()
	c.http.CloseIdleConnections()
}

// errHungUp is what a host does that has nobody to pass an operator on to. It
// could be no host of the fleet at all.
var errHungUp = errors.New("it hung up without a word, as a host does that is not of the quorum and reaches no quorum host")

// silent can be found by errors.Is and prints nothing.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.error }

type dialFailure struct {
	addr string
	err  error
}

// decided reports that a host of the fleet spoke about the operator. What the
// agent of this host says is not that.
func (f dialFailure) decided() bool {
	switch fleet.KindOf(f.err) {
	case fleet.Unauthenticated, fleet.Expired, fleet.Denied, fleet.Throttled:
		return !f.ofAgent()
	}
	return false
}

func (f dialFailure) ofAgent() bool {
	var of agentError
	return errors.As(f.err, &of)
}

// noneAnswered is the one error for several addresses. What a host of the
// fleet said about the operator counts more than that another was not reached.
func (c *Client) noneAnswered(failures []dialFailure) error {
	var chosen *fleet.Error
	for _, f := range failures {
		var e *fleet.Error
		if errors.As(f.err, &e) && f.decided() && chosen == nil {
			chosen = e
		}
	}
	var text strings.Builder
	for _, f := range failures {
		fmt.Fprintf(&text, "\n  %s: %s", f.addr, f.err)
	}
	if chosen != nil {
		if len(failures) == 1 {
			return fleet.Errorf(chosen.Kind, "%s: %s", failures[0].addr, failures[0].err).WithHint("%s", chosen.Hint)
		}
		if addrs := sameAnswer(failures); addrs != nil {
			return fleet.Errorf(chosen.Kind, "no quorum host of %s accepts %s: %s (asked: %s)",
				c.cred.Name, c.cred.Operator, failures[0].err, strings.Join(addrs, ", ")).WithHint("%s", chosen.Hint)
		}
		return fleet.Errorf(chosen.Kind, "no quorum host of %s accepts %s:%s", c.cred.Name, c.cred.Operator, text.String()).
			WithHint("%s", chosen.Hint)
	}
	e := fleet.Errorf(fleet.NoQuorum, "no quorum host of %s answers:%s", c.cred.Name, text.String())
	e.Err = silent{errNoneAnswered}
	for _, f := range failures {
		if f.ofAgent() && fleet.KindOf(f.err) == fleet.Denied {
			return e.WithHint("%s", fleet.HintOf(f.err))
		}
	}
	return e.WithHint("check that the hosts run (fleet status on one of them) and that this machine may reach the port; " +
		"other addresses: --connect IP:PORT")
}

// sameAnswer is the addresses of failures that all say the same; else nil.
func sameAnswer(failures []dialFailure) []string {
	var addrs []string
	for _, f := range failures {
		if f.err.Error() != failures[0].err.Error() {
			return nil
		}
		addrs = append(addrs, f.addr)
	}
	return addrs
}

// CallStale is Call for a read that need not ask the quorum.
func (c *Client) CallStale(ctx context.Context, operation string, req, resp any) error {
	return c.call(ctx, operation, req, resp, true)
}

// Call makes one request. resp may be nil; req nil is the empty request.
// Mutations are signed; what may be repeated is repeated until the timeout:
// reads always, mutations with the same proof.
func (c *Client) Call(ctx context.Context, operation string, req, resp any) error {
	return c.call(ctx, operation, req, resp, c.opts.Stale)
}

func (c *Client) call(ctx context.Context, operation string, req, resp any, stale bool) error {
	op, ok := authz.Lookup(operation)
	if !ok {
		return fleet.Errorf(fleet.Invalid, "there is no operation %q", operation)
	}
	body, err := encode(req)
	if err != nil {
		return err
	}
	var proof []byte
	if op.Class == authz.Signed {
		if proof, err = c.sign(operation, body); err != nil {
			return err
		}
	}
	if _, bounded := ctx.Deadline(); !bounded {
		timeout := c.opts.Timeout
		if operation == "ChangeQuorum" {
			timeout = max(timeout, longestOperation)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fleet.Errorf(fleet.Unknown, "not done within %s", timeout))
		defer cancel()
	}
	r := request{operation, body, proof, stale}
	answer, err := c.repeat(ctx, func(ctx context.Context) ([]byte, error) { return c.once(ctx, r) })
	if err != nil {
		return err
	}
	if resp == nil {
		return nil
	}
	if err := json.Unmarshal(answer, resp); err != nil {
		return fmt.Errorf("answer of %s: %w", operation, err)
	}
	return nil
}

func encode(req any) ([]byte, error) {
	if req == nil {
		return []byte("{}"), nil
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", req, err)
	}
	return body, nil
}

// sign makes the proof of one mutation.
func (c *Client) sign(operation string, body []byte) ([]byte, error) {
	nonce, err := newNonce()
	if err != nil {
		return nil, err
	}
	return identity.SignProof(c.cred.Key, identity.Proof{
		Fleet: c.cred.Fleet, Operator: c.cred.Operator, Key: c.cred.Key.Public().ID(), Operation: operation,
		Body: fleet.Sum(body), Nonce: nonce, NotAfter: c.opts.Now().Add(ProofValid).UnixNano(),
	}), nil
}

// repeat calls f until it succeeds, fails for good or the time is up.
func (c *Client) repeat(ctx context.Context, f func(context.Context) ([]byte, error)) ([]byte, error) {
	backoff := firstBackoff
	var told error            // the last error that says more than that time ran out
	skip := map[string]bool{} // addresses of hosts that said that there is no quorum: each has waited for one
	ctx = context.WithValue(ctx, skipKey{}, skip)
	for {
		answer, err := f(ctx)
		if err == nil {
			return answer, nil
		}
		if told == nil || ctx.Err() == nil && !(len(skip) > 0 && errors.Is(err, errNoneAnswered)) {
			told = err
		}
		if fleet.KindOf(err) == fleet.NoQuorum {
			if len(skip) > 0 && errors.Is(err, errNoneAnswered) {
				return nil, told
			}
			if !errors.Is(err, errNoneAnswered) {
				if len(skip) == 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, otherVoters)
					defer cancel()
				}
				skip[c.current()] = true
			}
		}
		if !again(err) || ctx.Err() != nil {
			return nil, told
		}
		pause := backoff/2 + rand.N(backoff/2)
		if after := fleet.RetryAfterOf(err); after > 0 {
			// The host works, and says when: asking others instead would only
			// spread what is too much. Those that were refused together shall not
			// return together.
			pause = max(pause, after+rand.N(after/2+1))
			if deadline, bounded := ctx.Deadline(); bounded && time.Until(deadline) < pause {
				return nil, told
			}
		} else {
			c.avoid()
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil, told
		}
		backoff = min(2*backoff, longestBackoff)
	}
}

// skipKey is the key of the addresses that a call does not try again.
type skipKey struct{}

// errNoneAnswered is in the chain of the error that no address answered.
var errNoneAnswered = errors.New("no address answered")

// again reports whether the same request may succeed later or elsewhere.
func again(err error) bool {
	switch fleet.KindOf(err) {
	case fleet.Unavailable, fleet.Unknown, fleet.NoQuorum, fleet.NotLeader:
		return true
	case fleet.Throttled:
		return fleet.RetryAfterOf(err) > 0
	}
	return false
}

// request is what is sent, once or again.
type request struct {
	operation string
	body      []byte
	proof     []byte // nil for reads
	stale     bool
}

func (c *Client) once(ctx context.Context, r request) ([]byte, error) {
	res, err := c.post(ctx, r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // nothing is written
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil && ctx.Err() != nil {
		return nil, noAnswer(ctx, r)
	}
	if err != nil {
		return nil, fleet.Errorf(fleet.Unknown, "the connection ended in the answer: %w", err)
	}
	if len(answer) > maxAnswer {
		return nil, fleet.Errorf(fleet.TooLarge, "the answer of %s is over %d bytes", r.operation, maxAnswer)
	}
	return answer, nil
}

// post sends one request and answers the response of a success.
func (c *Client) post(ctx context.Context, r request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://fleet"+PathPrefix+r.operation, bytes.NewReader(r.body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if r.stale {
		req.Header.Set(ConsistencyHeader, ConsistencyStale)
	}
	if r.proof != nil {
		req.Header.Set(ProofHeader, base64.RawURLEncoding.EncodeToString(r.proof))
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, sendError(ctx, r, err)
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close() //nolint:errcheck // nothing is written
		b, err := io.ReadAll(io.LimitReader(res.Body, maxError))
		if err != nil {
			return nil, fleet.Errorf(fleet.Unknown, "the connection ended in the answer: %w", err)
		}
		refused := ParseError(res.StatusCode, b)
		if refused.Kind == fleet.Throttled {
			refused.RetryAfter = retryAfter(res.Header.Get("Retry-After"))
		}
		return nil, refused
	}
	return res, nil
}

// noAnswer says why waiting for an answer ended with the context.
func noAnswer(ctx context.Context, r request) error {
	cause := context.Cause(ctx)
	var e *fleet.Error
	switch {
	case r.operation == watchOperation && errors.As(cause, &e):
		return e
	case errors.Is(ctx.Err(), context.Canceled):
		e = fleet.Errorf(fleet.Unknown, "interrupted before the answer to %s came", r.operation)
	case errors.As(cause, &e):
		e = fleet.Errorf(e.Kind, "no answer to %s: %s", r.operation, e.Message)
	default:
		e = fleet.Errorf(fleet.Unknown, "no answer to %s came in time", r.operation)
	}
	if r.proof != nil {
		return e.WithHint("it may have been done: look before you repeat it")
	}
	return e.WithHint("wait longer (--timeout), or ask what one host knows where that is enough (--stale)")
}

// sendError classifies what went wrong between sending and the answer.
func sendError(ctx context.Context, r request, err error) error {
	var e *fleet.Error
	switch {
	case ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		return noAnswer(ctx, r)
	case errors.As(err, &e):
		return e // of dial: nothing was sent
	case ctx.Err() != nil:
		return noAnswer(ctx, r)
	}
	return fleet.Errorf(fleet.Unknown, "the connection ended before the answer: %w", unwrapURL(err))
}
