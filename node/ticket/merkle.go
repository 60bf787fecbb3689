package ticket

import (
	"crypto/sha256"
	"encoding/binary"

	"fleet/node/fleet"
)

// Tree is the Merkle tree over the targets of a command, in their order. Its
// hashes are those of RFC 6962: SHA-256 of 0x00 and the leaf (the target's
// index as 4 bytes, then its node ID), SHA-256 of 0x01 and both children above.
// The two first bytes keep a leaf from passing for a node. Use it when many
// paths of one command are needed; Root and Path build it each time.
type Tree struct {
	levels [][][32]byte // levels[0] are the leaves, the last one is the root alone
}

// NewTree hashes the targets.
func NewTree(targets []fleet.NodeID) *Tree {
	level := make([][32]byte, len(targets))
	for i, node := range targets {
		level[i] = leafHash(uint32(i), node)
	}
	t := &Tree{levels: [][][32]byte{level}}
	for len(level) > 1 {
		next := make([][32]byte, 0, (len(level)+1)/2)
		for i := 0; i+1 < len(level); i += 2 {
			next = append(next, nodeHash(level[i], level[i+1]))
		}
		if len(level)%2 == 1 { // the odd one rises as it is
			next = append(next, level[len(level)-1])
		}
		t.levels = append(t.levels, next)
		level = next
	}
	return t
}

// Root is the hash that a ticket carries; without targets the SHA-256 of nothing.
func (t *Tree) Root() [32]byte {
	top := t.levels[len(t.levels)-1]
	if len(top) == 0 {
		return sha256.Sum256(nil)
	}
	return top[0]
}

// Path is what shows one target to be in the tree: the hashes beside its way
// up, lowest first. Nil if there is no such target.
func (t *Tree) Path(index int) [][32]byte {
	if index < 0 || index >= len(t.levels[0]) {
		return nil
	}
	var path [][32]byte
	for _, level := range t.levels[:len(t.levels)-1] {
		if beside := index ^ 1; beside < len(level) {
			path = append(path, level[beside])
		}
		index /= 2
	}
	return path
}

// Root is the hash over all targets in their order.
func Root(targets []fleet.NodeID) [32]byte { return NewTree(targets).Root() }

// Path is what shows the target at index to be among targets; nil if it is not.
func Path(targets []fleet.NodeID, index int) [][32]byte { return NewTree(targets).Path(index) }

// VerifyPath reports whether node is the target at index of the n below root.
func VerifyPath(root [32]byte, n uint32, index uint32, node fleet.NodeID, path [][32]byte) bool {
	if index >= n {
		return false
	}
	hash := leafHash(index, node)
	for last := n - 1; last > 0; last /= 2 {
		if index < last || index%2 == 1 { // otherwise it is the odd one and rises as it is
			if len(path) == 0 {
				return false
			}
			if index%2 == 1 {
				hash = nodeHash(path[0], hash)
			} else {
				hash = nodeHash(hash, path[0])
			}
			path = path[1:]
		}
		index /= 2
	}
	return len(path) == 0 && hash == root
}

func leafHash(index uint32, node fleet.NodeID) [32]byte {
	b := make([]byte, 1, 1+4+len(node))
	b = binary.BigEndian.AppendUint32(b, index)
	return sha256.Sum256(append(b, node...))
}

func nodeHash(left, right [32]byte) [32]byte {
	b := make([]byte, 0, 65)
	b = append(b, 1)
	b = append(b, left[:]...)
	return sha256.Sum256(append(b, right[:]...))
}
