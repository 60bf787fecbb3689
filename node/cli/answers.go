package cli

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"fleet/node/fleet"
)

// answers is what the hosts of one command said.
type answers struct {
	command fleet.CommandID
	counts  fleet.CommandEvent // the newest
	final   map[fleet.NodeID]fleet.InvocationEvent
	open    map[fleet.NodeID]fleet.InvocationEvent

	// expected are the names of the hosts that it was sent to, as far as known.
	expected map[fleet.NodeID]string
	sent     bool // by this program: it goes on whatever becomes of the watching
}

func newAnswers(command fleet.CommandID) *answers {
	return &answers{
		command: command, final: map[fleet.NodeID]fleet.InvocationEvent{}, open: map[fleet.NodeID]fleet.InvocationEvent{},
	}
}

func (a *answers) add(e fleet.WatchEvent) {
	if e.Command != nil {
		a.counts = *e.Command
	}
	if i := e.Invocation; i != nil {
		delete(a.open, i.InstanceId)
		if i.Final {
			a.final[i.InstanceId] = *i
		} else {
			a.open[i.InstanceId] = *i
		}
	}
}

// missing are the names of those that have not answered, as far as known.
func (a *answers) missing() []string {
	names := map[fleet.NodeID]string{}
	for id, name := range a.expected {
		names[id] = name
	}
	for id, i := range a.open {
		names[id] = firstOf(i.Name, string(id))
	}
	var all []string
	for id, name := range names {
		if _, answered := a.final[id]; !answered {
			all = append(all, name)
		}
	}
	return all
}

// busy are the missing whose turn has come, if the others wait for theirs.
func (a *answers) busy() []string {
	if a.counts.StagedCount == 0 {
		return a.missing()
	}
	var all []string
	for id, i := range a.open {
		if i.StatusDetails != fleet.Staged.Details() {
			all = append(all, firstOf(i.Name, string(id)))
		}
	}
	return all
}

// argument is what names a host in a command line: its name, its ID where
// several have that name.
func (a *answers) argument(i fleet.InvocationEvent) string {
	for id, other := range a.final {
		if other.Name == i.Name && id != i.InstanceId {
			return string(i.InstanceId)
		}
	}
	return firstOf(i.Name, string(i.InstanceId))
}

// labels gives each host the name that people see: its own, with the ID where
// several have it.
func (a *answers) labels() map[fleet.NodeID]string {
	times := map[string]int{}
	for _, i := range a.final {
		times[i.Name]++
	}
	labels := make(map[fleet.NodeID]string, len(a.final))
	for id, i := range a.final {
		switch {
		case i.Name == "":
			labels[id] = string(id)
		case times[i.Name] > 1:
			labels[id] = fmt.Sprintf("%s(%s)", i.Name, id)
		default:
			labels[id] = i.Name
		}
	}
	return labels
}

// fold is the hosts that answered the same.
type fold struct {
	example fleet.InvocationEvent
	hosts   []string
}

// folds groups the answers, the largest group first.
func (a *answers) folds() []fold {
	labels := a.labels()
	byAnswer := map[string]*fold{}
	var all []*fold
	for id, i := range a.final {
		key := fmt.Sprintf("%s\x00%d\x00%s\x00%q\x00%q",
			i.StatusDetails, i.ResponseCode, i.OutputError, streamKey(i.Stdout), streamKey(i.Stderr))
		f := byAnswer[key]
		if f == nil {
			f = &fold{example: i}
			byAnswer[key] = f
			all = append(all, f)
		}
		f.hosts = append(f.hosts, labels[id])
	}
	out := make([]fold, 0, len(all))
	for _, f := range all {
		slices.SortFunc(f.hosts, naturalCompare)
		out = append(out, *f)
	}
	slices.SortFunc(out, func(x, y fold) int {
		return cmp.Or(cmp.Compare(len(y.hosts), len(x.hosts)), naturalCompare(x.hosts[0], y.hosts[0]))
	})
	return out
}

func streamKey(o fleet.OutputText) string {
	return fmt.Sprintf("%d\x00%s\x00%s", o.Total, o.Text, o.Bytes)
}

// writeFolded writes every answer, equal ones once. Output is indented, so that
// no host can write a line that looks like the head of another's.
func (e *env) writeFolded(w io.Writer, a *answers, raw bool) {
	for _, f := range a.folds() {
		i := f.example
		if i.OutputError == "" && i.Stdout.Total == 0 && i.Stderr.Total == 0 && i.Status != "Success" {
			continue // nothing to show: the list of who did not succeed says why
		}
		e.writeFold(w, a, f, raw)
	}
}

// writeHead writes the line above a group's answer.
func (e *env) writeHead(w io.Writer, f fold, more string) {
	head := fmt.Sprintf("%s (%d)", foldNames(f.hosts), len(f.hosts))
	fmt.Fprint(w, e.paint(e.outTTY, bold, escapeCell(head)))
	if f.example.Status != "Success" {
		fmt.Fprintf(w, "  %s", e.paint(e.outTTY, red, escapeCell(outcome(f.example))))
	}
	fmt.Fprintln(w, escapeCell(more))
}

func (e *env) writeFold(w io.Writer, a *answers, f fold, raw bool) {
	i := f.example
	e.writeHead(w, f, "")
	if i.OutputError != "" {
		fmt.Fprintf(w, "  (%s)\n", escapeCell(i.OutputError))
	}
	more := fmt.Sprintf("fleet command output %s %s", a.command, escapeCell(a.argument(i)))
	writeStream(w, "  ", i.Stdout, raw, more)
	if i.Stderr.Total > 0 {
		fmt.Fprintln(w, "  stderr:")
		writeStream(w, "    ", i.Stderr, raw, more+" --stderr")
	}
}

// writeDiff writes the answer of the largest group, and how those of the others
// differ from it.
func (e *env) writeDiff(w io.Writer, a *answers, raw bool) {
	folds := a.folds()
	if len(folds) == 0 {
		return
	}
	e.writeFold(w, a, folds[0], raw)
	most := folds[0].example
	for _, f := range folds[1:] {
		i := f.example
		if i.OutputError != "" {
			e.writeFold(w, a, f, raw)
			continue
		}
		e.writeHead(w, f, "  differs from "+foldNames(folds[0].hosts))
		same := true
		for _, s := range []struct {
			name     string
			old, new fleet.OutputText
		}{{"stdout", most.Stdout, i.Stdout}, {"stderr", most.Stderr, i.Stderr}} {
			lines := unifiedDiff(streamText(s.old), streamText(s.new))
			if len(lines) > 0 {
				same = false
				if s.name == "stderr" {
					fmt.Fprintln(w, "  stderr:")
				}
				e.writeDiffLines(w, lines, raw)
			}
			if s.old.Truncated || s.new.Truncated {
				fmt.Fprintf(w, "  ... only the first %s of %s were compared\n", size(fleet.MaxEventOutput), s.name)
			}
		}
		if same {
			fmt.Fprintln(w, "  (the same output)")
		}
	}
}

func (e *env) writeDiffLines(w io.Writer, lines []string, raw bool) {
	for _, l := range lines {
		text := l
		if !raw {
			text = escape(l)
		}
		text = strings.ReplaceAll(text, "\n", "\n  ") // that a line has no end
		switch l[0] {
		case '-':
			text = e.paint(e.outTTY, red, text)
		case '+':
			text = e.paint(e.outTTY, green, text)
		}
		fmt.Fprintf(w, "  %s\n", text)
	}
}

// streamText is a stream as it was written, as far as it is here.
func streamText(o fleet.OutputText) string {
	if len(o.Bytes) > 0 {
		return string(o.Bytes)
	}
	return o.Text
}

// writeStream writes one stream, indented, and says where the rest is.
func writeStream(w io.Writer, indent string, o fleet.OutputText, raw bool, more string) {
	text := streamText(o)
	if !raw {
		text = escape(text)
	}
	if text != "" {
		for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
			fmt.Fprintf(w, "%s%s\n", indent, line)
		}
	}
	switch {
	case !o.Truncated:
	case o.Kept == 0:
		fmt.Fprintf(w, "%s... of %s, which were not kept\n", indent, size(o.Total))
	case o.Kept < o.Total:
		fmt.Fprintf(w, "%s... of %s, of which %s are kept: %s\n", indent, size(o.Total), size(o.Kept), more)
	default:
		fmt.Fprintf(w, "%s... of %s: %s\n", indent, size(o.Total), more)
	}
}

func size(bytes uint64) string {
	text := func(unit uint64, name string) string {
		return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(bytes)/float64(unit)), ".0") + " " + name
	}
	switch {
	case bytes < 1<<10:
		return fmt.Sprintf("%d bytes", bytes)
	case bytes < 1<<20:
		return text(1<<10, "KiB")
	case bytes < 1<<30:
		return text(1<<20, "MiB")
	}
	return text(1<<30, "GiB")
}

// outcome is a state for people, with the exit code where one says something.
func outcome(i fleet.InvocationEvent) string {
	if i.StatusDetails == "Failed" && i.ResponseCode > 0 {
		return fmt.Sprintf("Failed, exit code %d", i.ResponseCode)
	}
	return i.StatusDetails
}

// totals is one line: "17 Success, 1 Failed of 18".
func (a *answers) totals() string {
	byState := map[string]int{}
	for _, i := range a.final {
		byState[i.StatusDetails]++
	}
	var parts []string
	for _, state := range slices.SortedFunc(maps.Keys(byState), func(x, y string) int {
		switch success := "Success"; {
		case x == success && y != success:
			return -1
		case y == success && x != success:
			return 1
		}
		return strings.Compare(x, y)
	}) {
		parts = append(parts, fmt.Sprintf("%d %s", byState[state], state))
	}
	if left := a.counts.TargetCount - len(a.final); left > 0 {
		parts = append(parts, fmt.Sprintf("%d without an answer yet", left))
	}
	if len(parts) == 0 {
		parts = []string{"no host"}
	}
	return fmt.Sprintf("%s of %d", strings.Join(parts, ", "), a.counts.TargetCount)
}

// fellSilent is a state of remedies that no invocation has: a host that did not
// start a command in time, and one that may have run it, end as DeliveryTimedOut.
const fellSilent = "FellSilent"

// remedies says for each state that is not success what a person can do; %s is
// the command's ID, NODE the first of the hosts.
var remedies = map[string]string{
	"Failed":            "read the output above, or fleet command output %s NODE --stderr",
	"ExecutionTimedOut": "it was killed at its time limit: raise --timeout, or see what hangs",
	"DeliveryTimedOut":  "it did not take it in time and will not start it: fleet node show NODE, then fleet command rerun %s --failed",
	fellSilent:          "it may have run, wholly or in part: look there (fleet node show NODE) before you run it again: fleet command rerun %s --node NODE",
	"Undeliverable":     "it refused to start it, for the reason given; nothing ran there",
	"Interrupted":       "the host stopped in the middle; it is not run again by itself: look there, then fleet command rerun %s --node NODE",
	"Cancelled":         "it was cancelled; to run it there after all: fleet command rerun %s --failed",
	"Terminated":        "it was not started: too many others had failed; when that is mended: fleet command rerun %s --failed",
	"InvalidPlatform":   "the document does not run on this platform",
}

// writeFailures lists who did not succeed, by state and reason.
func (e *env) writeFailures(w io.Writer, a *answers) {
	labels := a.labels()
	type why struct{ outcome, state, reason string }
	groups, first := map[why][]string{}, map[why]fleet.InvocationEvent{}
	for id, i := range a.final {
		if i.Status != "Success" {
			k := why{outcome(i), i.StatusDetails, i.Reason}
			if code := fmt.Sprintf("exit code %d", i.ResponseCode); strings.HasSuffix(k.outcome, code) {
				k.reason = withoutCode(k.reason, code)
			}
			groups[k] = append(groups[k], labels[id])
			if one, ok := first[k]; !ok || naturalCompare(labels[id], labels[one.InstanceId]) < 0 {
				first[k] = i
			}
		}
	}
	keys := slices.SortedFunc(maps.Keys(groups), func(x, y why) int {
		return cmp.Or(strings.Compare(x.state, y.state), strings.Compare(x.outcome, y.outcome), strings.Compare(x.reason, y.reason))
	})
	if len(keys) == 0 {
		return
	}
	fmt.Fprintln(w, "\nnot successful:")
	for _, k := range keys {
		line := escapeCell(foldNames(groups[k])) + "  " + e.paint(e.errTTY, red, escapeCell(k.outcome))
		if k.reason != "" {
			line += ": " + escapeCell(k.reason)
		}
		fmt.Fprintf(w, "  %s\n", line)
		state := k.state
		if fleet.FellSilent(k.reason) {
			state = fellSilent
		}
		if r := remedies[state]; r != "" {
			r = strings.NewReplacer("%s", string(a.command), "NODE", escapeCell(a.argument(first[k]))).Replace(r)
			fmt.Fprintf(w, "    %s\n", r)
		}
	}
}

// withoutCode is a reason without the exit code, which the outcome says.
func withoutCode(reason, code string) string {
	rest, begins := strings.CutPrefix(reason, code)
	switch {
	case begins && rest == "":
		return ""
	case begins && strings.HasPrefix(rest, "; "):
		return rest[len("; "):]
	}
	return reason
}

// sorted is the final answers by name.
func (a *answers) sorted() []fleet.InvocationEvent {
	all := make([]fleet.InvocationEvent, 0, len(a.final))
	for _, i := range a.final {
		all = append(all, i)
	}
	slices.SortFunc(all, func(x, y fleet.InvocationEvent) int {
		return cmp.Or(naturalCompare(x.Name, y.Name), strings.Compare(string(x.InstanceId), string(y.InstanceId)))
	})
	return all
}
