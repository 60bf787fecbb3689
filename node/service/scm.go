package service

import (
	"fmt"
	"strconv"
)

// Numbers of Windows' service control manager, from winsvc.h and winerror.h.
const (
	errorServiceSpecific = 1066 // the service has a number of its own
	errorNeverStarted    = 1077
)

// scmFacts are what the manager says of the service.
type scmFacts struct {
	state    uint32
	pid      uint32
	exit     uint32 // of the last end, a number of Windows
	specific uint32 // the agent's own number
}

// scmStates are SERVICE_STOPPED and those that follow.
var scmStates = map[uint32]struct {
	text    string
	running bool // or about to be
}{
	1: {"stopped", false},
	2: {"start pending", true},
	3: {"stop pending", false},
	4: {"running", true},
	5: {"continue pending", true},
	6: {"pause pending", false},
	7: {"paused", false},
}

// describe puts into a status what the manager says.
func (f scmFacts) describe(st *Status) {
	s, known := scmStates[f.state]
	if !known {
		s.text = "state " + strconv.FormatUint(uint64(f.state), 10)
	}
	st.State, st.Running = s.text, s.running
	if f.pid != 0 {
		st.State += fmt.Sprintf(" (process %d)", f.pid)
	}
	switch f.exit {
	case 0, errorNeverStarted:
	case errorServiceSpecific:
		st.Result = fmt.Sprintf("exit code %d", f.specific)
	default:
		st.Result = fmt.Sprintf("error %d of Windows", f.exit)
	}
}

// scmArgs are the arguments of the program, as the manager starts it.
func scmArgs(spec Spec, defaultConfig string) []string {
	if spec.Config == defaultConfig {
		return []string{"agent"}
	}
	return []string{"agent", "--config", spec.Config}
}
