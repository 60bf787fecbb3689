package node

import (
	"log/slog"
	"os"
	"runtime"
	"time"

	"fleet/node/fleet"
)

// maxLevelTime bounds for how long a level may be set: who forgets it finds
// the disk as it was within a day.
const maxLevelTime = 24 * time.Hour

// errOtherLog is the answer of an agent whose log somebody else writes.
func errOtherLog() error {
	return fleet.Errorf(fleet.Unavailable, "the log of this agent is another's: its level is not known or changed here")
}

// LogLevels is what this host logs now.
func (n *Node) LogLevels() (fleet.LogLevels, error) {
	if n.cfg.Levels == nil {
		return fleet.LogLevels{}, errOtherLog()
	}
	return fleet.LogLevels{Levels: n.cfg.Levels.State()}, nil
}

// SetLogLevel changes what this host logs, for a time or until it ends.
func (n *Node) SetLogLevel(req fleet.SetLogLevelRequest) (fleet.LogLevels, error) {
	levels := n.cfg.Levels
	if levels == nil {
		return fleet.LogLevels{}, errOtherLog()
	}
	if req.Seconds < 0 || req.Seconds > maxLevelTime.Seconds() {
		return fleet.LogLevels{}, fleet.Errorf(fleet.Invalid, "a level is set for at most %s", maxLevelTime)
	}
	if req.Level == "" && req.Component == "" {
		levels.Reset()
		n.log.Info("log level as configured")
		return fleet.LogLevels{Levels: levels.State()}, nil
	}
	var level slog.Level
	switch req.Level {
	case "debug", "info", "warn", "error":
		if err := level.UnmarshalText([]byte(req.Level)); err != nil {
			return fleet.LogLevels{}, err
		}
	default:
		return fleet.LogLevels{}, fleet.Errorf(fleet.Invalid, "log level %.40q is none of debug, info, warn, error", req.Level)
	}
	lasting := time.Duration(req.Seconds * float64(time.Second))
	if err := levels.Set(req.Component, level, lasting); err != nil {
		return fleet.LogLevels{}, err
	}
	n.log.Warn("log level set", "level", req.Level, "part", req.Component, "for", lasting)
	return fleet.LogLevels{Levels: levels.State()}, nil
}

// RuntimeFacts are figures of this process.
func (n *Node) RuntimeFacts() fleet.RuntimeFacts {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return fleet.RuntimeFacts{
		Version: n.cfg.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, PID: os.Getpid(),
		Started: fleet.InstantOf(n.started.UnixNano()), Goroutines: runtime.NumGoroutine(), CPUs: runtime.NumCPU(),
		HeapBytes: m.HeapInuse, SysBytes: m.Sys, GCs: m.NumGC, OpenFiles: openFiles(),
	}
}

// openFiles counts this process's open files where the system shows them.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(entries) - 1 // less the one that this reads with
}
