package state

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"fleet/node/fleet"
)

// Shard is the rows of 256 targets of a command, in the order of the targets;
// the last shard has what is left. A shard without any answer is not stored.
type Shard struct {
	Command fleet.CommandID    `msgpack:"c"`
	N       uint32             `msgpack:"n"` // the first row's Index / fleet.ShardSize
	Rows    []fleet.Invocation `msgpack:"r"`
}

func shardKey(id fleet.CommandID, n uint32) string {
	return string(id) + string(binary.BigEndian.AppendUint32(nil, n))
}

func createdKey(c *fleet.Command) string { return ordered(c.Created) + string(c.ID) }

// Command is the command of this ID; nil if there is none.
func (v View) Command(id fleet.CommandID) *fleet.Command {
	return first[fleet.Command](v, "commands", "id", string(id))
}

// FindCommand is Command with an error of kind NotFound for who asked for it.
func (v View) FindCommand(id fleet.CommandID) (*fleet.Command, error) {
	if c := v.Command(id); c != nil {
		return c, nil
	}
	return nil, fleet.CodeErrorf(fleet.NotFound, "InvalidCommandId", "there is no command %.40q in this fleet", string(id)).
		WithHint("see the commands with: fleet command ls; those that ended more than 30 days ago are gone")
}

// Commands is at most limit commands, newest first, beginning after the command
// before; empty begins at the newest. A limit of 0 is none. It is empty if
// before does not exist.
func (v View) Commands(limit int, before fleet.CommandID) []*fleet.Command {
	from := ordered(1<<63 - 1)
	if before != "" {
		c := v.Command(before)
		if c == nil {
			return nil
		}
		from = createdKey(c)
	}
	it, err := v.begin().ReverseLowerBound("commands", "created", from)
	if err != nil {
		panic(fmt.Sprintf("read commands: %v", err))
	}
	var out []*fleet.Command
	for row := it.Next(); row != nil && (limit <= 0 || len(out) < limit); row = it.Next() {
		if c := row.(*fleet.Command); c.ID != before {
			out = append(out, c)
		}
	}
	return out
}

// OpenCommands is the commands with targets that have not ended, oldest first.
func (v View) OpenCommands() []*fleet.Command { return all[fleet.Command](v, "commands", "open") }

// Shard is the rows of one shard of a command; nil if the command has no such
// shard. Targets that were not heard of are Pending.
func (v View) Shard(id fleet.CommandID, n uint32) []fleet.Invocation {
	if s := first[Shard](v, "shards", "id", shardKey(id, n)); s != nil {
		return s.Rows
	}
	c := v.Command(id)
	if c == nil {
		return nil
	}
	begin := uint64(n) * fleet.ShardSize
	if begin >= uint64(len(c.Targets)) {
		return nil
	}
	rows := make([]fleet.Invocation, min(uint64(len(c.Targets))-begin, fleet.ShardSize))
	for i := range rows {
		rows[i] = fleet.Invocation{Index: uint32(begin) + uint32(i), State: fleet.Pending, Code: -1}
	}
	return rows
}

// Shards is the stored shards of all commands.
func (v View) Shards() []*Shard { return all[Shard](v, "shards", "id") }

// Invocation is the row of one target of a command; nil if there is none.
func (v View) Invocation(id fleet.CommandID, index uint32) *fleet.Invocation {
	rows := v.Shard(id, index/fleet.ShardSize)
	if i := index % fleet.ShardSize; int(i) < len(rows) {
		return &rows[i]
	}
	return nil
}

// Invocations is the rows of all targets of a command, in their order.
func (v View) Invocations(id fleet.CommandID) []fleet.Invocation {
	c := v.Command(id)
	if c == nil {
		return nil
	}
	rows := make([]fleet.Invocation, 0, len(c.Targets))
	for n := uint32(0); len(rows) < len(c.Targets); n++ {
		rows = append(rows, v.Shard(id, n)...)
	}
	return rows
}

// TargetIndex is the place of a node among a command's targets.
func TargetIndex(c *fleet.Command, node fleet.NodeID) (uint32, bool) {
	i, ok := slices.BinarySearch(c.Targets, node)
	return uint32(i), ok
}

// WatchCommands is closed when any command changes, or any row of one.
func (v View) WatchCommands() <-chan struct{} { return v.watch("commands") }

// WatchCommand is closed when this command changes, or any row of it (each
// change of a row changes the command's counts). Before the command exists,
// other changes may close it too.
func (v View) WatchCommand(id fleet.CommandID) <-chan struct{} {
	ch, _, err := v.begin().FirstWatch("commands", "id", string(id))
	if err != nil {
		panic(fmt.Sprintf("watch a command: %v", err))
	}
	return ch
}

// PutCommand adds or replaces a command.
func (t *Txn) PutCommand(c *fleet.Command) { t.put("commands", c) }

// DeleteCommand removes a command and its rows.
func (t *Txn) DeleteCommand(c *fleet.Command) {
	for n := uint32(0); uint64(n)*fleet.ShardSize < uint64(len(c.Targets)); n++ {
		if s := first[Shard](t.View, "shards", "id", shardKey(c.ID, n)); s != nil {
			t.remove("shards", s)
		}
	}
	t.remove("commands", c)
}

// PutShard adds or replaces a shard.
func (t *Txn) PutShard(s *Shard) { t.put("shards", s) }

type content struct {
	digest fleet.Digest
	bytes  []byte
}

// Content is the content of a document, by its digest; nil if no command used
// it.
func (v View) Content(digest fleet.Digest) []byte {
	if c := first[content](v, "contents", "id", string(digest[:])); c != nil {
		return c.bytes
	}
	return nil
}

// Contents is the contents of all documents that commands used.
func (v View) Contents() [][]byte {
	var out [][]byte
	for _, c := range all[content](v, "contents", "id") {
		out = append(out, c.bytes)
	}
	return out
}

// PutContent keeps the content of a document.
func (t *Txn) PutContent(b []byte) { t.put("contents", &content{fleet.Sum(b), b}) }

// DeleteContent removes the content of a document.
func (t *Txn) DeleteContent(digest fleet.Digest) {
	if c := first[content](t.View, "contents", "id", string(digest[:])); c != nil {
		t.remove("contents", c)
	}
}

// Resolve is the nodes that a request names or selects, by ID. Named nodes
// must exist and be named once; selectors are joined by AND, the values of one
// by OR. Only labels and IDs select, never what a host says of itself.
func (v View) Resolve(ids []string, selectors []fleet.Target) ([]fleet.NodeID, error) {
	if len(ids) > 0 {
		return v.named(ids)
	}
	if len(selectors) == 0 {
		return nil, nil
	}
	chosen := make([]map[string]bool, len(selectors)) // of the selectors that name nodes
	for i, s := range selectors {
		if s.Key != "InstanceIds" || slices.Contains(s.Values, "*") {
			continue
		}
		chosen[i] = make(map[string]bool, len(s.Values))
		// A node that is named and unknown is a mistake, not an empty set.
		for _, id := range s.Values {
			if _, err := v.FindNode(fleet.NodeID(id)); err != nil {
				return nil, err
			}
			chosen[i][id] = true
		}
	}
	var out []fleet.NodeID
	for _, n := range v.Nodes() {
		selected := true
		for i, s := range selectors {
			selected = selected && (chosen[i][string(n.ID)] || chosen[i] == nil && matches(n, s))
		}
		if selected {
			out = append(out, n.ID)
		}
	}
	return inOrder(out), nil
}

func (v View) named(ids []string) ([]fleet.NodeID, error) {
	out := make([]fleet.NodeID, 0, len(ids))
	for _, id := range ids {
		if _, err := v.FindNode(fleet.NodeID(id)); err != nil {
			return nil, err
		}
		out = append(out, fleet.NodeID(id))
	}
	slices.Sort(out)
	if twice := slices.Compact(slices.Clone(out)); len(twice) != len(out) {
		return nil, fleet.CodeErrorf(fleet.Invalid, "DuplicateInstanceId", "a node is named twice")
	}
	return out, nil
}

// matches reports whether one selector that names no nodes selects a node.
func matches(n *fleet.Node, s fleet.Target) bool {
	switch key, isTag := strings.CutPrefix(s.Key, "tag:"); {
	case s.Key == "InstanceIds":
		return true // "*": Resolve looks up those that are named
	case s.Key == "tag-key":
		return slices.ContainsFunc(s.Values, func(k string) bool { _, ok := n.Labels[k]; return ok })
	case isTag:
		value, ok := n.Labels[key]
		return ok && slices.Contains(s.Values, value)
	}
	return false
}
