package fleet

// Stages of the gossip key.
const (
	GossipKeySettled   = "Settled"   // every host uses one key
	GossipKeySpreading = "Spreading" // hosts are given a new one, and use the old one
	GossipKeyRetiring  = "Retiring"  // hosts use the new one, and still read what comes under the old one
)

// RotateGossipKeyRequest has no members.
type RotateGossipKeyRequest struct{}

// RotateGossipKeyResult says which key is being spread.
type RotateGossipKeyResult struct {
	Number int `json:"Number"`
}

// DescribeGossipKeyRequest has no members.
type DescribeGossipKeyRequest struct{}

// DescribeGossipKeyResult is how the fleet's gossip key stands. The key itself
// is told to nobody but the agents of hosts.
type DescribeGossipKeyResult struct {
	Number  int      `json:"Number"` // of the newest key; 1 is that of fleet init
	Made    Instant  `json:"Made"`
	Stage   string   `json:"Stage"`
	Since   Instant  `json:"Since"`   // when this stage began
	Holding int      `json:"Holding"` // live hosts that have what this stage gives them
	Live    int      `json:"Live"`
	Behind  []string `json:"Behind,omitempty"` // names of live hosts that do not, at most 100
	Next    Instant  `json:"Next"`             // when the next key is made by itself, at the latest
}
