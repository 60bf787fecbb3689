package fleet

// What the agent of a host says of its process and its disk.

// LogLevel is a level that counts now.
type LogLevel struct {
	Component string  `json:"Component,omitempty"` // "" is every component without its own
	Level     string  `json:"Level"`               // debug, info, warn or error
	Until     Instant `json:"Until,omitempty"`     // then the configured level counts again; 0 is until the agent ends
}

// SetLogLevelRequest changes what the agent logs.
type SetLogLevelRequest struct {
	Component string  `json:"Component,omitempty"` // "" is all
	Level     string  `json:"Level"`               // debug, info, warn or error; "" is the configured one
	Seconds   float64 `json:"Seconds,omitempty"`   // 0 is until the agent ends
}

// LogLevels is the answer: what counts now.
type LogLevels struct {
	Levels []LogLevel `json:"Levels"`
}

// RuntimeFacts are figures of the agent's process.
type RuntimeFacts struct {
	Version    string  `json:"Version"`
	Go         string  `json:"Go"`
	Platform   string  `json:"Platform"`
	PID        int     `json:"Pid"`
	Started    Instant `json:"Started"`
	Goroutines int     `json:"Goroutines"`
	CPUs       int     `json:"Cpus"`
	HeapBytes  uint64  `json:"HeapBytes"` // in use
	SysBytes   uint64  `json:"SysBytes"`  // taken from the system
	GCs        uint32  `json:"Gcs"`
	OpenFiles  int     `json:"OpenFiles"` // negative where it is not known
}

// DiskState is what a host's data takes of its disk.
type DiskState struct {
	Budget  int64       `json:"Budget"` // bytes that the parts may take in all
	Used    int64       `json:"Used"`   // bytes that they take
	Parts   []DiskPart  `json:"Parts,omitempty"`
	Free    int64       `json:"Free"` // bytes of the file system; 0 of 0 where that is not known
	Total   int64       `json:"Total"`
	Dropped DiskDropped `json:"Dropped"`
}

// DiskPart is one part of it.
type DiskPart struct {
	Name  string `json:"Name"`
	Bytes int64  `json:"Bytes"`
}

// DiskDropped is what was given up for room since the agent started.
type DiskDropped struct {
	Number int64   `json:"Number"`
	Bytes  int64   `json:"Bytes"`
	Last   Instant `json:"Last,omitempty"`
}
