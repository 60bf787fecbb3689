package quorum

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
)

// bbolt maps its file into memory and believes what stands there: an empty
// file is a new store, a damaged page is an assertion or a crash of the
// process, a cut file is a bus error, and of two meta pages the one that looks
// right wins, even if it is the older. checkBolt reads the file before bbolt
// does and refuses everything that bbolt did not write.

// Layout of a bbolt file, version 2. Numbers are in the host's byte order.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader  = 16 // id u64, flags u16, count u16, overflow u32
	elementSize = 16 // of a leaf: flags, position, key size, value size, u32 each; of a branch: position, key size u32, page u64
	metaSize    = 64 // magic, version, page size, flags u32; root page, sequence, free list, pages, commit, checksum u64

	branchPage = 0x01
	leafPage   = 0x02
	metaPage   = 0x04

	bucketElement = 0x01 // flag of a leaf's element whose value is a bucket

	bucketHeader = 16 // root page (0: the page follows here), sequence, u64 each
	noFreelist   = 1<<64 - 1
	minPageSize  = 512
	maxPageSize  = 64 << 10
	maxBoltDepth = 16
	maxBoltBytes = 1 << 40
)

var order = binary.NativeEndian

// boltBuckets are the ones that raft-boltdb keeps.
var boltBuckets = []string{"conf", "logs"}

type boltMeta struct {
	pageSize                      uint32
	root, freelist, pages, commit uint64
}

// boltFileReader walks one file.
type boltFileReader struct {
	file io.ReaderAt
	meta boltMeta
	seen []bool // pages that are part of the tree
}

// checkBolt reports what is wrong with a raft.db that nobody has open.
func checkBolt(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := checkBoltData(f, info.Size()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func checkBoltData(f io.ReaderAt, size int64) error {
	if size == 0 {
		return errors.New("the file is empty")
	}
	if size > maxBoltBytes {
		return fmt.Errorf("the file has %d bytes", size)
	}
	first, err := readMeta(f, 0, 0)
	if err != nil {
		return err
	}
	second, err := readMeta(f, int64(first.pageSize), 1)
	if err != nil {
		return err
	}
	if first.pageSize != second.pageSize {
		return errors.New("the two meta pages do not agree about the size of pages")
	}
	// Each commit writes the meta page that is its turn.
	r := &boltFileReader{file: f, meta: first}
	if second.commit > first.commit {
		r.meta = second
	}
	if first.commit%2 != 0 || second.commit%2 != 1 || max(first.commit, second.commit)-min(first.commit, second.commit) != 1 {
		return fmt.Errorf("the meta pages are of commits %d and %d: a commit between or after them is lost", first.commit, second.commit)
	}
	if r.meta.freelist != noFreelist {
		return errors.New("it has a free list, which this release does not write")
	}
	if r.meta.pages > uint64(size)/uint64(r.meta.pageSize) {
		return fmt.Errorf("the file is cut off: %d bytes where %d pages of %d belong", size, r.meta.pages, r.meta.pageSize)
	}
	r.seen = make([]bool, r.meta.pages)
	buckets := map[string][]byte{}
	if err := r.walk(r.meta.root, nil, nil, 0, func(flags uint32, key, value []byte) error {
		if flags != bucketElement {
			return fmt.Errorf("the root has a key %.20q that is no bucket", key)
		}
		buckets[string(key)] = bytes.Clone(value)
		return nil
	}); err != nil {
		return err
	}
	if len(buckets) != len(boltBuckets) {
		return fmt.Errorf("it has %d buckets where %d belong", len(buckets), len(boltBuckets))
	}
	for _, name := range boltBuckets {
		value, ok := buckets[name]
		if !ok {
			return fmt.Errorf("the bucket %s is missing", name)
		}
		if err := r.bucket(value); err != nil {
			return fmt.Errorf("bucket %s: %w", name, err)
		}
	}
	return nil
}

func readMeta(f io.ReaderAt, at int64, id uint64) (boltMeta, error) {
	b := make([]byte, pageHeader+metaSize)
	if _, err := f.ReadAt(b, at); err != nil {
		return boltMeta{}, fmt.Errorf("meta page %d: %w", id, err)
	}
	m := b[pageHeader:]
	meta := boltMeta{
		pageSize: order.Uint32(m[8:]), root: order.Uint64(m[16:]), freelist: order.Uint64(m[32:]),
		pages: order.Uint64(m[40:]), commit: order.Uint64(m[48:]),
	}
	switch {
	case order.Uint32(m) != boltMagic || order.Uint32(m[4:]) != boltVersion:
		return meta, fmt.Errorf("meta page %d is not one of a bbolt file of version %d", id, boltVersion)
	case order.Uint64(m[metaSize-8:]) != metaSum(m[:metaSize-8]):
		return meta, fmt.Errorf("meta page %d is damaged", id)
	case order.Uint64(b) != id || order.Uint16(b[8:]) != metaPage:
		return meta, fmt.Errorf("the header of meta page %d is damaged", id)
	case meta.pageSize < minPageSize || meta.pageSize > maxPageSize || meta.pageSize&(meta.pageSize-1) != 0:
		return meta, fmt.Errorf("meta page %d: pages of %d bytes", id, meta.pageSize)
	}
	return meta, nil
}

func metaSum(b []byte) uint64 {
	sum := fnv.New64a()
	_, _ = sum.Write(b) // never fails
	return sum.Sum64()
}

// bucket checks a bucket by the value of its element in the root.
func (r *boltFileReader) bucket(value []byte) error {
	if len(value) < bucketHeader {
		return errors.New("its header is cut off")
	}
	plain := func(flags uint32, _, _ []byte) error {
		if flags != 0 {
			return errors.New("it has an element that is no key")
		}
		return nil
	}
	root := order.Uint64(value)
	if root != 0 {
		if len(value) != bucketHeader {
			return errors.New("its header is too long")
		}
		return r.walk(root, nil, nil, 0, plain)
	}
	return r.page(value[bucketHeader:], 0, nil, nil, 0, len(value)-bucketHeader, plain) // small ones stand in the root's page
}

// onElement takes one element of a leaf. What it is given is only lent.
type onElement func(flags uint32, key, value []byte) error

// walk checks the tree below a page, whose keys must be at least low and below
// high (nil: no bound), and gives each element of its leaves to leaf.
func (r *boltFileReader) walk(id uint64, low, high []byte, depth int, leaf onElement) error {
	if depth > maxBoltDepth {
		return fmt.Errorf("page %d: the tree is deeper than %d", id, maxBoltDepth)
	}
	if id < 2 || id >= r.meta.pages {
		return fmt.Errorf("page %d is none of the %d pages", id, r.meta.pages)
	}
	head := make([]byte, pageHeader)
	if _, err := r.file.ReadAt(head, int64(id)*int64(r.meta.pageSize)); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	if got := order.Uint64(head); got != id {
		return fmt.Errorf("page %d says that it is page %d", id, got)
	}
	more := uint64(order.Uint32(head[12:]))
	if more >= r.meta.pages-id {
		return fmt.Errorf("page %d: it and %d more are over the %d pages", id, more, r.meta.pages)
	}
	for i := id; i <= id+more; i++ {
		if r.seen[i] {
			return fmt.Errorf("page %d is in the tree twice", i)
		}
		r.seen[i] = true
	}
	b := make([]byte, (more+1)*uint64(r.meta.pageSize))
	if _, err := r.file.ReadAt(b, int64(id)*int64(r.meta.pageSize)); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	if err := r.page(b, id, low, high, depth, 0, leaf); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// page checks one page with everything below it. bbolt packs keys and values
// behind the elements without a gap, so a wrong count or position shows. size
// is the exact number of bytes of an inline page; 0 for one of the file, which
// has as many pages as it needs and no more.
func (r *boltFileReader) page(b []byte, id uint64, low, high []byte, depth, size int, leaf onElement) error {
	if len(b) < pageHeader {
		return errors.New("the header is cut off")
	}
	flags, count := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	if flags != leafPage && (flags != branchPage || size != 0) {
		return fmt.Errorf("type %#x", flags)
	}
	if size != 0 && (order.Uint64(b) != id || order.Uint32(b[12:]) != 0) {
		return errors.New("the header of an inline page is damaged")
	}
	if flags == branchPage && count == 0 {
		return errors.New("an empty branch")
	}
	end := pageHeader + count*elementSize // of what is accounted for
	if end > len(b) {
		return fmt.Errorf("%d elements do not fit", count)
	}
	type child struct {
		key  []byte
		page uint64
	}
	var children []child
	var previous []byte
	for i := range count {
		at := pageHeader + i*elementSize
		e := b[at : at+elementSize]
		var elementFlags uint32
		var position, keySize, valueSize uint32
		var page uint64
		if flags == leafPage {
			elementFlags, position, keySize, valueSize = order.Uint32(e), order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
		} else {
			position, keySize, page = order.Uint32(e), order.Uint32(e[4:]), order.Uint64(e[8:])
		}
		if at+int(position) != end {
			return fmt.Errorf("element %d points to byte %d, not %d", i, at+int(position), end)
		}
		if uint64(end)+uint64(keySize)+uint64(valueSize) > uint64(len(b)) {
			return fmt.Errorf("element %d is longer than the page", i)
		}
		key := b[end : end+int(keySize)]
		end += int(keySize)
		value := b[end : end+int(valueSize)]
		end += int(valueSize)
		tooLow := i > 0 && bytes.Compare(key, previous) <= 0 || i == 0 && low != nil && bytes.Compare(key, low) < 0
		if tooLow || high != nil && bytes.Compare(key, high) >= 0 {
			return fmt.Errorf("key %d is out of order", i)
		}
		previous = key
		if flags == leafPage {
			if err := leaf(elementFlags, key, value); err != nil {
				return err
			}
			continue
		}
		children = append(children, child{slices.Clone(key), page})
	}
	switch {
	case size != 0 && end != size:
		return fmt.Errorf("an inline page of %d bytes uses %d", size, end)
	case size == 0 && (end+int(r.meta.pageSize)-1)/int(r.meta.pageSize) != len(b)/int(r.meta.pageSize):
		return fmt.Errorf("%d bytes in %d pages of %d", end, len(b)/int(r.meta.pageSize), r.meta.pageSize)
	}
	for i, c := range children {
		above := high
		if i+1 < len(children) {
			above = children[i+1].key
		}
		if err := r.walk(c.page, c.key, above, depth+1, leaf); err != nil {
			return err
		}
	}
	return nil
}
