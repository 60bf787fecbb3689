package process

import "context"

// Cgroups is where control groups can be made on this host: nowhere.
type Cgroups struct{}

// OpenCgroups finds where control groups can be made.
func OpenCgroups() *Cgroups { return &Cgroups{} }

// String says how children are contained, for a person.
func (c *Cgroups) String() string { return "process group only: this system has no control groups" }

// group is the control group of a mark: always nil.
type group struct{}

type pressure struct{ kills, refusals uint64 }

func (c *Cgroups) join(string, Limits) (*group, error) { return nil, nil }
func (g *group) place(int, Limits) error               { return nil }
func (g *group) unbound() string                       { return "" }
func (g *group) since() pressure                       { return pressure{} }
func (g *group) leave()                                {}

func (p *Process) killLeft() (any bool, survivors int) { return false, 0 }

// KillLeftover does nothing here: without the start time of a process, the
// leftover of an earlier run cannot be told from a stranger with its number.
func (c *Cgroups) KillLeftover(context.Context, Identity) (killed int, err error) { return 0, nil }

// TotalMemory is how many bytes of memory this host has: not known here.
func TotalMemory() uint64 { return 0 }
