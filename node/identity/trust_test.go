package identity

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
)

// bigTrust is a later version with three voters, in order.
func bigTrust(w *world) Trust {
	t := Trust{Fleet: w.fleet, Epoch: 2, Version: 7, K: 2}
	for n := byte(50); n < 53; n++ {
		node := fleet.NodeIDOf(testKey(n).Public())
		t.Voters = append(t.Voters, TrustVoter{Node: node, Key: testKey(n + 10).Public()})
		t.Issuers = append(t.Issuers, TrustIssuer{Node: node, Key: testKey(n + 20).Public()})
	}
	removed := fleet.NodeIDOf(testKey(60).Public())
	t.Issuers = append(t.Issuers, TrustIssuer{Node: removed, Key: testKey(90).Public(), Until: w.now.UnixNano()})
	return t
}

func TestTrustRoundTrip(t *testing.T) {
	w := newWorld(t, 1)
	for name, want := range map[string]Trust{"first": w.trust(), "later": bigTrust(w)} {
		t.Run(name, func(t *testing.T) {
			b, err := SignTrust(w.root, want)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ParseTrust(b, w.root.Public())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Raw(), b) {
				t.Error("Raw is not the file")
			}
			again, err := SignTrust(w.root, *got)
			if err != nil || !bytes.Equal(again, b) {
				t.Errorf("signing what was parsed gives other bytes: %v", err)
			}
			want.Voters, want.Issuers, want.raw = got.Voters, got.Issuers, got.raw // sorted by SignTrust
			if !reflect.DeepEqual(*got, want) {
				t.Errorf("got %+v, want %+v", *got, want)
			}
		})
	}
}

func TestTrustQuestions(t *testing.T) {
	w := newWorld(t, 1)
	trust := bigTrust(w)
	voter := trust.Voters[1]
	if got, ok := trust.Voter(voter.Key.ID()); !ok || got != voter {
		t.Errorf("Voter = %v, %t", got, ok)
	}
	if _, ok := trust.Voter(w.quorum.Public().ID()); ok {
		t.Error("found a stranger")
	}
	if !trust.IsVoter(voter.Node, voter.Key) || trust.IsVoter(trust.Voters[0].Node, voter.Key) {
		t.Error("IsVoter does not compare both node and key")
	}
	current, removed := trust.Issuers[0].Key, trust.Issuers[3].Key
	cases := []struct {
		name string
		key  fleet.PublicKey
		at   time.Time
		want bool
	}{
		{"current", current, w.now.Add(time.Hour * 1e5), true},
		{"removed, until", removed, w.now, true},
		{"removed, after", removed, w.now.Add(1), false},
		{"stranger", w.issuer.Public(), w.now, false},
		{"a voter's quorum key", voter.Key, w.now, false},
	}
	for _, c := range cases {
		if got := trust.Issuer(c.key, c.at); got != c.want {
			t.Errorf("%s: Issuer = %t, want %t", c.name, got, c.want)
		}
	}
	for voters, want := range map[int]int{1: 1, 2: 1, 3: 2, 5: 2} {
		if got := ThresholdFor(voters); got != want {
			t.Errorf("ThresholdFor(%d) = %d, want %d", voters, got, want)
		}
	}
}

func TestTrustValidate(t *testing.T) {
	w := newWorld(t, 1)
	cases := []struct {
		name   string
		change func(*Trust)
		part   string
	}{
		{"no fleet", func(t *Trust) { t.Fleet = "" }, "fleet ID"},
		{"version 0", func(t *Trust) { t.Version = 0 }, "begin with 1"},
		{"no voter", func(t *Trust) { t.Voters = nil }, "0 voters"},
		{"two voters", func(t *Trust) { t.Voters, t.K = t.Voters[:2], 1 }, "2 voters"},
		{"four voters", func(t *Trust) { t.Voters = append(t.Voters, t.Voters...)[:4] }, "4 voters"},
		{"seven voters", func(t *Trust) { t.Voters = append(append(t.Voters, t.Voters...), t.Voters...)[:7] }, "7 voters"},
		{"k 0", func(t *Trust) { t.K = 0 }, "need k = 2"},
		{"k 1 of three", func(t *Trust) { t.K = 1 }, "need k = 2"},
		{"k 3 of three", func(t *Trust) { t.K = 3 }, "need k = 2"},
		{"k 2 of one", func(t *Trust) { t.Voters = t.Voters[:1] }, "need k = 1"},
		{"voters not in order", func(t *Trust) { t.Voters[0], t.Voters[1] = t.Voters[1], t.Voters[0] }, "not in order"},
		{"issuers not in order", func(t *Trust) { t.Issuers[0], t.Issuers[1] = t.Issuers[1], t.Issuers[0] }, "not in order"},
		{"voter twice", func(t *Trust) { t.Voters[1].Node = t.Voters[0].Node }, "listed twice"},
		{"voter key twice", func(t *Trust) { t.Voters[1].Key = t.Voters[0].Key }, "listed twice"},
		{"voter and issuer share a key", func(t *Trust) { t.Issuers[1].Key = t.Voters[0].Key }, "listed twice"},
		{"voter without a key", func(t *Trust) { t.Voters[1].Key = fleet.PublicKey{} }, "missing"},
		{"malformed voter", func(t *Trust) { t.Voters[0].Node = "host1" }, "node ID"},
		{"malformed issuer", func(t *Trust) { t.Issuers[0].Node = "host1" }, "node ID"},
		{"two current issuers of a node", func(t *Trust) {
			t.Issuers = t.Issuers[:2]
			t.Issuers[1].Node = t.Issuers[0].Node
			if bytes.Compare(t.Issuers[0].Key[:], t.Issuers[1].Key[:]) > 0 {
				t.Issuers[0], t.Issuers[1] = t.Issuers[1], t.Issuers[0]
			}
		}, "two current"},
		{"negative date", func(t *Trust) { t.Issuers[0].Until = -1 }, "negative"},
		{"too many issuers", func(t *Trust) { t.Issuers = make([]TrustIssuer, MaxIssuers+1) }, "over the limit"},
		{"operator in a later version", func(t *Trust) { t.FirstOperator = w.trust().FirstOperator }, "only version 1"},
		{"malformed operator", func(t *Trust) {
			t.Version, t.FirstOperator = 1, &TrustOperator{Name: "a b", Key: w.operator.Public()}
		}, "operator name"},
		{"operator with a voter's key", func(t *Trust) {
			t.Version, t.FirstOperator = 1, &TrustOperator{Name: "a", Key: t.Voters[0].Key}
		}, "also a host's"},
	}
	base := sorted(bigTrust(w))
	if err := base.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			trust := sorted(bigTrust(w))
			c.change(&trust)
			wantKind(t, trust.Validate(), fleet.Invalid, c.part)
		})
	}
}

func sorted(t Trust) Trust {
	for i := range t.Voters {
		for j := range i {
			if t.Voters[i].Node < t.Voters[j].Node {
				t.Voters[i], t.Voters[j] = t.Voters[j], t.Voters[i]
			}
		}
	}
	for i := range t.Issuers {
		for j := range i {
			if t.Issuers[i].Node < t.Issuers[j].Node {
				t.Issuers[i], t.Issuers[j] = t.Issuers[j], t.Issuers[i]
			}
		}
	}
	return t
}

func TestSignTrustRefuses(t *testing.T) {
	w, other := newWorld(t, 1), newWorld(t, 101)
	cases := map[string]struct {
		root   PrivateKey
		change func(*Trust)
	}{
		"another fleet's root":   {other.root, func(*Trust) {}},
		"no key":                 {PrivateKey{}, func(*Trust) {}},
		"root as voter":          {w.root, func(t *Trust) { t.Voters[0].Key = w.root.Public() }},
		"root as issuer":         {w.root, func(t *Trust) { t.Issuers[0].Key = w.root.Public() }},
		"root as operator":       {w.root, func(t *Trust) { t.FirstOperator.Key = w.root.Public() }},
		"two voters":             {w.root, func(t *Trust) { t.Voters = append(t.Voters, t.Voters...) }},
		"threshold above voters": {w.root, func(t *Trust) { t.K = 2 }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			trust := w.trust()
			c.change(&trust)
			if _, err := SignTrust(c.root, trust); err == nil {
				t.Error("signed")
			}
		})
	}
}

func TestParseTrustRefuses(t *testing.T) {
	w, other := newWorld(t, 1), newWorld(t, 101)
	good := w.signedTrust(t)
	// signed is a file with any payload under the right key.
	signed := func(change func(string) string) []byte {
		var file trustFile
		if err := json.Unmarshal(good, &file); err != nil {
			t.Fatal(err)
		}
		before := string(file.Payload)
		file.Payload = []byte(change(before))
		if string(file.Payload) == before {
			t.Fatal("the change changes nothing")
		}
		file.Signature = w.root.Sign(UseTrust, file.Payload)
		b, err := json.Marshal(&file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	swap := func(old, new string) []byte {
		return signed(func(s string) string { return strings.Replace(s, old, new, 1) })
	}
	flipped := bytes.Replace(good, []byte(`"payload":"ey`), []byte(`"payload":"ez`), 1)
	cases := []struct {
		name string
		file []byte
		root fleet.PublicKey
		kind fleet.Kind
		part string
	}{
		{"other root", good, other.root.Public(), fleet.Unauthenticated, "not signed"},
		{"other fleet's file", other.signedTrust(t), w.root.Public(), fleet.Unauthenticated, "not signed"},
		{"altered payload", flipped, w.root.Public(), fleet.Unauthenticated, "not signed"},
		{"empty", nil, w.root.Public(), fleet.Invalid, "JSON"},
		{"null", []byte("null"), w.root.Public(), fleet.Unauthenticated, "not signed"},
		{"too large", bytes.Repeat([]byte(" "), MaxTrust+1), w.root.Public(), fleet.TooLarge, "limit"},
		{"bytes after it", append(bytes.Clone(good), '{'), w.root.Public(), fleet.Invalid, "after the value"},
		{"key of the file in other case", bytes.Replace(good, []byte("payload"), []byte("Payload"), 1), w.root.Public(),
			fleet.Invalid, "unknown key"},
		{"unknown key of the file", bytes.Replace(good, []byte("{"), []byte(`{"x":1,`), 1), w.root.Public(),
			fleet.Invalid, "unknown key"},
		{"unknown key of the payload", swap("{", `{"x":1,`), w.root.Public(), fleet.Invalid, "unknown key"},
		{"key twice", swap(`"k":1`, `"k":1,"k":2`), w.root.Public(), fleet.Invalid, "twice"},
		{"unknown format", swap(`"format":1`, `"format":2`), w.root.Public(), fleet.Invalid, "format 2"},
		{"no format", swap(`"format":1,`, ``), w.root.Public(), fleet.Invalid, "format 0"},
		{"k of 0", swap(`"k":1`, `"k":0`), w.root.Public(), fleet.Invalid, "need k = 1"},
		{"other fleet", swap(string(w.fleet), string(other.fleet)), w.root.Public(), fleet.Invalid, "under the root key"},
		{"voter with a date", swap(`"voters":[{`, `"voters":[{"until":5,`), w.root.Public(), fleet.Invalid, "no until"},
		{"short key", signed(func(string) string {
			return `{"format":1,"voters":[{"node":"mi-00000000000000000","key":"AAAA"}]}`
		}), w.root.Public(), fleet.Invalid, "3 bytes instead of 32"},
		{"version 0", swap(`"version":1`, `"version":0`), w.root.Public(), fleet.Invalid, "begin with 1"},
		{"version too large", swap(`"version":1`, `"version":4294967296`), w.root.Public(), fleet.Invalid, "JSON"},
		{"operator in version 2", swap(`"version":1`, `"version":2`), w.root.Public(), fleet.Invalid, "only version 1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			trust, err := ParseTrust(c.file, c.root)
			wantKind(t, err, c.kind, c.part)
			if trust != nil {
				t.Error("a refused file gave a Trust")
			}
		})
	}
}
