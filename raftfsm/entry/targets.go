package entry

import (
	"regexp"
	"strings"

	"fleet/node/fleet"
)

// PutTarget saves a choice of nodes under a name, or replaces it. Its request
// is a PutTargetV1.
type PutTarget struct{ Authority }

// Kind is KindPutTarget.
func (*PutTarget) Kind() Kind { return KindPutTarget }

// Check accepts the form.
func (e *PutTarget) Check() error { return e.check(false) }

// DeleteTarget forgets a saved target. Its request is a DeleteTargetV1.
type DeleteTarget struct{ Authority }

// Kind is KindDeleteTarget.
func (*DeleteTarget) Kind() Kind { return KindDeleteTarget }

// Check accepts the form.
func (e *DeleteTarget) Check() error { return e.check(false) }

// Limits of a saved target.
const (
	MaxNodeSet      = 8 << 10
	MaxTargetLabels = MaxTargets - 1 // a command has one target more, for the nodes
	MaxSavedTargets = 1000           // in one fleet
)

// What can be in a node set. How it is read is not decided here: notations grow
// with releases, and voters of two releases must decide alike.
var nodeSetPattern = regexp.MustCompile(`^[a-zA-Z0-9 .,!&^@*?/\[\]-]*$`)

// PutTargetV1 is the signed request to save a choice of nodes: those of the
// node set, those that the labels select, or, with both, those that are in
// both.
type PutTargetV1 struct {
	Name        string         `json:"Name"`
	Description string         `json:"Description,omitempty"` // at most 256 characters
	NodeSet     string         `json:"NodeSet,omitempty"`     // as node/nodeset reads it; at most 8 KiB
	Targets     []fleet.Target `json:"Targets,omitempty"`     // tag:KEY or tag-key, at most 4, joined by AND
}

// ParsePutTarget reads the request of a PutTarget.
func ParsePutTarget(b []byte) (*PutTargetV1, error) { return parse[PutTargetV1](b) }

func (r *PutTargetV1) check() error {
	if _, err := fleet.ParseTargetName(r.Name); err != nil {
		return invalidf(validation, "%v", err)
	}
	if err := checkText("Description", r.Description, maxDescription); err != nil {
		return err
	}
	if len(r.NodeSet) > MaxNodeSet {
		return invalidf(validation, "NodeSet of %d bytes is over the limit of %d", len(r.NodeSet), MaxNodeSet)
	}
	if err := checkPattern("NodeSet", r.NodeSet, nodeSetPattern, "made of names, ranges, groups and operators"); err != nil {
		return err
	}
	if strings.TrimSpace(r.NodeSet) == "" && len(r.Targets) == 0 {
		return invalidf(validation, "neither NodeSet nor Targets says which nodes")
	}
	if len(r.Targets) > MaxTargetLabels {
		return invalidf(validation, "%d Targets are over the limit of %d", len(r.Targets), MaxTargetLabels)
	}
	for _, t := range r.Targets {
		if t.Key == "InstanceIds" {
			return invalidf("InvalidTarget", "the target key InstanceIds does not belong here: nodes stand in NodeSet")
		}
		if err := checkTarget(t); err != nil {
			return err
		}
	}
	return nil
}

// DeleteTargetV1 is the signed request to forget a saved target.
type DeleteTargetV1 struct {
	Name string `json:"Name"`
}

// ParseDeleteTarget reads the request of a DeleteTarget.
func ParseDeleteTarget(b []byte) (*DeleteTargetV1, error) { return parse[DeleteTargetV1](b) }

func (r *DeleteTargetV1) check() error {
	if _, err := fleet.ParseTargetName(r.Name); err != nil {
		return invalidf(validation, "%v", err)
	}
	return nil
}
