//go:build !planted_clock

package raftfsm

// stampOf is the time of an entry: the proposer's word, the same everywhere.
func stampOf(stamp int64) int64 { return stamp }
