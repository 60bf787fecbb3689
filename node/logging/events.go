package logging

import (
	"log/slog"
	"strings"
)

// Events is Windows' event log, opened for one source.
type Events interface {
	Info(id uint32, text string) error
	Warning(id uint32, text string) error
	Error(id uint32, text string) error
}

// Numbers of events, by which a reader filters: the log itself has no level
// below information.
const (
	EventInfo    = 1
	EventWarning = 2
	EventError   = 3
	EventDebug   = 4
)

// maxEvent is how many bytes of a record go into one event: Windows takes
// 31839 characters.
const maxEvent = 31000

// NewEvents makes a logger that writes to the event log: the message as it is
// and the attributes as key=value, in one line.
func NewEvents(events Events, levels *Levels) *slog.Logger {
	inner := newLines(func(level slog.Level, line []byte) error {
		return WriteEvent(events, level, string(line))
	})
	return slog.New(&handler{Handler: inner, levels: levels})
}

// WriteEvent writes one event with the type and the number of a level.
func WriteEvent(events Events, level slog.Level, text string) error {
	if len(text) > maxEvent {
		text = strings.ToValidUTF8(text[:maxEvent], "") + " ..."
	}
	text = strings.ReplaceAll(text, "\x00", " ") // it would end the text for Windows
	switch {
	case level >= slog.LevelError:
		return events.Error(EventError, text)
	case level >= slog.LevelWarn:
		return events.Warning(EventWarning, text)
	case level >= slog.LevelInfo:
		return events.Info(EventInfo, text)
	}
	return events.Info(EventDebug, text)
}
