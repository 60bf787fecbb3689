// Package history watches what clients of a fleet were told while somebody
// breaks it, and says whether it can have been so: whether there is one order of
// all operations in which each took effect between its call and its answer
// (linearizability, by porcupine, key by key).
//
// What an operation that failed did is not known: it may take effect at any
// time after its call, or never. So its number is never used again, every value
// is written once, and it stays open to the end of the history. A refusal that
// says what is so (there is no such thing to delete) is an answer like another.
package history

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

// Verb is what an operation does to its key.
type Verb string

// Verbs.
const (
	Read   Verb = "read"
	Write  Verb = "write"
	Delete Verb = "delete" // absent before: an error, where Strict says so
)

// Op is one operation.
type Op struct {
	Key    string
	Verb   Verb
	Value  string // of a write
	Strict bool   // deleting what is not there is refused
}

// Result is what a client was told. Of an operation whose outcome is not known
// it is the zero value with Unknown.
type Result struct {
	Value   string // of a read; "" when the key is absent
	Absent  bool   // a strict delete found nothing
	Unknown bool
}

// Recorder records a history. It may be used concurrently.
type Recorder struct {
	clock atomic.Int64 // orders calls and answers as they happened
	next  atomic.Int64 // client numbers for what follows an unknown outcome

	mu      sync.Mutex // guards what follows
	ops     []porcupine.Operation
	unknown int
}

// Process is one client: it does one thing at a time.
type Process struct {
	r  *Recorder
	id int64
}

// Process makes a client.
func (r *Recorder) Process() *Process { return &Process{r: r, id: r.next.Add(1)} }

// Do records one operation.
func (p *Process) Do(op Op, do func() Result) Result {
	call := p.r.clock.Add(1)
	res := do()
	end := p.r.clock.Add(1)
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if res.Unknown {
		p.r.unknown++
		if op.Verb != Read { // a read that failed did nothing
			p.r.ops = append(p.r.ops, porcupine.Operation{ClientId: int(p.id), Input: op, Call: call, Output: res, Return: math.MaxInt64})
		}
		p.id = p.r.next.Add(1)
		return res
	}
	p.r.ops = append(p.r.ops, porcupine.Operation{ClientId: int(p.id), Input: op, Call: call, Output: res, Return: end})
	return res
}

// Made records that a key came into being with a value: for keys whose name is
// part of the answer, so that it is not known of those that failed.
func (p *Process) Made(make func() (key, value string, ok bool)) {
	call := p.r.clock.Add(1)
	key, value, ok := make()
	end := p.r.clock.Add(1)
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if !ok {
		p.r.unknown++
		p.id = p.r.next.Add(1)
		return
	}
	p.r.ops = append(p.r.ops, porcupine.Operation{
		ClientId: int(p.id), Input: Op{Key: key, Verb: Write, Value: value}, Call: call, Output: Result{}, Return: end,
	})
}

// Verdict is what the check found.
type Verdict struct {
	Operations, Unknown, Keys int
	Illegal                   []string // keys whose history cannot have been
	Undecided                 []string // keys for which there was no time
	Took                      time.Duration
}

func (v Verdict) String() string {
	return fmt.Sprintf("%d operations on %d keys, %d of unknown outcome: %d illegal histories, %d undecided, in %s",
		v.Operations, v.Keys, v.Unknown, len(v.Illegal), len(v.Undecided), v.Took.Round(time.Millisecond))
}

// Check decides the history so far; limit is for each key.
func (r *Recorder) Check(limit time.Duration) Verdict {
	r.mu.Lock()
	ops := slices.Clone(r.ops)
	v := Verdict{Operations: len(ops), Unknown: r.unknown}
	r.mu.Unlock()
	began := time.Now()
	byKey := map[string][]porcupine.Operation{}
	for _, o := range ops {
		key := o.Input.(Op).Key
		byKey[key] = append(byKey[key], o)
	}
	v.Keys = len(byKey)
	for key, ops := range byKey {
		switch porcupine.CheckOperationsTimeout(register, ops, limit) {
		case porcupine.Illegal:
			v.Illegal = append(v.Illegal, key)
		case porcupine.Unknown:
			v.Undecided = append(v.Undecided, key)
		}
	}
	slices.Sort(v.Illegal)
	v.Took = time.Since(began)
	return v
}

// Of is the history of a key, for a person, in order of the calls.
func (r *Recorder) Of(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines strings.Builder
	for _, o := range r.ops {
		if op := o.Input.(Op); op.Key == key {
			until := fmt.Sprint(o.Return)
			if o.Return == math.MaxInt64 {
				until = "?"
			}
			fmt.Fprintf(&lines, "%d-%s client %d: %s\n", o.Call, until, o.ClientId, register.DescribeOperation(op, o.Output))
		}
	}
	return lines.String()
}

// register is what a key is: a value or nothing.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		was, op, res := state.(string), input.(Op), output.(Result)
		switch {
		case op.Verb == Read:
			return res.Value == was, was
		case op.Verb == Write:
			return true, op.Value
		case res.Unknown:
			return true, ""
		case op.Strict:
			return res.Absent == (was == ""), ""
		}
		return true, ""
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		op, res := input.(Op), output.(Result)
		switch {
		case res.Unknown:
			return fmt.Sprintf("%s(%s) -> ?", op.Verb, op.Value)
		case op.Verb == Read:
			return fmt.Sprintf("read -> %q", res.Value)
		case res.Absent:
			return fmt.Sprintf("%s -> there is none", op.Verb)
		}
		return fmt.Sprintf("%s(%s)", op.Verb, op.Value)
	},
}
