package upgrade

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/service"
)

var rewrite = flag.Bool("update", false, "rewrite the golden files")

const command = fleet.CommandID("00000000-0000-4000-8000-000000000001")

var (
	oldText = []byte("the old program")
	newText = []byte("the new program")
)

// manager is a service manager: its service has the program that lies in a
// place, and its guard is told of.
type manager struct {
	service.Keeper // what is not below is not called
	dir            string

	mu       sync.Mutex // guards what follows
	facts    string     // what the new program says
	askErr   error
	runsErr  error
	guardErr error
	ends     int
	log      []string
	guarded  []string // nil: no guard
	restarts int
	hang     bool
}

func (m *manager) Runs(context.Context, int) error       { return m.runsErr }
func (m *manager) Program() string                       { return filepath.Join(m.dir, "fleet") }
func (m *manager) Relabel(context.Context, string) error { return nil }
func (m *manager) Ask(ctx context.Context, args ...string) ([]byte, error) {
	if m.hang {
		<-ctx.Done()
		return nil, errors.New("killed")
	}
	return []byte(m.facts), m.askErr
}

func (m *manager) Guard(_ context.Context, args []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guarded = args
	return m.guardErr
}

func (m *manager) Unguard(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guarded = nil
	return nil
}

func (m *manager) Status(context.Context) (service.Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return service.Status{Restarts: m.ends}, nil
}

func (m *manager) Restart(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restarts++
	return nil
}

func (m *manager) Logs(context.Context, int) ([]string, error) { return m.log, nil }

// host is a machine with the old program.
type host struct {
	t *testing.T
	*manager
	self     fleet.Digest
	data     string
	fetched  int
	send     []byte
	alone    func(context.Context) (func(), error)
	signers  []fleet.PublicKey
	released int
	out      bytes.Buffer
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, manager: &manager{dir: t.TempDir()}, data: t.TempDir(), self: fleet.Sum(oldText), send: newText}
	h.facts = fmt.Sprintf(`{"Version":"2.0.0","Platform":%q,"DataDirs":["1"]}`, ThisPlatform())
	h.alone = func(context.Context) (func(), error) { return func() { h.released++ }, nil }
	must(t, os.WriteFile(h.Program(), oldText, 0o755))
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func order() Order {
	return Order{
		Programs: []Program{{ThisPlatform(), fleet.Sum(newText), int64(len(newText))}},
		Version:  "2.0.0", Healthy: time.Minute, Patience: time.Minute,
	}
}

// run runs the step until it ends or asks for a restart.
func (h *host) run(o Order, n int) error {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	defer cancel()
	s := Step{
		Command: fleet.CommandID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)), Attempt: 1,
		Fleet: "f", Self: h.self, Version: "1.0.0", Platform: ThisPlatform(), DataDir: h.data, Format: "1", Signers: h.signers,
		Keeper: func() (service.Keeper, error) { return h.manager, nil },
		Fetch: func(_ context.Context, _ Order, _ Program, take func(io.Reader) error) error {
			h.fetched++
			return take(bytes.NewReader(h.send))
		},
		Alone: h.alone, Restart: cancel, Now: time.Now, Log: slog.New(slog.DiscardHandler), Out: &h.out,
	}
	return s.Run(ctx, o)
}

func (h *host) inPlace() string {
	h.t.Helper()
	b, err := os.ReadFile(h.Program())
	must(h.t, err)
	return string(b)
}

func (h *host) record() *Record {
	h.t.Helper()
	r, err := Load(h.data)
	must(h.t, err)
	return r
}

// The whole way of an upgrade that goes well: exchanged, started, confirmed,
// and the step, run again by the new program, has succeeded.
func TestUpgrade(t *testing.T) {
	h := newHost(t)
	if err := h.run(order(), 1); !errors.Is(err, ErrRestarting) {
		t.Fatalf("first run: %v", err)
	}
	if h.inPlace() != string(newText) || h.released != 1 {
		t.Fatalf("in place: %q, released %d times", h.inPlace(), h.released)
	}
	if b, err := os.ReadFile(h.Program() + service.PreviousSuffix); err != nil || !bytes.Equal(b, oldText) {
		t.Fatalf("previous: %q, %v", b, err)
	}
	if want := []string{h.Program() + service.PreviousSuffix, GuardCommand, h.data}; strings.Join(h.guarded, " ") != strings.Join(want, " ") {
		t.Errorf("guard %q, want %q", h.guarded, want)
	}
	if r := h.record(); r.Stage != Pending || r.From.Version != "1.0.0" || r.To.Version != "2.0.0" {
		t.Errorf("record %+v", r)
	}
	h.self = fleet.Sum(newText)
	prove, err := Begin(h.data, h.self, time.Now())
	if err != nil || !prove {
		t.Fatalf("the new program: prove %t, %v", prove, err)
	}
	confirmed, err := Confirm(h.data, h.self, time.Now())
	if err != nil || !confirmed {
		t.Fatalf("confirmed %t, %v", confirmed, err)
	}
	if err := h.run(order(), 1); err != nil {
		t.Errorf("second run: %v", err)
	}
	if !strings.Contains(h.out.String(), "took the place of 1.0.0") {
		t.Errorf("output %q", h.out.String())
	}
	if err := h.run(order(), 2); err != nil || h.fetched != 1 {
		t.Errorf("another command for the same program: %v, fetched %d times", err, h.fetched)
	}
}

// What is refused changes nothing: neither the program, nor the record, and no
// guard is started.
func TestRefusals(t *testing.T) {
	big := bytes.Repeat([]byte("x"), len(newText))
	tests := []struct {
		name string
		do   func(h *host, o *Order)
		want string
	}{
		{"no program for this platform", func(_ *host, o *Order) { o.Programs[0].Platform = "plan9/mips" }, "no program for " + ThisPlatform()},
		{"not run by the manager", func(h *host, _ *Order) { h.runsErr = fleet.Errorf(fleet.Unavailable, "not started by systemd") }, "not started by systemd"},
		{"another program in the place", func(h *host, _ *Order) { must(h.t, os.WriteFile(h.Program(), []byte("other"), 0o755)) }, "is not the program that runs"},
		{"other bytes", func(h *host, _ *Order) { h.send = big }, "not the program of the order"},
		{"too short", func(h *host, _ *Order) { h.send = newText[:3] }, "bytes short"},
		{"too long", func(h *host, _ *Order) { h.send = append(bytes.Clone(newText), 'x') }, "more bytes came"},
		{"another platform in the file", func(h *host, _ *Order) { h.facts = `{"Version":"2.0.0","Platform":"plan9/mips","DataDirs":["1"]}` }, "it is for"},
		{"another version", func(h *host, _ *Order) {
			h.facts = strings.Replace(h.facts, "2.0.0", "2.0.1", 1)
		}, "the order says 2.0.0"},
		{"no fleet", func(h *host, _ *Order) { h.facts = "hello" }, "does not say its version"},
		{"another data directory", func(h *host, _ *Order) { h.facts = strings.Replace(h.facts, `["1"]`, `["2","3"]`, 1) }, "reads data directories of format 2, 3"},
		{"exits at once", func(h *host, _ *Order) { h.askErr = errors.New("exit code 1") }, "does not start"},
		{"noexec", func(h *host, _ *Order) { h.askErr = errors.New("permission denied") }, "noexec"},
		{"hangs", func(h *host, _ *Order) { h.hang = true }, "did not say its version within"},
		{"never alone", func(h *host, _ *Order) {
			h.alone = func(ctx context.Context) (func(), error) { <-ctx.Done(); return nil, context.Cause(ctx) }
		}, "other commands still ran"},
		{"not signed", func(h *host, _ *Order) { h.signers = []fleet.PublicKey{identity.KeyFromSeed([32]byte{1}).Public()} }, "not signed by"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, o := newHost(t), order()
				tt.do(h, &o)
				before := h.inPlace()
				err := h.run(o, 1)
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				if h.inPlace() != before || h.record() != nil || h.guarded != nil {
					t.Errorf("changed: %q, %+v, guard %q", h.inPlace(), h.record(), h.guarded)
				}
				if _, err := os.Stat(h.Program() + newSuffix); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the new program is still there: %v", err)
				}
			})
		})
	}
}

// A directory that cannot be written to is an error of this host, for which no
// other source is asked.
func TestReadOnly(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere")
	}
	h := newHost(t)
	must(t, os.Chmod(h.dir, 0o555))
	if err := h.run(order(), 1); !OfThisHost(err) || fleet.KindOf(err) != fleet.Denied {
		t.Errorf("got %v", err)
	}
}

// What is wrong with the disk is said by its name, and no other source is asked.
func TestDisk(t *testing.T) {
	for _, tt := range []struct {
		err  error
		kind fleet.Kind
		want string
	}{
		{syscall.ENOSPC, fleet.TooLarge, "the disk of /usr/bin is full"},
		{syscall.EDQUOT, fleet.TooLarge, "the disk of /usr/bin is full"},
		{syscall.EROFS, fleet.Unavailable, "/usr/bin is read-only"},
		{syscall.EACCES, fleet.Denied, "may not write to /usr/bin"},
		{syscall.EIO, fleet.Other, "input/output error"},
	} {
		err := place{"/usr/bin/fleet"}.plain("write", &os.PathError{Op: "write", Path: "x", Err: tt.err})
		if !OfThisHost(err) || fleet.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v of kind %s", tt.err, err, fleet.KindOf(err))
		}
	}
	if err := (place{"/usr/bin/fleet"}).plain("write", nil); err != nil {
		t.Errorf("nothing is wrong: %v", err)
	}
}

// When the guard does not start, nothing has changed, and the result says so
// also after a restart.
func TestNoGuard(t *testing.T) {
	h := newHost(t)
	h.guardErr = errors.New("systemd: no")
	for range 2 {
		if err := h.run(order(), 1); err == nil || !strings.Contains(err.Error(), "systemd: no") {
			t.Fatalf("got %v", err)
		}
		if h.inPlace() != string(oldText) || h.record().Stage != Back {
			t.Fatalf("in place %q, record %+v", h.inPlace(), h.record())
		}
	}
	h.guardErr = nil
	if err := h.run(order(), 2); !errors.Is(err, ErrRestarting) {
		t.Errorf("another try by another command: %v", err)
	}
}

// guard runs the guard beside what do does, in virtual time.
func (h *host) guard(do func()) error {
	ended := make(chan error, 1)
	go func() {
		g := Guard{DataDir: h.data, Keeper: h.manager, Ready: func() error { return nil }, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
		ended <- g.Run(h.t.Context())
	}()
	synctest.Wait()
	do()
	return <-ended
}

func TestGuard(t *testing.T) {
	tests := []struct {
		name   string
		do     func(h *host)
		back   bool
		reason string
		within time.Duration
	}{
		{"confirmed", func(h *host) {
			time.Sleep(10 * time.Second)
			_, err := Confirm(h.data, fleet.Sum(newText), time.Now())
			must(h.t, err)
		}, false, "", 12 * time.Second},
		{"ends again and again", func(h *host) {
			h.manager.log = []string{
				"2026-11-26T10:00:00+0000 web1 fleet[123]: the store is damaged", "2026-11-26T10:00:00+0000 web1 systemd[1]: fleet.service: Failed"}
			for range 4 { // the old program's end is the first
				time.Sleep(5 * time.Second)
				h.mu.Lock()
				h.ends++
				h.mu.Unlock()
			}
		}, true, "ended 3 times before it was well; it last said: the store is damaged", 25 * time.Second},
		{"never well", func(*host) {}, true, "not answered it within 1m0s", 95 * time.Second},
		{"replaced by hand", func(h *host) { must(h.t, os.WriteFile(h.Program(), []byte("by hand"), 0o755)) }, true, "was not in its place", 95 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				if err := h.run(order(), 1); !errors.Is(err, ErrRestarting) {
					t.Fatal(err)
				}
				began := time.Now()
				if err := h.guard(func() { tt.do(h) }); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > tt.within {
					t.Errorf("it took %s", took)
				}
				if h.guarded != nil {
					t.Error("the guard's service is still there")
				}
				r := h.record()
				if (r.Stage == Back) != tt.back || !strings.Contains(r.Reason, tt.reason) {
					t.Errorf("record %+v", r)
				}
				if !tt.back {
					return
				}
				if h.restarts != 1 {
					t.Errorf("%d restarts", h.restarts)
				}
				want := string(oldText)
				if tt.name == "replaced by hand" {
					want = "by hand"
				}
				if h.inPlace() != want {
					t.Errorf("in place: %q", h.inPlace())
				}
				// The new program comes too late; the step tells what happened.
				if confirmed, err := Confirm(h.data, fleet.Sum(newText), time.Now()); err != nil || confirmed {
					t.Errorf("confirmed %t, %v", confirmed, err)
				}
				if err := h.run(order(), 1); err == nil || !strings.Contains(err.Error(), tt.reason) || h.fetched != 1 {
					t.Errorf("the step then: %v, fetched %d times", err, h.fetched)
				}
			})
		})
	}
}

// A power cut at each moment of an upgrade leaves one whole program in its
// place, and what starts then comes to a final stage.
func TestPowerCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		if err := h.run(order(), 1); !errors.Is(err, ErrRestarting) {
			t.Fatal(err)
		}
		// Before the exchange: the record was written, the old program is there.
		must(t, place{h.Program()}.putBack())
		prove, err := Begin(h.data, fleet.Sum(oldText), time.Now())
		if err != nil || prove || h.record().Stage != Back {
			t.Errorf("before the exchange: prove %t, %v, %+v", prove, err, h.record())
		}
		if err := h.guard(func() {}); err != nil || h.guarded != nil || h.restarts != 0 {
			t.Errorf("its guard: %v, %q, %d restarts", err, h.guarded, h.restarts)
		}
		// After it, with a guard that is gone: the program gives itself up.
		if err := h.run(order(), 2); !errors.Is(err, ErrRestarting) {
			t.Fatal(err)
		}
		for range maxTries {
			if prove, err := Begin(h.data, fleet.Sum(newText), time.Now()); err != nil || !prove {
				t.Fatalf("prove %t, %v", prove, err)
			}
		}
		if _, err := Begin(h.data, fleet.Sum(newText), time.Now()); err == nil || !strings.Contains(err.Error(), "gives itself up") {
			t.Fatalf("after %d starts: %v", maxTries, err)
		}
		if h.inPlace() != string(oldText) || h.record().Stage != Back {
			t.Errorf("in place %q, %+v", h.inPlace(), h.record())
		}
	})
}

func TestSigned(t *testing.T) {
	a, b := identity.KeyFromSeed([32]byte{1}), identity.KeyFromSeed([32]byte{2})
	id := fleet.IDOf(a.Public())
	p := Program{ThisPlatform(), fleet.Sum(newText), int64(len(newText))}
	sign := func(k identity.PrivateKey, of fleet.ID, d fleet.Digest, size int64) []byte {
		s, err := identity.SignFile(k, identity.FileSignature{Fleet: of, Operator: "builder", Digest: d, Size: size})
		must(t, err)
		return s
	}
	good := sign(a, id, p.Digest, p.Size)
	tests := []struct {
		name       string
		signatures [][]byte
		signers    []fleet.PublicKey
		ok         bool
	}{
		{"nobody demanded", nil, nil, true},
		{"one of one", [][]byte{good}, []fleet.PublicKey{a.Public()}, true},
		{"one of two", [][]byte{good}, []fleet.PublicKey{a.Public(), b.Public()}, false},
		{"two of two", [][]byte{sign(b, id, p.Digest, p.Size), good}, []fleet.PublicKey{a.Public(), b.Public()}, true},
		{"another's", [][]byte{sign(b, id, p.Digest, p.Size)}, []fleet.PublicKey{a.Public()}, false},
		{"another file", [][]byte{sign(a, id, fleet.Sum(oldText), p.Size)}, []fleet.PublicKey{a.Public()}, false},
		{"another size", [][]byte{sign(a, id, p.Digest, 1)}, []fleet.PublicKey{a.Public()}, false},
		{"another fleet", [][]byte{sign(a, fleet.IDOf(b.Public()), p.Digest, p.Size)}, []fleet.PublicKey{a.Public()}, false},
		{"damaged", [][]byte{append(bytes.Clone(good), '!')}, []fleet.PublicKey{a.Public()}, false},
	}
	for _, tt := range tests {
		if err := CheckSigned(p, id, tt.signatures, tt.signers); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestOrder(t *testing.T) {
	o := order()
	o.Sources = []fleet.NodeID{"mi-0123456789abcdef0"}
	o.Signatures = [][]byte{[]byte(`{"a":1}`)}
	back, err := ParseOrder(o.Parameters())
	if err != nil || fmt.Sprint(back) != fmt.Sprint(o) {
		t.Errorf("got %+v, %v, want %+v", back, err, o)
	}
	if size, named := Names(o.Parameters(), fleet.Sum(newText)); !named || size != int64(len(newText)) {
		t.Error("the order does not name its program")
	}
	if _, named := Names(o.Parameters(), fleet.Sum(oldText)); named {
		t.Error("the order names another program")
	}
	digest := fleet.Sum(newText).String()
	for _, bad := range []map[string][]string{
		{},
		{"programs": {"linux/amd64 " + digest + " 0"}},
		{"programs": {"linux/amd64 " + digest + " 99999999999"}},
		{"programs": {"linux/amd64 " + digest + " 007"}},
		{"programs": {"linux/amd64 " + strings.ToUpper(digest) + " 7"}},
		{"programs": {"linux " + digest + " 7"}},
		{"programs": {"linux/amd64 " + digest + " 7", "linux/amd64 " + digest + " 7"}},
		{"programs": {"linux/amd64 " + digest + " 7"}, "sources": {"web1"}},
		{"programs": {"linux/amd64 " + digest + " 7"}, "healthyWithin": {"1"}},
		{"programs": {"linux/amd64 " + digest + " 7"}, "waitForCommands": {"-1"}},
	} {
		if o, err := ParseOrder(bad); err == nil {
			t.Errorf("%q: read as %+v", bad, o)
		}
	}
	if _, err := ParseInputs(map[string]any{"programs": []any{"linux/amd64 " + digest + " 7"}, "more": "x"}); err == nil {
		t.Error("an unknown input is taken")
	}
}

func TestRecordGolden(t *testing.T) {
	r := &Record{
		Command: command, Attempt: 1, From: Build{"1.0.0", fleet.Sum(oldText).String()}, To: Build{"2.0.0", fleet.Sum(newText).String()},
		Program: "/usr/bin/fleet", Previous: "/usr/bin/fleet.previous", Stage: Back, Began: 1764150000, Ended: 1764150100, Healthy: 180, Tries: 2, Quorum: true,
		Reason: "it ended 3 times before it was well",
	}
	b, err := r.Encode()
	must(t, err)
	const golden = "testdata/upgrade.json"
	if *rewrite {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(golden, b, 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if !bytes.Equal(b, want) {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
	back, err := ParseRecord(want)
	if err != nil || *back != *r {
		t.Errorf("read back %+v, %v", back, err)
	}
	for _, change := range [][2]string{
		{`"format": 1`, `"format": 2`}, {`"stage": "back"`, `"stage": "gone"`}, {`/usr/bin/fleet"`, `fleet"`},
		{`"tries"`, `"trials"`}, {string(command), "x"}, {fleet.Sum(oldText).String(), "00"}, {"}", ""},
	} {
		if r, err := ParseRecord([]byte(strings.Replace(string(want), change[0], change[1], 1))); fleet.KindOf(err) != fleet.Corrupt {
			t.Errorf("%q: %+v, %v", change, r, err)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	b, err := os.ReadFile("testdata/upgrade.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseRecord(again); err != nil || len(r.Reason) <= maxReason && *back != *r {
			t.Errorf("%+v became %+v, %v", r, back, err)
		}
	})
}

func FuzzParseProgram(f *testing.F) {
	f.Add("linux/amd64 " + fleet.Sum(newText).String() + " 27574858")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParseProgram(s); err == nil && p.String() != s {
			t.Errorf("%q became %q", s, p)
		}
	})
}

// Inspect knows this test's program as one of fleet for this platform.
func TestInspect(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	digest, err := DigestOf(self)
	must(t, err)
	if p, err := Inspect(self); err != nil || p.Platform != ThisPlatform() || p.Digest != digest {
		t.Errorf("this test: %+v, %v", p, err)
	}
	goTool, err := exec.LookPath("go")
	if err == nil { // a program of Go, and not fleet
		if p, err := Inspect(goTool); err == nil || !strings.Contains(err.Error(), "not fleet") {
			t.Errorf("%s: %+v, %v", goTool, p, err)
		}
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"empty": "", "short": "x", "script": "#!/bin/sh\necho\n", "cut.elf": "\x7fELF\x02\x01\x01", "cut.exe": "MZ\x00\x00", "cut.mach": "\xcf\xfa\xed\xfe\x00",
	} {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, []byte(content), 0o755))
		if got, err := Inspect(p); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := Inspect(dir); err == nil {
		t.Error("a directory is a program")
	}
}
