package ticket

import (
	"bytes"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// The property of every target: no panic, and what is accepted encodes to the
// bytes that came.

func FuzzParse(f *testing.F) {
	f.Add(readGolden(f, "ticket.hex"))
	f.Add(readGolden(f, "ticket-nested.hex"))
	f.Add(readGolden(f, "ticket-staged.hex"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ticket, err := Parse(b)
		if err == nil && !bytes.Equal(ticket.Bytes(), b) {
			t.Fatal("a second encoding of one ticket")
		}
	})
}

func FuzzParseSigned(f *testing.F) {
	f.Add(readGolden(f, "ticket-signed.hex"))
	known := readGolden(f, "ticket.hex")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSigned(b)
		if err != nil {
			return
		}
		if !bytes.Equal(s.Encode(), b) {
			t.Fatal("a second encoding of one ticket")
		}
		if _, err := s.Verify(testTrust(3)); err == nil && !bytes.Equal(s.Ticket, known) {
			t.Fatal("accepted a ticket that nobody signed")
		}
	})
}

func FuzzParseResult(f *testing.F) {
	f.Add(readGolden(f, "result.hex"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseResult(b)
		if err == nil && !bytes.Equal(identity.EncodeSigned(s.Encode(), s.Signature), b) {
			t.Fatal("a second encoding of one result")
		}
	})
}

func FuzzVerifyPath(f *testing.F) {
	targets := testNodes(9)
	for i := range targets {
		f.Add(uint32(len(targets)), uint32(i), bytes.Join(slicesOf(Path(targets, i)), nil))
	}
	root := Root(targets)
	f.Fuzz(func(t *testing.T, n, index uint32, flat []byte) {
		var path [][32]byte
		for ; len(flat) >= 32; flat = flat[32:] {
			path = append(path, [32]byte(flat))
		}
		if VerifyPath(root, n, index, "mi-00000000000000000", path) {
			t.Fatal("a stranger is in the tree")
		}
		node := fleet.NodeID("mi-00000000000000000")
		if int(index) < len(targets) {
			node = targets[index]
		}
		if VerifyPath(root, uint32(len(targets)), index, node, path) && int(index) >= len(targets) {
			t.Fatal("an index beyond the tree")
		}
	})
}

func slicesOf(path [][32]byte) [][]byte {
	var out [][]byte
	for i := range path {
		out = append(out, path[i][:])
	}
	return out
}
