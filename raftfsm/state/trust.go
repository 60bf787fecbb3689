package state

import (
	"fleet/node/fleet"
	"fleet/node/identity"
)

// Fleet is what genesis fixed for ever. The zero value is a fleet without
// genesis.
type Fleet struct {
	ID              fleet.ID
	Name            string
	Root            fleet.PublicKey
	RootCertificate []byte // DER
	Genesis         bool   // whether there was a genesis entry
	Signed          []byte // the genesis entry's payload, as the root key signed it
}

// Fleet is the fleet's fixed row.
func (v View) Fleet() Fleet {
	if f := first[Fleet](v, "fleet", "id", ""); f != nil {
		return *f
	}
	return Fleet{}
}

// PutFleet sets the fleet's fixed row.
func (t *Txn) PutFleet(f Fleet) { t.put("fleet", &f) }

type trustRow struct{ trust *identity.Trust }

// Trust is the newest trust.json; nil before genesis. Trust.Raw gives its
// bytes.
func (v View) Trust() *identity.Trust {
	if row := first[trustRow](v, "trust", "id", ""); row != nil {
		return row.trust
	}
	return nil
}

// WatchTrust is closed when there is a newer trust.json.
func (v View) WatchTrust() <-chan struct{} { return v.watch("trust") }

// PutTrust sets the newest trust.json.
func (t *Txn) PutTrust(trust *identity.Trust) { t.put("trust", &trustRow{trust}) }

type clockRow struct{ stamp int64 }

// LastStamp is the stamp of the last entry that changed something, Unix
// nanoseconds; zero before genesis. Stamps never fall.
func (v View) LastStamp() int64 {
	if row := first[clockRow](v, "clock", "id", ""); row != nil {
		return row.stamp
	}
	return 0
}

// SetStamp sets LastStamp.
func (t *Txn) SetStamp(stamp int64) { t.put("clock", &clockRow{stamp}) }

func operatorKeys(o *fleet.Operator) []string {
	keys := make([]string, 0, len(o.Keys))
	for _, k := range o.Keys {
		id := k.ID()
		keys = append(keys, string(id[:]))
	}
	return keys
}

// Operator is the operator of this name; nil if there is none.
func (v View) Operator(name fleet.OperatorName) *fleet.Operator {
	return first[fleet.Operator](v, "operators", "id", string(name))
}

// FindOperator is Operator with an error of kind Unauthenticated for who claims
// to be it.
func (v View) FindOperator(name fleet.OperatorName) (*fleet.Operator, error) {
	if o := v.Operator(name); o != nil {
		return o, nil
	}
	return nil, fleet.Errorf(fleet.Unauthenticated, "there is no operator %.80q in this fleet", string(name))
}

// OperatorByKey is an operator that has a key of this ID; nil if there is
// none. Compare the whole key before you trust it.
func (v View) OperatorByKey(key fleet.KeyID) *fleet.Operator {
	return first[fleet.Operator](v, "operators", "key", string(key[:]))
}

// Operators is all operators by name.
func (v View) Operators() []*fleet.Operator { return all[fleet.Operator](v, "operators", "id") }

// PutOperator adds or replaces an operator.
func (t *Txn) PutOperator(o *fleet.Operator) { t.put("operators", o) }
