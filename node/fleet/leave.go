package fleet

// LeaveRequest asks the agent of a host, on its local socket, to take the host
// out of the fleet for good.
type LeaveRequest struct {
	Force bool `json:"Force,omitempty"` // cancel what runs there
}

// LeaveResult says that the host is of the fleet no more. Its agent stops after
// this answer.
type LeaveResult struct {
	FleetName  string  `json:"FleetName"`
	InstanceId NodeID  `json:"InstanceId"`
	Name       string  `json:"Name"`
	DataDir    string  `json:"DataDir"`
	At         Instant `json:"At"`
	Cancelled  int     `json:"Cancelled,omitempty"`  // commands that ran or waited and were cancelled
	Unreported int     `json:"Unreported,omitempty"` // results that the quorum did not take in time
}
