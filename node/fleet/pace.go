package fleet

import (
	"strconv"
	"strings"
	"time"
)

// Unlimited is MaxConcurrency or MaxErrors without effect.
const Unlimited = "100%"

// SSM's patterns of MaxConcurrency and MaxErrors.
var (
	concurrencyPattern = lazy(`^([1-9][0-9]{0,6}|[1-9][0-9]%|[1-9]%|100%)$`)
	maxErrorsPattern   = lazy(`^(0|[1-9][0-9]{0,6}|[1-9][0-9]%|[0-9]%|100%)$`)
)

// CheckConcurrency accepts a MaxConcurrency.
func CheckConcurrency(s string) error {
	if len(s) <= 7 && concurrencyPattern().MatchString(s) {
		return nil
	}
	return CodeErrorf(Invalid, "ValidationException", "MaxConcurrency %.16q is neither a number from 1 on nor 1%% to 100%%", s).
		WithHint("for example 10, or 25%% of the targets")
}

// CheckMaxErrors accepts a MaxErrors.
func CheckMaxErrors(s string) error {
	if len(s) <= 7 && maxErrorsPattern().MatchString(s) {
		return nil
	}
	return CodeErrorf(Invalid, "ValidationException", "MaxErrors %.16q is neither a number from 0 on nor 0%% to 100%%", s).
		WithHint("for example 0, to stop at the first error, or 10%% of the targets")
}

// share is the part of n targets that a number or "N%" is, rounded down.
func share(s string, n int) int {
	if digits, ok := strings.CutSuffix(s, "%"); ok {
		percent, _ := strconv.Atoi(digits) // what was checked is a number
		return n * percent / 100
	}
	number, _ := strconv.Atoi(s)
	return min(number, n)
}

// Limits is how many targets may be at the command at once, and with how many
// errors it goes on: of n targets N% is rounded down, for the first of them to
// at least 1. It may begin on nobody else when more than errors targets failed.
func (c *Command) Limits() (concurrency, errors int) {
	n := len(c.Targets)
	return max(1, share(c.MaxConcurrency, n)), share(c.MaxErrors, n)
}

// Staged reports whether hosts take the command and wait until their turn comes.
// Where no limit can ever take effect they begin at once: all of them may, and
// to stop it would need that the last one failed too.
func (c *Command) Staged() bool {
	n := len(c.Targets)
	concurrency, errors := c.Limits()
	return n > 1 && (concurrency < n || errors < n-1)
}

// Failures is how many targets ended with what counts towards MaxErrors: what
// SSM counts, and those that had their turn and were never heard of again. A
// mistake that kills every host that begins it brings no error from any.
func (c *Command) Failures() int {
	return c.Count(Failed, ExecutionTimedOut, Interrupted) + int(c.Silent)
}

// Reasons of targets that ended as DeliveryTimedOut and may have run the command:
// their hosts had it, and said nothing more.
const (
	ReasonNotReported    = "the host took the command, but no result came before the command expired"
	ReasonSilentReleased = "its turn came, and the host said nothing before its time was over: it may have run"
	ReasonSilentBegun    = "the host began the command and fell silent: no result came before its time was over"
)

// FellSilent reports whether a reason is one of those.
func FellSilent(reason string) bool {
	return reason == ReasonNotReported || reason == ReasonSilentReleased || reason == ReasonSilentBegun
}

// Stopped reports whether a staged command begins nowhere any more, because too
// many of its targets failed.
func (c *Command) Stopped() bool {
	_, errors := c.Limits()
	return c.Staged() && c.Failures() > errors
}

// Held is how many targets have a place of MaxConcurrency: those that were
// released and whose end is not known.
func (c *Command) Held() int { return c.Count(Released, InProgress, CancelInProgress) }

// ReachBy is the stamp after which a host that never took the command may not
// begin it.
func (c *Command) ReachBy() int64 {
	return min(c.NotAfter, c.Created+int64(c.DeliverySeconds)*int64(time.Second))
}

// StartBy is the stamp by which a target that was released at a stamp has to
// begin: as much later as hosts have to be reached.
func (c *Command) StartBy(released int64) int64 {
	return min(c.NotAfter, released+int64(c.DeliverySeconds)*int64(time.Second))
}

// OverBy is the stamp by which a target that was released at a stamp has ended,
// whether or not anybody hears of it.
func (c *Command) OverBy(released int64) int64 { return c.StartBy(released) + (c.Expires - c.NotAfter) }

// Hear is the state of a row when its host says that it has the command (Staged
// or InProgress). A host that says it began what was never released there
// changes nothing: it does not make a place, only its end is believed.
func (c *Command) Hear(row, said InvocationState) InvocationState {
	switch staged := c.Staged(); {
	case staged && said == Staged && row == Pending:
		return Staged
	case staged && said == InProgress && row == Released:
		return InProgress
	case !staged && said == InProgress && row == Pending:
		return InProgress
	case !staged && said == InProgress && row == CancelPending:
		return CancelInProgress
	}
	return row
}
