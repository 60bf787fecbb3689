// Package ssm holds the request and response shapes of AWS Systems Manager
// (API version 2014-11-06) that this program answers, written as they travel:
// the json tags are the service model's member names and nothing is renamed,
// so that what reads SSM's answers reads ours. It has no behaviour.
//
// Two fields are ours and say so (CreateActivationRequest.PublicKey,
// SendCommandRequest.RunAs). Members of the model that this release cannot
// honour are left out rather than accepted and ignored: strict decoding then
// names them to the caller.
//
// Instants are epoch seconds as a JSON number (Time), except where the model
// says text: there they are ISO 8601 in UTC (see ISO).
package ssm

import "time"

// Time is an instant in seconds since the Unix epoch; 0 is "none". A float64
// keeps today's instants to a fraction of a microsecond.
type Time float64

// TimeOf converts nanoseconds since the Unix epoch.
func TimeOf(nanos int64) Time { return Time(float64(nanos/1000) / 1e6) }

// Nanos converts back, to the microsecond.
func (t Time) Nanos() int64 { return int64(float64(t)*1e6+0.5) * 1000 }

// ISO is nanoseconds since the Unix epoch in the text form of the members that
// want text; "" for 0.
func ISO(nanos int64) string {
	if nanos == 0 {
		return ""
	}
	return time.Unix(0, nanos).UTC().Format("2006-01-02T15:04:05.000Z")
}

// Tag is a label, of a node or on an activation.
type Tag struct {
	Key   string `json:"Key"`   // 1 to 128
	Value string `json:"Value"` // 0 to 256
}

// Resource types of the tagging operations.
const ResourceManagedInstance = "ManagedInstance"

// AddTagsToResourceRequest sets labels of one node.
type AddTagsToResourceRequest struct {
	ResourceType string `json:"ResourceType"` // ResourceManagedInstance
	ResourceId   string `json:"ResourceId"`
	Tags         []Tag  `json:"Tags"`
}

// AddTagsToResourceResult is empty.
type AddTagsToResourceResult struct{}

// RemoveTagsFromResourceRequest removes labels of one node.
type RemoveTagsFromResourceRequest struct {
	ResourceType string   `json:"ResourceType"`
	ResourceId   string   `json:"ResourceId"`
	TagKeys      []string `json:"TagKeys"`
}

// RemoveTagsFromResourceResult is empty.
type RemoveTagsFromResourceResult struct{}

// ListTagsForResourceRequest asks for the labels of one node.
type ListTagsForResourceRequest struct {
	ResourceType string `json:"ResourceType"`
	ResourceId   string `json:"ResourceId"`
}

// ListTagsForResourceResult lists them by key.
type ListTagsForResourceResult struct {
	TagList []Tag `json:"TagList"`
}
