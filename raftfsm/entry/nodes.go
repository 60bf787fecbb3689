package entry

import (
	"fleet/node/fleet"
)

// maxNodeRequest is the largest request that a host signs, in bytes.
const maxNodeRequest = 4 << 10

// Enrol makes a row of a host that proved its own key and an activation's code.
type Enrol struct {
	Stamp   int64  `msgpack:"s"`
	Request []byte `msgpack:"q"` // identity.ParseJoinRequest reads it
}

// Kind is KindEnrol.
func (*Enrol) Kind() Kind { return KindEnrol }

// Check accepts the form.
func (e *Enrol) Check() error {
	if err := CheckStamp(e.Stamp); err != nil {
		return err
	}
	return checkBytes("join request", e.Request, maxNodeRequest)
}

// Address records a host's change of address.
type Address struct {
	Stamp   int64  `msgpack:"s"`
	Request []byte `msgpack:"q"` // identity.ParseAddressChange reads it
}

// Kind is KindAddress.
func (*Address) Kind() Kind { return KindAddress }

// Check accepts the form.
func (e *Address) Check() error {
	if err := CheckStamp(e.Stamp); err != nil {
		return err
	}
	return checkBytes("change of address", e.Request, maxNodeRequest)
}

// AddTags sets labels of a node. Its request is an AddTagsToResourceV1.
type AddTags struct{ Authority }

// Kind is KindAddTags.
func (*AddTags) Kind() Kind { return KindAddTags }

// Check accepts the form.
func (e *AddTags) Check() error { return e.check(false) }

// RemoveTags takes labels from a node. Its request is a
// RemoveTagsFromResourceV1.
type RemoveTags struct{ Authority }

// Kind is KindRemoveTags.
func (*RemoveTags) Kind() Kind { return KindRemoveTags }

// Check accepts the form.
func (e *RemoveTags) Check() error { return e.check(false) }

// AddTagsToResourceV1 is the signed request to set labels of a node.
type AddTagsToResourceV1 struct {
	ResourceType string `json:"ResourceType"` // "ManagedInstance"
	ResourceId   string `json:"ResourceId"`   // a node ID
	Tags         []Tag  `json:"Tags"`         // 1 to MaxLabels
}

// ParseAddTags reads the request of an AddTags.
func ParseAddTags(b []byte) (*AddTagsToResourceV1, error) { return parse[AddTagsToResourceV1](b) }

func (r *AddTagsToResourceV1) check() error {
	if err := checkResource(r.ResourceType, r.ResourceId); err != nil {
		return err
	}
	if len(r.Tags) == 0 {
		return invalidf(validation, "Tags is empty")
	}
	return checkTags(r.Tags)
}

// RemoveTagsFromResourceV1 is the signed request to take labels from a node.
type RemoveTagsFromResourceV1 struct {
	ResourceType string   `json:"ResourceType"` // "ManagedInstance"
	ResourceId   string   `json:"ResourceId"`   // a node ID
	TagKeys      []string `json:"TagKeys"`      // 1 to MaxLabels; a key that the node does not have is no error
}

// ParseRemoveTags reads the request of a RemoveTags.
func ParseRemoveTags(b []byte) (*RemoveTagsFromResourceV1, error) {
	return parse[RemoveTagsFromResourceV1](b)
}

func (r *RemoveTagsFromResourceV1) check() error {
	if err := checkResource(r.ResourceType, r.ResourceId); err != nil {
		return err
	}
	if len(r.TagKeys) == 0 || len(r.TagKeys) > MaxLabels {
		return invalidf(validation, "TagKeys must have 1 to %d keys", MaxLabels)
	}
	for _, key := range r.TagKeys {
		if err := fleet.CheckLabel(key, ""); err != nil {
			return invalidf(validation, "%v", err)
		}
	}
	return nil
}

// checkResource accepts the name of a node as a resource that has labels.
func checkResource(kind, id string) error {
	if kind != "ManagedInstance" {
		return invalidf("InvalidResourceType", "ResourceType %.64q has no labels here: use ManagedInstance", kind)
	}
	if _, err := fleet.ParseNodeID(id); err != nil {
		return invalidf("InvalidResourceId", "%v", err)
	}
	return nil
}
