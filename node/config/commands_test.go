package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLimitsOfCommands(t *testing.T) {
	const host = 1000 << 20
	tests := []struct {
		name                   string
		processes, memory, cpu string
		want                   Limits
		bad                    string
	}{
		{name: "default", processes: "4096", memory: "80%", cpu: "none", want: Limits{Processes: 4096, Memory: 800 << 20}},
		{name: "none", processes: "none", memory: "none", cpu: "none"},
		{name: "numbers", processes: "16", memory: "16777216", cpu: "0.5", want: Limits{Processes: 16, Memory: 16 << 20, CPU: 0.5}},
		{name: "units", processes: "16", memory: "2G", cpu: "4", want: Limits{Processes: 16, Memory: 2 << 30, CPU: 4}},
		{name: "K", processes: "16", memory: "20480K", cpu: "4", want: Limits{Processes: 16, Memory: 20 << 20, CPU: 4}},
		{name: "T", processes: "16", memory: "1T", cpu: "4", want: Limits{Processes: 16, Memory: 1 << 40, CPU: 4}},
		{name: "too few processes", processes: "15", memory: "none", cpu: "none", bad: "max-processes"},
		{name: "negative", processes: "-1", memory: "none", cpu: "none", bad: "max-processes"},
		{name: "empty", processes: "", memory: "none", cpu: "none", bad: "max-processes"},
		{name: "share of nothing", processes: "none", memory: "0%", cpu: "none", bad: "max-memory"},
		{name: "share of more", processes: "none", memory: "101%", cpu: "none", bad: "max-memory"},
		{name: "little memory", processes: "none", memory: "1M", cpu: "none", bad: "max-memory"},
		{name: "unit of nothing", processes: "none", memory: "G", cpu: "none", bad: "max-memory"},
		{name: "too much memory", processes: "none", memory: "9999999999T", cpu: "none", bad: "max-memory"},
		{name: "two units", processes: "none", memory: "2GG", cpu: "none", bad: "max-memory"},
		{name: "no CPU", processes: "none", memory: "none", cpu: "0", bad: "max-cpu"},
		{name: "not a number", processes: "none", memory: "none", cpu: "NaN", bad: "max-cpu"},
		{name: "infinite", processes: "none", memory: "none", cpu: "Inf", bad: "max-cpu"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := Default()
			c.Commands = Commands{test.processes, test.memory, test.cpu}
			got, err := c.Limits(host)
			switch {
			case test.bad == "" && (err != nil || got != test.want || c.Validate() != nil):
				t.Errorf("got %+v, %v, %v, want %+v", got, err, c.Validate(), test.want)
			case test.bad != "" && (err == nil || !strings.Contains(err.Error(), test.bad) || c.Validate() == nil):
				t.Errorf("got %+v, %v and %v, want a problem with %s", got, err, c.Validate(), test.bad)
			}
		})
	}
}

func TestLimitsOfCommandsInAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fleet.yaml")
	text := "version: 1\ncommands:\n  max-processes: 500\n  max-memory: 2G\n  max-cpu: 1.5\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Sources{File: path, FileRequired: true, Getenv: func(k string) string {
		return map[string]string{"FLEET_COMMANDS_MAX_MEMORY": "none"}[k]
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Limits(1 << 30); err != nil || got != (Limits{Processes: 500, CPU: 1.5}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if got := c.Source("commands.max-cpu"); got != path {
		t.Errorf("source %q", got)
	}
}
