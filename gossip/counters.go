package gossip

import "sync/atomic"

// counters are what Stats shows, apart from the health.
type counters struct {
	packetsRefused, packetsDropped, claimsRefused, recordsRefused, streamsRefused, conflicts atomic.Uint64
}

func (c *counters) stats() Stats {
	return Stats{
		PacketsRefused: c.packetsRefused.Load(),
		PacketsDropped: c.packetsDropped.Load(),
		ClaimsRefused:  c.claimsRefused.Load(),
		RecordsRefused: c.recordsRefused.Load(),
		StreamsRefused: c.streamsRefused.Load(),
		Conflicts:      c.conflicts.Load(),
	}
}
