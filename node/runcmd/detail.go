package runcmd

import (
	"strings"
	"unicode/utf8"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/wire"
)

// Limits of the details of an invocation, in bytes.
const (
	MaxDetail = 64 << 10 // encoded

	// MaxInline is the longest output that stands in the details themselves;
	// a longer one is a blob.
	MaxInline = 4 << 10

	// maxInlineSum bounds all of them together.
	maxInlineSum = 48 << 10

	// stepOverhead is what a step takes without its output at most: names of
	// 64 bytes each, a reason, four digests, numbers, keys.
	stepOverhead = 768

	maxReason     = 256
	detailVersion = 1
)

// Detail is what a host says about the steps of an invocation. Its digest
// stands in the signed result.
type Detail struct {
	Version uint8        `msgpack:"v"`
	Steps   []StepDetail `msgpack:"s"` // those that came to their turn, in order
}

// StepDetail is one step. Times are by the host's clock.
type StepDetail struct {
	Name    string                `msgpack:"n"`
	Plugin  string                `msgpack:"p"`
	State   fleet.InvocationState `msgpack:"s"`           // final
	Skipped bool                  `msgpack:"k,omitempty"` // State is Success, as for SSM
	Code    int32                 `msgpack:"c"`           // exit code; -1 when nothing ran
	Started int64                 `msgpack:"b,omitempty"`
	Ended   int64                 `msgpack:"e,omitempty"`
	Reason  string                `msgpack:"r,omitempty"` // for a person, at most 256 bytes
	Stdout  StreamDetail          `msgpack:"o"`
	Stderr  StreamDetail          `msgpack:"x"`
}

// StreamDetail is one output of a step. What is stored of it are its first
// bytes, inline or in a blob; neither, when it could not be kept.
type StreamDetail struct {
	Total  uint64       `msgpack:"t"` // bytes printed
	Digest fleet.Digest `msgpack:"d"` // SHA-256 of all of them
	Stored uint64       `msgpack:"s"` // bytes kept
	Inline []byte       `msgpack:"i,omitempty"`
	Blob   fleet.Digest `msgpack:"b"` // of the blob, whose size is Stored; zero when inline
}

// Truncated reports whether less was kept than was printed.
func (s *StreamDetail) Truncated() bool { return s.Stored < s.Total }

// inlineBudget is how much output of a document with so many steps may stand
// in the details.
func inlineBudget(steps int) int {
	return max(0, min(maxInlineSum, MaxDetail-1024-steps*stepOverhead))
}

// Encode is the details as they are stored and sent.
func (d *Detail) Encode() []byte {
	d.Version = detailVersion
	return wire.MustMarshal(d)
}

// Blobs are the blobs that the outputs name.
func (d *Detail) Blobs() (all []fleet.Digest) {
	for i := range d.Steps {
		for _, s := range []*StreamDetail{&d.Steps[i].Stdout, &d.Steps[i].Stderr} {
			if !s.Blob.IsZero() {
				all = append(all, s.Blob)
			}
		}
	}
	return all
}

func badDetail(format string, args ...any) error {
	return fleet.Errorf(fleet.Invalid, "details: "+format, args...)
}

// ParseDetail reads details that another host wrote. Errors are of kind
// Invalid, or TooLarge.
func ParseDetail(b []byte) (*Detail, error) {
	if len(b) > MaxDetail {
		return nil, fleet.Errorf(fleet.TooLarge, "details: %d bytes, at most %d are allowed", len(b), MaxDetail)
	}
	var d Detail
	if err := wire.UnmarshalStrict(b, &d); err != nil {
		return nil, badDetail("%w", err)
	}
	if d.Version != detailVersion {
		return nil, badDetail("version %d is not known", d.Version)
	}
	if len(d.Steps) > document.MaxSteps {
		return nil, badDetail("%d steps, at most %d are allowed", len(d.Steps), document.MaxSteps)
	}
	for i := range d.Steps {
		s := &d.Steps[i]
		switch {
		case len(s.Name) > 64 || !utf8.ValidString(s.Name), len(s.Plugin) > 64 || !utf8.ValidString(s.Plugin):
			return nil, badDetail("step %d: its names are not at most 64 bytes of text", i)
		case len(s.Reason) > maxReason || !utf8.ValidString(s.Reason):
			return nil, badDetail("step %d: its reason is not at most %d bytes of text", i, maxReason)
		case !s.State.Valid() || !s.State.Final():
			return nil, badDetail("step %d: state %d is not final", i, s.State)
		case s.Skipped && s.State != fleet.Success:
			return nil, badDetail("step %d: skipped with state %s", i, s.State)
		case s.Started < 0 || s.Ended < 0:
			return nil, badDetail("step %d: a negative time", i)
		}
		for _, stream := range []*StreamDetail{&s.Stdout, &s.Stderr} {
			if err := stream.check(); err != nil {
				return nil, badDetail("step %d: %w", i, err)
			}
		}
	}
	return &d, nil
}

func (s *StreamDetail) check() error {
	switch {
	case s.Stored > s.Total:
		return badDetail("more output stored than printed")
	case len(s.Inline) > MaxInline:
		return badDetail("%d bytes of output inline, at most %d are allowed", len(s.Inline), MaxInline)
	case len(s.Inline) > 0 && (!s.Blob.IsZero() || uint64(len(s.Inline)) != s.Stored):
		return badDetail("output both inline and in a blob, or of another length")
	case len(s.Inline) == 0 && s.Blob.IsZero() && s.Stored != 0:
		return badDetail("output stored nowhere")
	case len(s.Inline) > 0 && s.Stored == s.Total && fleet.Sum(s.Inline) != s.Digest:
		return badDetail("output inline that is not of its digest")
	}
	return nil
}

// cut shortens s to at most n bytes without splitting a character, and mends
// what is not UTF-8.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
