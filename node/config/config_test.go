package config

import (
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"fleet/node/fleet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// linuxPlaces skips a test whose files have the places of Linux in them.
func linuxPlaces(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("its files have the places of Linux in them")
	}
}

func TestGoldenFile(t *testing.T) {
	linuxPlaces(t)
	full := Default()
	full.Name, full.Advertise, full.Socket = "web-1.example.net", "192.0.2.7:7790", "/run/fleet/other.sock"
	for name, c := range map[string]*Config{"default.yaml": Default(), "full.yaml": full} {
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, b)
		back, err := Load(Sources{File: filepath.Join("testdata", name), FileRequired: true})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if back.Listen != c.Listen || back.Name != c.Name || back.Advertise != c.Advertise || back.Log != c.Log {
			t.Errorf("%s: read back %+v, wrote %+v", name, back, c)
		}
	}
}

func TestPrecedence(t *testing.T) {
	linuxPlaces(t)
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	text := "version: 1\nlisten: 10.0.0.1:1111\nadvertise: 10.0.0.2:1111\nlog:\n  level: warn\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"FLEET_ADVERTISE": "10.0.0.3:2222", "FLEET_LOG_LEVEL": "error"}
	c, err := Load(Sources{
		File: file, FileRequired: true,
		Getenv: func(k string) string { return env[k] },
		Flags:  map[string]string{"log-level": "debug", "data-dir": "/srv/fleet"},
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ key, got, want, source string }{
		{"listen", c.Listen, "10.0.0.1:1111", file},
		{"advertise", c.Advertise, "10.0.0.3:2222", "FLEET_ADVERTISE"},
		{"log.level", c.Log.Level, "debug", "--log-level"},
		{"log.format", c.Log.Format, "text", "default"},
		{"data-dir", c.DataDir, "/srv/fleet", "--data-dir"},
		{"socket", c.Socket, "/srv/fleet/fleet.sock", "from data-dir"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.key, tt.got, tt.want)
		}
		if got := c.Source(tt.key); got != tt.source {
			t.Errorf("%s: source %q, want %q", tt.key, got, tt.source)
		}
	}
}

func TestSocketOfDefaultDataDir(t *testing.T) {
	c, err := Load(Sources{Flags: map[string]string{"data-dir": DefaultDataDir + "/"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Socket != DefaultSocket {
		t.Errorf("got %s, want %s", c.Socket, DefaultSocket)
	}
}

func TestRefusedFiles(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"no version", "listen: :1\n", "line 1: version is missing"},
		{"version of another release", "version: 2\n", "version is 2"},
		{"unknown key", "version: 1\nlissten: :1\n", "lissten"},
		{"unknown key of a group", "version: 1\nlog:\n  color: red\n", "color"},
		{"key twice", "version: 1\nlisten: :1\nlisten: :2\n", "listen"},
		{"wrong type", "version: 1\nlog: loud\n", "line 2: log is a group"},
		{"no YAML", "version: [1\n", "[1:10]"},
		{"empty", "", "it is empty"},
		{"a list", "version: 1\nlisten: [a]\n", "line 2: listen is a list; allowed is IP:PORT"},
		{"a group too many", "version: 1\nlog:\n  level:\n    x: y\n", "line 3: log.level is a group of values; allowed is debug"},
		{"nothing", "version: 1\nlisten:\n", "line 2: listen is empty"},
		{"an alias", "version: 1\nlisten: &a :1\nadvertise: *a\n", "line 3: advertise is an anchor, alias or tag"},
		{"no mapping", "- a\n", "\"key: value\" is expected"},
		{"a bad value names the file", "version: 1\nlisten: nowhere\n", "configuration file FILE: line 2: listen: \"nowhere\" is not host:port"},
		{"too large", "version: 1\n#" + strings.Repeat("x", maxFile), "over the limit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "fleet.yaml")
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(Sources{File: file})
			want := strings.ReplaceAll(tt.want, "FILE", file)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v, want an error with %q", err, want)
			}
			if got := fleet.KindOf(err); got != fleet.Invalid {
				t.Errorf("kind: got %v, want invalid", got)
			}
		})
	}
}

// Whoever mends a file wants all that is wrong with it, with its place.
func TestFileNamesAllProblems(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	text := `version: 3
listne: :7790
data_dir: /srv
listen: nowhere
listen: :7791
log:
  level: loud
  colour: red
advertise:
  - 10.0.0.1:7790
level: info
disk-budget: 1KiB
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(Sources{File: file, Flags: map[string]string{"socket": "relative"}})
	if err == nil {
		t.Fatal("no error")
	}
	golden(t, "file-problems.txt", []byte(strings.ReplaceAll(err.Error(), file, "FILE")+"\n"))
}

func TestEncodeChanges(t *testing.T) {
	linuxPlaces(t)
	if b := Default().EncodeChanges(); b != nil {
		t.Errorf("the defaults: got %q, want nothing", b)
	}
	c, err := Load(Sources{Flags: map[string]string{
		"node-name": "web1", "data-dir": `/srv/a "b"`, "log-level": "debug", "log-format": "json", "disk-budget": "2GiB", "advertise": "[2001:db8::1]:7790",
	}})
	if err != nil {
		t.Fatal(err)
	}
	b := c.EncodeChanges()
	golden(t, "changes.yaml", b)
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	back, err := Load(Sources{File: file, FileRequired: true})
	if err != nil {
		t.Fatal(err)
	}
	if d := c.Differences(back); len(d) != 0 {
		t.Errorf("read back: %+v", d)
	}
	if back.Budget() != 2<<30 || back.Socket != c.Socket {
		t.Errorf("read back: budget %d, socket %s", back.Budget(), back.Socket)
	}
	other, err := Load(Sources{})
	if err != nil {
		t.Fatal(err)
	}
	d := c.Differences(other)
	if len(d) != 5 || d[0].Key != "advertise" || d[0].Source != "--advertise" || d[0].OtherDeclares {
		t.Errorf("differences from the defaults: %+v", d)
	}
}

func TestValues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(file, []byte("version: 1\n\nlog:\n  level: warn\nlisten: \":7790\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Sources{File: file, Flags: map[string]string{"log-format": "json"}})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Value{}
	for _, v := range c.Values() {
		got[v.Key] = v
		if v.Allowed == "" || v.Flag == "--" || !strings.HasPrefix(v.Env, "FLEET_") {
			t.Errorf("%+v is not complete", v)
		}
	}
	if v := got["log.level"]; v.Source != file || v.Line != 4 || v.Value != "warn" {
		t.Errorf("log.level: %+v", v)
	}
	// What the file says counts as said, also when it is the default.
	if v := got["listen"]; v.Source != file || v.Line != 5 {
		t.Errorf("listen: %+v", v)
	}
	if v := got["log.format"]; v.Source != "--log-format" || v.Line != 0 {
		t.Errorf("log.format: %+v", v)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"64MiB": 64 << 20, "1 GiB": 1 << 30, "2G": 2 << 30, "123456789": 123456789, "1TiB": 1 << 40} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "1.5GiB", "9999999TiB", "1gib", "99999999999999999999"} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("%q: got %d, want an error", text, n)
		}
	}
}

func TestAbsentFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := Load(Sources{File: path}); err != nil {
		t.Errorf("a file that need not be there: %v", err)
	}
	if _, err := Load(Sources{File: path, FileRequired: true}); err == nil {
		t.Error("a file that must be there: no error")
	}
}

func TestValidateNamesAllProblems(t *testing.T) {
	linuxPlaces(t)
	_, err := Load(Sources{Flags: map[string]string{
		"node-name": "-bad-", "listen": "7790", "advertise": "0.0.0.0:7790", "data-dir": "relative",
		"socket": "/" + strings.Repeat("s", 120), "log-level": "loud", "log-format": "xml", "disk-budget": "1MB",
	}})
	if err == nil {
		t.Fatal("no error")
	}
	golden(t, "problems.txt", []byte(err.Error()+"\n"))
}

func FuzzFile(f *testing.F) {
	f.Add([]byte("version: 1\nlisten: :7790\nlog:\n  level: info\n"))
	f.Add([]byte("a: &a [1]\nb: *a\n"))
	f.Add([]byte("version: 1\nlog: {level: info, format: [x]}\n? a\n: b\n--- \n- |\n x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := Default()
		if c.merge(b, "f") == nil {
			_ = c.Validate()
		}
	})
}
