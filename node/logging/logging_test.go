package logging

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
)

func TestJournalLines(t *testing.T) {
	var b bytes.Buffer
	log := New(&b, Journal, NewLevels(slog.LevelDebug))
	log.Info("agent ready", "node", "mi-1", "name", "web 1")
	part := log.With(ComponentKey, "gossip").WithGroup("g")
	part.Error("it failed", "err", errors.New("a\nb"))
	log.Warn("two\nlines")
	log.Debug("quiet", "level", "high")
	log.Info("set", "level", "warn", "msg", "m", "time", 1)
	want := "<6>agent ready node=mi-1 name=\"web 1\"\n" +
		"<3>it failed component=gossip g.err=\"a\\nb\"\n" +
		"<4>two lines\n" +
		"<7>quiet level=high\n" +
		"<6>set level=warn msg=m time=1\n"
	if runtime.GOOS == "linux" && b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestLevelsOfComponents(t *testing.T) {
	var b bytes.Buffer
	levels := NewLevels(slog.LevelInfo)
	log := New(&b, Text, levels)
	gossip, api := log.With(ComponentKey, "gossip"), log.With(ComponentKey, "api").With("x", 1)
	logged := func(l *slog.Logger) bool { return l.Enabled(context.Background(), slog.LevelDebug) }
	check := func(when string, all, g, a bool) {
		t.Helper()
		if logged(log) != all || logged(gossip) != g || logged(api) != a {
			t.Errorf("%s: debug of all %t, gossip %t, api %t; want %t, %t, %t", when, logged(log), logged(gossip), logged(api), all, g, a)
		}
	}
	set := func(component string, level slog.Level) {
		t.Helper()
		if err := levels.Set(component, level, 0); err != nil {
			t.Fatal(err)
		}
	}
	check("at first", false, false, false)
	set("gossip", slog.LevelDebug)
	check("one", false, true, false)
	set("", slog.LevelDebug)
	check("all", true, true, true)
	set("api", slog.LevelError)
	check("all but one", true, true, false)
	levels.Reset()
	check("again as configured", false, false, false)
	err := levels.Set("gosip", slog.LevelDebug, 0)
	if fleet.KindOf(err) != fleet.NotFound || !strings.Contains(fleet.HintOf(err), "api, gossip") {
		t.Errorf("an unknown component: %v, hint %q", err, fleet.HintOf(err))
	}
}

func TestLevelFallsBackAfterItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		levels := NewLevels(slog.LevelWarn)
		levels.note("api")
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(levels.Set("", slog.LevelDebug, 10*time.Minute))
		must(levels.Set("api", slog.LevelError, time.Minute))
		if s := levels.State(); len(s) != 2 || s[0].Level != "debug" || s[0].Until == 0 || s[1].Component != "api" {
			t.Errorf("state %+v", s)
		}
		time.Sleep(time.Minute + time.Second)
		if l := levels.of("api"); l != slog.LevelDebug {
			t.Errorf("after the component's time: %s", l)
		}
		// A new time replaces the old one, which must not end it.
		must(levels.Set("", slog.LevelInfo, time.Hour))
		time.Sleep(30 * time.Minute)
		if l := levels.of(""); l != slog.LevelInfo {
			t.Errorf("after the time of a level that was replaced: %s", l)
		}
		time.Sleep(31 * time.Minute)
		if l := levels.of(""); l != slog.LevelWarn {
			t.Errorf("after its time: %s, want the configured one", l)
		}
		levels.Reset()
	})
}

func TestToJournal(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("systemd is Linux's")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stream := journalStream(t, f)
	env := func(v string) func(string) string { return func(string) string { return v } }
	if !ToJournal(f, env(stream)) {
		t.Error("the file that JOURNAL_STREAM names is not taken for the journal")
	}
	if ToJournal(f, env("1:1")) || ToJournal(f, env("")) || ToJournal(&bytes.Buffer{}, env(stream)) {
		t.Error("another file is taken for the journal")
	}
}

func TestCalm(t *testing.T) {
	var b bytes.Buffer
	levels := NewLevels(slog.LevelInfo)
	stopping := false
	log := Calm(New(&b, Journal, levels).With(ComponentKey, "gossip"), func() bool { return stopping })
	log.Error("first")
	stopping = true
	log.Error("second")
	log.Info("third")
	if err := levels.Set("", slog.LevelDebug, 0); err != nil {
		t.Fatal(err)
	}
	log.With("a", 1).Error("fourth")
	want := "<3>first component=gossip\n<6>third component=gossip\n<7>fourth component=gossip a=1\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}
