//go:build linux || darwin

package private

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLoose(t *testing.T) {
	for mode, loose := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o604: true, 0o610: true} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if why, err := Loose(f); err != nil || (why != "") != loose {
			t.Errorf("mode %#o: %q, %v", mode, why, err)
		}
	}
}
