package fleet

import (
	"fmt"
	"slices"
	"testing"
)

// TestStates is the whole table of states: numbers are stored and sent.
func TestStates(t *testing.T) {
	// SSM's CommandInvocationStatus, and the details that it documents for an
	// invocation; the last three are ours.
	statuses := []string{"Pending", "InProgress", "Delayed", "Success", "Cancelled", "TimedOut", "Failed", "Cancelling"}
	details := []string{
		"Pending", "InProgress", "Delayed", "Success", "DeliveryTimedOut", "ExecutionTimedOut", "Failed", "Cancelled", "Cancelling",
		"Undeliverable", "Terminated", "InvalidPlatform", "AccessDenied", "Interrupted", "Staged", "Released",
	}
	want := map[InvocationState]struct {
		name, status   string
		final, isError bool
	}{
		0:  {"Pending", "Pending", false, false},
		1:  {"InProgress", "InProgress", false, false},
		2:  {"Success", "Success", true, false},
		3:  {"Failed", "Failed", true, true},
		4:  {"ExecutionTimedOut", "TimedOut", true, true},
		5:  {"DeliveryTimedOut", "TimedOut", true, false},
		6:  {"Cancelled", "Cancelled", true, false},
		7:  {"Undeliverable", "Failed", true, false},
		8:  {"Interrupted", "Failed", true, true},
		9:  {"Terminated", "Failed", true, false},
		10: {"InvalidPlatform", "Failed", true, false},
		11: {"Cancelling", "Cancelling", false, false},
		12: {"Cancelling", "Cancelling", false, false},
		13: {"Staged", "Pending", false, false},
		14: {"Released", "InProgress", false, false},
	}
	for n := range 256 {
		s := InvocationState(n)
		w, known := want[s]
		if !known {
			if s.Valid() || s.IsError() || s.Status() != "" || s.Details() != "" || s.String() != fmt.Sprintf("state(%d)", n) {
				t.Errorf("state %d is not unknown: %q, %q, %q", n, s, s.Status(), s.Details())
			}
			continue
		}
		if !s.Valid() || s.String() != w.name || s.Details() != w.name || s.Status() != w.status || s.Final() != w.final || s.IsError() != w.isError {
			t.Errorf("state %d: %q, status %q, details %q, final %v, error %v; want %+v",
				n, s, s.Status(), s.Details(), s.Final(), s.IsError(), w)
		}
		if !slices.Contains(statuses, s.Status()) || !slices.Contains(details, s.Details()) {
			t.Errorf("SSM knows no invocation %s/%s", s.Status(), s.Details())
		}
	}
}

func TestCommandOpen(t *testing.T) {
	if !(&Command{Created: 5}).Open() || (&Command{Created: 5, Ended: 5}).Open() {
		t.Error("a command is open until Ended is set")
	}
}

func TestInstant(t *testing.T) {
	for _, ns := range []int64{0, 1000, -1000, 1_999_000, 1772366400_000000000, 1772366400_123456000, 4102444799_999999000, -1_500_000_000} {
		if got := InstantOf(ns).Nanos(); got != ns {
			t.Errorf("%d ns became %d", ns, got)
		}
	}
	if got := InstantOf(1772366400_123456789).Nanos(); got != 1772366400_123456000 {
		t.Errorf("got %d; want the whole microsecond", got)
	}
}
