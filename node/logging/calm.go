package logging

import (
	"context"
	"log/slog"
)

// Calm gives a logger for a part that complains about its own end: once
// stopping says so, its warnings and errors are logged at Debug. What is wrong
// with the end itself, whoever ends it reports.
func Calm(log *slog.Logger, stopping func() bool) *slog.Logger {
	return slog.New(&calm{Handler: log.Handler(), stopping: stopping})
}

type calm struct {
	slog.Handler
	stopping func() bool
}

func (c *calm) level(l slog.Level) slog.Level {
	if l >= slog.LevelWarn && c.stopping() {
		return slog.LevelDebug
	}
	return l
}

func (c *calm) Enabled(ctx context.Context, l slog.Level) bool {
	return c.Handler.Enabled(ctx, c.level(l))
}

func (c *calm) Handle(ctx context.Context, r slog.Record) error {
	level := c.level(r.Level)
	if level != r.Level && !c.Handler.Enabled(ctx, level) {
		return nil // it began to stop since Enabled was asked
	}
	r.Level = level
	return c.Handler.Handle(ctx, r)
}

func (c *calm) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &calm{Handler: c.Handler.WithAttrs(attrs), stopping: c.stopping}
}

func (c *calm) WithGroup(name string) slog.Handler {
	return &calm{Handler: c.Handler.WithGroup(name), stopping: c.stopping}
}
