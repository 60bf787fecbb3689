package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"fleet/node/api/client"
	"fleet/node/authz"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/ssm"
	"fleet/node/transport"
	"fleet/node/wire"
	"fleet/raftfsm/state"
)

func TestEveryRouteHasAPermission(t *testing.T) {
	served := map[string]bool{}
	for _, r := range routes {
		if served[r.name] {
			t.Errorf("%s is served twice", r.name)
		}
		served[r.name] = true
		op, ok := authz.Lookup(r.name)
		if !ok || op.Permission == "" {
			t.Errorf("%s has no permission in authz", r.name)
		}
		if op.Class == authz.Local {
			t.Errorf("%s is of the local socket", r.name)
		}
		if r.serve == nil {
			t.Errorf("%s has no handler", r.name)
		}
	}
	for _, r := range localRoutes {
		served[r.name] = true
		if op, ok := authz.Lookup(r.name); !ok || op.Class != authz.Local {
			t.Errorf("%s is served locally and is not of that class", r.name)
		}
	}
	for _, op := range authz.Operations {
		if !served[op.Name] {
			t.Errorf("%s has no handler", op.Name)
		}
	}
}

// Signed operations go to Mutate, reads never do: the class decides which.
func TestSignedOperationsNeedAProof(t *testing.T) {
	f := newFixture(t)
	for _, op := range authz.Operations {
		if op.Class != authz.Signed {
			continue
		}
		status, body := f.post(op.Name, `{}`, nil)
		if status != http.StatusUnauthorized || !strings.Contains(body, "needs a proof") {
			t.Errorf("%s without a proof: %d %s", op.Name, status, body)
		}
	}
}

// post makes a request over a proved connection, without the client's help.
func (f *fixture) post(operation, body string, header http.Header) (int, string) {
	f.t.Helper()
	conn := f.dial()
	if w := f.greet(conn, f.proof(conn, nil)); !w.OK {
		f.t.Fatalf("refused: %s", w.Message)
	}
	c := &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }, DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodPost, "http://fleet/v1/"+operation, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	res, err := c.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		f.t.Fatal(err)
	}
	return res.StatusCode, b.String()
}

// proof makes the proof for a connection, changed by the test.
func (f *fixture) proof(conn *transport.Conn, change func(*identity.Proof)) []byte {
	f.t.Helper()
	binding, err := client.Binding(conn.ConnectionState())
	if err != nil {
		f.t.Fatal(err)
	}
	p := identity.Proof{
		Fleet: f.cred.Fleet, Operator: f.cred.Operator, Key: f.cred.Key.Public().ID(), Operation: identity.OperationConnect,
		Body: binding, NotAfter: f.clock().Add(client.ProofValid).UnixNano(),
	}
	if change != nil {
		change(&p)
	}
	return identity.SignProof(f.cred.Key, p)
}

func (f *fixture) greet(conn *transport.Conn, proof []byte) client.Welcome {
	f.t.Helper()
	if err := wire.WriteFrame(conn, proof); err != nil {
		f.t.Fatal(err)
	}
	b, err := wire.ReadFrame(conn, client.MaxPreamble)
	if err != nil {
		f.t.Fatal(err)
	}
	var w client.Welcome
	if err := wire.Unmarshal(b, &w); err != nil {
		f.t.Fatal(err)
	}
	return w
}

func TestPreamble(t *testing.T) {
	f := newFixture(t)
	other := newKey(t)
	another := f.dial() // whose proof is replayed
	tests := []struct {
		name  string
		proof func(conn *transport.Conn) []byte
		kind  fleet.Kind
		want  string // part of the message
	}{
		{"right", func(c *transport.Conn) []byte { return f.proof(c, nil) }, 0, ""},
		{"wrong key", func(c *transport.Conn) []byte {
			p, err := identity.ParseProof(f.proof(c, nil))
			if err != nil {
				t.Fatal(err)
			}
			return identity.SignProof(other, p.Proof) // names the operator's key, is signed by another
		}, fleet.Unauthenticated, ""},
		{"unknown key", func(c *transport.Conn) []byte {
			p, err := identity.ParseProof(f.proof(c, nil))
			if err != nil {
				t.Fatal(err)
			}
			p.Proof.Key = other.Public().ID()
			return identity.SignProof(other, p.Proof)
		}, fleet.Unauthenticated, "not known to the fleet"},
		{"unknown operator", func(c *transport.Conn) []byte {
			return f.proof(c, func(p *identity.Proof) { p.Operator = "mallory" })
		}, fleet.Unauthenticated, `"mallory" is not known`},
		{"another fleet", func(c *transport.Conn) []byte {
			return f.proof(c, func(p *identity.Proof) { p.Fleet = fleet.ID(strings.Repeat("0", 32)) })
		}, fleet.Unauthenticated, "another fleet"},
		{"another operation", func(c *transport.Conn) []byte {
			return f.proof(c, func(p *identity.Proof) { p.Operation = "SendCommand" })
		}, fleet.Unauthenticated, "signed for SendCommand"},
		{"replay of another connection's", func(*transport.Conn) []byte { return f.proof(another, nil) }, fleet.Unauthenticated, ""},
		{"a clock an hour behind", func(c *transport.Conn) []byte {
			return f.proof(c, func(p *identity.Proof) { p.NotAfter -= int64(time.Hour) })
		}, fleet.Expired, "this machine's clock is 1h0m0s behind the fleet's (2026-07-07 12:00:00 UTC): set it, then retry"},
		{"a clock an hour ahead", func(c *transport.Conn) []byte {
			return f.proof(c, func(p *identity.Proof) { p.NotAfter += int64(time.Hour) })
		}, fleet.Expired, "this machine's clock is 1h0m0s ahead of the fleet's"},
		{"a clock four minutes behind", func(c *transport.Conn) []byte {
			return f.proof(c, func(p *identity.Proof) { p.NotAfter -= int64(4 * time.Minute) })
		}, 0, ""},
		{"no proof", func(*transport.Conn) []byte { return []byte("GET / HTTP/1.1") }, fleet.Invalid, ""},
		{"empty", func(*transport.Conn) []byte { return nil }, fleet.Invalid, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := f.dial()
			w := f.greet(conn, tt.proof(conn))
			if w.OK != (tt.kind == 0) || w.Kind != tt.kind || !strings.Contains(w.Message, tt.want) {
				t.Fatalf("got %+v, want kind %v and %q", w, tt.kind, tt.want)
			}
			if w.Time != epoch.UnixNano() {
				t.Errorf("time: got %d, want the fleet's, %d", w.Time, epoch.UnixNano())
			}
			if !w.OK {
				if _, err := conn.Read(make([]byte, 1)); err == nil {
					t.Error("the connection stays open")
				}
			}
		})
	}
}

func TestPreambleFrameIsBounded(t *testing.T) {
	f := newFixture(t)
	conn := f.dial()
	if _, err := conn.Write([]byte{0x7f, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a frame of 2 GiB was waited for")
	}
}

// A host that started a moment ago does not know the operator yet: it asks the
// quorum before it says no.
func TestPreambleAsksTheQuorum(t *testing.T) {
	f := newFixture(t)
	_, err := f.open(func(c *identity.Credential, _ *client.Options) { c.Operator = "newcomer" })
	if fleet.KindOf(err) != fleet.Unauthenticated {
		t.Fatalf("got %v, want unauthenticated", err)
	}
	if f.control.reads == 0 {
		t.Error("the quorum was not asked")
	}
	f.control.set(func(c *fakeControl) { c.readErr = fleet.Errorf(fleet.NoQuorum, "no quorum: 1 of 3 voters") })
	_, err = f.open(func(c *identity.Credential, _ *client.Options) { c.Operator = "newcomer" })
	if fleet.KindOf(err) != fleet.NoQuorum {
		t.Errorf("without a quorum: got %v, want no quorum", err)
	}
}

func TestClientSaysHowTheClockIsOff(t *testing.T) {
	f := newFixture(t)
	_, err := f.open(func(_ *identity.Credential, o *client.Options) {
		o.Now = func() time.Time { return epoch.Add(-time.Hour) }
	})
	if fleet.KindOf(err) != fleet.Expired || !strings.Contains(err.Error(), "clock is 1h0m0s behind the fleet's") {
		t.Errorf("got %v", err)
	}
	if fleet.HintOf(err) == "" {
		t.Error("no hint")
	}
}

func TestClientOfAnotherFleet(t *testing.T) {
	f := newFixture(t)
	root, _ := newRoot(t)
	_, err := f.open(func(c *identity.Credential, _ *client.Options) { c.Fleet = fleet.IDOf(root.Public()) })
	want := "belongs to another fleet (root fingerprint " + f.store.Fleet().Root.Fingerprint()
	if fleet.KindOf(err) != fleet.Unauthenticated || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestClientListsWhatEachAddressSaid(t *testing.T) {
	f := newFixture(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = f.open(func(_ *identity.Credential, o *client.Options) { o.Addresses = []string{dead, "127.0.0.1:1"} })
	if fleet.KindOf(err) != fleet.NoQuorum || !strings.Contains(err.Error(), dead) || !strings.Contains(err.Error(), "127.0.0.1:1:") {
		t.Errorf("got %v, want both addresses", err)
	}
	// One that answers is enough, wherever it stands.
	c := f.client(func(_ *identity.Credential, o *client.Options) { o.Addresses = []string{dead, f.addr} })
	if err := c.Call(t.Context(), "DescribeNodes", nil, nil); err != nil {
		t.Error(err)
	}
	if c.Node() != f.self {
		t.Errorf("node: got %s, want %s", c.Node(), f.self)
	}
}

func TestErrorMapping(t *testing.T) {
	for kind := fleet.Other; kind <= fleet.Unknown; kind++ {
		if _, ok := statuses[kind]; !ok {
			t.Errorf("%v has no status", kind)
		}
	}
	f := newFixture(t)
	tests := []struct {
		name   string
		err    error
		status int
		body   client.ErrorBody
	}{
		{"SSM's name", fleet.CodeErrorf(fleet.Invalid, "InvalidInstanceId", "no node mi-1").WithHint("fleet node ls"), 400,
			client.ErrorBody{Type: "InvalidInstanceId", Message: "no node mi-1", Hint: "fleet node ls", Kind: fleet.Invalid}},
		{"the kind's name", fleet.Errorf(fleet.Unknown, "lost"), 504, client.ErrorBody{Type: "UnknownOutcome", Message: "lost", Kind: fleet.Unknown}},
		{"denied", fleet.Errorf(fleet.Denied, "may not"), 403, client.ErrorBody{Type: "Denied", Message: "may not", Kind: fleet.Denied}},
		{"wrapped", fmt.Errorf("deep inside: %w", fleet.Errorf(fleet.Conflict, "exists")), 409,
			client.ErrorBody{Type: "Conflict", Message: "exists", Kind: fleet.Conflict}},
		{"ours", errOurs, 500, client.ErrorBody{Type: "Internal", Message: "internal error; the host's log has more", Kind: fleet.Other}},
		{"ours beneath a public one", &fleet.Error{Kind: fleet.Unavailable, Message: "try another", Err: errOurs}, 503,
			client.ErrorBody{Type: "Unavailable", Message: "try another", Kind: fleet.Unavailable}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.control.set(func(c *fakeControl) {
				c.mutate = func(string, []byte, []byte) ([]byte, error) { return nil, tt.err }
			})
			status, body := f.postSigned("SendCommand", `{}`)
			if status != tt.status {
				t.Errorf("status: got %d, want %d", status, tt.status)
			}
			var got client.ErrorBody
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("body %s: %v", body, err)
			}
			if got != tt.body {
				t.Errorf("body: got %+v, want %+v", got, tt.body)
			}
			if strings.Contains(body, "/dev/sdb1") {
				t.Errorf("our detail reached the caller: %s", body)
			}
			// And back again.
			back := client.ParseError(status, []byte(body))
			if back.Kind != tt.body.Kind || back.Message != tt.body.Message || back.Hint != tt.body.Hint {
				t.Errorf("parsed: got %+v", back)
			}
		})
	}
	if !strings.Contains(f.logged.String(), "/dev/sdb1") {
		t.Error("our detail is not in the log")
	}
}

func (f *fixture) postSigned(operation, body string) (int, string) {
	f.t.Helper()
	proof := identity.SignProof(f.cred.Key, identity.Proof{
		Fleet: f.cred.Fleet, Operator: f.cred.Operator, Key: f.cred.Key.Public().ID(), Operation: operation,
		Body: fleet.Sum([]byte(body)), NotAfter: f.clock().Add(time.Minute).UnixNano(),
	})
	return f.post(operation, body, http.Header{client.ProofHeader: {encodeProof(proof)}})
}

// What was signed goes on exactly as it came.
func TestMutationPassesBytesOn(t *testing.T) {
	f := newFixture(t)
	var got struct{ operation, body, proof string }
	f.control.set(func(c *fakeControl) {
		c.mutate = func(operation string, body, proof []byte) ([]byte, error) {
			got.operation, got.body, got.proof = operation, string(body), string(proof)
			return []byte(`{"Command":{"CommandId":"x"}}`), nil
		}
	})
	body := "{ \"DocumentName\" :\t\"AWS-RunShellScript\" }"
	status, answer := f.postSigned("SendCommand", body)
	if status != 200 || answer != `{"Command":{"CommandId":"x"}}` {
		t.Fatalf("got %d %s", status, answer)
	}
	p, err := identity.ParseProof([]byte(got.proof))
	if err != nil {
		t.Fatal(err)
	}
	if got.operation != "SendCommand" || got.body != body || p.Body != fleet.Sum([]byte(body)) {
		t.Errorf("control got %q", got)
	}
}

func TestMutationSignedByAnother(t *testing.T) {
	f := newFixture(t)
	proof := identity.SignProof(f.cred.Key, identity.Proof{Fleet: f.cred.Fleet, Operator: "another", Operation: "SendCommand", NotAfter: epoch.UnixNano()})
	status, body := f.post("SendCommand", `{}`, http.Header{client.ProofHeader: {encodeProof(proof)}})
	if status != 401 || !strings.Contains(body, "on a connection of") {
		t.Errorf("got %d %s", status, body)
	}
}

// A retry carries the same proof, so that it is one request however often it
// arrives.
func TestClientRepeatsWithTheSameProof(t *testing.T) {
	f := newFixture(t)
	var mu sync.Mutex
	var proofs []string
	f.control.set(func(c *fakeControl) {
		c.mutate = func(_ string, _, proof []byte) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			proofs = append(proofs, string(proof))
			switch len(proofs) {
			case 1:
				return nil, fleet.Errorf(fleet.Unknown, "leadership was lost")
			case 2:
				return nil, fleet.Errorf(fleet.Unavailable, "stopping")
			}
			return []byte(`{"ActivationId":"a"}`), nil
		}
	})
	c := f.client()
	var result ssm.CreateActivationResult
	if err := c.Call(t.Context(), "CreateActivation", ssm.CreateActivationRequest{}, &result); err != nil {
		t.Fatal(err)
	}
	if result.ActivationId != "a" || len(proofs) != 3 || proofs[0] != proofs[1] || proofs[1] != proofs[2] {
		t.Errorf("result %+v after %d tries, same proof: %v", result, len(proofs), proofs[0] == proofs[len(proofs)-1])
	}
	if err := c.Call(t.Context(), "CreateActivation", ssm.CreateActivationRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	if proofs[3] == proofs[2] {
		t.Error("another request has the same proof")
	}
}

func TestClientDoesNotRepeatWhatIsDecided(t *testing.T) {
	f := newFixture(t)
	tries := 0
	f.control.set(func(c *fakeControl) {
		c.mutate = func(string, []byte, []byte) ([]byte, error) {
			tries++
			return nil, fleet.Errorf(fleet.Throttled, "the activation is spent")
		}
	})
	if err := f.client().Call(t.Context(), "DeleteActivation", nil, nil); fleet.KindOf(err) != fleet.Throttled || tries != 1 {
		t.Errorf("got %v after %d tries", err, tries)
	}
}

// A host that sees no quorum has waited for one: the others are asked, it is
// not asked again.
func TestClientGoesPastAHostWithoutQuorum(t *testing.T) {
	cutOff := newFixture(t)
	reads := 0
	cutOff.control.set(func(c *fakeControl) { c.readErr = fleet.Errorf(fleet.NoQuorum, "no quorum: 1 of 3 voters") })
	c := cutOff.client(func(_ *identity.Credential, o *client.Options) { o.Addresses = []string{cutOff.addr, "127.0.0.1:1"} })
	err := c.Call(t.Context(), "DescribeNodes", nil, nil)
	if fleet.KindOf(err) != fleet.NoQuorum || !strings.Contains(err.Error(), "1 of 3 voters") {
		t.Errorf("got %v, want what the host said", err)
	}
	cutOff.control.set(func(c *fakeControl) { reads = c.reads })
	if reads != 1 {
		t.Errorf("the host was asked %d times, want once", reads)
	}
}

func TestClientLearnsWhereTheQuorumIs(t *testing.T) {
	f := newFixture(t)
	f.write(func(txn *state.Txn) { txn.PutNode(newNode(1, "host1", nil)) })
	if got := f.client().Quorum(); len(got) != 1 || got[0] != "10.0.0.1:7790" {
		t.Errorf("got %v", got)
	}
}

func TestClientGivesUpInTime(t *testing.T) {
	f := newFixture(t)
	f.control.set(func(c *fakeControl) { c.readErr = fleet.Errorf(fleet.Unavailable, "this host is stopping") })
	c := f.client()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err := c.Call(ctx, "DescribeNodes", nil, nil)
	if fleet.KindOf(err) != fleet.Unavailable || !strings.Contains(err.Error(), "is stopping") {
		t.Errorf("got %v, want what the host said", err)
	}
}

func TestStaleReadsNeedNoQuorum(t *testing.T) {
	f := newFixture(t)
	f.control.set(func(c *fakeControl) { c.readErr = fleet.Errorf(fleet.NoQuorum, "no quorum") })
	c := f.client(func(_ *identity.Credential, o *client.Options) { o.Stale = true })
	if err := c.Call(t.Context(), "DescribeNodes", nil, nil); err != nil {
		t.Error(err)
	}
}

// A right that ends, ends on open connections too.
func TestRevokedOperator(t *testing.T) {
	f := newFixture(t)
	c := f.client()
	if err := c.Call(t.Context(), "DescribeNodes", nil, nil); err != nil {
		t.Fatal(err)
	}
	f.write(func(txn *state.Txn) {
		txn.PutOperator(&fleet.Operator{Name: f.cred.Operator, Keys: []fleet.PublicKey{newKey(t).Public()}, May: []string{"*"}})
	})
	if err := c.Call(t.Context(), "DescribeNodes", nil, nil); fleet.KindOf(err) != fleet.Unauthenticated {
		t.Errorf("after its key was replaced: got %v, want unauthenticated", err)
	}
}

func TestOperatorWithoutTheRight(t *testing.T) {
	f := newFixture(t)
	f.write(func(txn *state.Txn) {
		o := *f.store.Operator(f.cred.Operator)
		o.May = []string{"SendCommand"}
		txn.PutOperator(&o)
	})
	c := f.client()
	if err := c.Call(t.Context(), "SendCommand", ssm.SendCommandRequest{}, nil); err != nil {
		t.Errorf("what it may: %v", err)
	}
	if err := c.Call(t.Context(), "CreateActivation", ssm.CreateActivationRequest{}, nil); fleet.KindOf(err) != fleet.Denied {
		t.Errorf("what it may not: got %v, want denied", err)
	}
}

func TestBodies(t *testing.T) {
	f := newFixture(t)
	tests := []struct {
		name, operation, body string
		status                int
		want                  string
	}{
		{"empty object", "DescribeNodes", `{}`, 200, `{"Nodes":[]}`},
		{"unknown member", "DescribeNodes", `{"Nodez":[]}`, 400, `unknown key`},
		{"another case", "DescribeNodes", `{"nodes":[]}`, 400, `unknown key`},
		{"twice", "DescribeNodes", `{"Nodes":[],"Nodes":[]}`, 400, `occurs twice`},
		{"two values", "DescribeNodes", `{}{}`, 400, `after the value`},
		{"nothing", "DescribeNodes", ``, 400, `cannot be read`},
		{"wrong type", "DescribeNodes", `{"Nodes":"x"}`, 400, `cannot be read`},
		{"deep", "DescribeNodes", strings.Repeat("[", 100), 400, `nested deeper`},
		{"too large", "DescribeNodes", `{"NextToken":"` + strings.Repeat("x", maxBody) + `"}`, 413, `over 1048576 bytes`},
		{"no such operation", "DropTables", `{}`, 404, `no operation at`},
		{"local one", "LocalStatus", `{}`, 404, `no operation at`},
		{"bad token", "DescribeNodes", `{"NextToken":"AAAA"}`, 400, `InvalidNextToken`},
		{"bad page", "DescribeNodes", `{"MaxResults":1001}`, 400, `ValidationException`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, body := f.post(tt.operation, tt.body, nil)
			if status != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("got %d %.300s, want %d and %q", status, body, tt.status, tt.want)
			}
		})
	}
}

func TestOnlyPost(t *testing.T) {
	f := newFixture(t)
	conn := f.dial()
	if w := f.greet(conn, f.proof(conn, nil)); !w.OK {
		t.Fatal(w.Message)
	}
	if _, err := fmt.Fprint(conn, "GET /v1/DescribeNodes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(conn); err != nil && b.Len() == 0 {
		t.Fatal(err)
	}
	if !strings.HasPrefix(b.String(), "HTTP/1.1 400") {
		t.Errorf("got %s", b.String())
	}
}

func TestPanicOfAHandler(t *testing.T) {
	f := newFixture(t)
	f.control.set(func(c *fakeControl) {
		c.mutate = func(string, []byte, []byte) ([]byte, error) { panic("index out of range") }
	})
	status, body := f.postSigned("SendCommand", `{}`)
	if status != 500 || strings.Contains(body, "index") {
		t.Errorf("got %d %s", status, body)
	}
	if !strings.Contains(f.logged.String(), "index out of range") {
		t.Error("the panic is not in the log")
	}
	if status, _ := f.post("DescribeNodes", `{}`, nil); status != 200 {
		t.Errorf("the next request: %d", status)
	}
}

func TestTooManyConnections(t *testing.T) {
	const limit = 8
	f := newFixture(t, func(c *Config) { c.MaxConns = limit })
	var conns []*transport.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	// One operator alone may not take all of them.
	second := f.cred
	second.Operator, second.Key = "second@host1", newKey(t)
	f.write(func(txn *state.Txn) {
		txn.PutOperator(&fleet.Operator{Name: second.Operator, Keys: []fleet.PublicKey{second.Key.Public()}, May: []string{"*"}})
	})
	creds := []identity.Credential{f.cred, second}
	refused := false
	for i := range 3 * limit {
		f.cred = creds[i%2]
		conn, err := transport.DialAPI(t.Context(), nil, f.addr, f.cred.Fleet, "", f.clock)
		if err != nil {
			refused = true
			break
		}
		conns = append(conns, conn)
		if err := wire.WriteFrame(conn, f.proof(conn, nil)); err != nil {
			refused = true
			break
		}
		if _, err := wire.ReadFrame(conn, client.MaxPreamble); err != nil {
			refused = true
			break
		}
	}
	if !refused {
		t.Fatalf("%d connections were accepted", len(conns))
	}
	if len(conns) <= limit { // the last one was refused
		t.Errorf("refused at %d connections", len(conns))
	}
	for _, c := range conns {
		_ = c.Close()
	}
	conns = nil
	deadline := time.Now().Add(5 * time.Second)
	for {
		c, err := f.open()
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("places are not freed: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

type fakeLocal struct {
	splice func(context.Context) (net.Conn, error)
}

func (l fakeLocal) Splice(ctx context.Context) (net.Conn, error) { return l.splice(ctx) }

func (fakeLocal) Leave(context.Context, fleet.LeaveRequest) (*fleet.LeaveResult, func(), error) {
	return &fleet.LeaveResult{Name: "web1"}, func() {}, nil
}

func (fakeLocal) SetLogLevel(req fleet.SetLogLevelRequest) (fleet.LogLevels, error) {
	return fleet.LogLevels{Levels: []fleet.LogLevel{{Component: req.Component, Level: req.Level}}}, nil
}

func (fakeLocal) LogLevels() (fleet.LogLevels, error) { return fleet.LogLevels{}, nil }

func (fakeLocal) RuntimeFacts() fleet.RuntimeFacts { return fleet.RuntimeFacts{Version: "1.2.3"} }

func (fakeLocal) LocalStatus() fleet.LocalStatus {
	return fleet.LocalStatus{Name: "web1", HeartbeatAge: -1}
}

func (fakeLocal) LocalNodes() fleet.LocalNodes {
	return fleet.LocalNodes{AsOf: 1, Nodes: []fleet.LocalNode{{Name: "web1"}}}
}

func TestLocal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "fleet.sock")
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenLocal(path); fleet.KindOf(err) != fleet.Conflict {
		t.Errorf("a second agent: got %v, want a conflict", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := ServeLocal(ctx, l, fakeLocal{}, discard()); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	defer parts.Wait()
	defer cancel()

	c := client.OpenLocal(path)
	status, err := c.Status(t.Context())
	if err != nil || status.Name != "web1" {
		t.Errorf("status: got %+v, %v", status, err)
	}
	nodes, err := c.Nodes(t.Context())
	if err != nil || len(nodes.Nodes) != 1 {
		t.Errorf("nodes: got %+v, %v", nodes, err)
	}
	tests := []struct {
		name, request string
		status        string
	}{
		{"right", "GET /v1/LocalStatus HTTP/1.1\r\nHost: local.fleet\r\n\r\n", "200"},
		{"another host's name", "GET /v1/LocalStatus HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403"},
		{"a page's request", "GET /v1/LocalStatus HTTP/1.1\r\nHost: local.fleet\r\nOrigin: https://evil.example\r\n\r\n", "403"},
		{"an operator's operation", "POST /v1/SendCommand HTTP/1.1\r\nHost: local.fleet\r\nContent-Length: 0\r\n\r\n", "404"},
		{"a splice that is none", "POST /v1/Splice HTTP/1.1\r\nHost: local.fleet\r\nContent-Length: 0\r\n\r\n", "400"},
		{"a page's splice", "POST /v1/Splice HTTP/1.1\r\nHost: local.fleet\r\nOrigin: https://evil.example\r\n" +
			"Connection: Upgrade\r\nUpgrade: fleet-splice\r\nContent-Length: 0\r\n\r\n", "403"},
		{"a splice got", "GET /v1/Splice HTTP/1.1\r\nHost: local.fleet\r\nConnection: Upgrade\r\nUpgrade: fleet-splice\r\n\r\n", "4"},
		{"a read of the fleet", "POST /v1/DescribeNodes HTTP/1.1\r\nHost: local.fleet\r\nContent-Length: 0\r\n\r\n", "404"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte(tt.request)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 512)
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 "+tt.status) {
				t.Errorf("got %s, want %s", buf[:n], tt.status)
			}
		})
	}
}

func TestLocalSocketOfADeadAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fleet.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := ListenLocal(path)
	if err != nil {
		t.Fatalf("a socket that nobody serves: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	_, err = client.OpenLocal(filepath.Join(t.TempDir(), "none")).Status(t.Context())
	if fleet.KindOf(err) != fleet.Unavailable || !strings.Contains(err.Error(), "no agent runs on this host") {
		t.Errorf("no socket: got %v", err)
	}
}

// TestLocalSocketWhereAnybodyWrites: in such a directory another user could put
// a socket of his in the place of the agent's.
func TestLocalSocketWhereAnybodyWrites(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("directories have no modes here")
	}
	for mode, refused := range map[fs.FileMode]bool{0o777: true, 0o702: true, 0o777 | fs.ModeSticky: false, 0o775: false, 0o755: false} {
		dir := t.TempDir()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		l, err := ListenLocal(filepath.Join(dir, "fleet.sock"))
		if err == nil {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
		if (fleet.KindOf(err) == fleet.Denied) != refused || (err != nil) != refused {
			t.Errorf("a directory of mode %v: %v", mode, err)
		}
	}
}
