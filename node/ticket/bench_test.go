package ticket

import (
	"testing"

	"fleet/node/fleet"
)

// BenchmarkSignatures is what tickets and signatures cost, by who pays: a voter
// once for a command, the leader once for a result or a receipt, a host once
// for a command, a relay once for a target below it.
func BenchmarkSignatures(b *testing.B) {
	trust, voter := testTrust(3), testKey(10)
	c := testCommand()
	c.Targets = testNodes(10000)
	tree := NewTree(c.Targets)
	ticket := &Ticket{}
	*ticket = *ForCommand(c, testFleet, 3)
	payload := ticket.Bytes()
	signed := &Signed{Ticket: payload, Signatures: []Signature{Sign(testKey(10), payload), Sign(testKey(11), payload)}}
	host := testKey(40)
	node := fleet.NodeIDOf(host.Public())
	r := testResult()
	r.Node = node
	result := SignResult(host, r)
	receipt := SignReceipt(host, testReceipt())
	ack := SignAck(testKey(11), &Ack{Fleet: testFleet, Epoch: 3, Index: 1, Results: make([]ResultID, MaxAcked)})
	path := tree.Path(77)
	must := func(b *testing.B, err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, bench := range []struct {
		name string
		do   func(b *testing.B)
	}{
		{"voter/tree of 10000 targets", func(*testing.B) { NewTree(c.Targets) }},
		{"voter/sign a ticket", func(*testing.B) { Sign(voter, payload) }},
		{"host/verify a ticket of two", func(b *testing.B) { _, err := signed.Verify(trust); must(b, err) }},
		{"host/sign a result", func(*testing.B) { SignResult(host, r) }},
		{"host/verify an acknowledgement", func(b *testing.B) {
			s, err := ParseSignedAck(ack)
			must(b, err)
			must(b, s.Verify(trust))
		}},
		{"relay/verify a path in 10000", func(b *testing.B) {
			if !VerifyPath(ticket.Root, ticket.Targets, 77, c.Targets[77], path) {
				b.Fatal("not in the tree")
			}
		}},
		{"leader/verify a result", func(b *testing.B) {
			s, err := ParseResult(result)
			must(b, err)
			must(b, s.Verify(host.Public()))
		}},
		{"leader/verify a receipt", func(b *testing.B) { must(b, VerifyReceipt(receipt, testReceipt(), host.Public())) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			for b.Loop() {
				bench.do(b)
			}
		})
	}
}
