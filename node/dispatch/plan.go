package dispatch

import (
	"bytes"
	"crypto/sha256"
	"math"
	"slices"

	"fleet/node/fleet"
	"fleet/node/rpc"
)

const (
	// MaxDirect is up to how many targets the leader delivers itself.
	MaxDirect = 64

	maxTwoLevels = 16384 // above, there is a third
)

// Plan makes the tree by which a command reaches items: the subtrees of the
// leader's children, each in the form of an order. Nil for so few that the leader
// delivers itself.
//
// Who carries is drawn for each command anew, by the hash of command and node:
// the work goes round, nobody can tell beforehand whose it will be, and the next
// in the order, who takes over from one that fails, is known to all.
func Plan(command fleet.CommandID, items []rpc.CarryItem) [][]rpc.CarryItem {
	return planAbove(command, items, MaxDirect)
}

// planAbove is Plan with the number up to which the leader delivers itself.
func planAbove(command fleet.CommandID, items []rpc.CarryItem, direct int) [][]rpc.CarryItem {
	n := len(items)
	if n <= direct {
		return nil
	}
	order := drawn(command, items)
	if n <= maxTwoLevels {
		branches := deal(order, ceil(math.Sqrt(float64(n))))
		for _, b := range branches {
			b[0].Below = uint32(len(b) - 1)
		}
		return branches
	}
	width := max(ceil(math.Cbrt(float64(n))), ceil(float64(n)/rpc.MaxCarried))
	branches := deal(order, width)
	for i, b := range branches {
		head := b[0]
		head.Below = uint32(len(b) - 1)
		whole := []rpc.CarryItem{head}
		for _, sub := range deal(b[1:], ceil(math.Sqrt(float64(len(b)-1)))) {
			sub[0].Below = uint32(len(sub) - 1)
			whole = append(whole, sub...)
		}
		branches[i] = whole
	}
	return branches
}

func ceil(x float64) int { return int(math.Ceil(x)) }

// drawn is the items in the order of the hash of command and node.
func drawn(command fleet.CommandID, items []rpc.CarryItem) []rpc.CarryItem {
	type lot struct {
		sum  [sha256.Size]byte
		item rpc.CarryItem
	}
	lots := make([]lot, len(items))
	for i, item := range items {
		item.Below = 0
		lots[i] = lot{sha256.Sum256([]byte(string(command) + string(item.Node))), item}
	}
	slices.SortFunc(lots, func(a, b lot) int { return bytes.Compare(a.sum[:], b.sum[:]) })
	order := make([]rpc.CarryItem, len(lots))
	for i, l := range lots {
		order[i] = l.item
	}
	return order
}

// deal gives items out to so many hands: the first of each is its relay.
func deal(items []rpc.CarryItem, hands int) [][]rpc.CarryItem {
	branches := make([][]rpc.CarryItem, hands)
	for i, item := range items {
		branches[i%hands] = append(branches[i%hands], item)
	}
	return branches
}
