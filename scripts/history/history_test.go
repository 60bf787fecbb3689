package history

import (
	"testing"
	"time"
)

// TestCheck holds that a legal history passes and that each way to be wrong is
// found: a check that cannot fail proves nothing.
func TestCheck(t *testing.T) {
	type event struct {
		op  Op
		res Result
	}
	w := func(v string) event { return event{op: Op{Verb: Write, Value: v}} }
	lost := func(v string) event { return event{op: Op{Verb: Write, Value: v}, res: Result{Unknown: true}} }
	r := func(v string) event { return event{Op{Verb: Read}, Result{Value: v}} }
	d := func(absent bool) event { return event{Op{Verb: Delete, Strict: true}, Result{Absent: absent}} }
	for _, tc := range []struct {
		name    string
		events  []event
		illegal bool
	}{
		{"written and read", []event{r(""), w("a"), r("a"), w("b"), r("b")}, false},
		{"a stale read", []event{w("a"), w("b"), r("a")}, true},
		{"a lost write", []event{w("a"), r("")}, true},
		{"unknown, and it was done", []event{w("a"), lost("b"), r("b")}, false},
		{"unknown, and it was not done", []event{w("a"), lost("b"), r("a")}, false},
		{"unknown, and it was done later", []event{w("a"), lost("b"), r("a"), r("b")}, false},
		{"unknown, done and undone", []event{w("a"), lost("b"), r("b"), r("a")}, true},
		{"deleted", []event{w("a"), d(false), r(""), d(true)}, false},
		{"a refusal that was not so", []event{w("a"), d(true)}, true},
		{"deleted twice", []event{w("a"), d(false), d(false)}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var rec Recorder
			p := rec.Process()
			for _, e := range tc.events {
				e.op.Key = "k"
				p.Do(e.op, func() Result { return e.res })
			}
			v := rec.Check(time.Minute)
			if illegal := len(v.Illegal) > 0; illegal != tc.illegal || len(v.Undecided) > 0 {
				t.Errorf("%s\n%s", v, rec.Of("k"))
			}
		})
	}
}

// Two operations at once may have happened in either order.
func TestConcurrent(t *testing.T) {
	var rec Recorder
	a, b := rec.Process(), rec.Process()
	a.Do(Op{Key: "k", Verb: Write, Value: "1"}, func() Result {
		b.Do(Op{Key: "k", Verb: Write, Value: "2"}, func() Result { return Result{} })
		b.Do(Op{Key: "k", Verb: Read}, func() Result { return Result{Value: "1"} })
		return Result{}
	})
	b.Made(func() (string, string, bool) { return "other", "x", true })
	b.Do(Op{Key: "other", Verb: Read}, func() Result { return Result{Value: "x"} })
	if v := rec.Check(time.Minute); len(v.Illegal) > 0 || v.Keys != 2 {
		t.Error(v)
	}
}
