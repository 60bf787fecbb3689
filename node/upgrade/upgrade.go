// Package upgrade replaces the program of an agent by another one, and goes
// back by itself where the new one does not come up.
//
//   - What to replace it by is an Order: parameters of a command, so a host
//     has it from a ticket that k voters signed. Who brings the bytes does not
//     count: length and digest are checked before anything is done with them.
//   - At every moment there is a whole program in the place of the service:
//     the new one is written beside it, made to say its version, and renamed
//     over it; the old one stays beside it as NAME.previous.
//   - Two judge the new program. It confirms itself when the quorum has
//     answered it and, on a voter, its log is caught up. The guard, which is
//     the old program as a service of its own, puts the old one back when that
//     has not happened in time or the new one ends again and again. The guard
//     runs before the programs are exchanged, and starts again at boot: a
//     power cut at any moment leaves a host that heals.
//   - Both write into one record, upgrade.json in the data directory, under a
//     lock: whoever is first decides. The command's result is read from it.
//
// What decides is pure (judge.go, phases.go); what acts on the host takes its
// effects from service.Keeper.
package upgrade

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/identity"
)

// Document is the document of a command that upgrades, Action the plugin of
// its step.
const (
	Document = "Fleet-Upgrade"
	Action   = "fleet:upgrade"
)

// Limits of an order.
const (
	MaxSize    = 64 << 20 // bytes of a program: what a blob may have
	maxOrdered = 8        // programs, each for a platform of its own
	maxSources = 20
	maxSigned  = 16
	maxVersion = 64

	DefaultHealthy  = 3 * time.Minute
	minHealthy      = 20 * time.Second
	maxHealthy      = time.Hour
	DefaultPatience = 10 * time.Minute
	maxPatience     = time.Hour
)

// Program is a program for one platform.
type Program struct {
	Platform string // "linux/amd64"
	Digest   fleet.Digest
	Size     int64
}

// String is the program as parameters and people have it.
func (p Program) String() string { return fmt.Sprintf("%s %s %d", p.Platform, p.Digest, p.Size) }

// ThisPlatform is that of the running program.
func ThisPlatform() string { return runtime.GOOS + "/" + runtime.GOARCH }

// ParseProgram reads what String wrote.
func ParseProgram(s string) (Program, error) {
	parts := strings.Split(s, " ")
	if len(parts) != 3 {
		return Program{}, fleet.Errorf(fleet.Invalid, "%.120q is not OS/ARCH, SHA-256 and size", s)
	}
	p := Program{Platform: parts[0]}
	system, arch, ok := strings.Cut(p.Platform, "/")
	if !ok || !word(system) || !word(arch) {
		return Program{}, fleet.Errorf(fleet.Invalid, "%.40q is no platform, such as linux/amd64", p.Platform)
	}
	var err error
	if p.Digest, err = fleet.ParseDigest(parts[1]); err != nil {
		return Program{}, err
	}
	p.Size, err = strconv.ParseInt(parts[2], 10, 64)
	if err != nil || p.Size <= 0 || p.Size > MaxSize || parts[2] != strconv.FormatInt(p.Size, 10) {
		return Program{}, fleet.Errorf(fleet.Invalid, "%.20q is no size of a program, from 1 to %d bytes", parts[2], MaxSize)
	}
	return p, nil
}

func word(s string) bool {
	return s != "" && len(s) <= 16 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
}

// Order is what a host is to do.
type Order struct {
	Programs   []Program
	Version    string         // that the programs say of themselves; "" is not compared
	Sources    []fleet.NodeID // hosts that have one of the programs, to be asked before the voters
	Signatures [][]byte       // of builders, over the programs

	// Healthy is how long the new program may take until the quorum has
	// answered it; Patience how long the host may wait until nothing else runs.
	Healthy, Patience time.Duration
}

// Parameters is the order as parameters of a command of Document.
func (o Order) Parameters() map[string][]string {
	p := map[string][]string{}
	for _, program := range o.Programs {
		p["programs"] = append(p["programs"], program.String())
	}
	if o.Version != "" {
		p["version"] = []string{o.Version}
	}
	for _, id := range o.Sources {
		p["sources"] = append(p["sources"], string(id))
	}
	for _, s := range o.Signatures {
		p["signatures"] = append(p["signatures"], string(s))
	}
	if o.Healthy != 0 {
		p["healthyWithin"] = []string{strconv.Itoa(int(o.Healthy / time.Second))}
	}
	if o.Patience != 0 {
		p["waitForCommands"] = []string{strconv.Itoa(int(o.Patience / time.Second))}
	}
	return p
}

// ParseInputs reads an order from the inputs of a step.
func ParseInputs(inputs map[string]any) (Order, error) {
	values := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(inputs)) {
		switch name {
		case "programs", "sources", "signatures":
			list, ok := document.Strings(inputs[name])
			if !ok {
				return Order{}, fleet.Errorf(fleet.Invalid, "%s must be a list of texts", name)
			}
			values[name] = list
		case "timeoutSeconds": // for the quorum: when it gives the host up
		case "version", "healthyWithin", "waitForCommands":
			text, ok := inputs[name].(string)
			if !ok {
				return Order{}, fleet.Errorf(fleet.Invalid, "%s must be text", name)
			}
			values[name] = []string{text}
		default:
			return Order{}, fleet.Errorf(fleet.Invalid, "%s has no input %.64q", Action, name)
		}
	}
	return ParseOrder(values)
}

// ParseOrder reads what Parameters wrote.
func ParseOrder(values map[string][]string) (Order, error) {
	o := Order{Healthy: DefaultHealthy, Patience: DefaultPatience}
	one := func(name string) string {
		if v := values[name]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	if n := len(values["programs"]); n == 0 || n > maxOrdered {
		return o, fleet.Errorf(fleet.Invalid, "%d programs: from 1 to %d", n, maxOrdered)
	}
	for _, s := range values["programs"] {
		p, err := ParseProgram(s)
		if err != nil {
			return o, err
		}
		if _, twice := o.For(p.Platform); twice {
			return o, fleet.Errorf(fleet.Invalid, "two programs for %s", p.Platform)
		}
		o.Programs = append(o.Programs, p)
	}
	if o.Version = one("version"); len(o.Version) > maxVersion {
		return o, fleet.Errorf(fleet.Invalid, "a version of %d characters: at most %d", len(o.Version), maxVersion)
	}
	if len(values["sources"]) > maxSources {
		return o, fleet.Errorf(fleet.Invalid, "%d sources: at most %d", len(values["sources"]), maxSources)
	}
	for _, s := range values["sources"] {
		id, err := fleet.ParseNodeID(s)
		if err != nil {
			return o, err
		}
		o.Sources = append(o.Sources, id)
	}
	if len(values["signatures"]) > maxSigned {
		return o, fleet.Errorf(fleet.Invalid, "%d signatures: at most %d", len(values["signatures"]), maxSigned)
	}
	for _, s := range values["signatures"] {
		o.Signatures = append(o.Signatures, []byte(s))
	}
	var err error
	if o.Healthy, err = seconds(one("healthyWithin"), DefaultHealthy, minHealthy, maxHealthy); err != nil {
		return o, fmt.Errorf("healthyWithin: %w", err)
	}
	if o.Patience, err = seconds(one("waitForCommands"), DefaultPatience, 0, maxPatience); err != nil {
		return o, fmt.Errorf("waitForCommands: %w", err)
	}
	return o, nil
}

func seconds(text string, absent, least, most time.Duration) (time.Duration, error) {
	if text == "" {
		return absent, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	d := time.Duration(n) * time.Second
	if err != nil || d < least || d > most {
		return 0, fleet.Errorf(fleet.Invalid, "%.20q is not a number of seconds from %d to %d", text, int(least/time.Second), int(most/time.Second))
	}
	return d, nil
}

// For is the program for a platform.
func (o Order) For(platform string) (Program, bool) {
	for _, p := range o.Programs {
		if p.Platform == platform {
			return p, true
		}
	}
	return Program{}, false
}

// Names reports whether parameters of a command name a program. It is asked of
// commands that somebody may have sent by hand: what cannot be read names none.
func Names(parameters map[string][]string, d fleet.Digest) (size int64, named bool) {
	for _, s := range parameters["programs"] {
		if p, err := ParseProgram(s); err == nil && p.Digest == d {
			return p.Size, true
		}
	}
	return 0, false
}

// CheckSigned refuses a program for which not every one of some builders has
// signed: one whose build, or whose key, was stolen does not get the hosts.
func CheckSigned(p Program, id fleet.ID, signatures [][]byte, signers []fleet.PublicKey) error {
	signed := map[fleet.PublicKey]bool{}
	for _, b := range signatures {
		s, err := identity.ParseFileSignature(b)
		if err == nil && s.Fleet == id && s.Digest == p.Digest && s.Size == p.Size {
			signed[s.Key] = true
		}
	}
	for _, k := range signers {
		if !signed[k] {
			return fleet.Errorf(fleet.Denied, "the program is not signed by %s, as upgrade.signers of this host demands", k.Text()).
				WithHint("fleet debug sign FILE with that key, then fleet upgrade --signature FILE.sig")
		}
	}
	return nil
}
