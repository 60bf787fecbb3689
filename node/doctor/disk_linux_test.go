package doctor_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"fleet/node/doctor"
)

// TestDataDirectory: what is too little room is what the agent refuses for.
func TestDataDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(dir string) []doctor.Finding {
		return examine(t, func(o *doctor.Options) { o.Config.DataDir = dir })
	}
	want(t, at(file), "", "data", doctor.Problem, "not a directory")
	want(t, at(filepath.Join(t.TempDir(), "not", "made", "yet")), "", "data", doctor.OK, "free")
	if os.Geteuid() != 0 {
		t.Skip("mounts file systems: needs root")
	}
	mount := func(flags uintptr, options string) string {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
			t.Skipf("no tmpfs here: %v", err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		return dir
	}
	want(t, at(mount(0, "size=4m")), "", "data", doctor.Problem, "DiskFull")
	want(t, at(mount(0, "size=64m")), "", "data", doctor.Warning, "are free")
	want(t, at(mount(syscall.MS_RDONLY, "size=512m")), "", "data", doctor.Problem, "read-only")
	want(t, at(mount(syscall.MS_NOEXEC, "size=512m")), "", "data", doctor.Warning, "noexec")
	want(t, at(mount(0, "size=512m")), "", "data", doctor.OK, "512 MiB free")
}
