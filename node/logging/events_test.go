package logging

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

// shelf is an event log that keeps what it gets.
type shelf []string

func (s *shelf) put(kind string, id uint32, text string) error {
	*s = append(*s, fmt.Sprintf("%s %d %s", kind, id, text))
	return nil
}
func (s *shelf) Info(id uint32, text string) error    { return s.put("info", id, text) }
func (s *shelf) Warning(id uint32, text string) error { return s.put("warning", id, text) }
func (s *shelf) Error(id uint32, text string) error   { return s.put("error", id, text) }

func TestEvents(t *testing.T) {
	var s shelf
	log := NewEvents(&s, NewLevels(slog.LevelDebug))
	log.Info("agent ready", "node", "mi-1", "name", "web 1")
	log.With(ComponentKey, "gossip").Error("it failed", "err", "a\nb")
	log.Warn("two\nlines\x00")
	log.Debug("quiet")
	want := []string{
		`info 1 agent ready node=mi-1 name="web 1"`,
		`error 3 it failed component=gossip err="a\nb"`,
		"warning 2 two lines ",
		"info 4 quiet",
	}
	if !slices.Equal(s, want) {
		t.Errorf("got\n%q\nwant\n%q", []string(s), want)
	}
	s = nil
	NewEvents(&s, NewLevels(slog.LevelWarn)).Info("not asked for")
	if len(s) != 0 {
		t.Errorf("a level that is off was written: %q", s)
	}
	log.Info(strings.Repeat("é", maxEvent))
	if len(s) != 1 || len(s[0]) > maxEvent+20 || !strings.HasSuffix(s[0], "é ...") {
		t.Errorf("a long record: %d events, %d bytes", len(s), len(s[0]))
	}
}
