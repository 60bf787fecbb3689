package entry

import (
	"regexp"
	"unicode/utf8"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// validation is SSM's error code for a request that breaks a limit or pattern
// of its shape.
const validation = "ValidationException"

// invalidf is an error of the form of a request.
func invalidf(code, format string, args ...any) error {
	return fleet.CodeErrorf(fleet.Invalid, code, format, args...)
}

// parse reads the JSON of a request into a T and checks it.
func parse[T any, P interface {
	*T
	check() error
}](b []byte) (P, error) {
	if len(b) > MaxRequest {
		return nil, fleet.CodeErrorf(fleet.TooLarge, validation, "a request of %d bytes is over the limit of %d", len(b), MaxRequest)
	}
	req := P(new(T))
	if err := wire.StrictJSON(b, req); err != nil {
		return nil, invalidf(validation, "the request cannot be read: %v", err)
	}
	if err := req.check(); err != nil {
		return nil, err
	}
	return req, nil
}

// Tag is one label in a request.
type Tag struct {
	Key   string `json:"Key"`
	Value string `json:"Value"`
}

// MaxLabels is how many labels one node or activation may have (SSM's limit
// for tags of one resource).
const MaxLabels = 50

// checkTags accepts tags that may become labels.
func checkTags(tags []Tag) error {
	if len(tags) > MaxLabels {
		return invalidf("TooManyTagsError", "%d tags are over the limit of %d", len(tags), MaxLabels)
	}
	seen := make(map[string]bool, len(tags))
	for _, t := range tags {
		if err := fleet.CheckLabel(t.Key, t.Value); err != nil {
			return invalidf(validation, "%v", err)
		}
		if seen[t.Key] {
			return invalidf(validation, "the tag key %q occurs twice", t.Key)
		}
		seen[t.Key] = true
	}
	return nil
}

// Labels makes labels of tags; nil when there are none.
func Labels(tags []Tag) map[string]string {
	if len(tags) == 0 {
		return nil
	}
	labels := make(map[string]string, len(tags))
	for _, t := range tags {
		labels[t.Key] = t.Value
	}
	return labels
}

// checkText accepts one line of text of at most max characters: valid UTF-8
// without C0 and C1 controls.
func checkText(field, s string, max int) error {
	if !utf8.ValidString(s) {
		return invalidf(validation, "%s is not valid UTF-8", field)
	}
	if n := utf8.RuneCountInString(s); n > max {
		return invalidf(validation, "%s of %d characters is over the limit of %d", field, n, max)
	}
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return invalidf(validation, "%s has the control character %U", field, r)
		}
	}
	return nil
}

// checkPattern accepts text that matches a pattern.
func checkPattern(field, s string, pattern *regexp.Regexp, form string) error {
	if !pattern.MatchString(s) {
		return invalidf(validation, "%s %.140q is not %s", field, s, form)
	}
	return nil
}
