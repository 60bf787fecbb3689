package entry

import (
	"encoding/hex"
	"regexp"
	"strings"
	"unicode/utf8"

	"fleet/node/fleet"
)

// SendCommand creates a command. Its request is a SendCommandV1, its ID the
// command's.
type SendCommand struct {
	Authority

	// Document is the content that the request names by digest.
	Document []byte `msgpack:"d"`

	// Version is the version of the document that has this content.
	Version string `msgpack:"v"`

	// ExecutionSeconds is the longest that the steps of the document may take
	// together with the request's parameters. The proposer computes it: what
	// reads documents may differ between releases, and Apply must not.
	ExecutionSeconds uint32 `msgpack:"x"`
}

// Kind is KindSendCommand.
func (*SendCommand) Kind() Kind { return KindSendCommand }

// MaxExecutionSeconds is the longest that a command may run on one host: 30
// days.
const MaxExecutionSeconds = 30 * 24 * 3600

var documentVersionPattern = regexp.MustCompile(`^[1-9][0-9]{0,9}$`)

// Check accepts the form.
func (e *SendCommand) Check() error {
	if err := e.check(true); err != nil {
		return err
	}
	if err := checkBytes("document", e.Document, MaxDocument); err != nil {
		return err
	}
	if !documentVersionPattern.MatchString(e.Version) {
		return fleet.Errorf(fleet.Invalid, "document version %.32q is not a number", e.Version)
	}
	if e.ExecutionSeconds < 1 || e.ExecutionSeconds > MaxExecutionSeconds {
		return fleet.Errorf(fleet.Invalid, "an execution time of %d s is not between 1 s and 30 days", e.ExecutionSeconds)
	}
	return nil
}

// Mint adds the next mint to a command: the right to sign a new ticket for it.
type Mint struct {
	Stamp     int64           `msgpack:"s"`
	Command   fleet.CommandID `msgpack:"c"`
	Attempt   uint32          `msgpack:"a"`
	N         uint32          `msgpack:"n"` // one more than the command's
	NotBefore int64           `msgpack:"b"`
}

// Kind is KindMint.
func (*Mint) Kind() Kind { return KindMint }

// Check accepts the form.
func (e *Mint) Check() error {
	if err := CheckStamp(e.Stamp); err != nil {
		return err
	}
	if err := CheckStamp(e.NotBefore); err != nil {
		return err
	}
	_, err := fleet.ParseCommandID(string(e.Command))
	return err
}

// MaxReason is the longest reason of an invocation, in bytes.
const MaxReason = 256

// Results brings what hosts said of one command: rows of one shard.
type Results struct {
	Stamp   int64              `msgpack:"s"`
	Command fleet.CommandID    `msgpack:"c"`
	Attempt uint32             `msgpack:"a"`
	Rows    []fleet.Invocation `msgpack:"r"` // 1 to ShardSize, ascending by Index, of one shard; Decided and Released are zero
}

// Kind is KindResults.
func (*Results) Kind() Kind { return KindResults }

// Shard is the number of the shard that the rows belong to.
func (e *Results) Shard() uint32 {
	if len(e.Rows) == 0 {
		return 0
	}
	return e.Rows[0].Index / fleet.ShardSize
}

// Check accepts the form.
func (e *Results) Check() error {
	if err := CheckStamp(e.Stamp); err != nil {
		return err
	}
	if _, err := fleet.ParseCommandID(string(e.Command)); err != nil {
		return err
	}
	if len(e.Rows) == 0 || len(e.Rows) > fleet.ShardSize {
		return fleet.Errorf(fleet.Invalid, "%d result rows are not between 1 and %d", len(e.Rows), fleet.ShardSize)
	}
	for i := range e.Rows {
		r := &e.Rows[i]
		switch {
		case i > 0 && r.Index <= e.Rows[i-1].Index:
			return fleet.Errorf(fleet.Invalid, "result rows are not in ascending order at index %d", r.Index)
		case r.Index/fleet.ShardSize != e.Shard():
			return fleet.Errorf(fleet.Invalid, "result rows of two shards, %d and %d", e.Shard(), r.Index/fleet.ShardSize)
		case !r.State.Valid() || r.State == fleet.Pending || r.State == fleet.Released || r.State.Cancelling():
			return fleet.Errorf(fleet.Invalid, "result row %d has the state %d", r.Index, uint8(r.State))
		case len(r.Reason) > MaxReason || !utf8.ValidString(r.Reason):
			return fleet.Errorf(fleet.Invalid, "result row %d has a reason that is over %d bytes or not UTF-8", r.Index, MaxReason)
		case len(r.Signature) != 0 && len(r.Signature) != 64:
			return fleet.Errorf(fleet.Invalid, "result row %d has a signature of %d bytes", r.Index, len(r.Signature))
		case r.Started < 0 || r.Started > MaxStamp || r.Ended < 0 || r.Ended > MaxStamp:
			return fleet.Errorf(fleet.Invalid, "result row %d has a time outside 1970 to 2200", r.Index)
		case r.Decided != 0 || r.Released != 0:
			return fleet.Errorf(fleet.Invalid, "result row %d says where it was decided, or released", r.Index)
		}
	}
	return nil
}

// Expire ends the rows of a command whose time has passed.
type Expire struct {
	Stamp   int64           `msgpack:"s"`
	Command fleet.CommandID `msgpack:"c"`
	Attempt uint32          `msgpack:"a"`

	// Said is why hosts that were reached did not take the command, as far as
	// the leader remembers. It is told to people, and decides nothing.
	Said []Said `msgpack:"w,omitempty"` // at most MaxSaid, ascending by Index
}

// Said is the last answer of a host that did not take a command.
type Said struct {
	Index uint32 `msgpack:"i"`
	Text  string `msgpack:"t"`
}

// Limits of Expire.Said: with what Apply puts before a text it is a reason.
const (
	MaxSaid     = fleet.ShardSize
	MaxSaidText = 150 // bytes
)

// Kind is KindExpire.
func (*Expire) Kind() Kind { return KindExpire }

// Check accepts the form.
func (e *Expire) Check() error {
	if err := CheckStamp(e.Stamp); err != nil {
		return err
	}
	if len(e.Said) > MaxSaid {
		return fleet.Errorf(fleet.Invalid, "%d answers of hosts are more than %d", len(e.Said), MaxSaid)
	}
	for i, s := range e.Said {
		switch {
		case i > 0 && s.Index <= e.Said[i-1].Index:
			return fleet.Errorf(fleet.Invalid, "answers of hosts are not in ascending order at index %d", s.Index)
		case s.Text == "" || len(s.Text) > MaxSaidText || !utf8.ValidString(s.Text):
			return fleet.Errorf(fleet.Invalid, "the answer of the host at index %d is empty, over %d bytes or not UTF-8", s.Index, MaxSaidText)
		}
	}
	_, err := fleet.ParseCommandID(string(e.Command))
	return err
}

// Limits of a SendCommandV1. Where SSM has the limit it is SSM's.
const (
	MinDeliverySeconds     = 30
	MaxDeliverySeconds     = 2592000
	DefaultDeliverySeconds = 3600
	MaxInstanceIDs         = 50
	MaxTargets             = 5
	MaxTargetValues        = 50
	MaxTargetNodes         = 5000 // values of the target InstanceIds; ours, so that a node set need not be a label
	MaxParameters          = 200
	DefaultMaxConcurrency  = "50"
	DefaultMaxErrors       = "0"
	maxComment             = 100
)

// SendCommandV1 is the signed request to run a document on nodes.
type SendCommandV1 struct {
	DocumentName     string `json:"DocumentName"`
	DocumentVersion  string `json:"DocumentVersion,omitempty"` // a number, "$LATEST", "$DEFAULT" or empty
	DocumentHash     string `json:"DocumentHash"`              // SHA-256 of the content, lower-case hex
	DocumentHashType string `json:"DocumentHashType"`          // "Sha256"

	// Nodes are named by InstanceIds or selected by Targets, never both.
	InstanceIds []string       `json:"InstanceIds,omitempty"`
	Targets     []fleet.Target `json:"Targets,omitempty"`

	Parameters     map[string][]string `json:"Parameters,omitempty"`
	TimeoutSeconds int64               `json:"TimeoutSeconds,omitempty"` // to reach a host; 30 to 2592000, absent or 0 is 3600
	Comment        string              `json:"Comment,omitempty"`        // at most 100 characters
	MaxConcurrency string              `json:"MaxConcurrency,omitempty"` // a number or N%; absent is 50, as in SSM
	MaxErrors      string              `json:"MaxErrors,omitempty"`      // a number or N%; absent is 0, as in SSM
	RunAs          string              `json:"RunAs,omitempty"`          // a user name of the hosts; empty is root
}

// ParseSendCommand reads the request of a SendCommand and fills in its
// defaults. What it selects is not checked against any node.
func ParseSendCommand(b []byte) (*SendCommandV1, error) { return parse[SendCommandV1](b) }

var (
	documentNamePattern    = regexp.MustCompile(`^[a-zA-Z0-9_.:/-]{3,128}$`)
	documentRequestVersion = regexp.MustCompile(`^([$]LATEST|[$]DEFAULT|[1-9][0-9]{0,9})?$`)
	parameterNamePattern   = regexp.MustCompile(`^[a-zA-Z0-9]{1,128}$`)
	runAsPattern           = regexp.MustCompile(`^([a-z_][a-z0-9_-]{0,30}[a-z0-9_$-]?)?$`)
)

func (r *SendCommandV1) check() error {
	if err := checkPattern("DocumentName", r.DocumentName, documentNamePattern,
		"3 to 128 letters, digits and _-.:/"); err != nil {
		return err
	}
	if err := checkPattern("DocumentVersion", r.DocumentVersion, documentRequestVersion,
		"a number, $LATEST or $DEFAULT"); err != nil {
		return err
	}
	if r.DocumentHashType != "Sha256" {
		return invalidf(validation, "DocumentHashType %.16q is not Sha256", r.DocumentHashType)
	}
	if d, err := hex.DecodeString(r.DocumentHash); err != nil || len(d) != 32 || r.DocumentHash != strings.ToLower(r.DocumentHash) {
		return invalidf(validation, "DocumentHash is not a SHA-256 in lower-case hex")
	}
	if err := r.checkTargets(); err != nil {
		return err
	}
	if err := r.checkParameters(); err != nil {
		return err
	}
	if r.TimeoutSeconds == 0 {
		r.TimeoutSeconds = DefaultDeliverySeconds
	}
	if r.TimeoutSeconds < MinDeliverySeconds || r.TimeoutSeconds > MaxDeliverySeconds {
		return invalidf(validation, "TimeoutSeconds %d is not between %d and %d", r.TimeoutSeconds, MinDeliverySeconds, MaxDeliverySeconds)
	}
	if err := checkText("Comment", r.Comment, maxComment); err != nil {
		return err
	}
	if r.MaxConcurrency == "" {
		r.MaxConcurrency = DefaultMaxConcurrency
	}
	if r.MaxErrors == "" {
		r.MaxErrors = DefaultMaxErrors
	}
	if err := fleet.CheckConcurrency(r.MaxConcurrency); err != nil {
		return err
	}
	if err := fleet.CheckMaxErrors(r.MaxErrors); err != nil {
		return err
	}
	return checkPattern("RunAs", r.RunAs, runAsPattern, "a user name of at most 32 characters")
}

func (r *SendCommandV1) checkTargets() error {
	if len(r.InstanceIds) > 0 && len(r.Targets) > 0 {
		return invalidf(validation, "InstanceIds and Targets exclude each other")
	}
	if len(r.InstanceIds) == 0 && len(r.Targets) == 0 {
		return invalidf(validation, "neither InstanceIds nor Targets says where to run")
	}
	if len(r.InstanceIds) > MaxInstanceIDs {
		return invalidf(validation, "%d InstanceIds are over the limit of %d: use Targets", len(r.InstanceIds), MaxInstanceIDs)
	}
	if err := checkInstanceIDs(r.InstanceIds); err != nil {
		return err
	}
	if len(r.Targets) > MaxTargets {
		return invalidf(validation, "%d Targets are over the limit of %d", len(r.Targets), MaxTargets)
	}
	for _, t := range r.Targets {
		if err := checkTarget(t); err != nil {
			return err
		}
	}
	return nil
}

// checkTarget accepts one selector. A selector without values would select
// nothing in silence, so it is refused.
func checkTarget(t fleet.Target) error {
	most := MaxTargetValues
	if t.Key == "InstanceIds" {
		most = MaxTargetNodes
	}
	if len(t.Values) == 0 || len(t.Values) > most {
		return invalidf("InvalidTarget", "the target %.170q must have 1 to %d values", t.Key, most)
	}
	label, isTag := strings.CutPrefix(t.Key, "tag:")
	for _, v := range t.Values {
		var err error
		switch {
		case t.Key == "InstanceIds":
			if v != "*" {
				_, err = fleet.ParseNodeID(v)
			}
		case t.Key == "tag-key":
			err = fleet.CheckLabel(v, "")
		case isTag:
			err = fleet.CheckLabel(label, v)
		default:
			return invalidf("InvalidTarget", "the target key %.170q is not InstanceIds, tag:KEY or tag-key", t.Key)
		}
		if err != nil {
			return invalidf("InvalidTarget", "target %.170q: %v", t.Key, err)
		}
	}
	return nil
}

func (r *SendCommandV1) checkParameters() error {
	if len(r.Parameters) > MaxParameters {
		return invalidf("InvalidParameters", "%d parameters are over the limit of %d", len(r.Parameters), MaxParameters)
	}
	for name := range r.Parameters {
		if !parameterNamePattern.MatchString(name) {
			return invalidf("InvalidParameters", "a parameter's name is not 1 to 128 letters and digits")
		}
	}
	return nil
}

// Digest is the digest of the document's content. It is zero unless the
// request was parsed.
func (r *SendCommandV1) Digest() fleet.Digest {
	var d fleet.Digest
	if b, err := hex.DecodeString(r.DocumentHash); err == nil && len(b) == len(d) {
		copy(d[:], b)
	}
	return d
}
