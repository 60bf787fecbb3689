package gossip

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"
)

// Members decide much of what memberlist logs; they must not be able to fill a
// disk. More lines than these per interval are logged at Debug only.
const (
	logInterval = 10 * time.Second
	logBurst    = 20
	logLine     = 512 // bytes of a line that are kept
)

// untrue is a warning of memberlist that does not hold here: it looks for its
// own encryption, and port.go does that work.
var untrue = []byte("without encryption!")

// logBridge turns memberlist's lines, "[WARN] memberlist: text", into records
// of the same level.
type logBridge struct {
	log *slog.Logger

	mu         sync.Mutex // guards the rest
	since      time.Time
	lines      int
	suppressed int
}

func newLogBridge(log *slog.Logger) *logBridge { return &logBridge{log: log} }

// Write takes one line.
func (b *logBridge) Write(line []byte) (int, error) {
	level, text := parseLine(line)
	if bytes.HasSuffix(text, untrue) {
		level = slog.LevelDebug
	}
	suppressed := 0
	if level > slog.LevelDebug {
		var quiet bool
		if suppressed, quiet = b.count(time.Now()); quiet {
			level = slog.LevelDebug
		}
	}
	if !b.log.Enabled(context.Background(), level) {
		return len(line), nil
	}
	attrs := []slog.Attr{slog.String("text", string(text[:min(len(text), logLine)]))}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	b.log.LogAttrs(context.Background(), level, "memberlist", attrs...)
	return len(line), nil
}

// count says whether a line is one too many, and with the first line of an
// interval how many were so in the last.
func (b *logBridge) count(now time.Time) (suppressed int, quiet bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.since) >= logInterval {
		suppressed, b.suppressed = b.suppressed, 0
		b.since, b.lines = now, 0
	}
	b.lines++
	if b.lines > logBurst {
		b.suppressed++
		return 0, true
	}
	return suppressed, false
}

var levels = map[string]slog.Level{
	"DEBUG": slog.LevelDebug, "INFO": slog.LevelInfo, "WARN": slog.LevelWarn, "ERR": slog.LevelError, "ERROR": slog.LevelError,
}

// parseLine splits a line into its level and its text. A line without a level
// is a warning: memberlist forgets it in a few places where something failed.
func parseLine(line []byte) (slog.Level, []byte) {
	line = bytes.TrimSpace(line)
	level := slog.LevelWarn
	if rest, ok := bytes.CutPrefix(line, []byte("[")); ok {
		if word, text, ok := bytes.Cut(rest, []byte("]")); ok {
			if l, known := levels[string(word)]; known {
				level, line = l, bytes.TrimSpace(text)
			}
		}
	}
	return level, bytes.TrimPrefix(line, []byte("memberlist: "))
}
