package runcmd

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/ticket"
)

// outputVariable is how many megabytes each command of TestAnyOutput prints;
// "make test-process" sets it, and then the rate and the memory count.
const outputVariable = "FLEET_OUTPUT_MB"

// TestAnyOutput prints much, of several kinds, through a whole runner: all of
// it is counted and hashed, the first bytes are kept, and memory stays flat.
func TestAnyOutput(t *testing.T) {
	total, torture := uint64(200<<20), false
	if s := os.Getenv(outputVariable); s != "" {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatalf("%s=%q: %v", outputVariable, s, err)
		}
		total, torture = n<<20, true
	}
	tests := []struct {
		name   string
		unit   string // that is repeated
		script string // prints total bytes
	}{
		{"zeros without a line break", strings.Repeat("\x00", 4096), "head -c %d /dev/zero"},
		{"short lines", "y\n", "yes | head -c %d"},
		{"lines of 100,000 bytes", strings.Repeat("x", 100_000) + "\n", `yes "$(head -c 100000 /dev/zero | tr '\0' x)" | head -c %d`},
		{"binary, not UTF-8", "\xff\xfe\x80\n", `yes "$(printf '\377\376\200')" | head -c %d`},
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-30s %10s %10s %12s\n", "output", "MB", "MB/s", "memory")
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(time.Now().Round(0))
			h := w.newHost(t, t.TempDir(), nil)
			h.start()
			content, _, _ := document.Builtin("AWS-RunShellScript")
			o := w.order(1, string(content), map[string][]string{
				"commands": {fmt.Sprintf(test.script, total)}, "executionTimeout": {"3600"},
			})
			debug.FreeOSMemory()
			before := resident(t, "VmRSS:")
			// So that VmHWM begins anew.
			if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
				t.Skip(err)
			}
			begin := time.Now()
			h.deliver(t, w.delivery(o))
			_, details := h.reportsWithin(t, 1, time.Hour)
			took := time.Since(begin)
			grown := int64(resident(t, "VmHWM:")) - int64(before)
			if step := details[0].Steps[0]; step.State != fleet.Success {
				t.Errorf("ended as %v: %s", step.State, step.Reason)
			}
			s := details[0].Steps[0].Stdout
			if want := digestOf(test.unit, total); s.Total != total || s.Digest != want || s.Stored != DefaultStreamCap {
				t.Errorf("%d bytes with %s, %d kept, want %d with %s, %d kept", s.Total, s.Digest, s.Stored, total, want, DefaultStreamCap)
			}
			kept, err := h.blobs.Bytes(s.Blob, DefaultStreamCap)
			if want := bytes.Repeat([]byte(test.unit), DefaultStreamCap/len(test.unit)); err != nil || !bytes.HasPrefix(kept, want) {
				t.Errorf("what is kept is not the beginning: %d bytes, %v", len(kept), err)
			}
			rate := float64(total) / 1e6 / took.Seconds()
			fmt.Fprintf(&table, "%-30s %10d %10.0f %+8d KiB\n", test.name, total/1e6, rate, grown>>10)
			if grown > 64<<20 {
				t.Errorf("memory grew by %d MiB", grown>>20)
			}
			if torture && rate < 100 {
				t.Errorf("%.0f MB/s", rate)
			}
		})
	}
	t.Log("\n" + table.String())
}

// digestOf hashes a unit that is repeated up to a number of bytes.
func digestOf(unit string, total uint64) fleet.Digest {
	block := []byte(strings.Repeat(unit, 1<<20/len(unit)))
	h := sha256.New()
	for total > 0 {
		n := min(total, uint64(len(block)))
		_, _ = h.Write(block[:n])
		total -= n
	}
	return fleet.Digest(h.Sum(nil))
}

// resident is a line of /proc/self/status, in bytes.
func resident(t *testing.T, name string) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s in /proc/self/status", name)
	return 0
}

// reportsWithin is reports with more patience.
func (h *host) reportsWithin(t *testing.T, n int, patience time.Duration) ([]*ticket.SignedResult, []*Detail) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if results, _ := h.quorum.got(); len(results) >= n {
			break
		}
	}
	return h.reports(t, n)
}
