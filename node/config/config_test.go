package config

import (
	"flag"
	"os"
	"path/filepath"
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

func TestGoldenFile(t *testing.T) {
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
		{"no version", "listen: :1\n", "version is 0"},
		{"version of another release", "version: 2\n", "version is 2"},
		{"unknown key", "version: 1\nlissten: :1\n", "lissten"},
		{"unknown key of a group", "version: 1\nlog:\n  color: red\n", "color"},
		{"key twice", "version: 1\nlisten: :1\nlisten: :2\n", "listen"},
		{"wrong type", "version: 1\nlog: loud\n", "[2:6]"},
		{"no YAML", "version: [1\n", "[1:10]"},
		{"empty", "", "it is empty"},
		{"a bad value names the file", "version: 1\nlisten: nowhere\n", "listen (FILE): \"nowhere\" is not host:port"},
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
	_, err := Load(Sources{Flags: map[string]string{
		"node-name": "-bad-", "listen": "7790", "advertise": "0.0.0.0:7790", "data-dir": "relative",
		"socket": "/" + strings.Repeat("s", 120), "log-level": "loud", "log-format": "xml",
	}})
	if err == nil {
		t.Fatal("no error")
	}
	golden(t, "problems.txt", []byte(err.Error()+"\n"))
}

func FuzzFile(f *testing.F) {
	f.Add([]byte("version: 1\nlisten: :7790\nlog:\n  level: info\n"))
	f.Add([]byte("a: &a [1]\nb: *a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := Default()
		if c.merge(b, "f") == nil {
			_ = c.Validate()
		}
	})
}
