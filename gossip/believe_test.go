package gossip

import (
	"bytes"
	"encoding/hex"
	"io"
	"net"
	"slices"
	"testing"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

func testBelief() (*belief, *int) {
	refused := new(int)
	return &belief{self: nodeID(1), refuse: func() { *refused++ }}, refused
}

func TestBelievePacket(t *testing.T) {
	self, other, name := string(nodeID(1)), string(nodeID(2)), string(nodeID(3))
	meta := bytes.Repeat([]byte{1}, 106)
	good := func(change func(*aliveMessage)) []byte {
		m := aliveAt(2, hostAddr(2), 7, meta)
		if change != nil {
			change(&m)
		}
		return encode(t, msgAlive, m)
	}
	suspect := encode(t, msgSuspect, accusation{7, other, name})
	dead := encode(t, msgDead, accusation{7, other, name})
	endless := encode(t, msgDead, accusation{endOfRange, other, name})
	asSuspect := func(inc uint32, who string) []byte { return encode(t, msgSuspect, accusation{inc, who, name}) }
	ping := encode(t, msgPing, pingMessage{SeqNo: 1, Node: other, SourceAddr: []byte{10, 0, 0, 1}, SourcePort: 7790, SourceNode: self})
	same := func(b []byte) []byte { return bytes.Clone(b) }
	cases := []struct {
		name    string
		in      []byte
		want    []byte // nil: nothing is passed on
		refused int    // parts of a compound
		err     bool
	}{
		{"ping", ping, same(ping), 0, false},
		{"short ping", encode(t, msgPing, pingMessage{SeqNo: 1}), encode(t, msgPing, pingMessage{SeqNo: 1}), 0, false},
		{"suspect", suspect, same(suspect), 0, false},
		{"dead becomes suspect", dead, same(suspect), 0, false},
		{"left becomes suspect", encode(t, msgDead, accusation{7, other, other}), encode(t, msgSuspect, accusation{7, other, other}), 0, false},
		{"alive", good(nil), good(nil), 0, false},
		{"checksum is taken off", append([]byte{msgCRC, 1, 2, 3, 4}, good(nil)...), good(nil), 0, false},
		{"highest accusation", asSuspect(maxAccused, other), asSuspect(maxAccused, other), 0, false},
		{"too high an accusation", asSuspect(maxAccused+1, other), nil, 0, true},
		{"higher for this host", asSuspect(maxBlamed, self), asSuspect(maxBlamed, self), 0, false},
		{"too high for this host", asSuspect(maxBlamed+1, self), nil, 0, true},
		{"highest alive", good(func(m *aliveMessage) { m.Incarnation = maxAlive }), good(func(m *aliveMessage) { m.Incarnation = maxAlive }), 0, false},
		{"too high an alive", good(func(m *aliveMessage) { m.Incarnation = maxAlive + 1 }), nil, 0, true},
		{"alive without an address", good(func(m *aliveMessage) { m.Addr = nil }), nil, 0, true},
		{"alive with an odd address", good(func(m *aliveMessage) { m.Addr = []byte{1, 2, 3} }), nil, 0, true},
		{"alive without a name", good(func(m *aliveMessage) { m.Node = "" }), nil, 0, true},
		{"alive with a long name", good(func(m *aliveMessage) { m.Node += "0" }), nil, 0, true},
		{"alive with much metadata", good(func(m *aliveMessage) { m.Meta = make([]byte, 123) }), nil, 0, true},
		{"alive without versions", good(func(m *aliveMessage) { m.Vsn = nil }), nil, 0, true},
		{"alive of a later release", good(func(m *aliveMessage) { m.Vsn = []byte{1, 6, 5, 1, 2, 1} }),
			good(func(m *aliveMessage) { m.Vsn = []byte{1, 6, 5, 1, 2, 1} }), 0, false},
		{"alive of a release that dropped ours", good(func(m *aliveMessage) { m.Vsn = []byte{1, 6, 5, 2, 2, 2} }), nil, 0, true},
		{"compound", joinCompound([][]byte{ping, dead}), joinCompound([][]byte{ping, suspect}), 0, false},
		{"compound loses a part", joinCompound([][]byte{ping, endless, suspect}), joinCompound([][]byte{ping, suspect}), 1, false},
		{"compound loses all", joinCompound([][]byte{endless}), nil, 1, false},
		{"compound in a compound", joinCompound([][]byte{joinCompound([][]byte{ping}), ping}), joinCompound([][]byte{ping}), 1, false},
		{"compound with an empty part", joinCompound([][]byte{{}, ping}), joinCompound([][]byte{ping}), 1, false},
		{"compound cut short", joinCompound([][]byte{ping})[:20], nil, 0, true},
		{"compound with more behind", append(joinCompound([][]byte{ping}), 0), nil, 0, true},
		{"more behind", append(same(suspect), 0), nil, 0, true},
		{"user message", append([]byte{8}, "hello"...), nil, 0, true},
		{"compressed", encode(t, 9, struct {
			Algo int
			Buf  []byte
		}{0, []byte{1}}), nil, 0, true},
		{"encrypted", []byte{10, 0x80}, nil, 0, true},
		{"push/pull", encode(t, msgPushPull, pushPullHeader{}), nil, 0, true},
		{"unknown", []byte{99, 0x80}, nil, 0, true},
		{"empty", nil, nil, 0, true},
		{"one byte", []byte{msgPing}, nil, 0, true},
		{"no map", []byte{msgSuspect, 0x01}, nil, 0, true},
		{"unknown field", encode(t, msgSuspect, struct{ Incarnation, Other int }{1, 2}), nil, 0, true},
		{"other case", encode(t, msgSuspect, struct {
			I int `codec:"incarnation"`
		}{1}), nil, 0, true},
		{"field twice", append([]byte{msgSuspect, 0x82}, append(rawText("Incarnation", 1), rawText("Incarnation", 2)...)...), nil, 0, true},
		{"nested", append([]byte{msgSuspect, 0x81}, append(rawText("Node"), 0x91, 0x01)...), nil, 0, true},
		{"negative", append([]byte{msgSuspect, 0x81}, rawText("Incarnation", 0xd0, 0xff)...), nil, 0, true},
		{"above 32 bits", append([]byte{msgSuspect, 0x81}, rawText("Incarnation", 0xcf, 0, 0, 0, 1, 0, 0, 0, 0)...), nil, 0, true},
		{"huge text", append([]byte{msgSuspect, 0x81}, rawText("Node", 0xdb, 0xff, 0xff, 0xff, 0xff)...), nil, 0, true},
		{"huge map", []byte{msgSuspect, 0xdf, 0xff, 0xff, 0xff, 0xff}, nil, 0, true},
		{"nil field", append([]byte{msgSuspect, 0x81}, rawText("Node", 0xc0)...), append([]byte{msgSuspect, 0x81}, rawText("Node", 0xc0)...), 0, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f, refused := testBelief()
			got, err := f.packet(bytes.Clone(c.in))
			if (err != nil) != c.err || !bytes.Equal(got, c.want) || *refused != c.refused {
				t.Errorf("got %x, %v, %d refused\nwant %x, error %v, %d refused", got, err, *refused, c.want, c.err, c.refused)
			}
		})
	}
}

// rawText is a short text as memberlist's msgpack writes it, and what follows.
func rawText(s string, value ...byte) []byte {
	return append(append([]byte{0xa0 | byte(len(s))}, s...), value...)
}

func TestBelieveStream(t *testing.T) {
	meta := bytes.Repeat([]byte{1}, 106)
	ok := stateAt(2, stateAlive, 7, meta)
	high := stateAt(3, stateDead, endOfRange, meta)
	left := stateAt(4, stateLeft, 7, meta)
	deadForLeft := stateAt(4, stateDead, 7, meta)
	header := func(h pushPullHeader, rest ...any) []byte {
		return encode(t, msgPushPull, append([]any{h}, rest...)...)
	}
	badVsn := ok
	badVsn.Vsn = []byte{1, 5, 2, 0, 0, 0}
	cases := []struct {
		name    string
		in      []byte
		want    []byte
		refused int
		err     bool
	}{
		{"none", pushPull(t), pushPull(t), 0, false},
		{"one", pushPull(t, ok), pushPull(t, ok), 0, false},
		{"join is kept", header(pushPullHeader{Nodes: 1, Join: true}, ok), header(pushPullHeader{Nodes: 1, Join: true}, ok), 0, false},
		{"the unbelievable are dropped", pushPull(t, ok, high, ok), pushPull(t, ok, ok), 1, false},
		{"left becomes dead", pushPull(t, left), pushPull(t, deadForLeft), 0, false},
		{"left in a wide number", bytes.Replace(pushPull(t, left), rawText("State", 3), rawText("State", 0xcc, 3), 1), pushPull(t), 1, false},
		{"unknown state", pushPull(t, stateAt(2, 4, 1, meta)), pushPull(t), 1, false},
		{"bad versions", pushPull(t, badVsn), pushPull(t), 1, false},
		{"user state of a later release is cut off", append(header(pushPullHeader{Nodes: 1, UserStateLen: 3}, ok), 1, 2, 3), pushPull(t, ok), 0, false},
		{"fewer than announced", header(pushPullHeader{Nodes: 2}, ok), nil, 0, true},
		{"more than announced", header(pushPullHeader{Nodes: 1}, ok, ok), nil, 0, true},
		{"less user state", append(header(pushPullHeader{UserStateLen: 3}), 1), nil, 0, true},
		{"a million members", header(pushPullHeader{Nodes: 1 << 20}), nil, 0, true},
		{"more than a million", header(pushPullHeader{Nodes: 1<<20 + 1}), nil, 0, true},
		{"negative", header(pushPullHeader{Nodes: -1}), nil, 0, true},
		{"ping", encode(t, msgPing, pingMessage{SeqNo: 1}), encode(t, msgPing, pingMessage{SeqNo: 1}), 0, false},
		{"error", encode(t, msgError, struct{ Error string }{"no"}), encode(t, msgError, struct{ Error string }{"no"}), 0, false},
		{"long error", encode(t, msgError, struct{ Error string }{string(make([]byte, 300))}), nil, 0, true},
		{"dead", encode(t, msgDead, accusation{1, string(nodeID(2)), "x"}), nil, 0, true},
		{"user message", encode(t, 8, struct{ UserMsgLen int }{1}), nil, 0, true},
		{"compressed", []byte{9, 0x80}, nil, 0, true},
		{"encrypted", []byte{10, 0, 0, 0, 0}, nil, 0, true},
		{"label", []byte{244, 1, 'x'}, nil, 0, true},
		{"empty", nil, nil, 0, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f, refused := testBelief()
			got, err := f.stream(bytes.Clone(c.in))
			if (err != nil) != c.err || !sameExchange(t, got, c.want) || *refused != c.refused {
				t.Errorf("got %x, %v, %d refused\nwant %x, error %v, %d refused", got, err, *refused, c.want, c.err, c.refused)
			}
		})
	}
}

// sameExchange compares messages; of push/pulls, what memberlist reads of them:
// headers are written anew.
func sameExchange(t *testing.T, a, b []byte) bool {
	if len(a) == 0 || len(b) == 0 || a[0] != msgPushPull || b[0] != msgPushPull {
		return bytes.Equal(a, b)
	}
	ha, sa := decodeExchange(t, a)
	hb, sb := decodeExchange(t, b)
	return ha == hb && slices.EqualFunc(sa, sb, func(x, y nodeState) bool {
		return x.Name == y.Name && bytes.Equal(x.Addr, y.Addr) && x.Port == y.Port && bytes.Equal(x.Meta, y.Meta) &&
			x.Incarnation == y.Incarnation && x.State == y.State && bytes.Equal(x.Vsn, y.Vsn)
	})
}

// decodeExchange reads a push/pull with memberlist's own decoder.
func decodeExchange(t *testing.T, b []byte) (pushPullHeader, []nodeState) {
	t.Helper()
	dec := codec.NewDecoder(bytes.NewReader(b[1:]), &codec.MsgpackHandle{})
	var h pushPullHeader
	if err := dec.Decode(&h); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	states := make([]nodeState, h.Nodes)
	for i := range states {
		if err := dec.Decode(&states[i]); err != nil {
			t.Fatalf("%x: state %d: %v", b, i, err)
		}
	}
	return h, states
}

// What passes is read by memberlist's decoder as it was read here: it decodes,
// and holds no claim that ought to have been dropped.
func FuzzBelievePacket(f *testing.F) {
	meta := bytes.Repeat([]byte{1}, 106)
	dead := encode(f, msgDead, accusation{7, string(nodeID(2)), "x"})
	f.Add(dead)
	f.Add(encode(f, msgAlive, aliveAt(2, hostAddr(2), 7, meta)))
	f.Add(joinCompound([][]byte{dead, encode(f, msgPing, pingMessage{SeqNo: 1, Node: "x"})}))
	f.Add(append([]byte{msgCRC, 0, 0, 0, 0}, dead...))
	f.Fuzz(func(t *testing.T, b []byte) {
		fl, _ := testBelief()
		out, err := fl.packet(b)
		if err != nil || out == nil {
			return
		}
		parts := [][]byte{out}
		if out[0] == msgCompound {
			if parts, err = splitCompound(out); err != nil {
				t.Fatalf("%x: %v", out, err)
			}
		}
		for _, p := range parts {
			dec := codec.NewDecoder(bytes.NewReader(p[1:]), &codec.MsgpackHandle{})
			switch p[0] {
			case msgSuspect:
				var a accusation
				if err := dec.Decode(&a); err != nil {
					t.Fatalf("%x: %v", p, err)
				}
				if a.Incarnation > maxAccused && a.Node != string(nodeID(1)) || a.Incarnation > maxBlamed {
					t.Fatalf("%x: %+v", p, a)
				}
			case msgAlive:
				var a aliveMessage
				if err := dec.Decode(&a); err != nil {
					t.Fatalf("%x: %v", p, err)
				}
				if a.Incarnation > maxAlive || len(a.Vsn) != 6 || len(a.Node) != nameSize {
					t.Fatalf("%x: %+v", p, a)
				}
			case msgPing, msgIndirectPing, msgAck, msgNack:
				var m map[string]any
				if err := dec.Decode(&m); err != nil {
					t.Fatalf("%x: %v", p, err)
				}
			default:
				t.Fatalf("a message of kind %d passed", p[0])
			}
		}
	})
}

func FuzzBelieveStream(f *testing.F) {
	meta := bytes.Repeat([]byte{1}, 106)
	f.Add(pushPull(f, stateAt(2, stateAlive, 7, meta), stateAt(3, stateLeft, 7, meta)))
	f.Add(pushPull(f, stateAt(2, stateDead, endOfRange, nil)))
	f.Add(encode(f, msgPing, pingMessage{SeqNo: 1}))
	f.Add(encode(f, msgError, struct{ Error string }{"no"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		fl, _ := testBelief()
		out, err := fl.stream(b)
		if err != nil || out[0] != msgPushPull {
			return
		}
		h, states := decodeExchange(t, out)
		if h.UserStateLen != 0 {
			t.Fatalf("user state of %d bytes passed", h.UserStateLen)
		}
		for _, s := range states {
			switch {
			case s.State == stateAlive && s.Incarnation <= maxAlive && len(s.Vsn) == 6:
			case s.State == 1 || s.State == stateDead:
				if s.Incarnation > maxAccused && s.Name != string(nodeID(1)) || s.Incarnation > maxBlamed {
					t.Fatalf("%+v", s)
				}
			default:
				t.Fatalf("%+v", s)
			}
		}
	})
}

func FuzzOpen(f *testing.F) {
	k, err := newKeyring(testKeys, "label")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add(k.sealWith([24]byte{}, []byte("message")))
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := k.open(b)
		if err != nil {
			return
		}
		if again := k.sealWith([24]byte(b[1:25]), plain); !bytes.Equal(again, b) {
			t.Fatalf("%x opens to %x, which seals to %x", b, plain, again)
		}
	})
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{1, 5, 'l', 'a', 'b', 'e', 'l', 0, 0, 0, 2, 'h', 'i'})
	f.Add([]byte{1, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		message, err := readMessage(bytes.NewReader(b), "label", 100)
		if err == nil && (len(message) > 100 || len(b) < 11+len(message)) {
			t.Fatalf("%x gave %x", b, message)
		}
	})
}

// wireConn keeps what is written.
type wireConn struct {
	net.Conn
	bytes.Buffer
}

func (c *wireConn) Write(b []byte) (int, error) { return c.Buffer.Write(b) }
func (c *wireConn) Read(b []byte) (int, error)  { return c.Buffer.Read(b) }

func TestGoldenStream(t *testing.T) {
	conn := new(wireConn)
	open := func() *stream {
		return &stream{Conn: conn, label: label(testFleet, "east"), limit: 10, onClose: func() {},
			believe: func(b []byte) ([]byte, error) { return b, nil }}
	}
	s := open()
	if n, err := s.Write([]byte("message")); n != 7 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	golden(t, "stream.hex", []byte(hex.EncodeToString(conn.Bytes())+"\n"))
	if _, err := s.Write([]byte("more")); err == nil {
		t.Error("a second message was written")
	}
	if got, err := io.ReadAll(s); err != nil || string(got) != "message" {
		t.Errorf("read %q, %v", got, err)
	}
	if n, err := open().Write([]byte("eleven long")); n != 0 || err == nil {
		t.Errorf("a message over the limit: %d, %v", n, err)
	}
}

// The bytes that leave a host, for good.
func TestGoldenPacket(t *testing.T) {
	k, err := newKeyring([][]byte{bytes.Repeat([]byte{1}, 32)}, label(testFleet, "east"))
	if err != nil {
		t.Fatal(err)
	}
	var nonce [24]byte
	for i := range nonce {
		nonce[i] = byte(i)
	}
	sealed := k.sealWith(nonce, []byte("message"))
	golden(t, "packet.hex", []byte(hex.EncodeToString(sealed)+"\n"))
	if plain, err := k.open(sealed); err != nil || string(plain) != "message" {
		t.Errorf("opened %q, %v", plain, err)
	}
	if len(sealed) != sealOverhead+len("message") {
		t.Errorf("%d bytes, want %d", len(sealed), sealOverhead+len("message"))
	}
}
