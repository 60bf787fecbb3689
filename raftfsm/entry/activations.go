package entry

import (
	"encoding/base64"
	"math"
	"regexp"
	"time"

	"fleet/node/fleet"
)

// CreateActivation lets hosts enrol. Its request is a CreateActivationV1, its
// ID the activation's.
type CreateActivation struct{ Authority }

// Kind is KindCreateActivation.
func (*CreateActivation) Kind() Kind { return KindCreateActivation }

// Check accepts the form.
func (e *CreateActivation) Check() error { return e.check(true) }

// DeleteActivation ends an activation. Its request is a DeleteActivationV1.
type DeleteActivation struct{ Authority }

// Kind is KindDeleteActivation.
func (*DeleteActivation) Kind() Kind { return KindDeleteActivation }

// Check accepts the form.
func (e *DeleteActivation) Check() error { return e.check(false) }

// Limits of an activation.
const (
	MaxRegistrations   = 1000
	MaxActivationLife  = 30 * 24 * time.Hour // from the stamp of its creation
	DefaultActivation  = 24 * time.Hour      // how long it lives if the request does not say
	maxDescription     = 256
	maxSecondsOfExpiry = float64(MaxStamp / int64(time.Second))
)

// The ASCII part of SSM's pattern for DefaultInstanceName.
var defaultNamePattern = regexp.MustCompile(`^[a-zA-Z0-9 _.:/=+@-]{0,256}$`)

// CreateActivationV1 is the signed request to let hosts enrol.
type CreateActivationV1 struct {
	Description         string  `json:"Description,omitempty"`         // at most 256 characters
	DefaultInstanceName string  `json:"DefaultInstanceName,omitempty"` // for hosts that give no name
	RegistrationLimit   int64   `json:"RegistrationLimit,omitempty"`   // 1 to 1000 hosts; absent or 0 is 1
	ExpirationDate      float64 `json:"ExpirationDate,omitempty"`      // Unix seconds, as SSM's; absent or 0 is a day
	Tags                []Tag   `json:"Tags,omitempty"`                // become the labels of each host
	PublicKey           string  `json:"PublicKey"`                     // Ed25519, standard base64; its seed is the code

	// Replaces is the ID of a node whose place the host takes that enrols: its
	// name and its labels. The node is removed in the same entry.
	Replaces string `json:"Replaces,omitempty"`
}

// ParseCreateActivation reads the request of a CreateActivation. Its defaults
// are filled in, but ExpirationDate's, which depends on the stamp (Expires).
func ParseCreateActivation(b []byte) (*CreateActivationV1, error) {
	return parse[CreateActivationV1](b)
}

func (r *CreateActivationV1) check() error {
	if err := checkText("Description", r.Description, maxDescription); err != nil {
		return err
	}
	if err := checkPattern("DefaultInstanceName", r.DefaultInstanceName, defaultNamePattern,
		"at most 256 letters, digits, spaces and _.:/=+@-"); err != nil {
		return err
	}
	if r.RegistrationLimit == 0 {
		r.RegistrationLimit = 1
	}
	if r.RegistrationLimit < 1 || r.RegistrationLimit > MaxRegistrations {
		return invalidf(validation, "RegistrationLimit %d is not between 1 and %d", r.RegistrationLimit, MaxRegistrations)
	}
	if r.ExpirationDate < 0 || r.ExpirationDate > maxSecondsOfExpiry {
		return invalidf(validation, "ExpirationDate is not a time between 1970 and 2200 in Unix seconds")
	}
	if err := checkTags(r.Tags); err != nil {
		return err
	}
	if _, err := decodeKey(r.PublicKey); err != nil {
		return err
	}
	if r.Replaces == "" {
		return nil
	}
	if err := checkInstance(r.Replaces); err != nil {
		return err
	}
	if r.RegistrationLimit != 1 {
		return invalidf(validation, "RegistrationLimit %d with Replaces: one host takes the place of one", r.RegistrationLimit)
	}
	if r.DefaultInstanceName != "" || len(r.Tags) > 0 {
		return invalidf(validation, "Replaces excludes DefaultInstanceName and Tags: the host gets the name and the labels of the one that it replaces")
	}
	return nil
}

// Key is the activation's public key. It is zero unless the request was parsed.
func (r *CreateActivationV1) Key() fleet.PublicKey {
	key, err := decodeKey(r.PublicKey)
	if err != nil {
		return fleet.PublicKey{}
	}
	return key
}

// Expires is when the activation ends if it is created at stamp. It refuses
// times that have passed or lie more than MaxActivationLife ahead.
func (r *CreateActivationV1) Expires(stamp int64) (int64, error) {
	if r.ExpirationDate == 0 {
		return stamp + int64(DefaultActivation), nil
	}
	// Milliseconds are as exact as SSM's clients are; one rounding, no sum of
	// products, so that every processor gets the same number.
	expires := int64(math.Round(r.ExpirationDate*1000)) * int64(time.Millisecond)
	if expires <= stamp {
		return 0, invalidf("InvalidParameters", "ExpirationDate %s has passed", formatTime(expires))
	}
	if expires > stamp+int64(MaxActivationLife) {
		return 0, invalidf("InvalidParameters", "ExpirationDate %s is more than 30 days ahead", formatTime(expires))
	}
	return expires, nil
}

// DeleteActivationV1 is the signed request to end an activation. Hosts that
// enrolled with it stay.
type DeleteActivationV1 struct {
	ActivationId string `json:"ActivationId"`
}

// ParseDeleteActivation reads the request of a DeleteActivation.
func ParseDeleteActivation(b []byte) (*DeleteActivationV1, error) {
	return parse[DeleteActivationV1](b)
}

func (r *DeleteActivationV1) check() error {
	if _, err := fleet.ParseActivationID(r.ActivationId); err != nil {
		return invalidf("InvalidActivationId", "%v", err)
	}
	return nil
}

// decodeKey reads a public key in standard base64, in its one canonical form.
func decodeKey(s string) (fleet.PublicKey, error) {
	var key fleet.PublicKey
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(key) || base64.StdEncoding.EncodeToString(b) != s {
		return key, invalidf(validation, "PublicKey is not the base64 of 32 bytes")
	}
	copy(key[:], b)
	return key, nil
}

// formatTime writes a time for a message.
func formatTime(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339) }
