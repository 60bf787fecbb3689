// Package logging is how an agent logs: one handler whose form fits the reader
// and whose levels change while the agent runs.
//
//   - On a terminal, in a file and in a container: slog's text or JSON.
//   - Into systemd's journal: a line without time (the journal has its own),
//     with the priority as "<N>" in front, the message as it is, and the
//     attributes as key=value.
//   - Into Windows' event log: an event with the type of the level, and such a
//     line as its text.
//   - Each part of the agent is a component. A level is set for all of them or
//     for one, for good or for a time; after the time the level of the
//     configuration counts again.
package logging

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"fleet/node/fleet"
)

// ComponentKey is the attribute that names the part of the agent that logs.
const ComponentKey = "component"

// Form is how a record is written.
type Form string

// Forms.
const (
	Text    Form = "text"
	JSON    Form = "json"
	Journal Form = "journal"
)

// Levels say what is logged. They may be changed and asked concurrently.
type Levels struct {
	configured slog.Level

	mu    sync.RWMutex // guards what follows
	all   slog.Level
	one   map[string]slog.Level // by component
	until map[string]*override  // running times; "" is all components
	after func(time.Duration, func()) (stop func() bool)
	known map[string]bool // components of the loggers that were made
}

type override struct {
	stop func() bool
	end  time.Time
}

// maxComponents bounds the overrides and the names that are remembered.
const maxComponents = 64

// NewLevels begins with the level of the configuration.
func NewLevels(configured slog.Level) *Levels {
	return &Levels{
		configured: configured, all: configured, one: map[string]slog.Level{}, until: map[string]*override{}, known: map[string]bool{},
		after: func(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop },
	}
}

// of is the level of a component.
func (l *Levels) of(component string) slog.Level {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if level, ok := l.one[component]; ok {
		return level
	}
	return l.all
}

func (l *Levels) note(component string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) < maxComponents {
		l.known[component] = true
	}
}

// Set changes the level of one component, or of all with "", for a time or,
// with 0, until the agent ends. A level for all ends those of single components.
func (l *Levels) Set(component string, level slog.Level, d time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if component != "" && !l.known[component] {
		return fleet.Errorf(fleet.NotFound, "there is no component %.60q", component).
			WithHint("one of %s; without --component it is all of them", strings.Join(slices.Sorted(maps.Keys(l.known)), ", "))
	}
	if component == "" {
		for name := range l.one {
			l.resetLocked(name)
		}
	}
	l.resetLocked(component)
	if component == "" {
		l.all = level
	} else {
		l.one[component] = level
	}
	if d > 0 {
		o := &override{end: time.Now().Add(d)}
		l.until[component] = o
		o.stop = l.after(d, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.until[component] == o { // not replaced since
				l.resetLocked(component)
			}
		})
	}
	return nil
}

// Reset gives every component the level of the configuration.
func (l *Levels) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.one {
		l.resetLocked(name)
	}
	l.resetLocked("")
}

func (l *Levels) resetLocked(component string) {
	if o := l.until[component]; o != nil {
		o.stop()
		delete(l.until, component)
	}
	if component == "" {
		l.all = l.configured
	} else {
		delete(l.one, component)
	}
}

// State says which level counts where; "" is all components without their own.
func (l *Levels) State() []fleet.LogLevel {
	l.mu.RLock()
	defer l.mu.RUnlock()
	row := func(component string, level slog.Level) fleet.LogLevel {
		s := fleet.LogLevel{Component: component, Level: strings.ToLower(level.String())}
		if o := l.until[component]; o != nil {
			s.Until = fleet.InstantOf(o.end.UnixNano())
		}
		return s
	}
	state := []fleet.LogLevel{row("", l.all)}
	for _, name := range slices.Sorted(maps.Keys(l.one)) {
		state = append(state, row(name, l.one[name]))
	}
	return state
}

// handler asks the levels and leaves the writing to another handler.
type handler struct {
	slog.Handler
	levels    *Levels
	component string
}

// New makes a logger that writes to w.
func New(w io.Writer, form Form, levels *Levels) *slog.Logger {
	everything := &slog.HandlerOptions{Level: slog.Level(-128)} // the levels have been asked by then
	var inner slog.Handler
	switch form {
	case JSON:
		inner = slog.NewJSONHandler(w, everything)
	case Journal:
		inner = newLines(func(level slog.Level, line []byte) error {
			_, err := w.Write(slices.Concat([]byte(priority(level)), line, []byte("\n")))
			return err
		})
	default:
		inner = slog.NewTextHandler(w, everything)
	}
	return slog.New(&handler{Handler: inner, levels: levels})
}

// Enabled reports whether a record of this level is written.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.levels.of(h.component)
}

// WithAttrs notes the component.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := &handler{Handler: h.Handler.WithAttrs(attrs), levels: h.levels, component: h.component}
	for _, a := range attrs {
		if a.Key == ComponentKey {
			next.component = a.Value.String()
			h.levels.note(next.component)
		}
	}
	return next
}

// WithGroup keeps the component.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{Handler: h.Handler.WithGroup(name), levels: h.levels, component: h.component}
}

// lines writes each record as one line, without its time and level: for a
// system that keeps both by itself.
type lines struct {
	attrs slog.Handler // writes to line what is key=value
	out   *output
}

// output is shared by all handlers that come of one.
type output struct {
	mu   sync.Mutex // guards line, and that one is written at a time
	line bytes.Buffer
	emit func(level slog.Level, line []byte) error
}

// messageMark stands for the message where that is written otherwise.
const messageMark = "\x00message"

func newLines(emit func(level slog.Level, line []byte) error) *lines {
	out := &output{emit: emit}
	return &lines{out: out, attrs: slog.NewTextHandler(&out.line, &slog.HandlerOptions{
		Level: slog.Level(-128),
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			// Those of the record itself: an attribute may have the same name.
			_, level := a.Value.Any().(slog.Level)
			if len(groups) == 0 && (a.Key == slog.LevelKey && level || a.Key == slog.MessageKey && a.Value.String() == messageMark) {
				return slog.Attr{}
			}
			return a
		},
	})}
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

// priority is the level as syslog numbers it.
func priority(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "<3>"
	case level >= slog.LevelWarn:
		return "<4>"
	case level >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

// Handle writes one record as one line.
func (l *lines) Handle(ctx context.Context, r slog.Record) error {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	l.out.line.Reset()
	// Messages are constants of ours, but raft's and memberlist's come too.
	l.out.line.WriteString(strings.NewReplacer("\n", " ", "\r", " ").Replace(r.Message))
	l.out.line.WriteByte(' ')
	r.Message, r.Time = messageMark, time.Time{} // a time that is zero is not written
	if err := l.attrs.Handle(ctx, r); err != nil {
		return err
	}
	return l.out.emit(r.Level, bytes.TrimRight(l.out.line.Bytes(), " \n"))
}

func (l *lines) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &lines{out: l.out, attrs: l.attrs.WithAttrs(attrs)}
}

func (l *lines) WithGroup(name string) slog.Handler {
	return &lines{out: l.out, attrs: l.attrs.WithGroup(name)}
}
