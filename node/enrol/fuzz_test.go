package enrol

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
)

func fixedHello(t testing.TB) *hello {
	t.Helper()
	request := must[[]byte](t)(identity.NewJoinRequest(identity.JoinPayload{
		Fleet: testFleet, Activation: "11111111-2222-3333-4444-555555555555", Key: testKey('A', 1).Public(), Name: "web01",
		Address: "10.0.0.9:7790", Epoch: uint32(testStart.Unix()),
	}, testKey('A', 1), identity.Code{4, 5, 6}))
	return &hello{Version: 1, Request: request}
}

func fixedAnswer() *answer {
	return &answer{
		Version: 1, Time: testStart.UnixNano(), Peers: []wirePeer{{Node: testPeers[0].Node, Address: testPeers[0].Address}},
		FleetName: "acme", NodeName: "web01", Certificate: []byte("certificate"), Issuer: []byte("issuer"), Root: []byte("root"),
		Trust: []byte("trust"), GossipKeys: [][]byte{[]byte("gossip key")}, NodeRecord: []byte("record"),
		Origin: testStart.UnixNano() - 1,
	}
}

// TestGoldenMessages: hosts of two releases must understand each other.
func TestGoldenMessages(t *testing.T) {
	golden(t, "hello.hex", hexLines(wire.MustMarshal(fixedHello(t))))
	golden(t, "answer.hex", hexLines(wire.MustMarshal(fixedAnswer())))
	golden(t, "refusal.hex", hexLines(wire.MustMarshal(&answer{
		Version: 1, Time: testStart.UnixNano(), Kind: uint8(fleet.Expired), Code: codeActivation, Message: "activation x expired", Hint: "make another",
	})))
}

func TestRefusal(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want answer
	}{
		{"ours", fleet.CodeErrorf(fleet.Expired, "InvalidActivation", "it expired").WithHint("make another"),
			answer{Kind: uint8(fleet.Expired), Code: "InvalidActivation", Message: "it expired", Hint: "make another"}},
		{"internal", os.ErrPermission, answer{Message: "the host could not decide this request; its log says why"}},
		{"without a message", &fleet.Error{Kind: fleet.Denied, Err: os.ErrPermission}, answer{Kind: uint8(fleet.Denied), Message: "denied"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := refusal(tc.err); !bytes.Equal(wire.MustMarshal(got), wire.MustMarshal(&tc.want)) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// pipe is one end of a connection that was given all its input.
type pipe struct {
	net.Conn // nil: only the methods below are called
	in       *bytes.Reader
	out      bytes.Buffer
}

func (p *pipe) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *pipe) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p *pipe) Close() error                { return nil }
func (p *pipe) RemoteAddr() net.Addr        { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9)} }

// FuzzServerDecide: whatever a stranger sends, the server answers one frame or
// none, and enrols only what carries two good signatures and an address that
// it can certify.
func FuzzServerDecide(f *testing.F) {
	frame := func(b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }
	f.Add(frame(wire.MustMarshal(fixedHello(f))))
	f.Add(frame(wire.MustMarshal(&hello{Version: 1})))
	f.Add(frame(wire.MustMarshal(&hello{Version: 2, Request: []byte("x")})))
	f.Add(frame([]byte("\xdd\xff\xff\xff\xff")))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add(frame([]byte("\x82\xa1v\x01\xa1r\xdd\xff\xff\xff\xff")))
	issuerDER := must[[]byte](f)(identity.IssueIssuer(testRoot, rootDER(f), testNode, testKey('I', 1).Public(), testStart))
	code := identity.Code{4, 5, 6}
	f.Fuzz(func(t *testing.T, b []byte) {
		var enrolled *fleet.Node
		s := NewServer(ServerConfig{
			Peers: func() []Peer { return testPeers },
			Enrol: func(_ context.Context, request []byte) (*fleet.Node, error) {
				p, r, err := identity.ParseJoinRequest(request)
				if err != nil {
					return nil, err
				}
				if err := r.Verify(code.Key().Public()); err != nil {
					return nil, err
				}
				enrolled = &fleet.Node{ID: fleet.NodeIDOf(p.Key), Key: p.Key, Name: p.Name, Address: p.Address}
				return enrolled, nil
			},
			Issuing: func() (*Issuing, error) {
				return &Issuing{FleetName: "acme", Key: testKey('I', 1), Issuer: issuerDER, Root: []byte("root"), Trust: []byte("trust")}, nil
			},
			Now: func() time.Time { return testStart }, Logger: quiet(),
		})
		c := &pipe{in: bytes.NewReader(b)}
		s.answer(t.Context(), c)
		if c.out.Len() == 0 {
			if enrolled != nil {
				t.Error("enrolled without an answer")
			}
			return
		}
		var a answer
		if err := readMessage(&c.out, maxAnswer, &a); err != nil || c.out.Len() != 0 {
			t.Fatalf("the answer: %v, and %d bytes after it", err, c.out.Len())
		}
		if a.Version != 1 || a.Time != testStart.UnixNano() {
			t.Errorf("answer %+v", a)
		}
		if enrolled != nil && (a.Message != "" || len(a.Certificate) == 0) {
			t.Errorf("enrolled %s and answered %q", enrolled.ID, a.Message)
		}
		if enrolled == nil && len(a.Certificate) != 0 {
			t.Error("a certificate for nobody")
		}
	})
}

// FuzzAnswer: whatever a host answers, the joiner neither panics nor ends up
// enrolled.
func FuzzAnswer(f *testing.F) {
	f.Add(wire.MustMarshal(fixedAnswer()))
	good := fixedAnswer()
	good.Root, good.Trust = rootDER(f), testTrust(f).Raw()
	good.Certificate, good.Issuer = good.Root, good.Root
	f.Add(wire.MustMarshal(good))
	f.Add(wire.MustMarshal(&answer{Version: 1, Kind: 255, Message: "no", Time: -1 << 63}))
	f.Add([]byte("\x81\xa1p\xdd\xff\xff\xff\xff"))
	root := testRoot.Public()
	path := filepath.Join(f.TempDir(), "data")
	dir := must[*Dir](f)(createDir(path))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a answer
		if err := readMessage(bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)), maxAnswer, &a); err != nil {
			return
		}
		j := &joiner{root: fleet.Sum(root[:]), now: func() time.Time { return testStart }, key: testKey('A', 1)}
		if r, err := j.keep(dir, &a, time.Unix(0, a.Time).Sub(testStart)); err == nil {
			t.Errorf("enrolled: %+v", r)
		}
		notEnrolled(t, path)
	})
}

// FuzzFleetFile: whatever stands in fleet.json, OpenDir answers or refuses.
func FuzzFleetFile(f *testing.F) {
	d := enrolled(f)
	good := must[[]byte](f)(os.ReadFile(d.File("fleet.json")))
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("acme"), []byte("a"), 1))
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(d.File("fleet.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, got, err := OpenDir(d.Path())
		if err != nil {
			return
		}
		if got.Fleet != fleet.IDOf(got.Root()) || got.Version != 1 {
			t.Errorf("opened as %+v", got)
		}
	})
}
