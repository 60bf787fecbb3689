package identity

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestVerifyUse(t *testing.T) {
	key, other := testKey(1), testKey(2)
	msg := []byte("message")
	sig := key.Sign(UseTicket, msg)
	cases := []struct {
		name string
		ok   bool
		got  bool
	}{
		{"right", true, Verify(key.Public(), UseTicket, msg, sig)},
		{"other use", false, Verify(key.Public(), UseResult, msg, sig)},
		{"other key", false, Verify(other.Public(), UseTicket, msg, sig)},
		{"other message", false, Verify(key.Public(), UseTicket, []byte("massage"), sig)},
		{"use moved into the message", false, Verify(key.Public(), "fleet", append([]byte(" ticket v1\x00"), msg...), sig)},
		{"short", false, Verify(key.Public(), UseTicket, msg, sig[:63])},
		{"long", false, Verify(key.Public(), UseTicket, msg, append(bytes.Clone(sig), 0))},
		{"none", false, Verify(key.Public(), UseTicket, msg, nil)},
		{"zero key", false, Verify(PrivateKey{}.Public(), UseTicket, msg, PrivateKey{}.Sign(UseTicket, msg))},
	}
	for _, c := range cases {
		if c.got != c.ok {
			t.Errorf("%s: Verify = %t, want %t", c.name, c.got, c.ok)
		}
	}
}

func TestZeroKey(t *testing.T) {
	var k PrivateKey
	if !k.IsZero() || !k.Public().IsZero() || k.Signer() != nil || k.Sign(UseProof, nil) != nil {
		t.Error("the zero key is not inert")
	}
	generated, err := GenerateKey()
	if err != nil || generated.IsZero() || generated.Public() == testKey(1).Public() {
		t.Errorf("GenerateKey: %v", err)
	}
}

// Secrets must not leave by any of the ways in which values are printed.
func TestSecretsAreNotPrinted(t *testing.T) {
	w := newWorld(t, 1)
	code := Code(bytes.Repeat([]byte{0xab}, 32))
	token := JoinToken{Activation: "11111111-2222-3333-4444-555555555555", Code: code}
	credential := Credential{Fleet: w.fleet, Name: "acme", Operator: "o", Key: w.operator}
	type holder struct {
		Key  PrivateKey
		priv PrivateKey
		Code Code
	}
	values := map[string]any{
		"key": w.operator, "key pointer": &w.operator, "code": code, "code pointer": &code,
		"token": token, "token pointer": &token, "credential": credential,
		"struct": holder{w.operator, w.operator, code}, "slice": []any{w.operator, code, token},
	}
	secrets := []string{code.Text(), token.Encode()}
	for _, b := range [][]byte{w.operator.seed(), code[:]} {
		secrets = append(secrets, hex.EncodeToString(b), strings.Trim(fmt.Sprint(b), "[]"), string(b))
	}
	for name, v := range values {
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		text := strings.ToLower(out.String())
		for _, s := range secrets {
			if strings.Contains(text, strings.ToLower(s)) {
				t.Errorf("%s shows a secret: %s", name, out.String())
				break
			}
		}
	}
}
