package raftfsm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// TestCorpus applies the log that a release wrote and restores its snapshot:
// both make the same state, whatever has been added to states since.
// scripts/upgrade/corpus.sh keeps them.
func TestCorpus(t *testing.T) {
	dirs, err := filepath.Glob("testdata/corpus/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	read := func(dir, name string) []byte {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(string(bytes.ReplaceAll(text, []byte("\n"), nil)))
		if err != nil {
			t.Fatalf("%s: %s: %v", dir, name, err)
		}
		return b
	}
	for _, dir := range dirs {
		f, index := New(fleetID), uint64(0)
		for b := read(dir, "log.hex"); len(b) > 0; {
			n := binary.BigEndian.Uint32(b)
			index++
			if a := f.Apply(&raft.Log{Index: index, Type: raft.LogCommand, Data: b[4 : 4+n]}).(Answer); a.Err != nil {
				t.Errorf("%s: entry %d: %v", dir, index, a.Err)
			}
			b = b[4+n:]
		}
		restored, err := restore(read(dir, "snapshot.hex"))
		if err != nil {
			t.Errorf("%s: %v", dir, err)
		} else if restored.Hash() != f.Hash() {
			t.Errorf("%s: the snapshot makes another state than the log", dir)
		}
	}
}
