package identity

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// Limits of what a joining host carries and sends, in bytes.
const (
	MaxJoinToken   = 1 << 10
	MaxJoinRequest = 2 << 10

	maxTokenAddresses = 5
)

const redacted = "[redacted]"

// Code is the secret of an activation: the seed of the key whose public half
// the fleet knows. Whoever has it may enrol a host. It is shown once, to the
// person who creates the activation, and never travels on the network.
type Code [32]byte

// NewCode draws a code.
func NewCode() (Code, error) {
	var c Code
	if _, err := rand.Read(c[:]); err != nil {
		return Code{}, fmt.Errorf("draw activation code: %w", err)
	}
	return c, nil
}

// ParseCode reads what Text wrote. Case, spaces and hyphens do not matter.
func ParseCode(s string) (Code, error) {
	s = strings.ToUpper(strings.NewReplacer(" ", "", "-", "").Replace(strings.TrimSpace(s)))
	b, err := codeText.DecodeString(s)
	if err != nil || len(b) != len(Code{}) || codeText.EncodeToString(b) != s {
		// The text is not quoted: it may be a code with one letter wrong.
		return Code{}, fleet.Errorf(fleet.Invalid, "the activation code is not %d letters A to Z and digits 2 to 7",
			codeText.EncodedLen(len(Code{})))
	}
	return Code(b), nil
}

var codeText = base32.StdEncoding.WithPadding(base32.NoPadding)

// Key is the activation's key.
func (c Code) Key() PrivateKey { return KeyFromSeed(c) }

// Text is the code in base32, to be shown once.
func (c Code) Text() string { return codeText.EncodeToString(c[:]) }

// String hides the code.
func (Code) String() string { return redacted }

// GoString hides the code.
func (Code) GoString() string { return redacted }

// Format hides the code from every verb.
func (Code) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// LogValue hides the code.
func (Code) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the code from encoders.
func (Code) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// JoinToken is all that a host needs to join: what to trust, what to show,
// where to ask. It holds the activation's code and is as secret as that.
type JoinToken struct {
	Root       fleet.Digest // SHA-256 of the root public key
	Activation fleet.ActivationID
	Code       Code
	Addresses  []string // "host:port", at most 5
}

const tokenPrefix = "fleet1_" // 1 is the version

type joinToken struct {
	Root       fleet.Digest       `msgpack:"r"`
	Activation fleet.ActivationID `msgpack:"a"`
	Code       [32]byte           `msgpack:"c"`
	Addresses  []string           `msgpack:"h"`
}

// Fleet is the ID of the fleet that the token leads to.
func (t JoinToken) Fleet() fleet.ID { return fleet.ID(hex.EncodeToString(t.Root[:16])) }

// Encode writes the token as one word. It keeps the first addresses, at most 5,
// with which the word stays within 1 KiB.
func (t JoinToken) Encode() string {
	w := joinToken{Root: t.Root, Activation: t.Activation, Code: t.Code, Addresses: t.Addresses}
	w.Addresses = append([]string{}, w.Addresses[:min(len(w.Addresses), maxTokenAddresses)]...)
	for {
		s := tokenPrefix + base64.RawURLEncoding.EncodeToString(wire.MustMarshal(&w))
		if len(s) <= MaxJoinToken || len(w.Addresses) == 0 {
			return s
		}
		w.Addresses = w.Addresses[:len(w.Addresses)-1]
	}
}

// ParseJoinToken reads a token; space around it is ignored, as files and
// prompts add it. Errors never quote the token.
func ParseJoinToken(s string) (JoinToken, error) {
	bad := func(format string, args ...any) (JoinToken, error) {
		return JoinToken{}, fleet.Errorf(fleet.Invalid, "join token: "+format, args...).
			WithHint(`copy the whole word that begins with %s, as "fleet activation create" printed it`, tokenPrefix)
	}
	s = strings.TrimSpace(s)
	if len(s) > MaxJoinToken {
		return bad("%d characters are over the limit of %d", len(s), MaxJoinToken)
	}
	body, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return bad("it does not begin with %s", tokenPrefix)
	}
	// Strict refuses stray bits, and the decoder would skip line breaks.
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || strings.ContainsAny(body, "\r\n") {
		return bad("it is cut off or has foreign characters")
	}
	var w joinToken
	if err := decodeExact(b, MaxJoinToken, "join token", &w); err != nil {
		return bad("it is damaged")
	}
	if _, err := fleet.ParseActivationID(string(w.Activation)); err != nil {
		return bad("it is damaged")
	}
	if len(w.Addresses) > maxTokenAddresses {
		return bad("%d addresses are over the limit of %d", len(w.Addresses), maxTokenAddresses)
	}
	for _, a := range w.Addresses {
		if err := CheckAddress(a); err != nil {
			return bad("%w", err)
		}
	}
	return JoinToken{Root: w.Root, Activation: w.Activation, Code: w.Code, Addresses: w.Addresses}, nil
}

// String hides the token.
func (t JoinToken) String() string { return redacted }

// GoString hides the token.
func (t JoinToken) GoString() string { return redacted }

// Format hides the token from every verb.
func (t JoinToken) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// LogValue hides the token but says which activation it is.
func (t JoinToken) LogValue() slog.Value {
	return slog.StringValue(fmt.Sprintf("[redacted token of activation %s]", t.Activation))
}

// MarshalText hides the token from encoders.
func (t JoinToken) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// JoinPayload is what a joining host asks for.
type JoinPayload struct {
	Fleet      fleet.ID           `msgpack:"f"`
	Activation fleet.ActivationID `msgpack:"x"`
	Key        fleet.PublicKey    `msgpack:"k"` // agent key; the node ID follows from it
	Name       string             `msgpack:"n"` // empty: the activation's default name
	Address    string             `msgpack:"a"` // "host:port" where the host answers
	Epoch      uint32             `msgpack:"e"` // Unix seconds; orders changes of the address
}

type joinPayload struct {
	Version     uint8 `msgpack:"v"`
	JoinPayload `msgpack:",inline"`
}

// JoinRequest is a signed JoinPayload: by the agent key, which shows that the
// host has it, and by the activation's key, which shows that it has the code.
type JoinRequest struct {
	Payload  []byte `msgpack:"p"`
	AgentSig []byte `msgpack:"a"`
	CodeSig  []byte `msgpack:"c"`
}

// NewJoinRequest signs p; its Key must be that of agent.
func NewJoinRequest(p JoinPayload, agent PrivateKey, code Code) ([]byte, error) {
	if p.Key != agent.Public() {
		return nil, fleet.Errorf(fleet.Invalid, "join request: the key is not the agent's")
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	payload := wire.MustMarshal(&joinPayload{1, p})
	return wire.MustMarshal(&JoinRequest{
		Payload:  payload,
		AgentSig: agent.Sign(UseJoin, payload),
		CodeSig:  code.Key().Sign(UseJoin, payload),
	}), nil
}

// ParseJoinRequest reads a join request and checks its form. It verifies no
// signature: that is Verify's, once the activation is known.
func ParseJoinRequest(b []byte) (JoinPayload, *JoinRequest, error) {
	var r JoinRequest
	if err := decodeExact(b, MaxJoinRequest, "join request", &r); err != nil {
		return JoinPayload{}, nil, err
	}
	p, err := r.payload()
	if err != nil {
		return JoinPayload{}, nil, err
	}
	return p, &r, nil
}

func (r *JoinRequest) payload() (JoinPayload, error) {
	var p joinPayload
	if err := decodeExact(r.Payload, MaxJoinRequest, "join request", &p); err != nil {
		return JoinPayload{}, err
	}
	if err := checkVersion("join request", p.Version); err != nil {
		return JoinPayload{}, err
	}
	return p.JoinPayload, p.check()
}

// Verify checks both signatures: that of the agent key in the payload and that
// of the activation's key. Errors are of kind Unauthenticated.
func (r *JoinRequest) Verify(activation fleet.PublicKey) error {
	p, err := r.payload()
	if err != nil {
		return err
	}
	if p.Key == activation {
		return fleet.Errorf(fleet.Unauthenticated, "join request: the agent key is the activation's: everybody with the code has it")
	}
	if !Verify(p.Key, UseJoin, r.Payload, r.AgentSig) {
		return fleet.Errorf(fleet.Unauthenticated, "join request: not signed by its agent key")
	}
	if !Verify(activation, UseJoin, r.Payload, r.CodeSig) {
		return fleet.Errorf(fleet.Unauthenticated, "join request: the activation code is wrong").
			WithHint("make a new activation, and copy the whole token")
	}
	return nil
}

func (p *JoinPayload) check() error {
	if _, err := fleet.ParseID(string(p.Fleet)); err != nil {
		return err
	}
	if _, err := fleet.ParseActivationID(string(p.Activation)); err != nil {
		return err
	}
	if p.Key.IsZero() {
		return fleet.Errorf(fleet.Invalid, "join request: there is no agent key")
	}
	if p.Name != "" {
		if err := fleet.CheckNodeName(p.Name); err != nil {
			return err
		}
	}
	return CheckAddress(p.Address)
}
