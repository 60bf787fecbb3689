package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/quota"
)

// An operator who asks too often is told so with 429 and when to come again; the
// client waits and tries again, within its time.
func TestOperatorsAreLimited(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.OperatorRate = quota.Rate{PerSecond: 2, Burst: 3} })
	c := f.client(func(_ *identity.Credential, o *client.Options) { o.Timeout = 30 * time.Second })
	began := time.Now()
	for range 5 {
		if err := c.Call(t.Context(), "GetCallerIdentity", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("five calls at two a second and three at once took %s", took)
	}
	// Who has no time to wait is told at once.
	for i := 0; ; i++ {
		ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
		err := c.Call(ctx, "GetCallerIdentity", nil, nil)
		cancel()
		if err == nil && i < 20 {
			continue
		}
		if fleet.KindOf(err) != fleet.Throttled || fleet.RetryAfterOf(err) != time.Second || fleet.HintOf(err) == "" {
			t.Errorf("refused with %v, again after %s", err, fleet.RetryAfterOf(err))
		}
		break
	}
}

func TestRetryAfterHeader(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fleet.Errorf(fleet.Throttled, "x").RetryIn(1), "1"},
		{fleet.Errorf(fleet.Throttled, "x").RetryIn(1001 * time.Millisecond), "2"},
		{fleet.Errorf(fleet.Throttled, "spent"), ""},
		{errors.New("x"), ""},
	} {
		w := httptest.NewRecorder()
		writeError(w, c.err)
		if got := w.Header().Get("Retry-After"); got != c.want {
			t.Errorf("%v: Retry-After %q, want %q", c.err, got, c.want)
		}
		if throttled := fleet.KindOf(c.err) == fleet.Throttled; throttled != (w.Code == http.StatusTooManyRequests) {
			t.Errorf("%v: status %d", c.err, w.Code)
		}
	}
}

// One operator holds half of the places at most; the others get in.
func TestConnectionsOfOneOperator(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.MaxConns = 8 })
	open, refused := 0, 0
	for range 6 {
		c, err := f.open(func(_ *identity.Credential, o *client.Options) { o.Timeout = 5 * time.Second })
		switch {
		case err == nil:
			defer c.Close()
			open++
		case fleet.KindOf(err) == fleet.Throttled:
			refused++
		default:
			t.Errorf("refused with %v", err)
		}
	}
	if open != 4 || refused != 2 {
		t.Errorf("%d connections were let in and %d refused, want 4 and 2", open, refused)
	}
}
