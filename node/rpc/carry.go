package rpc

import (
	"context"
	"errors"
	"io"
	"sync"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// This file is the stream from a parent to a child of the relay tree (package
// node/relay): one order down, then acknowledgements and cancels down and what
// hosts said up, each in a frame of its own, until either side ends it.

// Limits of a Carry stream.
const (
	// MaxCarried is how many targets one order is for, the child included.
	MaxCarried = 4096

	// MaxCarrySaid and MaxCarryBytes bound one report upwards: it is sent when
	// either is reached.
	MaxCarrySaid  = fleet.ShardSize
	MaxCarryBytes = 128 << 10

	// MaxCarriedDetail is the size of the largest details of a result that climb
	// with it, in bytes; larger ones go from the host to a voter.
	MaxCarriedDetail = 8 << 10

	maxCarryOrder = 4 << 20
	maxCarryUp    = MaxCarryBytes + 16<<10 // and the one that made it full
	maxCarryDown  = 8 << 10
)

// CarryItem is one target of an order.
type CarryItem struct {
	Node  fleet.NodeID `msgpack:"n"`
	Index uint32       `msgpack:"i"` // among the targets of the command
	Path  [][32]byte   `msgpack:"p,omitempty"`
	Below uint32       `msgpack:"b,omitempty"` // how many of the items after it are its to carry
}

// CarryOrder brings a command to the child and to the targets below it. The
// child trusts nothing in it but the signatures of the ticket and the digests
// that stand there. No item has an address: a host has those from the quorum,
// and must not dial where a parent sends it.
type CarryOrder struct {
	Ticket       []byte      `msgpack:"t"` // ticket.Signed
	Document     []byte      `msgpack:"d"`
	DocumentName string      `msgpack:"n"`
	Parameters   []byte      `msgpack:"a,omitempty"`
	Items        []CarryItem `msgpack:"i"` // the child first, each before those below it
}

// Validate checks the sizes and the shape of the tree.
func (o *CarryOrder) Validate() error {
	if n := len(o.Items); n < 1 || n > MaxCarried {
		return fleet.Errorf(fleet.Invalid, "an order for %d targets: 1 to %d expected", n, MaxCarried)
	}
	if int(o.Items[0].Below) != len(o.Items)-1 {
		return fleet.Errorf(fleet.Invalid, "the first target does not carry all others")
	}
	if err := checkText("document name", o.DocumentName, 256); err != nil {
		return err
	}
	if err := checkSizes(size{"ticket", len(o.Ticket), 8 << 10}, size{"document", len(o.Document), 64 << 10},
		size{"parameters", len(o.Parameters), 192 << 10}); err != nil {
		return err
	}
	var ends []int // where the subtrees end that we are in
	for i := range o.Items {
		item := &o.Items[i]
		if err := checkNode(item.Node); err != nil {
			return err
		}
		if err := checkSizes(size{"path", len(item.Path), 32}); err != nil {
			return err
		}
		for len(ends) > 0 && i == ends[len(ends)-1] {
			ends = ends[:len(ends)-1]
		}
		end := i + 1 + int(item.Below)
		if int64(item.Below) >= MaxCarried || len(ends) > 0 && end > ends[len(ends)-1] || end > len(o.Items) {
			return fleet.Errorf(fleet.Invalid, "target %d carries more than there are", i)
		}
		ends = append(ends, end)
	}
	return nil
}

// CarryDown is one message from parent to child after the order; one of its
// fields is set.
type CarryDown struct {
	Ack     []byte `msgpack:"a,omitempty"` // ticket.SignedAck
	Cancel  []byte `msgpack:"c,omitempty"` // ticket.SignedCancel
	Release []byte `msgpack:"r,omitempty"` // ticket.SignedRelease
}

// CarryUnreached stands in a CarrySaid in place of a host's DeliverState: the
// parent of the host did not get it to say anything.
const CarryUnreached DeliverState = 100

// CarrySaid is what came of one target. Receipt and Result are the host's own
// words, as it signed them; the rest is the relay's and proves nothing.
type CarrySaid struct {
	Index   uint32       `msgpack:"i"`
	State   DeliverState `msgpack:"s"`
	Receipt []byte       `msgpack:"k,omitempty"` // ticket.SignReceipt, with Accepted and Staged
	Result  []byte       `msgpack:"r,omitempty"` // ticket.SignResult
	Detail  []byte       `msgpack:"d,omitempty"`
	Reason  string       `msgpack:"m,omitempty"`
}

// Size is about how many bytes it takes in a report.
func (s *CarrySaid) Size() int {
	return 64 + len(s.Receipt) + len(s.Result) + len(s.Detail) + len(s.Reason)
}

// CarryUp is one message from child to parent. The first accepts the order;
// from then on one comes every second at least.
type CarryUp struct {
	Accepted uint32      `msgpack:"a,omitempty"` // how many targets the child carries to, itself included
	Heard    uint32      `msgpack:"h,omitempty"` // how many of them have said something
	Said     []CarrySaid `msgpack:"s,omitempty"`
}

// Validate checks the sizes and cleans the reasons, which are foreign text.
func (u *CarryUp) Validate() error {
	if len(u.Said) > MaxCarrySaid {
		return fleet.Errorf(fleet.TooLarge, "a report of %d targets: at most %d", len(u.Said), MaxCarrySaid)
	}
	for i := range u.Said {
		s := &u.Said[i]
		if s.State != CarryUnreached && (s.State < DeliverAccepted || s.State > DeliverNotHere) {
			return fleet.Errorf(fleet.Invalid, "delivery state %d is not known", s.State)
		}
		s.Reason = clean(s.Reason, MaxWarningText)
		if err := checkSizes(size{"receipt", len(s.Receipt), 256}, size{"result", len(s.Result), 1 << 10}, size{"detail", len(s.Detail), MaxCarriedDetail}); err != nil {
			return err
		}
	}
	return nil
}

// sendFrame writes one message in one Write.
func sendFrame(w io.Writer, v any, max int) error {
	frame, err := encodeFrame(v)
	if err != nil {
		return err
	}
	if len(frame)-frameHeader > max {
		return fleet.Errorf(fleet.TooLarge, "message of %d bytes: at most %d", len(frame)-frameHeader, max)
	}
	_, err = w.Write(frame)
	return err
}

func recvFrame(r io.Reader, max int, v any) error {
	body, err := readFrame(r, max)
	if err != nil {
		return err
	}
	return decodeBody(body, v)
}

// CarryStream is the parent's end of a Carry stream. Send and Recv may be used
// at the same time, each by one goroutine; Close ends both.
type CarryStream struct {
	down   *io.PipeWriter
	answer io.ReadCloser
	cancel context.CancelFunc
	once   sync.Once
}

// OpenCarry gives an order to a child. It returns when the child has begun to
// answer, which it does with a message that Recv gives.
func OpenCarry(ctx context.Context, c *Client, to Target, order *CarryOrder) (*CarryStream, error) {
	frame, err := encodeFrame(order)
	if err != nil {
		return nil, err
	}
	if len(frame)-frameHeader > maxCarryOrder {
		return nil, fleet.Errorf(fleet.TooLarge, "order of %d bytes: at most %d", len(frame)-frameHeader, maxCarryOrder)
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	first := &orderReader{frame: frame, more: r}
	answer, err := CallStream(ctx, c, to, MethodCarry, &Empty{}, first)
	if err != nil {
		cancel()
		_ = r.CloseWithError(err) // ends a read of it that is under way
		return nil, err
	}
	return &CarryStream{down: w, answer: answer, cancel: cancel}, nil
}

// orderReader gives the order, then what is sent after it.
type orderReader struct {
	frame []byte
	more  *io.PipeReader
}

func (o *orderReader) Read(p []byte) (int, error) {
	if len(o.frame) > 0 {
		n := copy(p, o.frame)
		o.frame = o.frame[n:]
		return n, nil
	}
	return o.more.Read(p)
}

// Send sends one message down.
func (s *CarryStream) Send(m *CarryDown) error { return sendFrame(s.down, m, maxCarryDown) }

// Recv waits for the child's next message.
func (s *CarryStream) Recv() (*CarryUp, error) {
	up := new(CarryUp)
	if err := recvFrame(s.answer, maxCarryUp, up); err != nil {
		return nil, err
	}
	return up, nil
}

// Close ends the stream, and a Send that waits; the child sees that.
func (s *CarryStream) Close() error {
	var err error
	s.once.Do(func() {
		err = errors.Join(s.down.Close(), s.answer.Close())
		s.cancel()
	})
	return err
}

// CarryHandler answers one Carry stream: recv gives the parent's messages after
// the order, and an error when it has ended the stream; send sends one up, by
// one goroutine at a time.
type CarryHandler func(ctx context.Context, peer identity.Peer, order *CarryOrder, recv func() (*CarryDown, error), send func(*CarryUp) error) error

// HandleCarry sets the handler of Carry.
func HandleCarry(s *Server, f CarryHandler) {
	HandleStream(s, MethodCarry, func(ctx context.Context, peer identity.Peer, _ []byte, body io.Reader, w io.Writer) error {
		order := new(CarryOrder)
		if err := recvFrame(body, maxCarryOrder, order); err != nil {
			return err
		}
		recv := func() (*CarryDown, error) {
			m := new(CarryDown)
			if err := recvFrame(body, maxCarryDown, m); err != nil {
				return nil, err
			}
			return m, nil
		}
		answer := w.(*answerWriter)
		return f(ctx, peer, order, recv, func(up *CarryUp) error {
			if err := sendFrame(answer, up, maxCarryUp); err != nil {
				return err
			}
			return answer.flush()
		})
	})
}
