// Package state is what the fleet decided, in memory: the rows that the
// replicated log makes, held in go-memdb so that a reader gets a consistent
// view without stopping the writer.
//
// Rows are constants: what a read returns is shared with every other reader,
// so copy before you change (Txn does not). The only writer is package
// raftfsm, one transaction for each log entry; everybody else reads, and
// watches.
//
// The watch idiom is: take the channel, then read, then wait. A channel is
// closed at the first change after it was taken, so no change is missed. When
// a snapshot replaces the state, Abandoned is closed: drop the Store and ask
// the FSM for the new one. Nothing here knows a clock; Stamp is the time of the
// last entry that changed something.
//
// go-memdb wants plain strings as index arguments and finds out at run time;
// the conversion is made here and nowhere else.
package state

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/go-memdb"

	"fleet/node/fleet"
)

// Store is one state of the fleet. Reads of a live Store each see the newest
// state; those of a Snapshot all see the same one.
type Store struct {
	View
	db        *memdb.MemDB
	abandoned chan struct{}
}

// New makes an empty store: a fleet before its genesis.
func New() *Store {
	db, err := memdb.NewMemDB(schema)
	if err != nil {
		panic(fmt.Sprintf("schema of the state: %v", err)) // the schema is a constant of ours
	}
	return newStore(db, make(chan struct{}))
}

func newStore(db *memdb.MemDB, abandoned chan struct{}) *Store {
	return &Store{
		View:      View{begin: func() *memdb.Txn { return db.Txn(false) }},
		db:        db,
		abandoned: abandoned,
	}
}

// Snapshot is the state as it is now and will stay. It costs nothing. Watches
// taken from it fire for changes after this moment.
func (s *Store) Snapshot() *Store { return newStore(s.db.Snapshot(), s.abandoned) }

// Abandoned is closed when another Store has taken this one's place.
func (s *Store) Abandoned() <-chan struct{} { return s.abandoned }

// Abandon closes Abandoned. Only the FSM calls it, once, after a restore.
func (s *Store) Abandon() { close(s.abandoned) }

// Write begins the one write transaction. Only package raftfsm calls it: a
// change that is not made by a log entry exists on one replica.
func (s *Store) Write() *Txn {
	txn := s.db.Txn(true)
	return &Txn{View: View{begin: func() *memdb.Txn { return txn }}, txn: txn}
}

// View reads a state. The pointers it returns must not be written through.
type View struct{ begin func() *memdb.Txn }

// Txn is a write transaction. It also reads, and sees its own writes. The rows
// it is given belong to the state afterwards. It must end in Commit or Abort.
type Txn struct {
	View
	txn *memdb.Txn
}

// Commit makes the changes visible and wakes the watchers.
func (t *Txn) Commit() { t.txn.Commit() }

// Abort forgets the changes. After Commit it does nothing.
func (t *Txn) Abort() { t.txn.Abort() }

func (t *Txn) put(table string, row any) {
	if err := t.txn.Insert(table, row); err != nil {
		panic(fmt.Sprintf("insert into %s: %v", table, err)) // schema and row types are constants of ours
	}
}

func (t *Txn) remove(table string, row any) {
	if err := t.txn.Delete(table, row); err != nil && !errors.Is(err, memdb.ErrNotFound) {
		panic(fmt.Sprintf("delete from %s: %v", table, err))
	}
}

// first is the row that an index has under a key; nil if there is none.
func first[T any](v View, table, index, key string) *T {
	row, err := v.begin().First(table, index, key)
	if err != nil {
		panic(fmt.Sprintf("read %s by %s: %v", table, index, err))
	}
	if row == nil {
		return nil
	}
	return row.(*T)
}

// all is the rows that an index has under a key, or all of the index in its
// order if no key is given.
func all[T any](v View, table, index string, key ...any) []*T {
	it, err := v.begin().Get(table, index, key...)
	if err != nil {
		panic(fmt.Sprintf("read %s by %s: %v", table, index, err))
	}
	var rows []*T
	for row := it.Next(); row != nil; row = it.Next() {
		rows = append(rows, row.(*T))
	}
	return rows
}

// watch is closed when any row of the table changes.
func (v View) watch(table string) <-chan struct{} {
	it, err := v.begin().Get(table, "id")
	if err != nil {
		panic(fmt.Sprintf("watch %s: %v", table, err))
	}
	return it.WatchCh()
}

// keyed is an index whose key a function makes of the row. Text keys end in a
// zero byte, so that no key is the beginning of another.
type keyed[T any] struct {
	key func(*T) (string, bool)
}

func (k keyed[T]) FromObject(row any) (bool, []byte, error) {
	key, ok := k.key(row.(*T))
	if !ok {
		return false, nil, nil
	}
	return true, []byte(key + "\x00"), nil
}

func (k keyed[T]) FromArgs(args ...any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("%d arguments instead of one", len(args))
	}
	key, ok := args[0].(string)
	if !ok {
		return nil, fmt.Errorf("argument of type %T instead of string", args[0])
	}
	return []byte(key + "\x00"), nil
}

// multiKeyed is an index with several keys for one row.
type multiKeyed[T any] struct {
	keyed[T]
	keys func(*T) []string
}

func (k multiKeyed[T]) FromObject(row any) (bool, [][]byte, error) {
	var out [][]byte
	for _, key := range k.keys(row.(*T)) {
		out = append(out, []byte(key+"\x00"))
	}
	return len(out) > 0, out, nil
}

func id[T any](key func(*T) string) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: "id", Unique: true, Indexer: always(key)}
}

func always[T any](key func(*T) string) keyed[T] {
	return keyed[T]{key: func(row *T) (string, bool) { return key(row), true }}
}

// ordered writes a number so that text order is the order of numbers.
func ordered(n int64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n)^1<<63)
	return string(b[:])
}

func only[T any](*T) string { return "" }

func table(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
	for _, i := range indexes {
		t.Indexes[i.Name] = i
	}
	return t
}

var schema = &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
	"fleet": table("fleet", id(only[Fleet])),
	"trust": table("trust", id(only[trustRow])),
	"clock": table("clock", id(only[clockRow])),
	"operators": table("operators",
		id(func(o *fleet.Operator) string { return string(o.Name) }),
		&memdb.IndexSchema{Name: "key", Indexer: multiKeyed[fleet.Operator]{keys: operatorKeys}}),
	"appointments":    table("appointments", id(func(a *Appointment) string { return indexKey(a.Index) })),
	"formeroperators": table("formeroperators", id(func(f *FormerOperator) string { return indexKey(f.Index) })),
	"activations": table("activations",
		id(func(a *fleet.Activation) string { return string(a.ID) })),
	"nodes": table("nodes",
		id(func(n *fleet.Node) string { return string(n.ID) }),
		&memdb.IndexSchema{Name: "key", Unique: true, Indexer: always(func(n *fleet.Node) string { return string(n.Key[:]) })},
		&memdb.IndexSchema{Name: "name", Indexer: always(func(n *fleet.Node) string { return n.Name })},
		&memdb.IndexSchema{Name: "activation", AllowMissing: true, Indexer: keyed[fleet.Node]{
			key: func(n *fleet.Node) (string, bool) { return string(n.Activation), n.Activation != "" },
		}}),
	"removals": table("removals",
		id(func(r *fleet.Removal) string { return string(r.Node.ID) }),
		&memdb.IndexSchema{Name: "activation", AllowMissing: true, Indexer: keyed[fleet.Removal]{
			key: func(r *fleet.Removal) (string, bool) { return string(r.Node.Activation), r.Node.Activation != "" },
		}}),
	"commands": table("commands",
		id(func(c *fleet.Command) string { return string(c.ID) }),
		&memdb.IndexSchema{Name: "created", Unique: true, Indexer: always(createdKey)},
		&memdb.IndexSchema{Name: "open", Unique: true, AllowMissing: true, Indexer: keyed[fleet.Command]{
			key: func(c *fleet.Command) (string, bool) { return createdKey(c), c.Open() },
		}}),
	"gossipkeys": table("gossipkeys", id(only[GossipKeys])),
	"targets":    table("targets", id(func(t *fleet.SavedTarget) string { return string(t.Name) })),
	"shards":     table("shards", id(func(s *Shard) string { return shardKey(s.Command, s.N) })),
	"contents":   table("contents", id(func(c *content) string { return string(c.digest[:]) })),
	"requests":   table("requests", id(func(r *Request) string { return requestKey(r.Kind, r.Object) })),
	"nonces": table("nonces",
		id(func(n *Nonce) string { return nonceKey(n.Key, n.Nonce) }),
		&memdb.IndexSchema{Name: "expiry", Indexer: always(func(n *Nonce) string { return ordered(n.NotAfter) })}),
	"features":    table("features", id(only[featuresRow])),
	"marks":       table("marks", id(func(m *fleet.VoterMark) string { return string(m.Node) })),
	"noncecounts": table("noncecounts", id(func(n *nonceCount) string { return string(n.key[:]) })),
}}
