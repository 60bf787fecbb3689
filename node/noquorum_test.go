package node

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
)

// TestNoQuorumIsSaidSoon: with two of three voters gone without a word, a
// request names them within ten seconds, or within its own, shorter time.
func TestNoQuorumIsSaidSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 0)
		defer b.stopAll()
		leader := b.awaitLeader("")
		for name := range b.hosts {
			if name != leader {
				b.net.Isolate(b.hosts[name])
			}
		}
		time.Sleep(10 * time.Second)
		for _, limit := range []time.Duration{0, 5 * time.Second} {
			cred := b.cred
			cred.Addresses = []string{b.addr(leader)}
			c, err := client.Open(t.Context(), cred, client.Options{Dial: b.host.DialContext, Timeout: limit})
			if err != nil {
				t.Fatal(err)
			}
			for what, ask := range map[string]func(context.Context) error{
				"a read":    func(ctx context.Context) error { return c.Call(ctx, "DescribeNodes", nil, nil) },
				"a command": func(context.Context) error { _, err := b.send(c); return err },
			} {
				began := time.Now()
				err := ask(t.Context())
				took := time.Since(began)
				most := 10 * time.Second
				if limit > 0 {
					most = limit
				}
				if fleet.KindOf(err) != fleet.NoQuorum || !strings.Contains(err.Error(), "1 of 3 voters") || took > most {
					t.Errorf("%s with a limit of %s, after %s: %v", what, limit, took, err)
				}
				t.Logf("%s with a limit of %s: %s", what, limit, took)
			}
			c.Close()
		}
		b.net.HealAll()
		b.awaitLeader("")
	})
}
