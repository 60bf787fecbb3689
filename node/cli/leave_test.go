package cli

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fleet/node/api"
	"fleet/node/fleet"
	"fleet/node/service"
)

// leaver is the agent of a host that may leave.
type leaver struct {
	api.Local
	dir, role string
}

func (l leaver) LocalStatus() fleet.LocalStatus {
	return fleet.LocalStatus{Name: "host1", InstanceId: "mi-0123456789abcdef0", FleetName: "acme", Role: l.role, DataDir: l.dir}
}

func (l leaver) Leave(_ context.Context, req fleet.LeaveRequest) (*fleet.LeaveResult, func(), error) {
	return &fleet.LeaveResult{FleetName: "acme", InstanceId: "mi-0123456789abcdef0", Name: "host1", DataDir: l.dir, At: 1772366400, Unreported: 2}, func() {}, nil
}

// TestLeaveDisablesTheService stops the service of the host that left, and no
// other's.
func TestLeaveDisablesTheService(t *testing.T) {
	for name, c := range map[string]struct {
		role, runs string // whose data directory the service runs
		installed  bool
		code       int
		calls      string
		want       string // in either stream
	}{
		"its own":         {fleet.RoleNameAgent, "d", true, 0, "disable", "service    stopped, and not started at boot any more"},
		"another's":       {fleet.RoleNameAgent, "other", true, 0, "", "did not take 2 results in time"},
		"none":            {fleet.RoleNameAgent, "d", false, 0, "", "left       fleet acme on "},
		"of an eligible":  {fleet.RoleNameEligible, "d", true, 1, "", "is of the quorum"},
		"of a voting one": {fleet.RoleNameVoter, "d", true, 1, "", "is of the quorum"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeService{}
			w, dir := withService(t, f)
			config := filepath.Join(dir, "service.yaml")
			if err := os.WriteFile(config, []byte("version: 1\ndata-dir: "+filepath.Join(dir, c.runs)+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			f.status = service.Status{Installed: c.installed, Running: c.installed, Config: config}
			socket := filepath.Join(dir, "s")
			l, err := api.ListenLocal(socket)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				ended <- api.ServeLocal(ctx, l, leaver{dir: filepath.Join(dir, "d"), role: c.role}, slog.New(slog.DiscardHandler))
			}()
			defer func() {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			code := w.run(t, "leave", "--yes", "--socket", socket)
			if both := w.stdout.String() + w.stderr.String(); code != c.code || !strings.Contains(both, c.want) {
				t.Errorf("exit %d\n%s\nwant %q", code, both, c.want)
			}
			if f.called() != c.calls {
				t.Errorf("calls %q, want %q", f.called(), c.calls)
			}
		})
	}
}
