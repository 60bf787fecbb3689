package rpc

import (
	"fleet/node/fleet"
	"fleet/node/wire"
)

// What a []byte holds that is signed or defined elsewhere is named in its
// comment; it is carried as it is and checked by whoever opens it.

// Empty is a request or an answer that says nothing.
type Empty struct{}

// Limits of what hosts say of themselves.
const (
	MaxWarnings    = 8
	MaxWarningText = 256 // bytes of one warning
	maxShortText   = 64  // bytes of a version or a boot ID
)

// HeartbeatRequest is what a host says to a quorum host every few seconds.
type HeartbeatRequest struct {
	Nonce        [16]byte `msgpack:"n"` // comes back in the answer: its time is not older than this question
	Version      string   `msgpack:"v"`
	TrustVersion uint32   `msgpack:"t"` // of the trust.json held
	ViewIndex    uint64   `msgpack:"i"` // of the view held; 0 asks for all of it
	Boot         string   `msgpack:"b"` // changes when the agent is started
	Warnings     []string `msgpack:"w,omitempty"`
	TrustEpoch   uint32   `msgpack:"e"`           // of the trust.json held
	Quorum       bool     `msgpack:"q,omitempty"` // the caller has a quorum half

	// Program is the SHA-256 of the program that runs; zero where that is not
	// known, as of a release before this field.
	Program fleet.Digest `msgpack:"p"`
	Keys    uint32       `msgpack:"k,omitempty"` // version of the gossip keys held; 0 asks for them
}

// Validate checks the limits of the text.
func (r *HeartbeatRequest) Validate() error {
	if err := checkText("boot", r.Boot, maxShortText); err != nil {
		return err
	}
	return checkSaid(r.Version, r.Warnings)
}

// HeartbeatResponse is a quorum host's answer.
type HeartbeatResponse struct {
	Nonce      [16]byte     `msgpack:"n"`
	Time       int64        `msgpack:"t"`           // the quorum host's clock
	Trust      []byte       `msgpack:"s,omitempty"` // trust.json, when newer
	View       []ViewRow    `msgpack:"v,omitempty"` // what changed since ViewIndex
	ViewIndex  uint64       `msgpack:"i"`           // what the view covers after these rows
	Leader     fleet.NodeID `msgpack:"l,omitempty"`
	NodeRecord []byte       `msgpack:"r,omitempty"` // a newer one of the caller's own
	Clones     []string     `msgpack:"c,omitempty"` // where hosts are heard from that say they are the caller

	// Dial says whether the leader can dial the caller: a number of
	// presence.Dial; 0 for not known.
	Dial uint8 `msgpack:"d,omitempty"`

	Version string `msgpack:"p,omitempty"` // of the program on the quorum host

	// Outside says, to a host with a quorum half, that this one leads and that
	// Raft's committed configuration does not name the caller.
	Outside bool `msgpack:"o,omitempty"`

	Keys *GossipKeys `msgpack:"k,omitempty"` // the gossip keys, when newer
}

// GossipKeys are the keys of the ring: the first seals, all open.
type GossipKeys struct {
	Version uint32   `msgpack:"v"`
	Keys    [][]byte `msgpack:"k"`
}

func (k *GossipKeys) validate() error {
	if k == nil {
		return nil
	}
	if k.Version == 0 || len(k.Keys) < 1 || len(k.Keys) > 2 {
		return fleet.Errorf(fleet.Invalid, "%d gossip keys of version %d", len(k.Keys), k.Version)
	}
	for _, key := range k.Keys {
		if len(key) != 32 {
			return fleet.Errorf(fleet.Invalid, "a gossip key of %d bytes", len(key))
		}
	}
	return nil
}

// Validate checks the rows.
func (r *HeartbeatResponse) Validate() error {
	if err := checkSaid(r.Version, nil); err != nil {
		return err
	}
	for i := range r.View {
		if err := r.View[i].validate(); err != nil {
			return err
		}
	}
	if err := r.Keys.validate(); err != nil {
		return err
	}
	if err := checkClones(r.Clones); err != nil {
		return err
	}
	return checkOptionalNode(r.Leader)
}

// maxClones bounds the addresses that are told of one node.
const maxClones = 8

func checkClones(sources []string) error {
	if len(sources) > maxClones {
		return fleet.Errorf(fleet.Invalid, "%d addresses of one node are over the limit of %d", len(sources), maxClones)
	}
	for _, s := range sources {
		if err := checkText("address", s, 64); err != nil {
			return err
		}
	}
	return nil
}

// ViewRow is what every host may know of another.
type ViewRow struct {
	ID      fleet.NodeID      `msgpack:"i"`
	Name    string            `msgpack:"n,omitempty"`
	Labels  map[string]string `msgpack:"l,omitempty"`
	Address string            `msgpack:"a,omitempty"`
	Removed bool              `msgpack:"x,omitempty"` // no longer in the fleet; only ID is set
}

func (r *ViewRow) validate() error {
	if err := checkNode(r.ID); err != nil || r.Removed {
		return err
	}
	if err := fleet.CheckNodeName(r.Name); err != nil {
		return err
	}
	for k, v := range r.Labels {
		if err := fleet.CheckLabel(k, v); err != nil {
			return err
		}
	}
	return checkText("address", r.Address, 300)
}

// ReportRequest brings one host's result of one invocation.
type ReportRequest struct {
	Result []byte `msgpack:"r"`           // ticket.SignResult
	Detail []byte `msgpack:"d,omitempty"` // runcmd's detail, at most 64 KiB
}

// Validate checks the sizes.
func (r *ReportRequest) Validate() error {
	return checkSizes(size{"result", len(r.Result), 8 << 10}, size{"detail", len(r.Detail), 64 << 10})
}

// ReportResponse says that the result was decided.
type ReportResponse struct {
	Index uint64 `msgpack:"i"` // log index that holds it; never 0
}

// Validate refuses an acknowledgement that acknowledges nothing.
func (r *ReportResponse) Validate() error {
	if r.Index == 0 {
		return fleet.Errorf(fleet.Invalid, "acknowledged without a log index")
	}
	return nil
}

// ForwardReportRequest is a host's report that reached a voter which is not
// the leader. Node is the host whose connection brought it.
type ForwardReportRequest struct {
	Node   fleet.NodeID  `msgpack:"n"`
	Report ReportRequest `msgpack:"r"`
}

// Validate checks the node ID and the report.
func (r *ForwardReportRequest) Validate() error {
	if err := checkNode(r.Node); err != nil {
		return err
	}
	return r.Report.Validate()
}

// BlobHead begins a stream: it says which blob follows or is asked for.
type BlobHead struct {
	Digest fleet.Digest `msgpack:"d"`
	Size   int64        `msgpack:"s,omitempty"` // PutBlob: exact number of bytes that follow
}

// ParseBlobHead decodes the head of PutBlob and GetBlob.
func ParseBlobHead(head []byte) (BlobHead, error) {
	var h BlobHead
	if err := wire.Unmarshal(head, &h); err != nil {
		return h, fleet.Errorf(fleet.Invalid, "%w", err)
	}
	if h.Digest.IsZero() || h.Size < 0 || h.Size > MaxBlob {
		return h, fleet.Errorf(fleet.Invalid, "blob without a digest, or of %d bytes where %d are allowed", h.Size, MaxBlob)
	}
	return h, nil
}

// RenewResponse is a new agent certificate for the key of the caller's
// connection.
type RenewResponse struct {
	Certificate []byte `msgpack:"c"` // leaf, DER
	Issuer      []byte `msgpack:"i"` // certificate of the issuing key, DER
	NodeRecord  []byte `msgpack:"r"`
}

// ChangeAddressRequest says where the caller now answers.
type ChangeAddressRequest struct {
	Change []byte `msgpack:"c"` // identity.NewAddressChange
}

// ChangeAddressResponse brings the node record with the new address.
type ChangeAddressResponse struct {
	NodeRecord []byte `msgpack:"r"`
}

// LeaveRequest says that the caller goes out of the fleet for good.
type LeaveRequest struct {
	Farewell []byte `msgpack:"f"` // identity.NewLeave
}

// ListedRequest asks another host whether its ring lists the caller, and says
// which trust.json that holds.
type ListedRequest struct {
	Epoch   uint32 `msgpack:"e"`
	Version uint32 `msgpack:"v"`
}

// ListedResponse says whether the ring of the host that answers lists its caller
// as alive.
type ListedResponse struct {
	Listed bool `msgpack:"l"`

	// Trust is the trust.json of the host that answers, if it is newer: the root
	// key signed it, so that it does not matter who passes it on. So hosts hear of
	// voters whom those that they know cannot tell them of any more.
	Trust []byte `msgpack:"t,omitempty"`
}

// Validate checks the sizes.
func (r *ListedResponse) Validate() error { return checkSizes(size{"trust", len(r.Trust), 64 << 10}) }

// LeaveResponse says that it is decided.
type LeaveResponse struct {
	At int64 `msgpack:"t"` // stamp
}

// DeliverRequest brings a command to a host. The host trusts nothing in it but
// the signatures of the ticket and the digests that stand there.
type DeliverRequest struct {
	Ticket       []byte     `msgpack:"t"` // ticket.Signed
	Index        uint32     `msgpack:"i"` // of the host among the targets
	Path         [][32]byte `msgpack:"p,omitempty"`
	Document     []byte     `msgpack:"d"` // content
	DocumentName string     `msgpack:"n"`
	Parameters   []byte     `msgpack:"a,omitempty"` // canonical msgpack
	Trust        []byte     `msgpack:"s,omitempty"` // trust.json, when the host's may be older
}

// Validate checks the sizes.
func (r *DeliverRequest) Validate() error {
	if err := checkText("document name", r.DocumentName, 256); err != nil {
		return err
	}
	return checkSizes(size{"ticket", len(r.Ticket), 8 << 10}, size{"path", len(r.Path), 32},
		size{"document", len(r.Document), 64 << 10}, size{"parameters", len(r.Parameters), 192 << 10}, size{"trust", len(r.Trust), 64 << 10})
}

// CancelRequest ends a command on a host, or keeps it from beginning there. The
// host trusts nothing in it but the signature of the Cancel. The answer is a
// DeliverResponse: Accepted while the command is being ended, Done with its
// result, also if it never came, Refused without one if the Cancel cannot be
// verified.
type CancelRequest struct {
	Cancel []byte     `msgpack:"c"` // ticket.SignedCancel
	Index  uint32     `msgpack:"i"` // of the host among the targets
	Path   [][32]byte `msgpack:"p,omitempty"`
	Trust  []byte     `msgpack:"s,omitempty"` // trust.json, when the host's may be older
}

// Validate checks the sizes.
func (r *CancelRequest) Validate() error {
	return checkSizes(size{"cancel", len(r.Cancel), 4 << 10}, size{"path", len(r.Path), 32}, size{"trust", len(r.Trust), 64 << 10})
}

// ReleaseRequest says that the turn of a staged command has come. The host trusts
// nothing in it but the signature of the Release, and compares that with the
// ticket that it holds. The answer is a DeliverResponse: Accepted when the command
// has begun, Staged while all else of the host is before it, Done with its result,
// NotHere if it has no such command, Refused if the Release cannot be verified.
type ReleaseRequest struct {
	Release []byte `msgpack:"r"`           // ticket.SignedRelease
	Trust   []byte `msgpack:"s,omitempty"` // trust.json, when the host's may be older
}

// Validate checks the sizes.
func (r *ReleaseRequest) Validate() error {
	return checkSizes(size{"release", len(r.Release), 4 << 10}, size{"trust", len(r.Trust), 64 << 10})
}

// DeliverState is what a host has done about one command.
type DeliverState uint8

// States of a delivery. The numbers cross the wire: append only.
const (
	DeliverAccepted DeliverState = 1 // in its journal; the result will be reported
	DeliverDone     DeliverState = 2 // has a result: it is in the answer
	DeliverRefused  DeliverState = 3 // will not run it: Reason, and a signed result if it could verify the ticket
	DeliverNotReady DeliverState = 4 // cannot decide now (no fleet time, queue full): deliver again later
	DeliverStaged   DeliverState = 5 // in its journal; it begins when a Release says so, and has not
	DeliverNotHere  DeliverState = 6 // was to begin what it does not hold: it has to be delivered first
)

// DeliverResponse is the host's answer to Deliver, Cancel, Release and
// QueryCommand.
type DeliverResponse struct {
	State  DeliverState `msgpack:"s"`
	Result []byte       `msgpack:"r,omitempty"` // ticket.SignResult
	Detail []byte       `msgpack:"d,omitempty"`
	Reason string       `msgpack:"m,omitempty"` // for a person, at most 256 bytes
}

// Validate checks the sizes and cleans the reason, which is foreign text.
func (r *DeliverResponse) Validate() error {
	if r.State < DeliverAccepted || r.State > DeliverNotHere {
		return fleet.Errorf(fleet.Invalid, "delivery state %d is not known", r.State)
	}
	r.Reason = clean(r.Reason, MaxWarningText)
	return checkSizes(size{"result", len(r.Result), 8 << 10}, size{"detail", len(r.Detail), 64 << 10})
}

// QueryCommandRequest asks a host what became of a command. A host that never
// heard of it answers NotFound.
type QueryCommandRequest struct {
	Command fleet.CommandID `msgpack:"c"`
	Attempt uint32          `msgpack:"a"`
}

// Validate checks the command ID.
func (r *QueryCommandRequest) Validate() error { return checkCommand(r.Command) }

// TrustRequest tells a host which trust.json the caller holds.
type TrustRequest struct {
	Trust []byte `msgpack:"t"`
}

// Validate checks the size.
func (r *TrustRequest) Validate() error { return checkSizes(size{"trust", len(r.Trust), 64 << 10}) }

// TrustResponse is the trust.json that a host holds after that.
type TrustResponse struct {
	Trust []byte `msgpack:"t"`
}

// Validate checks the size.
func (r *TrustResponse) Validate() error { return checkSizes(size{"trust", len(r.Trust), 64 << 10}) }

// CandidateRequest asks for a host's request to become a voter; with NewIssuer,
// for that of a voter to issue with a new key.
type CandidateRequest struct {
	NewIssuer bool `msgpack:"i,omitempty"`
}

// CandidateResponse is a host's request to become a voter.
type CandidateResponse struct {
	Candidate []byte `msgpack:"c"`           // identity.NewCandidate
	Level     uint32 `msgpack:"f,omitempty"` // the newest feature level that the host knows, as in AppliedResponse
}

// InstallQuorumRequest makes a host a quorum host: the certificates that the
// root key signed for its candidate request and the trust.json that names it.
type InstallQuorumRequest struct {
	QuorumCert []byte `msgpack:"q"` // DER
	IssuerCert []byte `msgpack:"i"` // DER
	Trust      []byte `msgpack:"t"`
}

// ForwardRequest carries an operator's request from the voter that he reached
// to the leader, as he signed it. It is forwarded once: a leader that is none
// answers NotLeader.
type ForwardRequest struct {
	Operation string             `msgpack:"o"`
	Body      []byte             `msgpack:"b"`           // exact JSON
	Proof     []byte             `msgpack:"p"`           // identity.SignProof
	Operator  fleet.OperatorName `msgpack:"u,omitempty"` // whom the voter authenticated; the leader checks the proof itself
}

// Validate checks the names and sizes.
func (r *ForwardRequest) Validate() error {
	if r.Operator != "" {
		if _, err := fleet.ParseOperatorName(string(r.Operator)); err != nil {
			return err
		}
	}
	if err := checkText("operation", r.Operation, maxShortText); err != nil {
		return err
	}
	return checkSizes(size{"body", len(r.Body), 1 << 20}, size{"proof", len(r.Proof), 1 << 10})
}

// ForwardResponse is the operation's answer, JSON.
type ForwardResponse struct {
	Body []byte `msgpack:"b"`
}

// CoSignRequest asks a voter to sign a command's ticket from its own state.
type CoSignRequest struct {
	Command fleet.CommandID `msgpack:"c"`
	Attempt uint32          `msgpack:"a"`
	Mint    uint32          `msgpack:"m"`
	Index   uint64          `msgpack:"i"` // log index to wait for before looking
}

// Validate checks the command ID.
func (r *CoSignRequest) Validate() error { return checkCommand(r.Command) }

// CoSignResponse is the voter's signature.
type CoSignResponse struct {
	Signature []byte `msgpack:"s"` // ticket.Signature, 72 bytes
}

// Validate checks the size.
func (r *CoSignResponse) Validate() error {
	if len(r.Signature) != 72 {
		return fleet.Errorf(fleet.Invalid, "ticket signature of %d bytes: 72 expected", len(r.Signature))
	}
	return nil
}

// ReadIndexResponse is the log index that a linearizable read must wait for.
type ReadIndexResponse struct {
	Index uint64 `msgpack:"i"`
}

// AppliedResponse is the last log index that the voter applied, its clock, and
// the newest feature level (raftfsm/entry) that it knows; 0 from a release
// before there were levels, which is the first.
type AppliedResponse struct {
	Index uint64 `msgpack:"i"`
	Time  int64  `msgpack:"t"`
	Level uint32 `msgpack:"f,omitempty"`

	// Expires is when the quorum certificate of the host ends, Unix nanoseconds.
	Expires int64 `msgpack:"e,omitempty"`
}

// StateHashRequest asks for the digest of the state at a log entry of the kind
// Marks.
type StateHashRequest struct {
	Index uint64 `msgpack:"i"`
}

// StateHashResponse is that digest; zero when the host has none of this entry.
type StateHashResponse struct {
	Hash fleet.Digest `msgpack:"h"`
}

// VouchRequest is how far the store of the caller, which has just started, had
// come.
type VouchRequest struct {
	Term  uint64 `msgpack:"t"`
	Index uint64 `msgpack:"i"`
	Vote  uint64 `msgpack:"v"` // last term in which it voted
}

// maxMissing bounds the text of a VouchResponse.
const maxMissing = 256

// VouchResponse says what the caller's store lacks of what it acknowledged; ""
// is nothing that the host that answers knows of.
type VouchResponse struct {
	Missing string `msgpack:"m,omitempty"`
}

// Validate checks the text.
func (r *VouchResponse) Validate() error { return checkText("missing", r.Missing, maxMissing) }

// RelayRequest asks a quorum host to call a host that keeps a connection open
// to it.
type RelayRequest struct {
	Node   fleet.NodeID `msgpack:"n"`
	Method string       `msgpack:"m"`
	Body   []byte       `msgpack:"b"` // of the method's request
}

// Validate checks the node ID and the size.
func (r *RelayRequest) Validate() error {
	if err := checkNode(r.Node); err != nil {
		return err
	}
	return checkSizes(size{"method", len(r.Method), maxShortText}, size{"body", len(r.Body), maxRelayed})
}

// RelayResponse is the host's answer. Found is false if the host has no
// connection open to the one that was asked.
type RelayResponse struct {
	Found bool       `msgpack:"f,omitempty"`
	Body  []byte     `msgpack:"b,omitempty"` // of the method's answer
	Error *errorBody `msgpack:"e,omitempty"` // the host's own error, instead
}

// Err is the host's own error; nil if it answered, or was not found.
func (r *RelayResponse) Err() error {
	if r.Error == nil {
		return nil
	}
	return r.Error.toError()
}

// PresenceResponse is whom a voter has heard of.
type PresenceResponse struct {
	Rows []PresenceRow `msgpack:"r,omitempty"`
}

// PresenceRow is the last that a voter heard of one host.
type PresenceRow struct {
	ID       fleet.NodeID `msgpack:"i"`
	LastSeen int64        `msgpack:"t"` // the voter's clock; 0 for not yet
	Version  string       `msgpack:"v,omitempty"`
	Warnings []string     `msgpack:"w,omitempty"`
	Clones   []string     `msgpack:"c,omitempty"` // where hosts are heard from that say they are this one
	Reverse  bool         `msgpack:"o,omitempty"` // the host keeps a connection open to the voter
	Dial     uint8        `msgpack:"d,omitempty"` // presence.Dial
	Program  fleet.Digest `msgpack:"p"`           // that the host runs; zero for not known
	Keys     uint32       `msgpack:"k,omitempty"` // version of the gossip keys that the host holds
	Starts   uint32       `msgpack:"s,omitempty"` // how often it was started in the last ten minutes
}

// Validate checks every row.
func (r *PresenceResponse) Validate() error {
	for i := range r.Rows {
		if err := checkNode(r.Rows[i].ID); err != nil {
			return err
		}
		if err := checkSaid(r.Rows[i].Version, r.Rows[i].Warnings); err != nil {
			return err
		}
		if err := checkClones(r.Rows[i].Clones); err != nil {
			return err
		}
	}
	return nil
}

func checkNode(id fleet.NodeID) error {
	_, err := fleet.ParseNodeID(string(id))
	return err
}

func checkOptionalNode(id fleet.NodeID) error {
	if id == "" {
		return nil
	}
	return checkNode(id)
}

func checkCommand(id fleet.CommandID) error {
	_, err := fleet.ParseCommandID(string(id))
	return err
}

// checkSaid checks what a host says of itself: short, printable text.
func checkSaid(version string, warnings []string) error {
	if err := checkText("version", version, maxShortText); err != nil {
		return err
	}
	if len(warnings) > MaxWarnings {
		return fleet.Errorf(fleet.Invalid, "%d warnings: at most %d", len(warnings), MaxWarnings)
	}
	for _, w := range warnings {
		if err := checkText("warning", w, MaxWarningText); err != nil {
			return err
		}
	}
	return nil
}

// checkText accepts at most max bytes of printable text.
func checkText(what, s string, max int) error {
	if len(s) > max {
		return fleet.Errorf(fleet.Invalid, "%s of %d bytes: at most %d", what, len(s), max)
	}
	if clean(s, len(s)+len("…")) != s {
		return fleet.Errorf(fleet.Invalid, "%s %.80q holds characters that cannot be shown", what, s)
	}
	return nil
}

type size struct {
	what string
	n    int
	max  int
}

func checkSizes(sizes ...size) error {
	for _, s := range sizes {
		if s.n > s.max {
			return fleet.Errorf(fleet.TooLarge, "%s of %d: at most %d", s.what, s.n, s.max)
		}
	}
	return nil
}
