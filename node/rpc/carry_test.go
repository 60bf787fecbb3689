package rpc

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// TestCarry: messages go both ways at the same time over one stream, which
// either side can end.
func TestCarry(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		n := &lan{}
		s := NewServer(quiet(), Methods, peerOf)
		ended := make(chan error, 1)
		HandleCarry(s, func(_ context.Context, peer identity.Peer, order *CarryOrder, recv func() (*CarryDown, error), send func(*CarryUp) error) error {
			if err := send(&CarryUp{Accepted: uint32(len(order.Items))}); err != nil {
				return err
			}
			for {
				m, err := recv()
				if err != nil {
					ended <- err
					return nil
				}
				if string(m.Ack) == "end" {
					return nil
				}
				if err := send(&CarryUp{Heard: uint32(len(m.Ack))}); err != nil {
					return err
				}
			}
		})
		serve(t, s, n.listen(atB))
		c := closing(t, NewClient(n.dialAs(agent)))
		order := &CarryOrder{Ticket: []byte("t"), Document: make([]byte, 60<<10), Items: carryItems(MaxCarried)}
		open := func() *CarryStream {
			s, err := OpenCarry(t.Context(), c, atB, order)
			if err != nil {
				t.Fatal(err)
			}
			if up, err := s.Recv(); err != nil || up.Accepted != MaxCarried {
				t.Fatalf("the first message: %+v, %v", up, err)
			}
			return s
		}
		stream := open()
		for i := range 5 {
			if err := stream.Send(&CarryDown{Ack: make([]byte, i)}); err != nil {
				t.Fatal(err)
			}
			if up, err := stream.Recv(); err != nil || int(up.Heard) != i {
				t.Fatalf("message %d: %+v, %v", i, up, err)
			}
			time.Sleep(time.Minute)
		}
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("the child does not see the end")
		}
		stream = open()
		if err := stream.Send(&CarryDown{Ack: []byte("end")}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) && fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("after the child's end: %v", err)
		}
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
	})
}

func carryItems(n int) []CarryItem {
	items := make([]CarryItem, n)
	for i := range items {
		items[i] = CarryItem{Node: nodeA, Index: uint32(i), Path: make([][32]byte, 17)}
	}
	if n > 0 {
		items[0].Below = uint32(n - 1)
	}
	return items
}

func TestCarryLimits(t *testing.T) {
	shape := func(below ...uint32) *CarryOrder {
		o := &CarryOrder{Items: carryItems(len(below))}
		for i, b := range below {
			o.Items[i].Below = b
		}
		return o
	}
	for _, good := range []*CarryOrder{shape(0), shape(3, 1, 0, 0), shape(5, 2, 1, 0, 1, 0)} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good.Items, err)
		}
	}
	for name, bad := range map[string]interface{ Validate() error }{
		"nobody":                     shape(),
		"too many":                   &CarryOrder{Items: carryItems(MaxCarried + 1)},
		"two trees":                  shape(0, 0),
		"more than there are":        shape(2, 2, 0),
		"out of its parent's":        shape(4, 1, 1, 0, 0),
		"many below the last":        shape(1, 1<<31),
		"no node":                    &CarryOrder{Items: []CarryItem{{}}},
		"a long path":                &CarryOrder{Items: []CarryItem{{Node: nodeA, Path: make([][32]byte, 33)}}},
		"a large document":           &CarryOrder{Items: carryItems(1), Document: make([]byte, 64<<10+1)},
		"a report of too many":       &CarryUp{Said: make([]CarrySaid, MaxCarrySaid+1)},
		"a report of no state":       &CarryUp{Said: make([]CarrySaid, 1)},
		"a large detail":             &CarryUp{Said: []CarrySaid{{State: DeliverDone, Detail: make([]byte, MaxCarriedDetail+1)}}},
		"a large result":             &CarryUp{Said: []CarrySaid{{State: DeliverDone, Result: make([]byte, 1<<10+1)}}},
		"a state between the others": &CarryUp{Said: []CarrySaid{{State: CarryUnreached - 1}}},
	} {
		if bad.Validate() == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
