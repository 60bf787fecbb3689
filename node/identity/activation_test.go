package identity

import (
	"reflect"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
)

func TestCode(t *testing.T) {
	code, err := NewCode()
	if err != nil {
		t.Fatal(err)
	}
	text := code.Text()
	spaced := " " + strings.ToLower(text[:10]) + "-" + text[10:20] + " " + text[20:] + "\n"
	for _, s := range []string{text, spaced} {
		if got, err := ParseCode(s); err != nil || got != code {
			t.Errorf("ParseCode of the code: %v", err)
		}
	}
	if code.Key().Public() != KeyFromSeed(code).Public() {
		t.Error("Key is not that of the seed")
	}
	for name, s := range map[string]string{
		"empty": "", "short": text[:51], "long": text + "A", "digit 1": "1" + text[1:], "padding": text + "====",
		"stray bits": text[:51] + "B", "not ASCII": "é" + text[2:],
	} {
		_, err := ParseCode(s)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if len(s) > 8 && strings.Contains(err.Error(), s[8:20]) {
			t.Errorf("%s: the error quotes the code", name)
		}
	}
}

func testToken(w *world) JoinToken {
	return JoinToken{
		Root:       fleet.Sum(publicBytes(w.root)),
		Activation: "11111111-2222-3333-4444-555555555555",
		Code:       Code{1, 2, 3},
		Addresses:  []string{"10.0.0.1:7790", "[fd00::1]:7790", "host3.example:7790"},
	}
}

func publicBytes(k PrivateKey) []byte { p := k.Public(); return p[:] }

func TestJoinToken(t *testing.T) {
	w := newWorld(t, 1)
	token := testToken(w)
	if token.Fleet() != w.fleet {
		t.Errorf("Fleet = %s, want %s", token.Fleet(), w.fleet)
	}
	for _, s := range []string{token.Encode(), "  " + token.Encode() + "\r\n"} {
		got, err := ParseJoinToken(s)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, token) {
			t.Error("another token came back")
		}
	}
	// More and longer addresses than fit are left out, the last first.
	long := strings.Repeat("a", 200) + ".example:7790"
	token.Addresses = []string{"10.0.0.1:7790", long, long, long, long, long}
	got, err := ParseJoinToken(token.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Addresses); n != 4 && n != 3 || got.Addresses[0] != "10.0.0.1:7790" {
		t.Errorf("%d addresses left", n)
	}
	token.Addresses = nil
	if got, err := ParseJoinToken(token.Encode()); err != nil || len(got.Addresses) != 0 {
		t.Errorf("no address: %v", err)
	}
}

func TestParseJoinTokenRefuses(t *testing.T) {
	w := newWorld(t, 1)
	good := testToken(w).Encode()
	with := func(change func(*JoinToken)) string {
		token := testToken(w)
		change(&token)
		return token.Encode()
	}
	cases := []struct{ name, token, part string }{
		{"empty", "", "begin with"},
		{"other version", "fleet2_" + good[7:], "begin with"},
		{"upper case", strings.ToUpper(good), "begin with"},
		{"cut off", good[:len(good)-9], ""},
		{"one letter missing", good[:20] + good[21:], ""},
		{"space inside", good[:20] + " " + good[20:], "foreign characters"},
		{"line break inside", good[:20] + "\n" + good[20:], "foreign characters"},
		{"padding", good + "=", "foreign characters"},
		{"too long", good + strings.Repeat("A", MaxJoinToken), "limit"},
		{"no body", tokenPrefix, "damaged"},
		{"bad activation", with(func(t *JoinToken) { t.Activation = "x" }), "damaged"},
		{"bad address", with(func(t *JoinToken) { t.Addresses[0] = "host1" }), "HOST:PORT"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseJoinToken(c.token)
			wantKind(t, err, fleet.Invalid, c.part)
			if len(good) > 60 && strings.Contains(err.Error(), good[30:60]) {
				t.Error("the error quotes the token")
			}
			if !strings.Contains(fleet.HintOf(err), "activation create") {
				t.Errorf("hint = %q", fleet.HintOf(err))
			}
		})
	}
}

func TestJoinRequest(t *testing.T) {
	w := newWorld(t, 1)
	code := Code{4, 5, 6}
	want := w.joinPayload()
	b, err := NewJoinRequest(want, w.agent, code)
	if err != nil {
		t.Fatal(err)
	}
	got, r, err := ParseJoinRequest(b)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	activation := code.Key().Public()
	if err := r.Verify(activation); err != nil {
		t.Fatal(err)
	}
	resign := func(change func(*JoinPayload), agent, coder PrivateKey) *JoinRequest {
		p := w.joinPayload()
		change(&p)
		payload := wire.MustMarshal(&joinPayload{1, p})
		return &JoinRequest{payload, agent.Sign(UseJoin, payload), coder.Sign(UseJoin, payload)}
	}
	none := func(*JoinPayload) {}
	renamed := resign(func(p *JoinPayload) { p.Name = "db01" }, w.agent, code.Key())
	shared := resign(func(p *JoinPayload) { p.Key = activation }, code.Key(), code.Key())
	cases := []struct {
		name       string
		r          *JoinRequest
		activation fleet.PublicKey
		part       string
	}{
		{"other activation", r, testKey(99).Public(), "code is wrong"},
		{"other code", resign(none, w.agent, testKey(99)), activation, "code is wrong"},
		{"other agent", resign(none, testKey(99), code.Key()), activation, "agent key"},
		{"signatures exchanged", &JoinRequest{r.Payload, r.CodeSig, r.AgentSig}, activation, "agent key"},
		{"agent signature left out", &JoinRequest{r.Payload, nil, r.CodeSig}, activation, "agent key"},
		{"code signature left out", &JoinRequest{r.Payload, r.AgentSig, nil}, activation, "code is wrong"},
		{"altered name", &JoinRequest{renamed.Payload, r.AgentSig, r.CodeSig}, activation, "agent key"},
		{"the code's key as agent key", shared, activation, "activation's"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			wantKind(t, c.r.Verify(c.activation), fleet.Unauthenticated, c.part)
		})
	}
	if _, err := NewJoinRequest(want, testKey(99), code); err == nil {
		t.Error("signed for another key")
	}
}

func TestParseJoinRequestRefuses(t *testing.T) {
	w := newWorld(t, 1)
	build := func(version uint8, change func(*JoinPayload)) []byte {
		p := w.joinPayload()
		change(&p)
		payload := wire.MustMarshal(&joinPayload{version, p})
		return wire.MustMarshal(&JoinRequest{payload, w.agent.Sign(UseJoin, payload), w.agent.Sign(UseJoin, payload)})
	}
	none := func(*JoinPayload) {}
	good := build(1, none)
	cases := []struct {
		name string
		b    []byte
		kind fleet.Kind
	}{
		{"version 2", build(2, none), fleet.Invalid},
		{"version 0", build(0, none), fleet.Invalid},
		{"malformed fleet", build(1, func(p *JoinPayload) { p.Fleet = "x" }), fleet.Invalid},
		{"malformed activation", build(1, func(p *JoinPayload) { p.Activation = "x" }), fleet.Invalid},
		{"no key", build(1, func(p *JoinPayload) { p.Key = fleet.PublicKey{} }), fleet.Invalid},
		{"name with a comma", build(1, func(p *JoinPayload) { p.Name = "a,b" }), fleet.Invalid},
		{"no address", build(1, func(p *JoinPayload) { p.Address = "" }), fleet.Invalid},
		{"too large", build(1, func(p *JoinPayload) { p.Name = strings.Repeat("a", MaxJoinRequest) }), fleet.TooLarge},
		{"cut off", good[:len(good)-1], fleet.Invalid},
		{"bytes after it", append(append([]byte{}, good...), 0), fleet.Invalid},
		{"empty", nil, fleet.Invalid},
		{"nil", []byte{0xc0}, fleet.Invalid},
		{"unknown field", append([]byte{good[0] + 1, 0xa1, 'z', 1}, good[1:]...), fleet.Invalid},
		// The map of three as a map with a 16-bit count: same value, other bytes.
		{"second encoding", append([]byte{0xde, 0, 3}, good[1:]...), fleet.Invalid},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := ParseJoinRequest(c.b)
			wantKind(t, err, c.kind, "")
		})
	}
	if _, _, err := ParseJoinRequest(build(1, func(p *JoinPayload) { p.Name = "" })); err != nil {
		t.Errorf("a host may leave its name to the activation: %v", err)
	}
}
