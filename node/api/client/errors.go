package client

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fleet/node/fleet"
)

// ErrorBody is the JSON of an error, as SSM's with two members more.
type ErrorBody struct {
	Type    string     `json:"__type"` // SSM's name, else the kind's
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty"`
	Kind    fleet.Kind `json:"kind"`
}

// BodyOf is what of an error crosses to the caller. What has no kind stays
// here: its text is for the log.
func BodyOf(err *fleet.Error) ErrorBody {
	b := ErrorBody{Type: err.Code, Message: err.Message, Hint: err.Hint, Kind: err.Kind}
	if b.Hint == "" {
		b.Hint = fleet.HintOf(err)
	}
	if b.Type == "" {
		b.Type = typeName(err.Kind)
	}
	return b
}

// typeName is a kind as the name of an error: "no quorum" is NoQuorum.
func typeName(k fleet.Kind) string {
	var name strings.Builder
	for word := range strings.FieldsSeq(k.String()) {
		name.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return name.String()
}

// Err is the error that the body tells of.
func (b ErrorBody) Err() *fleet.Error {
	e := fleet.Errorf(b.Kind, "%s", b.Message)
	if b.Type != typeName(b.Kind) {
		e.Code = b.Type
	}
	if b.Hint != "" {
		e = e.WithHint("%s", b.Hint)
	}
	return e
}

// longestRetry is the longest that a host can make a client wait.
const longestRetry = time.Minute

// retryAfter reads the header of this name: seconds; zero for anything else.
func retryAfter(header string) time.Duration {
	seconds, err := strconv.ParseUint(header, 10, 16)
	if err != nil {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, longestRetry)
}

// ParseError is the error that an answer with this status and body tells of.
func ParseError(status int, body []byte) *fleet.Error {
	var b ErrorBody
	if err := json.Unmarshal(body, &b); err == nil && b.Type != "" {
		return b.Err()
	}
	text := string(body)
	if len(text) > 200 || !utf8.ValidString(text) {
		text = "no text"
	}
	return fleet.Errorf(fleet.Other, "status %d: %s", status, strings.TrimSpace(text))
}
