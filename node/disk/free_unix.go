//go:build linux || darwin

package disk

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Free asks the file system that dir is on.
func Free(dir string) (Space, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return Space{}, fmt.Errorf("free space of %s: %w", dir, err)
	}
	block := int64(s.Bsize) //nolint:unconvert // 32 bits on macOS
	return Space{
		Free: int64(s.Bavail) * block, Total: int64(s.Blocks) * block, Files: s.Files, FreeFiles: s.Ffree,
	}, nil
}
