// Package config reads what one host is told about itself: its port, its data
// directory, its log. Nothing here reaches the replicated state.
//
// A value comes from the first of: a flag, an environment variable, the file,
// the default. One table (settings) names each value once with its key, flag,
// variable and check, so that a new one cannot be forgotten in a source. After
// Load the configuration is read-only. All problems are reported at once, each
// with the name under which the reader set the value.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"fleet/node/fleet"
)

// Version is the version of the file's format.
const Version = 1

// DefaultListen is the address that is used unless another is said.
const DefaultListen = ":7790"

const maxFile = 64 << 10

// Config is the configuration of one host.
type Config struct {
	// Version is that of the file's format: 1.
	Version int `yaml:"version"`

	// Name is the host's name at enrolment; "" is the host name of the system.
	Name string `yaml:"name,omitempty"`

	// Listen is the address of the one port, TCP and UDP, as "host:port"; no
	// host is all addresses.
	Listen string `yaml:"listen"`

	// Advertise is the "ip:port" that others reach the port at; "" is found
	// from the route.
	Advertise string `yaml:"advertise,omitempty"`

	// DataDir holds keys, journal and replicated state.
	DataDir string `yaml:"data-dir"`

	// Socket is the path of the local socket; "" is DefaultSocket for
	// the default data directory and fleet.sock inside any other.
	Socket string `yaml:"socket,omitempty"`

	// Log is what is logged and how.
	Log Log `yaml:"log"`

	// Commands is what each command of this host may use.
	Commands Commands `yaml:"commands"`

	// DiskBudget is how much of the disk blobs, journal and recordings may take
	// in all, such as "1GiB"; blobs are given up for it, the oldest first.
	DiskBudget string `yaml:"disk-budget"`

	// Upgrade is what this host demands of a new program for its agent.
	Upgrade Upgrade `yaml:"upgrade,omitempty"`

	sources  map[string]string // by key
	lines    map[string]int    // of the file, by key
	file     string            // path of the file that was read; "" for none
	problems []problem         // of the file's form
}

// Log is what is logged and how.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn or error
	Format string `yaml:"format"` // text or json
}

// Default is the configuration without any source.
func Default() *Config {
	return &Config{
		Version: Version,
		Listen:  DefaultListen,
		DataDir: DefaultDataDir,
		Log:     Log{Level: "info", Format: "text"},
		// A fork bomb and a leak are stopped before the host is; the build of a
		// package, which needs hundreds of processes, is not.
		Commands:   Commands{MaxProcesses: "4096", MaxMemory: "80%", MaxCPU: None},
		DiskBudget: "1GiB",
		sources:    map[string]string{}, lines: map[string]int{},
	}
}

// setting is one value: where it can come from and when it is right.
type setting struct {
	key     string // in the file, dotted
	flag    string // "" has none
	env     string
	field   func(*Config) *string
	check   func(value string) error
	allowed string // for people: what check lets pass
}

var settings = []setting{
	{"name", "node-name", "FLEET_NAME", func(c *Config) *string { return &c.Name }, optional(fleet.CheckNodeName),
		"a host name, at most 253 characters"},
	{"listen", "listen", "FLEET_LISTEN", func(c *Config) *string { return &c.Listen }, checkListen,
		"IP:PORT, or :PORT for all addresses"},
	{"advertise", "advertise", "FLEET_ADVERTISE", func(c *Config) *string { return &c.Advertise }, optional(checkAdvertise),
		"IP:PORT where others reach this host"},
	{"data-dir", "data-dir", "FLEET_DATA_DIR", func(c *Config) *string { return &c.DataDir }, checkPath, "an absolute path"},
	{"socket", "socket", "FLEET_SOCKET", func(c *Config) *string { return &c.Socket }, checkSocket,
		"an absolute path of at most 107 bytes"},
	{"log.level", "log-level", "FLEET_LOG_LEVEL", func(c *Config) *string { return &c.Log.Level },
		oneOf("debug", "info", "warn", "error"), "debug, info, warn or error"},
	{"log.format", "log-format", "FLEET_LOG_FORMAT", func(c *Config) *string { return &c.Log.Format }, oneOf("text", "json"),
		"text or json"},
	{"commands.max-processes", "", "FLEET_COMMANDS_MAX_PROCESSES", func(c *Config) *string { return &c.Commands.MaxProcesses },
		checked(parseProcesses), "a number of processes, or none"},
	{"commands.max-memory", "", "FLEET_COMMANDS_MAX_MEMORY", func(c *Config) *string { return &c.Commands.MaxMemory },
		checked(func(v string) (uint64, error) { return parseMemory(v, 1<<40) }), "a size, a part of the host's memory such as 80%, or none"},
	{"commands.max-cpu", "", "FLEET_COMMANDS_MAX_CPU", func(c *Config) *string { return &c.Commands.MaxCPU }, checked(parseCPU),
		"a number of processors such as 1.5, or none"},
	{"upgrade.signers", "", "FLEET_UPGRADE_SIGNERS", func(c *Config) *string { return &c.Upgrade.Signers }, checked(parseSigners),
		"public keys of operators, ed25519:..., separated by commas"},
	{"disk-budget", "disk-budget", "FLEET_DISK_BUDGET", func(c *Config) *string { return &c.DiskBudget }, checkBudget,
		"64MiB to 16TiB"},
}

// fromDataDir is the source of a socket that nobody named.
const fromDataDir = "from data-dir"

// Sources is where Load looks.
type Sources struct {
	// File is the path of the configuration file. One that does not exist is
	// an error only when FileRequired.
	File         string
	FileRequired bool

	// Getenv looks up an environment variable.
	Getenv func(string) string

	// Flags are the flags that were given, by name.
	Flags map[string]string
}

// Load reads all sources and validates the result.
func Load(s Sources) (*Config, error) {
	c, err := Read(s)
	if err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// Read reads all sources, for who wants to see the values that Validate would
// refuse. Its error is of a source that cannot be read at all.
func Read(s Sources) (*Config, error) {
	c := Default()
	if s.File != "" {
		b, err := readFile(s.File)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !s.FileRequired:
		case err != nil:
			return nil, fleet.Errorf(fleet.Invalid, "configuration file %s: %w", s.File, err)
		default:
			if err := c.merge(b, s.File); err != nil {
				return nil, err
			}
		}
	}
	for _, set := range settings {
		if s.Getenv != nil {
			if v := s.Getenv(set.env); v != "" {
				*set.field(c) = v
				c.sources[set.key] = set.env
			}
		}
		if v, ok := s.Flags[set.flag]; ok && set.flag != "" {
			*set.field(c) = v
			c.sources[set.key] = "--" + set.flag
		}
	}
	if c.Socket == "" {
		c.Socket = DefaultSocket
		if filepath.Clean(c.DataDir) != DefaultDataDir {
			c.Socket = filepath.Join(c.DataDir, "fleet.sock")
		}
		c.sources["socket"] = fromDataDir
	}
	return c, nil
}

// File is the configuration file that was read; "" for none.
func (c *Config) File() string { return c.file }

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%d bytes is over the limit of %d", info.Size(), maxFile)
	}
	return os.ReadFile(path)
}

// Source says where a value came from, by its key: a file, "FLEET_…", "--flag"
// or "default".
func (c *Config) Source(key string) string {
	if s, ok := c.sources[key]; ok {
		return s
	}
	return "default"
}

// Validate reports everything that is wrong, in one error of kind Invalid: what
// stands in the file by line, then what came from elsewhere.
func (c *Config) Validate() error {
	problems := c.found()
	if len(problems) == 0 {
		return nil
	}
	var texts []string
	elsewhere := false
	for _, p := range problems {
		texts = append(texts, p.text)
		elsewhere = elsewhere || p.line == 0
	}
	where := "configuration"
	if !elsewhere || len(c.problems) > 0 {
		where = "configuration file " + c.file
	}
	if len(texts) == 1 {
		return fleet.Errorf(fleet.Invalid, "%s: %s", where, texts[0])
	}
	return fleet.Errorf(fleet.Invalid, "%s: %d problems:\n  %s", where, len(texts), strings.Join(texts, "\n  "))
}

// found is everything that is wrong, in the order of the file.
func (c *Config) found() []problem {
	problems := slices.Clone(c.problems)
	for _, set := range settings {
		err := set.check(*set.field(c))
		if err == nil {
			continue
		}
		p := problem{text: fmt.Sprintf("%s (%s): %s; allowed is %s", set.key, c.Source(set.key), err, set.allowed)}
		if c.Source(set.key) == c.file && c.file != "" {
			p.line = c.lines[set.key]
			p.text = fmt.Sprintf("line %d: %s: %s; allowed is %s", p.line, set.key, err, set.allowed)
		}
		problems = append(problems, p)
	}
	sortProblems(problems)
	return problems
}

// Problems is everything that is wrong, a line each; Validate says it as an
// error.
func (c *Config) Problems() []string {
	texts := []string{}
	for _, p := range c.found() {
		texts = append(texts, p.text)
	}
	return texts
}

func optional(check func(string) error) func(string) error {
	return func(v string) error {
		if v == "" {
			return nil
		}
		return check(v)
	}
}

func oneOf(words ...string) func(string) error {
	return func(v string) error {
		for _, w := range words {
			if v == w {
				return nil
			}
		}
		return fmt.Errorf("%.40q is unknown", v)
	}
}

func splitAddress(v string) (string, error) {
	host, port, err := net.SplitHostPort(v)
	if err != nil {
		return "", fmt.Errorf("%.80q is not host:port", v)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%.80q: the port is not a number from 1 to 65535", v)
	}
	return host, nil
}

func checkListen(v string) error {
	host, err := splitAddress(v)
	if err != nil {
		return err
	}
	if host != "" && net.ParseIP(strings.SplitN(host, "%", 2)[0]) == nil {
		return fmt.Errorf("%.80q: the host is not an IP address; leave it empty for all addresses", v)
	}
	return nil
}

func checkAdvertise(v string) error {
	// Node records carry numbers: a name that moved would be a record that lies.
	addr, err := netip.ParseAddrPort(v)
	if err != nil || addr.Port() == 0 || addr.Addr().Zone() != "" {
		return fmt.Errorf("%.80q is not IP:PORT", v)
	}
	if addr.Addr().IsUnspecified() {
		return fmt.Errorf("%.80q names no host that others can reach", v)
	}
	return nil
}

func checkPath(v string) error {
	if !filepath.IsAbs(v) {
		return fmt.Errorf("%.200q is not an absolute path", v)
	}
	return nil
}

func checkSocket(v string) error {
	if v == "" {
		return nil
	}
	if err := checkPath(v); err != nil {
		return err
	}
	if len(v) > maxSocketPath {
		return fmt.Errorf("the path has %d bytes, a socket's at most %d", len(v), maxSocketPath)
	}
	return nil
}

// Bounds of the disk budget: below, the journal and a few outputs find no room.
const (
	minBudget = 64 << 20
	maxBudget = 16 << 40
)

func checkBudget(v string) error {
	n, err := parseSize(v)
	if err != nil {
		return err
	}
	if n < minBudget || n > maxBudget {
		return fmt.Errorf("%.40q is out of range", v)
	}
	return nil
}

// Budget is DiskBudget in bytes.
func (c *Config) Budget() int64 {
	n, err := parseSize(c.DiskBudget)
	if err != nil {
		n, _ = parseSize(Default().DiskBudget) // not after Validate
	}
	return n
}

// parseSize reads a number of bytes with one of the units below, or none.
func parseSize(v string) (int64, error) {
	units := []struct {
		name string
		size int64
	}{
		{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
		{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"B", 1}, {"", 1},
	}
	for _, u := range units {
		digits, ok := strings.CutSuffix(v, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > maxBudget/u.size {
			return 0, fmt.Errorf("%.40q is not a size such as 500MiB or 2GiB", v)
		}
		return n * u.size, nil
	}
	return 0, fmt.Errorf("%.40q is not a size such as 500MiB or 2GiB", v)
}
