package devfleet

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"fleet/node/api/client"
	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

// TestCancelARealTree cancels a command whose processes, on five hosts, ignore
// SIGTERM and leave their session: none is left when the command has ended, and
// who watches hears Cancelling and Cancelled from every host.
func TestCancelARealTree(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("looks for processes in /proc")
	}
	f := startFleet(t, 5, 3)
	c, err := client.Open(t.Context(), f.Credential(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dir := t.TempDir()
	script := fmt.Sprintf(`trap '' TERM
(setsid sh -c 'trap "" TERM; echo $$ > %[1]s/$FLEET_NODE_ID.child; sleep 600' &)
echo $$ > %[1]s/$FLEET_NODE_ID.parent
echo begun; sleep 600`, dir)
	content, _, _ := document.Builtin("AWS-RunShellScript")
	var sent ssm.SendCommandResult
	if err := c.Call(t.Context(), "SendCommand", ssm.SendCommandRequest{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
		Targets: []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}}, Parameters: map[string][]string{"commands": {script}},
		MaxConcurrency: "100%", MaxErrors: "100%", TimeoutSeconds: 600,
	}, &sent); err != nil {
		t.Fatal(err)
	}
	var pids []int
	await(t, "the command runs on every host", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "mi-*"))
		pids = nil
		for _, file := range files {
			b, err := os.ReadFile(file)
			if pid, err2 := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && err2 == nil {
				pids = append(pids, pid)
			}
		}
		return len(pids) == 10
	})
	id := sent.Command.CommandId
	cancel := sync.OnceValue(func() error {
		return c.Call(t.Context(), "CancelCommand", ssm.CancelCommandRequest{CommandId: id}, nil)
	})
	saw := map[fleet.NodeID]string{}
	var last fleet.CommandEvent
	err = c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: fleet.CommandID(id), Output: true}, func(e fleet.WatchEvent) error {
		if i := e.Invocation; i != nil {
			saw[i.InstanceId] += i.Status + " "
			if i.Final && i.Stdout.Text != "begun\n" {
				t.Errorf("%s wrote %q", i.Name, i.Stdout.Text)
			}
		}
		if e.Command != nil {
			last = *e.Command
			if last.InProgressCount == 5 {
				return cancel()
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if last.Status != "Cancelled" || !last.Ended || len(saw) != 5 {
		t.Errorf("the last event is %+v, of %d hosts", last, len(saw))
	}
	for host, states := range saw {
		if states != "InProgress Cancelling Cancelled " {
			t.Errorf("%s was seen as %s", host, states)
		}
	}
	for _, pid := range pids {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(b), ") Z ") {
			t.Errorf("process %d survived: %s", pid, b)
		}
	}
}
