package quorum

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// bridge gives Raft a logger that writes to ours with the level kept.
func bridge(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Debug, Output: io.Discard})
	l.RegisterSink(sink{log})
	return l
}

type sink struct{ log *slog.Logger }

var levels = map[hclog.Level]slog.Level{
	hclog.Trace: slog.LevelDebug, hclog.Debug: slog.LevelDebug, hclog.Info: slog.LevelInfo,
	hclog.Warn: slog.LevelWarn, hclog.Error: slog.LevelError,
}

// Accept takes one record of Raft's.
func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	at := levels[level]
	if !s.log.Enabled(context.Background(), at) {
		return
	}
	out := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case hclog.Format:
			a = fmt.Sprintf(v[0].(string), v[1:]...)
		case error: // printed by the handler
		case fmt.Stringer:
			a = v.String() // now: Raft passes itself, and changes
		}
		if a == "error" && i%2 == 0 {
			a = "err"
		}
		out[i] = a
	}
	s.log.Log(context.Background(), at, msg, out...) //nolint:sloglint // the message is Raft's
}
