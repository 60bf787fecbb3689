package logging

import (
	"sync"
	"time"
)

// sometimesInterval is how often Sometimes lets a line through.
const sometimesInterval = 10 * time.Second

// Sometimes lets a line through once in ten seconds: what others can cause at
// will shall not fill a disk. The zero value is ready.
type Sometimes struct {
	mu         sync.Mutex // guards the rest
	last       time.Time
	suppressed int
}

// Log calls line with how many were suppressed before it, or suppresses it.
func (s *Sometimes) Log(now time.Time, line func(suppressed int)) {
	s.mu.Lock()
	if !s.last.IsZero() && now.Sub(s.last) < sometimesInterval {
		s.suppressed++
		s.mu.Unlock()
		return
	}
	suppressed := s.suppressed
	s.last, s.suppressed = now, 0
	s.mu.Unlock()
	line(suppressed)
}
