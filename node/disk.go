package node

import (
	"context"
	"os"
	"time"

	"fleet/node/blob"
	"fleet/node/disk"
)

// trimEvery is how often it is looked whether the outputs have less room than
// they take: the journal may have grown, the disk have been filled by others.
const trimEvery = time.Minute

// blobRoom is the outputs' share of the disk.
type blobRoom struct{ *disk.Budget }

const blobPart = "outputs"

func (b blobRoom) Room(used int64) int64 { return b.Budget.Room(blobPart, used) }

// openBlobs opens the account of the disk and the store that lives within it.
func (n *Node) openBlobs() (err error) {
	n.disk = disk.New(n.dir.Path(), n.cfg.DiskBudget, n.cfg.Now)
	journal := n.dir.File("journal")
	n.disk.Part("journal", func() int64 {
		// Of the file, not of the Journal: that is locked while it syncs, and
		// outputs must not wait for it.
		info, err := os.Stat(journal)
		if err != nil {
			return 0
		}
		return info.Size()
	})
	if n.blobs, err = blob.OpenIn(n.dir.File("blob"), blobRoom{n.disk}); err != nil {
		return err
	}
	n.disk.Part(blobPart, n.blobs.Used)
	return nil
}

// runDisk keeps the outputs within their room.
func (n *Node) runDisk(ctx context.Context) error {
	ticker := time.NewTicker(trimEvery)
	defer ticker.Stop()
	for {
		if err := n.blobs.Trim(); err != nil {
			n.log.Warn("outputs not given up for room", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
