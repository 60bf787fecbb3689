//go:build linux

package lab

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Terminal is a shell on a host in a terminal of its own (tmux), for what
// behaves differently there: prompts, colour, progress, Ctrl-C.
type Terminal struct {
	host *Host
	name string
}

// Terminal opens a terminal of 120 columns and 50 lines on the host.
func (h *Host) Terminal() *Terminal {
	h.lab.t.Helper()
	h.mu.Lock()
	h.count++
	term := &Terminal{host: h, name: fmt.Sprintf("lab%d", h.count)}
	h.mu.Unlock()
	// A server of its own, which ends with the host at the latest.
	h.RunIn(Input{Env: []string{"TERM=xterm-256color"}}, "tmux", "-L", term.name, "-f", "/dev/null",
		"new-session", "-d", "-x", "120", "-y", "50", "env PS1='"+h.name+"# ' bash --norc --noprofile").OK()
	term.Wait(regexp.QuoteMeta(h.name)+"#$", waitLimit)
	return term
}

func (term *Terminal) tmux(args ...string) Result {
	term.host.lab.t.Helper()
	return term.host.Run(append([]string{"tmux", "-L", term.name}, args...)...).OK()
}

// Type types a line and presses Enter.
func (term *Terminal) Type(line string) {
	term.host.lab.t.Helper()
	term.tmux("send-keys", "-l", "--", line)
	term.tmux("send-keys", "Enter")
}

// Key presses a key by tmux's name for it: C-c, Tab, Up.
func (term *Terminal) Key(name string) {
	term.host.lab.t.Helper()
	term.tmux("send-keys", name)
}

// Screen is the text in the terminal, with what has scrolled away above it,
// without the empty lines at the end.
func (term *Terminal) Screen() string {
	term.host.lab.t.Helper()
	return strings.TrimRight(term.tmux("capture-pane", "-p", "-J", "-S", "-").Stdout, "\n ")
}

// Wait waits until the screen matches the expression and returns the screen.
func (term *Terminal) Wait(expression string, limit time.Duration) string {
	term.host.lab.t.Helper()
	re := regexp.MustCompile(expression)
	var screen string
	end := time.Now().Add(limit)
	for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
		screen = term.Screen()
		if re.MatchString(screen) {
			tick.Stop()
			return screen
		}
		if time.Now().After(end) {
			tick.Stop()
			term.host.lab.t.Fatalf("lab: %s: waited %v for %q on the screen:\n%s", term.host.name, limit, expression, screen)
		}
	}
}

// Close ends the terminal and what runs in it.
func (term *Terminal) Close() {
	term.host.lab.t.Helper()
	term.tmux("kill-server")
}
