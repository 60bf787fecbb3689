package node_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"fleet/node"
	"fleet/node/api/client"
	"fleet/node/devfleet"
	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/process"
	"fleet/node/ssm"
	"fleet/raftfsm/entry"
)

func startFleet(b *testing.B, nodes, quorum int, starter process.Starter) *devfleet.Fleet {
	b.Helper()
	f, err := devfleet.Start(b.Context(), devfleet.Options{
		Dir: filepath.Join(b.TempDir(), "fleet"), Nodes: nodes, Quorum: quorum, Starter: starter,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := f.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return f
}

// report gives the median and the 99th percentile of what was measured.
func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(p int) float64 { return float64(took[min(len(took)-1, len(took)*p/100)].Microseconds()) / 1000 }
	b.ReportMetric(at(50), "p50-ms")
	b.ReportMetric(at(99), "p99-ms")
	b.ReportMetric(0, "ns/op") // meaningless here: one op is a whole series
}

// noop starts no process.
func noop(_ context.Context, spec process.Spec) (process.Exit, error) {
	if spec.Spawned != nil {
		if err := spec.Spawned(process.Identity{PID: 1}); err != nil {
			return process.Exit{}, err
		}
	}
	return process.Exit{}, nil
}

// BenchmarkRun is the time from SendCommand to the event of the last result,
// as an operator's client sees it. noop starts no process, true starts
// /bin/sh with the script "true". All agents and the voter share this machine.
func BenchmarkRun(b *testing.B) {
	for _, what := range []struct {
		name    string
		starter process.Starter
	}{{"noop", noop}, {"true", nil}} {
		for _, agents := range []int{1, 10, 100} {
			b.Run(fmt.Sprintf("%s/agents=%d", what.name, agents), func(b *testing.B) {
				quorum := min(3, agents)
				if quorum == 2 || agents < 3 {
					quorum = 1
				}
				f := startFleet(b, agents, quorum, what.starter)
				c, err := client.Open(b.Context(), f.Credential(), client.Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				// While a hundred hosts that joined within a second get to know
				// each other, two cores have no time for a leader's lease of 200 ms:
				// what is measured begins when that is over.
				for range 10 {
					run(b, c, agents)
				}
				const rounds = 20
				for b.Loop() {
					var took []time.Duration
					for range rounds {
						took = append(took, run(b, c, agents))
					}
					report(b, took)
				}
			})
		}
	}
}

// BenchmarkTree is BenchmarkRun for more hosts, directly and through relays, in
// turn in one fleet, so that the ratio is of one run. Each agent has its own
// connections: in one process the handshakes of all are its work.
func BenchmarkTree(b *testing.B) {
	for _, what := range []struct {
		name    string
		starter process.Starter
	}{{"noop", noop}, {"true", nil}} {
		for _, agents := range []int{100, 200, 500} {
			b.Run(fmt.Sprintf("%s/agents=%d", what.name, agents), func(b *testing.B) {
				f := startFleet(b, agents, 3, what.starter)
				c, err := client.Open(b.Context(), f.Credential(), client.Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				ways := []bool{true, false}
				took := map[bool][]time.Duration{}
				each := func(keep bool) {
					for _, direct := range ways {
						for _, n := range f.Nodes() {
							n.DeliverDirectly(direct)
						}
						if d := run(b, c, agents); keep {
							took[direct] = append(took[direct], d)
						}
					}
				}
				for range 5 { // see BenchmarkRun
					each(false)
				}
				for b.Loop() {
					for range 10 {
						each(true)
					}
				}
				for _, direct := range ways {
					slices.Sort(took[direct])
				}
				middle := func(direct bool) float64 {
					return float64(took[direct][len(took[direct])/2].Microseconds()) / 1000
				}
				b.ReportMetric(middle(true), "direct-ms")
				b.ReportMetric(middle(false), "tree-ms")
				b.ReportMetric(middle(false)/middle(true), "tree/direct")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// run sends "true" to all and waits for every answer.
func run(b *testing.B, c *client.Client, agents int) time.Duration {
	b.Helper()
	content, _, _ := document.Builtin("AWS-RunShellScript")
	start := time.Now()
	var sent ssm.SendCommandResult
	if err := c.Call(b.Context(), "SendCommand", ssm.SendCommandRequest{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
		Targets:        []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}},
		Parameters:     map[string][]string{"commands": {"true"}},
		MaxConcurrency: "100%", MaxErrors: "100%",
	}, &sent); err != nil {
		b.Fatal(err)
	}
	var last fleet.CommandEvent
	if err := c.Watch(b.Context(), fleet.WatchCommandRequest{CommandId: fleet.CommandID(sent.Command.CommandId)}, func(e fleet.WatchEvent) error {
		if e.Command != nil {
			last = *e.Command
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	if last.SuccessCount != agents {
		b.Fatalf("%d of %d succeeded: %+v", last.SuccessCount, agents, last)
	}
	return time.Since(start)
}

// BenchmarkProposals is what the log bears: the smallest entry, proposed on the
// leader by many callers at once, committed and applied. It includes two fsyncs
// on every voter.
func BenchmarkProposals(b *testing.B) {
	for _, voters := range []int{1, 3} {
		b.Run(fmt.Sprintf("voters=%d", voters), func(b *testing.B) {
			f := startFleet(b, voters, voters, nil)
			for _, callers := range []int{1, 16, 64, 256} {
				b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
					leader := f.Leader()
					if leader == nil {
						b.Fatal("no leader")
					}
					for b.Loop() {
						took := propose(b, leader, callers, max(400, 16*callers))
						report(b, took.each)
						b.ReportMetric(float64(len(took.each))/took.all.Seconds(), "proposals/s")
					}
				})
			}
		})
	}
}

type proposed struct {
	each []time.Duration
	all  time.Duration
}

func propose(b *testing.B, leader *node.Node, callers, count int) proposed {
	b.Helper()
	each := make([][]time.Duration, callers)
	failures := make([]error, callers)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for range count / callers {
				begin := time.Now()
				if err := leader.Propose(b.Context(), &entry.Expire{
					Stamp: begin.UnixNano(), Command: "00000000-0000-4000-8000-000000000000", Attempt: 1,
				}); err != nil {
					failures[i] = err
					return
				}
				each[i] = append(each[i], time.Since(begin))
			}
		})
	}
	wg.Wait()
	all := time.Since(start)
	for _, err := range failures {
		if err != nil {
			b.Fatal(err)
		}
	}
	return proposed{each: slices.Concat(each...), all: all}
}
