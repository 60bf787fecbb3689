package gossip

import "sync/atomic"

// counters are what Stats shows, apart from the health.
type counters struct {
	packetsOpened, packetsRefused, packetsDropped, packetsOver, claimsRefused, recordsRefused, streamsRefused, conflicts, unlisted atomic.Uint64
}

func (c *counters) stats() Stats {
	return Stats{
		PacketsOpened:  c.packetsOpened.Load(),
		PacketsRefused: c.packetsRefused.Load(),
		PacketsDropped: c.packetsDropped.Load(),
		PacketsOver:    c.packetsOver.Load(),
		ClaimsRefused:  c.claimsRefused.Load(),
		RecordsRefused: c.recordsRefused.Load(),
		StreamsRefused: c.streamsRefused.Load(),
		Conflicts:      c.conflicts.Load(),
		Unlisted:       c.unlisted.Load(),
	}
}
