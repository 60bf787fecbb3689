package devfleet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ticket"
)

// TestFlood has the keys of all agents but the voters' own do what they may, as
// fast as they can: heartbeats, results, blobs, new certificates, changes of
// address, questions. Operators and hosts are served meanwhile, the log does not
// grow by more than the quotas let through, and the memory of the process is
// bounded. That nobody is elected anew is held where the machine is not busy with
// other tests (make test-scale).
func TestFlood(t *testing.T) {
	lasts := 4 * time.Second
	if os.Getenv("FLEET_SCALE") != "" {
		lasts = time.Minute
	}
	const voters, agents = 3, 5
	f := startFleet(t, voters+agents, voters)
	s := &scene{Fleet: f, dir: t.TempDir()}
	s.connect(t)
	var honest []fleet.NodeID
	for _, n := range s.voters() {
		honest = append(honest, n.ID())
	}
	ask := func() time.Duration {
		began := time.Now()
		s.call(t, "DescribeNodes", fleet.DescribeNodesRequest{}, new(fleet.DescribeNodesResult))
		return time.Since(began)
	}
	var quiet []time.Duration
	for range 50 {
		quiet = append(quiet, ask())
	}
	applied := func() uint64 {
		var q fleet.DescribeQuorumResult
		s.call(t, "DescribeQuorum", fleet.DescribeQuorumRequest{}, &q)
		most := uint64(0)
		for _, m := range q.Members {
			most = max(most, m.AppliedIndex)
		}
		return most
	}
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	leader, entries, heap := f.Leader(), applied(), memory()

	ctx, cancel := context.WithCancel(t.Context())
	var evil sync.WaitGroup
	var asked, done atomic.Int64
	for i := voters + 1; i <= voters+agents; i++ {
		l := s.steal(t, nodeName(i))
		th := s.thief(t, l, fleet.RoleAgent, l.agent)
		for _, n := range s.voters() {
			to := rpc.Target{Node: n.ID(), Role: fleet.RoleQuorum}
			for _, attack := range th.floods(to) {
				evil.Go(func() {
					for ctx.Err() == nil {
						asked.Add(1)
						if attack(ctx) == nil {
							done.Add(1)
						}
					}
				})
			}
		}
	}
	var during []time.Duration
	began, peak := time.Now(), uint64(0)
	commands := 0
	for time.Since(began) < lasts {
		id := s.send(t, s.sign(t, "SendCommand", s.script("true", honest...)))
		for range 10 {
			during = append(during, ask())
		}
		s.finished(t, id)
		commands++
		peak = max(peak, memory())
	}
	flood := time.Since(began)
	cancel()
	evil.Wait()

	grown := applied() - entries
	// Each agent may change something so often; results of commands that do not
	// exist change nothing. A command is a few entries.
	allowed := uint64(agents*voters)*uint64(10+flood.Seconds()/10+1) + uint64(commands)*20
	p := func(d []time.Duration) time.Duration { slices.Sort(d); return d[len(d)*99/100] }
	t.Logf("%s of flood: %d calls, %d of them did something; %d commands on %d hosts; p99 of a read %s before, %s during; heap %d MiB before, %d at most; %d log entries (%d allowed)",
		flood.Round(time.Millisecond), asked.Load(), done.Load(), commands, len(honest), p(quiet), p(during), heap>>20, peak>>20, grown, allowed)
	if grown > allowed {
		t.Errorf("the log grew by %d entries, %d are allowed", grown, allowed)
	}
	if peak > heap+256<<20 {
		t.Errorf("the heap grew from %d to %d MiB", heap>>20, peak>>20)
	}
	if os.Getenv("FLEET_SCALE") != "" && f.Leader() != leader {
		t.Error("another voter leads")
	}
}

// floods are the calls that an agent may make of a quorum host.
func (th *thief) floods(to rpc.Target) []func(context.Context) error {
	result := ticket.SignResult(th.key, ticket.Result{
		Fleet: th.info.Fleet, Command: "00000000-0000-4000-8000-000000000001", Attempt: 1, Node: th.info.Node, State: fleet.Success,
	})
	junk := bytes.Repeat([]byte("x"), 1<<20)
	var epoch atomic.Uint32
	epoch.Store(uint32(time.Now().Unix()))
	return []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := rpc.Call[rpc.HeartbeatRequest, rpc.HeartbeatResponse](ctx, th.rpc, to, rpc.MethodHeartbeat, &rpc.HeartbeatRequest{Version: "evil"})
			return err
		},
		func(ctx context.Context) error {
			_, err := rpc.Call[rpc.ReportRequest, rpc.ReportResponse](ctx, th.rpc, to, rpc.MethodReport, &rpc.ReportRequest{Result: result})
			return err
		},
		func(ctx context.Context) error {
			head := rpc.BlobHead{Digest: fleet.Sum([]byte("other")), Size: int64(len(junk))}
			answer, err := rpc.CallStream(ctx, th.rpc, to, rpc.MethodPutBlob, head, bytes.NewReader(junk))
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, answer)
			return errors.Join(err, answer.Close())
		},
		func(ctx context.Context) error {
			_, err := rpc.Call[rpc.Empty, rpc.RenewResponse](ctx, th.rpc, to, rpc.MethodRenew, &rpc.Empty{})
			return err
		},
		func(ctx context.Context) error {
			n := epoch.Add(1)
			address := "127.0.0.1:1" // where nobody answers, and somewhere else each time
			if n%2 == 0 {
				address = "127.0.0.1:2"
			}
			change, err := identity.NewAddressChange(identity.AddressChange{Fleet: th.info.Fleet, Node: th.info.Node, Address: address, Epoch: n}, th.key)
			if err != nil {
				return err
			}
			_, err = rpc.Call[rpc.ChangeAddressRequest, rpc.ChangeAddressResponse](ctx, th.rpc, to, rpc.MethodChangeAddress, &rpc.ChangeAddressRequest{Change: change})
			return err
		},
		func(ctx context.Context) error {
			_, err := rpc.Call[rpc.Empty, rpc.ListedResponse](ctx, th.rpc, to, rpc.MethodListed, &rpc.Empty{})
			return err
		},
	}
}
