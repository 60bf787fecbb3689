package ticket

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"testing"

	"fleet/node/fleet"
)

// naiveRoot is RFC 6962's definition: split at the largest power of two below n.
func naiveRoot(targets []fleet.NodeID, first int) [32]byte {
	switch n := len(targets); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leafHash(uint32(first), targets[0])
	default:
		k := 1
		for 2*k < n {
			k *= 2
		}
		return nodeHash(naiveRoot(targets[:k], first), naiveRoot(targets[k:], first+k))
	}
}

func naivePath(targets []fleet.NodeID, first, index int) [][32]byte {
	n := len(targets)
	if n == 1 {
		return nil
	}
	k := 1
	for 2*k < n {
		k *= 2
	}
	if index < k {
		return append(naivePath(targets[:k], first, index), naiveRoot(targets[k:], first+k))
	}
	return append(naivePath(targets[k:], first+k, index-k), naiveRoot(targets[:k], first))
}

func TestTreeEqualsDefinition(t *testing.T) {
	all := testNodes(70)
	for n := range len(all) + 1 {
		targets := all[:n]
		tree := NewTree(targets)
		root := naiveRoot(targets, 0)
		if tree.Root() != root || Root(targets) != root {
			t.Fatalf("root of %d differs from the definition", n)
		}
		for i := range n {
			path := tree.Path(i)
			if !slices.Equal(path, naivePath(targets, 0, i)) {
				t.Fatalf("path of %d in %d differs from the definition", i, n)
			}
			if !slices.Equal(path, Path(targets, i)) {
				t.Fatalf("Path and Tree.Path of %d in %d differ", i, n)
			}
			if !VerifyPath(root, uint32(n), uint32(i), targets[i], path) {
				t.Fatalf("path of %d in %d is refused", i, n)
			}
		}
		for _, i := range []int{-1, n, n + 1} {
			if tree.Path(i) != nil {
				t.Fatalf("a path for %d in %d", i, n)
			}
		}
	}
}

// A path shows one node at one index of one tree, and nothing else.
func TestVerifyPathRefuses(t *testing.T) {
	all := testNodes(20)
	for n := 1; n <= 17; n++ {
		targets := all[:n]
		root := Root(targets)
		for i := range n {
			path := Path(targets, i)
			index, size := uint32(i), uint32(n)
			refuse := func(what string, ok bool) {
				t.Helper()
				if ok {
					t.Errorf("%d of %d: accepted %s", i, n, what)
				}
			}
			refuse("a stranger", VerifyPath(root, size, index, all[19], path))
			refuse("another root", VerifyPath([32]byte{}, size, index, targets[i], path))
			for j := range uint32(20) {
				if j != index {
					refuse("another index", VerifyPath(root, size, j, targets[i], path))
				}
				// Whether another size gives another shape depends on the place; the
				// ticket's signature covers the size, and the node stays the same.
				if j <= index {
					refuse("an index beyond the size", VerifyPath(root, j, index, targets[i], path))
				}
			}
			refuse("a longer path", VerifyPath(root, size, index, targets[i], append(slices.Clone(path), [32]byte{})))
			if len(path) > 0 {
				refuse("a shorter path", VerifyPath(root, size, index, targets[i], path[:len(path)-1]))
				for level := range path {
					changed := slices.Clone(path)
					changed[level][0] ^= 1
					refuse("a changed path", VerifyPath(root, size, index, targets[i], changed))
				}
			}
		}
	}
	if VerifyPath(Root(nil), 0, 0, all[0], nil) {
		t.Error("somebody is in the empty tree")
	}
	// An inner node must not pass for a leaf, nor the largest size for ever.
	if VerifyPath(Root(all), 1<<32-1, 1<<32-2, all[0], make([][32]byte, 64)) {
		t.Error("accepted a path in the largest tree")
	}
}

// Known values keep the hashing from changing together with its test.
func TestTreeKnownRoots(t *testing.T) {
	for n, want := range map[int]string{
		0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		1: "e8f9980106a579eda1414ee65fa9d3bbf4cb9a6fd7e69b42461db399eecc7b42",
		5: "3c72c83522c20a2f59c0a9f7fb6e76535f84a27a9c4e8a9a82296e4b580dfd8d",
	} {
		if root := Root(testNodes(n)); hex.EncodeToString(root[:]) != want {
			t.Errorf("root of %d = %x, want %s", n, root, want)
		}
	}
}

func BenchmarkTree1000(b *testing.B) {
	targets := testNodes(1000)
	for b.Loop() {
		tree := NewTree(targets)
		for i := range targets {
			tree.Path(i)
		}
	}
}
