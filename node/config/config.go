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
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"fleet/node/fleet"
)

// Version is the version of the file's format.
const Version = 1

// Places that are used unless another is said.
const (
	DefaultFile    = "/etc/fleet/fleet.yaml"
	DefaultDataDir = "/var/lib/fleet"
	DefaultSocket  = "/run/fleet/fleet.sock"
	DefaultListen  = ":7790"
)

const (
	maxFile       = 64 << 10
	maxSocketPath = 107 // sun_path, less its zero byte
)

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

	// Socket is the path of the local socket; "" is /run/fleet/fleet.sock for
	// the default data directory and fleet.sock inside any other.
	Socket string `yaml:"socket,omitempty"`

	// Log is what is logged and how.
	Log Log `yaml:"log"`

	// Commands is what each command of this host may use.
	Commands Commands `yaml:"commands"`

	sources map[string]string // by key
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
		Commands: Commands{MaxProcesses: "4096", MaxMemory: "80%", MaxCPU: None},
		sources:  map[string]string{},
	}
}

// setting is one value: where it can come from and when it is right.
type setting struct {
	key   string // in the file, dotted
	flag  string // "" has none
	env   string
	field func(*Config) *string
	check func(value string) error
}

var settings = []setting{
	{"name", "node-name", "FLEET_NAME", func(c *Config) *string { return &c.Name }, optional(fleet.CheckNodeName)},
	{"listen", "listen", "FLEET_LISTEN", func(c *Config) *string { return &c.Listen }, checkListen},
	{"advertise", "advertise", "FLEET_ADVERTISE", func(c *Config) *string { return &c.Advertise }, optional(checkAdvertise)},
	{"data-dir", "data-dir", "FLEET_DATA_DIR", func(c *Config) *string { return &c.DataDir }, checkPath},
	{"socket", "socket", "FLEET_SOCKET", func(c *Config) *string { return &c.Socket }, checkSocket},
	{"log.level", "log-level", "FLEET_LOG_LEVEL", func(c *Config) *string { return &c.Log.Level },
		oneOf("debug", "info", "warn", "error")},
	{"log.format", "log-format", "FLEET_LOG_FORMAT", func(c *Config) *string { return &c.Log.Format }, oneOf("text", "json")},
	{"commands.max-processes", "", "FLEET_COMMANDS_MAX_PROCESSES", func(c *Config) *string { return &c.Commands.MaxProcesses },
		checked(parseProcesses)},
	{"commands.max-memory", "", "FLEET_COMMANDS_MAX_MEMORY", func(c *Config) *string { return &c.Commands.MaxMemory },
		checked(func(v string) (uint64, error) { return parseMemory(v, 1<<40) })},
	{"commands.max-cpu", "", "FLEET_COMMANDS_MAX_CPU", func(c *Config) *string { return &c.Commands.MaxCPU }, checked(parseCPU)},
}

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
		c.sources["socket"] = "from data-dir"
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

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

// merge decodes a file over the defaults. name is for messages.
func (c *Config) merge(b []byte, name string) error {
	if len(b) > maxFile {
		return fleet.Errorf(fleet.TooLarge, "configuration file %s: over %d bytes", name, maxFile)
	}
	before := *c
	c.Version = 0
	dec := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict())
	err := dec.Decode(c)
	if errors.Is(err, io.EOF) {
		err = errors.New("it is empty")
	}
	if err != nil {
		return fleet.Errorf(fleet.Invalid, "configuration file %s: %s", name,
			strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	if c.Version != Version {
		return fleet.Errorf(fleet.Invalid, "configuration file %s: version is %d, this program reads version %d", name, c.Version,
			Version).
			WithHint("write \"version: %d\" in its first line", Version)
	}
	for _, set := range settings {
		if *set.field(c) != *set.field(&before) {
			c.sources[set.key] = name
		}
	}
	return nil
}

// Source says where a value came from, by its key: a file, "FLEET_…", "--flag"
// or "default".
func (c *Config) Source(key string) string {
	if s, ok := c.sources[key]; ok {
		return s
	}
	return "default"
}

// Validate reports every value that is wrong, in one error of kind Invalid.
func (c *Config) Validate() error {
	var problems []string
	for _, set := range settings {
		if err := set.check(*set.field(c)); err != nil {
			problems = append(problems, fmt.Sprintf("%s (%s): %s", set.key, c.Source(set.key), err))
		}
	}
	switch len(problems) {
	case 0:
		return nil
	case 1:
		return fleet.Errorf(fleet.Invalid, "configuration: %s", problems[0])
	}
	return fleet.Errorf(fleet.Invalid, "configuration: %d problems:\n  %s", len(problems), strings.Join(problems, "\n  "))
}

// Encode writes the configuration as a file that Load reads.
func (c *Config) Encode() ([]byte, error) {
	b, err := yaml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return b, nil
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
		return fmt.Errorf("%.40q is none of %s", v, strings.Join(words, ", "))
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
