package upgrade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"fleet/node/service"
)

// look is how often the guard looks.
const look = time.Second

// Guard is the old program while the new one has to prove itself.
type Guard struct {
	DataDir string
	Keeper  service.Keeper
	Ready   func() error // tells the manager that the guard watches
	Now     func() time.Time
	Log     *slog.Logger
}

// Run watches until the upgrade is over, and puts the old program back when it
// has to. Then it takes its own service away.
func (g *Guard) Run(ctx context.Context) error {
	began := g.Now()
	before, err := g.Keeper.Status(ctx)
	if err != nil {
		g.Log.Warn("the agent's service not seen", "err", err)
	}
	r, err := Load(g.DataDir)
	if err != nil {
		return err
	}
	if r == nil {
		return g.Keeper.Unguard(ctx)
	}
	if err := g.Ready(); err != nil {
		return err
	}
	g.Log.Info("guarding", "version", r.To.Version, "previous", r.From.Version, "within", r.Healthy)
	for {
		r, err := Load(g.DataDir)
		if err != nil || r == nil {
			return errors.Join(err, g.Keeper.Unguard(ctx))
		}
		s := sight{stage: r.Stage, elapsed: g.Now().Sub(began), healthy: time.Duration(r.Healthy) * time.Second}
		if status, err := g.Keeper.Status(ctx); err == nil {
			s.ends = status.Restarts - before.Restarts
		}
		over, reason := judge(s)
		switch {
		case over:
			g.Log.Info("the upgrade is over", "stage", r.Stage, "reason", r.Reason)
			return g.Keeper.Unguard(ctx)
		case reason != "":
			return g.putBack(ctx, reason)
		}
		if !pause(ctx, look) {
			return context.Cause(ctx)
		}
	}
}

// lastLines is how far back the guard reads the log of the service, which the
// manager writes to as well.
const lastLines = 20

// lastWord is the last that a program said in the lines of its service.
func lastWord(lines []string) string {
	for _, line := range slices.Backward(lines) {
		if _, rest, ok := strings.Cut(line, " fleet["); ok {
			if _, said, ok := strings.Cut(rest, "]: "); ok {
				return cut(strings.ToValidUTF8(strings.TrimSpace(said), "?"), 120)
			}
		}
	}
	return ""
}

func (g *Guard) putBack(ctx context.Context, reason string) error {
	if lines, err := g.Keeper.Logs(ctx, lastLines); err == nil {
		if said := lastWord(lines); said != "" {
			reason += "; it last said: " + said
		}
	}
	put := false
	err := update(g.DataDir, func(r *Record) (*Record, bool, error) {
		if r == nil || r.Stage != Pending {
			return r, false, nil // it confirmed itself in this moment
		}
		p := place{r.Program}
		if there, err := DigestOf(p.program); err == nil && there.String() != r.To.Digest {
			// Neither: somebody has replaced it, or the power was cut before the
			// exchange. It is not ours to change.
			reason = "the new program was not in its place: " + reason
		} else if err := p.putBack(); err != nil {
			return r, false, fmt.Errorf("put %s back: %w", r.From.Version, err)
		}
		r.Stage, r.Ended, r.Reason = Back, g.Now().Unix(), reason
		put = true
		return r, true, nil
	})
	if err != nil {
		return err // the manager starts this guard again
	}
	if put {
		g.Log.Error("the previous program is in its place again", "reason", reason)
		r, err := Load(g.DataDir)
		if err == nil && r != nil {
			err = g.Keeper.Relabel(ctx, r.Program)
		}
		if err := errors.Join(err, g.Keeper.Restart(ctx)); err != nil {
			return err
		}
	}
	return g.Keeper.Unguard(ctx)
}
