package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPlaces(t *testing.T) {
	data := os.Getenv("ProgramData")
	if want := filepath.Join(data, "fleet"); data == "" || DefaultDataDir != want {
		t.Errorf("data directory %s, want %s", DefaultDataDir, want)
	}
	t.Setenv("ProgramData", `C:\elsewhere`)
	if got := programData(); got != data {
		t.Errorf("whoever starts the program moves its data to %s", got)
	}
	c, err := Load(Sources{})
	if err != nil || c.Socket != DefaultSocket || c.Validate() != nil {
		t.Errorf("the defaults: socket %s, %v, %v", c.Socket, err, c.Validate())
	}
}
