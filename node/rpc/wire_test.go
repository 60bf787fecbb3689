package rpc

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
)

var update = flag.Bool("update", false, "rewrite testdata")

// samples holds one filled value of every body.
func samples() []any {
	sum := fleet.Sum([]byte("x"))
	row := PresenceRow{ID: nodeA, LastSeen: 1790000000000000000, Version: "1.2.3", Warnings: []string{"clock 3s behind"},
		Reverse: true, Dial: 1, Keys: 3, Starts: 7}
	report := ReportRequest{Result: []byte("result"), Detail: []byte("detail")}
	const command = "01234567-89ab-cdef-0123-456789abcdef"
	return []any{
		&Empty{},
		&HeartbeatRequest{Nonce: [16]byte{1}, Version: "1.2.3", TrustVersion: 4, ViewIndex: 99, Boot: "b1",
			Warnings: []string{"disk 95 % full"}, Keys: 3},
		&HeartbeatResponse{Nonce: [16]byte{1}, Time: 1790000000000000000, Trust: []byte("{}"), ViewIndex: 100,
			Leader: nodeB, NodeRecord: []byte{1}, Dial: 2, Version: "1.2.3", Keys: &GossipKeys{Version: 3, Keys: [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)}}, View: []ViewRow{
				{ID: nodeA, Name: "web1", Labels: map[string]string{"role": "web", "dc": "a"}, Address: "10.0.0.1:7790"},
				{ID: nodeB, Removed: true}}},
		&report,
		&ReportResponse{Index: 7},
		&ForwardReportRequest{Node: nodeA, Report: report},
		&BlobHead{Digest: sum, Size: 10},
		&RenewResponse{Certificate: []byte("leaf"), Issuer: []byte("issuer"), NodeRecord: []byte("record")},
		&ChangeAddressRequest{Change: []byte("change")},
		&ChangeAddressResponse{NodeRecord: []byte("record")},
		&LeaveRequest{Farewell: []byte("farewell")},
		&LeaveResponse{At: 1795300000000000000},
		&ListedResponse{Listed: true},
		&DeliverRequest{Ticket: []byte("ticket"), Index: 3, Path: [][32]byte{sum}, Document: []byte("{}"),
			DocumentName: "AWS-RunShellScript", Parameters: []byte{0x80}, Trust: []byte("{}")},
		&CancelRequest{Cancel: []byte("cancel"), Index: 3, Path: [][32]byte{sum}, Trust: []byte("{}")},
		&ReleaseRequest{Release: []byte("release"), Trust: []byte("{}")},
		&CarryOrder{Ticket: []byte("ticket"), Document: []byte("{}"), DocumentName: "AWS-RunShellScript", Parameters: []byte{0x80},
			Items: []CarryItem{{Node: nodeA, Index: 3, Path: [][32]byte{sum}, Below: 1}, {Node: nodeB, Index: 4, Path: [][32]byte{sum}}}},
		&CarryDown{Ack: []byte("ack")},
		&CarryDown{Cancel: []byte("cancel")},
		&CarryDown{Release: []byte("release")},
		&CarryUp{Accepted: 2},
		&CarryUp{Heard: 2, Said: []CarrySaid{{Index: 3, State: DeliverDone, Result: []byte("result"), Detail: []byte("detail")},
			{Index: 4, State: DeliverAccepted, Receipt: []byte("receipt")}, {Index: 5, State: CarryUnreached, Reason: "no answer"}}},
		&DeliverResponse{State: DeliverDone, Result: []byte("result"), Detail: []byte("detail"), Reason: "done"},
		&QueryCommandRequest{Command: command, Attempt: 1},
		&CandidateResponse{Candidate: []byte("candidate")},
		&InstallQuorumRequest{QuorumCert: []byte("q"), IssuerCert: []byte("i"), Trust: []byte("t")},
		&ForwardRequest{Operation: "SendCommand", Body: []byte("{}"), Proof: []byte("proof"), Operator: "root"},
		&ForwardResponse{Body: []byte("{}")},
		&CoSignRequest{Command: command, Attempt: 1, Mint: 2, Index: 100},
		&CoSignResponse{Signature: bytes.Repeat([]byte{1}, 72)},
		&ReadIndexResponse{Index: 100},
		&RelayRequest{Node: nodeA, Method: MethodDeliver, Body: []byte{0x80}},
		&RelayResponse{Found: true, Body: []byte{0x80}},
		&RelayResponse{Found: true, Error: &errorBody{Kind: uint8(fleet.NotFound), Message: "not here"}},
		&AppliedResponse{Index: 100, Time: 1795300000000000000},
		&StateHashRequest{Index: 70000},
		&StateHashResponse{Hash: fleet.Sum([]byte("state"))},
		&VouchRequest{Term: 3, Index: 70000, Vote: 3},
		&VouchResponse{Missing: "it was in term 3, and its store is in term 2"},
		&PresenceResponse{Rows: []PresenceRow{row}},
		&errorBody{Kind: uint8(fleet.Invalid), Code: "InvalidInstanceId", Message: "no such node", Hint: "fleet node ls"},
	}
}

// TestGolden holds the bytes of a frame of every body: hosts of different
// releases speak with each other.
func TestGolden(t *testing.T) {
	var got strings.Builder
	for _, v := range samples() {
		frame, err := encodeFrame(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%s %s\n", reflect.TypeOf(v).Elem().Name(), hex.EncodeToString(frame))

		body, err := readFrame(iotest.OneByteReader(bytes.NewReader(frame)), len(frame))
		if err != nil {
			t.Fatalf("%T: %v", v, err)
		}
		back := reflect.New(reflect.TypeOf(v).Elem()).Interface()
		if err := decodeBody(body, back); err != nil {
			t.Errorf("%T: %v", v, err)
		} else if !reflect.DeepEqual(v, back) {
			t.Errorf("%T came back as %+v, want %+v", v, back, v)
		}
	}
	const file = "testdata/frames.golden"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("frames changed; a new field is added with a new name, nothing else. Got:\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for _, test := range []struct {
		name string
		v    any
	}{
		{"too many warnings", &HeartbeatRequest{Warnings: make([]string, MaxWarnings+1)}},
		{"warning too long", &HeartbeatRequest{Warnings: []string{long}}},
		{"warning with a terminal code", &HeartbeatRequest{Warnings: []string{"\x1b[2J"}}},
		{"version too long", &HeartbeatRequest{Version: long}},
		{"boot with a line end", &HeartbeatRequest{Boot: "a\nb"}},
		{"view row without an ID", &HeartbeatResponse{View: []ViewRow{{Name: "web1"}}}},
		{"view row with a bad name", &HeartbeatResponse{View: []ViewRow{{ID: nodeA, Name: "web 1"}}}},
		{"view row with a bad label", &HeartbeatResponse{View: []ViewRow{{ID: nodeA, Name: "web1", Labels: map[string]string{"a,b": "c"}}}}},
		{"gossip key that is short", &HeartbeatResponse{Keys: &GossipKeys{Version: 2, Keys: [][]byte{make([]byte, 31)}}}},
		{"no gossip key", &HeartbeatResponse{Keys: &GossipKeys{Version: 2}}},
		{"three gossip keys", &HeartbeatResponse{Keys: &GossipKeys{Version: 2, Keys: make([][]byte, 3)}}},
		{"gossip keys of no version", &HeartbeatResponse{Keys: &GossipKeys{Keys: [][]byte{make([]byte, 32)}}}},
		{"leader that is no ID", &HeartbeatResponse{Leader: "../etc"}},
		{"detail too large", &ReportRequest{Detail: make([]byte, 64<<10+1)}},
		{"acknowledged without an index", &ReportResponse{}},
		{"forwarded for nobody", &ForwardReportRequest{}},
		{"path of a tree deeper than 2^32 leaves", &DeliverRequest{Path: make([][32]byte, 33)}},
		{"unknown state", &DeliverResponse{State: 7}},
		{"release over its limit", &ReleaseRequest{Release: make([]byte, 5<<10)}},
		{"command that is no UUID", &CoSignRequest{Command: "x"}},
		{"query of no command", &QueryCommandRequest{}},
		{"short signature", &CoSignResponse{Signature: make([]byte, 71)}},
		{"operator with a slash", &ForwardRequest{Operator: "a/b"}},
		{"presence of no node", &PresenceResponse{Rows: []PresenceRow{{}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			body := wire.MustMarshal(test.v)
			if err := decodeBody(body, reflect.New(reflect.TypeOf(test.v).Elem()).Interface()); err == nil {
				t.Errorf("%+v was accepted", test.v)
			}
		})
	}
	r := &DeliverResponse{State: DeliverRefused, Reason: "a\x1b[2Jb" + long}
	if err := r.Validate(); err != nil || strings.Contains(r.Reason, "\x1b") || len(r.Reason) > MaxWarningText {
		t.Errorf("reason became %q, %v", r.Reason, err)
	}
	if _, err := ParseBlobHead(wire.MustMarshal(BlobHead{})); err == nil {
		t.Error("head without a digest was accepted")
	}
	if _, err := ParseBlobHead(wire.MustMarshal(BlobHead{Digest: fleet.Sum(nil), Size: MaxBlob + 1})); err == nil {
		t.Error("head of a blob over the limit was accepted")
	}
}

func TestReadFrame(t *testing.T) {
	good := frameBytes([]byte{0x80})
	for _, test := range []struct {
		name string
		in   []byte
		want fleet.Kind
	}{
		{"empty", nil, fleet.Invalid},
		{"half a header", good[:3], fleet.Invalid},
		{"other version", append([]byte{2}, good[1:]...), fleet.Invalid},
		{"over the limit", []byte{1, 0, 0, 1, 0}, fleet.TooLarge},
		{"4 GiB", []byte{1, 0xff, 0xff, 0xff, 0xff}, fleet.TooLarge},
		{"cut", []byte{1, 0, 0, 0, 9, 0x80}, fleet.Invalid},
		{"not msgpack", frameBytes([]byte{0xc1}), fleet.Invalid},
		{"array of 2^32 in five bytes", frameBytes([]byte{0xdd, 0xff, 0xff, 0xff, 0xff}), fleet.Invalid},
		{"key twice", frameBytes([]byte{0x82, 0xa1, 'a', 1, 0xa1, 'a', 2}), fleet.Invalid},
	} {
		if _, err := readFrame(bytes.NewReader(test.in), 100); fleet.KindOf(err) != test.want || err == nil {
			t.Errorf("%s: %v, want kind %v", test.name, err, test.want)
		}
	}
	if _, err := readFrame(bytes.NewReader(good), 100); err != nil {
		t.Errorf("good frame: %v", err)
	}
}

// TestRawRequests sends what our client never would.
func TestRawRequests(t *testing.T) {
	n := &lan{}
	s := NewServer(quiet(), Methods, peerOf)
	Handle(s, MethodApplied, func(context.Context, identity.Peer, *Empty) (*AppliedResponse, error) { return &AppliedResponse{}, nil })
	Handle(s, MethodCoSign, func(context.Context, identity.Peer, *CoSignRequest) (*CoSignResponse, error) { panic("handler") })
	serve(t, s, n.listen(atB))
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.dialAs(voter)(ctx, nodeB, fleet.RoleQuorum)
	}}
	defer transport.CloseIdleConnections()
	cosign := frameBytes(wire.MustMarshal(CoSignRequest{Command: noCommand}))
	for _, test := range []struct {
		name, method, path string
		body               []byte
		want               fleet.Kind
	}{
		{"GET", "GET", "/fleet/Applied", nil, fleet.NotFound},
		{"PUT", "PUT", "/fleet/Applied", frameBytes([]byte{0x80}), fleet.NotFound},
		{"other prefix", "POST", "/Applied", frameBytes([]byte{0x80}), fleet.NotFound},
		{"dots", "POST", "/fleet/x/../Applied", frameBytes([]byte{0x80}), fleet.NotFound},
		{"no body", "POST", "/fleet/Applied", nil, fleet.Invalid},
		{"two frames", "POST", "/fleet/Applied", append(frameBytes([]byte{0x80}), frameBytes([]byte{0x80})...), fleet.TooLarge},
		{"not a map", "POST", "/fleet/CoSign", frameBytes([]byte{0x01}), fleet.Invalid},
		{"handler panics", "POST", "/fleet/CoSign", cosign, fleet.Other},
		{"declared larger than allowed", "POST", "/fleet/Applied", []byte{1, 0, 0xff, 0, 0}, fleet.TooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), test.method, "http://b", bytes.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Path = test.path
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if err := readError(resp); resp.StatusCode != statusError || fleet.KindOf(err) != test.want {
				t.Errorf("status %d, %v: want kind %v", resp.StatusCode, err, test.want)
			}
		})
	}
}

// TestOtherProtocols: what is not HTTP/2 from its first byte, or has no peer,
// is closed without an answer.
func TestOtherProtocols(t *testing.T) {
	n := &lan{}
	l := n.listen(atB)
	serve(t, NewServer(quiet(), Methods, peerOf), l)
	ours, theirs := net.Pipe()
	l.conns <- theirs // not a knownConn
	if got, err := io.ReadAll(ours); err != nil || len(got) != 0 {
		t.Errorf("without a peer: got %q, %v; want the end", got, err)
	}
	conn, err := n.dialAs(voter)(t.Context(), nodeB, fleet.RoleQuorum)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = conn.Write([]byte("POST /fleet/Applied HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\n\x01\x00\x00\x00\x01\x80"))
	}()
	if got, err := io.ReadAll(conn); err != nil || len(got) != 0 {
		t.Errorf("HTTP/1.1: got %q, %v; want the end", got, err)
	}
}

// TestOverTLS calls through real TLS on loopback, as node/transport's
// connections are.
func TestOverTLS(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"b"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{"h2"}, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(quiet(), Methods, func(c net.Conn) (identity.Peer, bool) { _, ok := c.(*tls.Conn); return voter, ok })
	blob := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	HandleStream(s, MethodGetBlob, func(_ context.Context, _ identity.Peer, head []byte, _ io.Reader, w io.Writer) error {
		if h, err := ParseBlobHead(head); err != nil || h.Digest != fleet.Sum(blob) {
			return fleet.Errorf(fleet.NotFound, "no such blob")
		}
		_, err := io.Copy(w, bytes.NewReader(blob))
		return err
	})
	serve(t, s, l)
	c := closing(t, NewClient(func(ctx context.Context, _ fleet.NodeID, _ fleet.Role) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "b", NextProtos: []string{"h2"}}}
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}))
	for range 2 {
		r, err := CallStream(t.Context(), c, atB, MethodGetBlob, BlobHead{Digest: fleet.Sum(blob)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, blob) {
			t.Errorf("got %d bytes, %v; want the blob of %d", len(got), err, len(blob))
		}
		r.Close()
	}
	_, err = CallStream(t.Context(), c, atB, MethodGetBlob, BlobHead{Digest: fleet.Sum(nil)}, nil)
	if fleet.KindOf(err) != fleet.NotFound {
		t.Errorf("unknown blob: %v, want not found", err)
	}
}

// FuzzFrame: no frame, as request or answer of any method, panics or passes a
// limit; what is accepted encodes and decodes to the same value.
func FuzzFrame(f *testing.F) {
	for i, v := range samples() {
		frame, err := encodeFrame(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), frame)
	}
	f.Add(uint8(1), []byte{1, 0, 0, 0, 5, 0xdd, 0xff, 0xff, 0xff, 0xff})
	types := samples()
	f.Fuzz(func(t *testing.T, which uint8, frame []byte) {
		const limit = 1 << 16
		body, err := readFrame(bytes.NewReader(frame), limit)
		if err != nil {
			return
		}
		if len(body) > limit || int(binary.BigEndian.Uint32(frame[1:])) != len(body) {
			t.Fatalf("body of %d bytes from a frame that declares %d", len(body), binary.BigEndian.Uint32(frame[1:]))
		}
		kind := reflect.TypeOf(types[int(which)%len(types)]).Elem()
		v := reflect.New(kind).Interface()
		if decodeBody(body, v) != nil {
			return
		}
		if e, ok := v.(*errorBody); ok {
			if text := e.toError().Error(); len(text) > maxErrorText+10 {
				t.Fatalf("error text of %d bytes", len(text))
			}
		}
		again, err := encodeFrame(v)
		if err != nil {
			t.Fatal(err)
		}
		back := reflect.New(kind).Interface()
		if err := decodeBody(again[frameHeader:], back); err != nil {
			t.Fatalf("%+v does not decode again: %v", v, err)
		}
		third, err := encodeFrame(back)
		if err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%+v encodes in two ways: %x and %x (%v)", v, again, third, err)
		}
	})
}
