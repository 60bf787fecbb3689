package runcmd

import (
	"sync"

	"fleet/node/document"
	"fleet/node/fleet"
)

// maxParsed is how many documents are kept parsed, each of 64 KiB of text at
// most.
const maxParsed = 8

// parsed keeps the documents that were read last. Each is read when it is
// delivered, to judge it, and again when its turn comes; most commands are of
// the same few documents. The zero value is ready for use.
type parsed struct {
	mu   sync.Mutex // guards what follows
	docs map[fleet.Digest]*document.Document
	age  []fleet.Digest // of docs, the oldest first
}

func (p *parsed) parse(content []byte) (*document.Document, error) {
	digest := fleet.Sum(content)
	p.mu.Lock()
	doc := p.docs[digest]
	p.mu.Unlock()
	if doc != nil {
		return doc, nil
	}
	doc, err := document.Parse(content)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.docs == nil {
		p.docs = map[fleet.Digest]*document.Document{}
	}
	if _, there := p.docs[digest]; there {
		return doc, nil // read twice at once
	}
	if len(p.age) == maxParsed {
		delete(p.docs, p.age[0])
		p.age = p.age[1:]
	}
	p.docs[digest], p.age = doc, append(p.age, digest)
	return doc, nil
}
