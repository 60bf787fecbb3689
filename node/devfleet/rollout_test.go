package devfleet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fleet/node/api/client"
	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

// TestRollout is "run --concurrency 2 --max-errors 1" on seven hosts, whose
// shells witness in one file who begins and ends.
func TestRollout(t *testing.T) {
	f := startFleet(t, 7, 3)
	c, err := client.Open(t.Context(), f.Credential(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	witness := filepath.Join(t.TempDir(), "witness")
	content, _, _ := document.Builtin("AWS-RunShellScript")
	send := func(script, concurrency, errors string) fleet.CommandID {
		t.Helper()
		if err := os.WriteFile(witness, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		var sent ssm.SendCommandResult
		if err := c.Call(t.Context(), "SendCommand", ssm.SendCommandRequest{
			DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
			Targets:        []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}},
			Parameters:     map[string][]string{"commands": {fmt.Sprintf("W='%s'\necho + >> $W\n%s\necho - >> $W\nexit ${CODE:-0}", witness, script)}},
			MaxConcurrency: concurrency, MaxErrors: errors, TimeoutSeconds: 600,
		}, &sent); err != nil {
			t.Fatal(err)
		}
		return fleet.CommandID(sent.Command.CommandId)
	}
	// wait is the last of a command, and the states of its hosts.
	wait := func(id fleet.CommandID) (last fleet.CommandEvent, states map[string]int, staged int) {
		t.Helper()
		states = map[string]int{}
		if err := c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: id}, func(e fleet.WatchEvent) error {
			if e.Command != nil {
				last = *e.Command
				staged = max(staged, last.StagedCount)
			}
			if e.Invocation != nil && e.Invocation.Final {
				states[e.Invocation.StatusDetails]++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return last, states, staged
	}
	// seen is how many began, and the most that were at it at once.
	seen := func() (began, peak int) {
		t.Helper()
		b, err := os.ReadFile(witness)
		if err != nil {
			t.Fatal(err)
		}
		now := 0
		for line := range strings.Lines(string(b)) {
			switch strings.TrimSpace(line) {
			case "+":
				began++
				now++
				peak = max(peak, now)
			case "-":
				now--
			}
		}
		return began, peak
	}

	last, states, staged := wait(send("sleep 1", "2", "1"))
	if began, peak := seen(); began != 7 || peak != 2 || states["Success"] != 7 || last.Status != "Success" || staged == 0 || last.MaxConcurrency != "2" {
		t.Errorf("%d began, %d at once, %v, %d waited, %+v", began, peak, states, staged, last)
	}
	last, states, _ = wait(send("sleep 0.3; CODE=3", "2", "1"))
	if began, peak := seen(); began < 2 || began > 3 || peak > 2 || states["Failed"] != began || states["Terminated"] != 7-began ||
		last.Status != "Failed" || last.TerminatedCount != 7-began {
		t.Errorf("%d began, %d at once, %v, %+v", began, peak, states, last)
	}
	last, states, _ = wait(send("true", "", "")) // SSM's limits
	if began, _ := seen(); began != 7 || states["Success"] != 7 || last.MaxConcurrency != "50" || last.MaxErrors != "0" {
		t.Errorf("%d began, %v, %+v", began, states, last)
	}
}
