package state

import (
	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// Nonce remembers that a proof was used, until the proof has expired by stamp.
type Nonce struct {
	Key      fleet.KeyID  `msgpack:"k"`
	Nonce    [16]byte     `msgpack:"n"`
	NotAfter int64        `msgpack:"a"`
	Kind     entry.Kind   `msgpack:"t"`
	Body     fleet.Digest `msgpack:"b"` // of the request
	Object   string       `msgpack:"o"` // ID of what the entry created or changed: the answer is read again from it
}

func nonceKey(key fleet.KeyID, nonce [16]byte) string { return string(key[:]) + string(nonce[:]) }

// Nonce is the record of a used proof; nil if it was not used or has expired.
func (v View) Nonce(key fleet.KeyID, nonce [16]byte) *Nonce {
	return first[Nonce](v, "nonces", "id", nonceKey(key, nonce))
}

// Nonces is all records of used proofs.
func (v View) Nonces() []*Nonce { return all[Nonce](v, "nonces", "id") }

// nonceCount bounds what one key can make the state remember.
type nonceCount struct {
	key fleet.KeyID
	n   int
}

// NonceCount is how many unexpired records a key has.
func (v View) NonceCount(key fleet.KeyID) int {
	if row := first[nonceCount](v, "noncecounts", "id", string(key[:])); row != nil {
		return row.n
	}
	return 0
}

// PutNonce adds a record that is not there yet.
func (t *Txn) PutNonce(n *Nonce) {
	t.put("nonces", n)
	t.put("noncecounts", &nonceCount{n.Key, t.NonceCount(n.Key) + 1})
}

// PruneNonces removes records whose proofs expired before stamp, at most limit.
func (t *Txn) PruneNonces(stamp int64, limit int) {
	it, err := t.txn.Get("nonces", "expiry")
	if err != nil {
		panic(err) // the schema is a constant of ours
	}
	var expired []*Nonce // an iterator does not survive a change of what it walks
	for row := it.Next(); row != nil && row.(*Nonce).NotAfter < stamp && len(expired) < limit; row = it.Next() {
		expired = append(expired, row.(*Nonce))
	}
	for _, n := range expired {
		t.remove("nonces", n)
		if left := t.NonceCount(n.Key) - 1; left > 0 {
			t.put("noncecounts", &nonceCount{n.Key, left})
		} else {
			t.remove("noncecounts", &nonceCount{n.Key, 0})
		}
	}
}

// Request is what somebody signed for an object: an operator for a command or
// an activation, a host for its own row. It is kept as long as the object, so
// that a restored snapshot can be checked against it.
type Request struct {
	Kind    entry.Kind `msgpack:"k"`
	Object  string     `msgpack:"o"`
	Stamp   int64      `msgpack:"s"` // of the entry, as applied
	Request []byte     `msgpack:"q"`
	Proof   []byte     `msgpack:"p"` // nil for what a host signed
}

func requestKey(kind entry.Kind, object string) string { return string([]byte{byte(kind)}) + object }

// Request is what was signed for an object by an entry of this kind; nil if
// nothing was.
func (v View) Request(kind entry.Kind, object string) *Request {
	return first[Request](v, "requests", "id", requestKey(kind, object))
}

// Requests is all of them, by kind and object.
func (v View) Requests() []*Request { return all[Request](v, "requests", "id") }

// PutRequest adds what was signed for an object.
func (t *Txn) PutRequest(r *Request) { t.put("requests", r) }

// DeleteRequest removes what was signed for an object.
func (t *Txn) DeleteRequest(r *Request) { t.remove("requests", r) }
