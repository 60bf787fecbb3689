package transport

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"fleet/node/fleet"
)

// refusalInterval is how often a refused connection is logged at Warn; a
// stranger must not be able to fill a disk.
const refusalInterval = 10 * time.Second

// throttledLog logs refused connections: all at Debug, one per interval at
// Warn with the number of those that were passed over.
type throttledLog struct {
	log *slog.Logger

	mu      sync.Mutex // guards the rest
	last    time.Time
	skipped int
}

func (l *throttledLog) connection(now time.Time, from net.Addr, p Proto, err error) {
	if fleet.KindOf(err) == fleet.Other && !errors.Is(err, errOverLimit) {
		l.log.Debug("handshake failed", "addr", from.String(), "proto", string(p), "err", err)
		return // scanners and broken networks; nobody must act
	}
	l.mu.Lock()
	quiet := !l.last.IsZero() && now.Sub(l.last) < refusalInterval
	skipped := l.skipped
	if quiet {
		l.skipped++
	} else {
		l.last, l.skipped = now, 0
	}
	l.mu.Unlock()
	if quiet {
		l.log.Debug("connection refused", "addr", from.String(), "proto", string(p), "err", err)
		return
	}
	l.log.Warn("connection refused", "addr", from.String(), "proto", string(p), "err", err, "suppressed", skipped)
}
