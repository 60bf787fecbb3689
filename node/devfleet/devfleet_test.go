package devfleet

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fleet/node/api/client"
	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

func startFleet(t *testing.T, nodes, quorum int) *Fleet {
	t.Helper()
	level := slog.LevelWarn
	if os.Getenv("FLEET_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	f, err := Start(t.Context(), Options{
		Dir: filepath.Join(t.TempDir(), "fleet"), Nodes: nodes, Quorum: quorum,
		Progress: func(line string) { t.Log(line) },
		Logger:   slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestSmoke(t *testing.T) {
	start := time.Now()
	f := startFleet(t, 5, 3)
	t.Log("started in", time.Since(start))
	c, err := client.Open(t.Context(), f.Credential(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	content, _, _ := document.Builtin("AWS-RunShellScript")
	var sent ssm.SendCommandResult
	if err := c.Call(t.Context(), "SendCommand", ssm.SendCommandRequest{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
		Targets: []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}}, Parameters: map[string][]string{"commands": {"true"}},
		MaxConcurrency: "100%", MaxErrors: "100%", TimeoutSeconds: 60,
	}, &sent); err != nil {
		t.Fatal(err)
	}
	err = c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: fleet.CommandID(sent.Command.CommandId), Output: true}, func(e fleet.WatchEvent) error {
		if e.Invocation != nil {
			t.Logf("%+v", *e.Invocation)
		}
		if e.Command != nil {
			t.Logf("%+v", *e.Command)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
