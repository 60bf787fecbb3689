package rpc

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// One agent may ask so often and no more, whatever it asks and over however many
// connections; others are not affected, and it is told when to come again.
func TestAgentsAreLimited(t *testing.T) {
	n := &lan{}
	s := NewServer(quiet(), Methods, peerOf)
	Handle(s, MethodListed, func(context.Context, identity.Peer, *Empty) (*ListedResponse, error) { return &ListedResponse{}, nil })
	Handle(s, MethodApplied, func(context.Context, identity.Peer, *Empty) (*AppliedResponse, error) { return &AppliedResponse{}, nil })
	serve(t, s, n.listen(atB))
	ask := func(c *Client) error {
		_, err := Call[Empty, ListedResponse](t.Context(), c, atB, MethodListed, &Empty{})
		return err
	}
	one, again := closing(t, NewClient(n.dialAs(agent))), closing(t, NewClient(n.dialAs(agent)))
	other := closing(t, NewClient(n.dialAs(identity.Peer{Role: fleet.RoleAgent, Node: nodeB})))
	began, good := time.Now(), 0
	var refused error
	for i := range 10 * askRate.Burst {
		err := ask([]*Client{one, again}[i%2])
		if err == nil {
			good++
		} else if refused == nil {
			refused = err
		}
	}
	most := askRate.Burst + int(time.Since(began).Seconds()*askRate.PerSecond) + 1
	if good < askRate.Burst || good > most {
		t.Errorf("%d calls were answered in %s, want %d to %d", good, time.Since(began), askRate.Burst, most)
	}
	if fleet.KindOf(refused) != fleet.Throttled || fleet.RetryAfterOf(refused) <= 0 || fleet.HintOf(refused) == "" {
		t.Errorf("refused with %v, again after %s", refused, fleet.RetryAfterOf(refused))
	}
	if err := ask(other); err != nil {
		t.Errorf("another agent: %v", err)
	}
	quorum := closing(t, NewClient(n.dialAs(voter)))
	for range 5 * askRate.Burst {
		if _, err := Call[Empty, AppliedResponse](t.Context(), quorum, atB, MethodApplied, &Empty{}); err != nil {
			t.Fatalf("a quorum host is limited: %v", err)
		}
	}
	if n := s.quotas.ask.Known(); n != 2 {
		t.Errorf("%d agents are told apart, want 2", n)
	}
}

// The refusals of a flood are a line or two of the log at Warn, not one each.
func TestFloodOfRefusalsIsNotLogged(t *testing.T) {
	var out bytes.Buffer
	s := NewServer(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})), Methods, peerOf)
	for range 1000 {
		s.logError(MethodRenew, agent, fleet.Errorf(fleet.Throttled, "too often"))
		s.logError(MethodForward, agent, fleet.Errorf(fleet.Denied, "not for you"))
	}
	if n := strings.Count(out.String(), "\n"); n < 1 || n > 3 {
		t.Errorf("%d lines of 2000 refusals:\n%s", n, out.String()[:min(2000, out.Len())])
	}
}

// What costs a log entry or a certificate is not paid for from the same purse.
func TestQuotasOfMethods(t *testing.T) {
	q := newQuotas()
	now := time.Unix(1000, 0)
	for _, m := range Methods {
		if !allowed(m, fleet.RoleAgent) {
			continue
		}
		_, rate := q.of(m)
		want := askRate
		switch m.Name {
		case MethodReport, MethodPutBlob:
			want = resultRate
		case MethodRenew, MethodChangeAddress, MethodLeave:
			want = decideRate
		}
		if allowed(m, fleet.RoleQuorum) {
			want = resultRate
		}
		if rate != want {
			t.Errorf("%s: %+v, want %+v", m.Name, rate, want)
		}
	}
	changes := Method{Name: MethodChangeAddress}
	for i := range 3 * decideRate.Burst {
		if err := q.take(changes, agent, now); (err == nil) != (i < decideRate.Burst) {
			t.Fatalf("change %d: %v", i+1, err)
		}
	}
	if err := q.take(Method{Name: MethodHeartbeat}, agent, now); err != nil {
		t.Errorf("a heartbeat pays for changes of address: %v", err)
	}
	if err := q.take(changes, agent, now.Add(11*time.Second)); err != nil {
		t.Errorf("a change after a while: %v", err)
	}
}

func TestRetryAfterCrosses(t *testing.T) {
	for _, c := range []struct{ in, out time.Duration }{
		{0, 0}, {1, time.Millisecond}, {1500 * time.Millisecond, 1500 * time.Millisecond}, {time.Hour, time.Minute},
	} {
		body := toBody(fleet.Errorf(fleet.Throttled, "too much").RetryIn(c.in))
		if got := body.toError().RetryAfter; got != c.out {
			t.Errorf("%s came over as %s, want %s", c.in, got, c.out)
		}
	}
	if got := (errorBody{After: 1 << 31}).toError().RetryAfter; got != time.Minute {
		t.Errorf("a peer makes another wait for %s", got)
	}
}
