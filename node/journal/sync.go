//go:build !planted_nofsync

package journal

// syncLocked brings all that was written to the disk.
func (j *Journal) syncLocked() error { return j.hooks.Sync(j.f) }
