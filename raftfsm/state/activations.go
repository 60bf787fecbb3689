package state

import (
	"fleet/node/fleet"
)

// Activation is the activation of this ID; nil if there is none.
func (v View) Activation(id fleet.ActivationID) *fleet.Activation {
	return first[fleet.Activation](v, "activations", "id", string(id))
}

// Activations is all activations by ID.
func (v View) Activations() []*fleet.Activation {
	return all[fleet.Activation](v, "activations", "id")
}

// PutActivation adds or replaces an activation.
func (t *Txn) PutActivation(a *fleet.Activation) { t.put("activations", a) }

// DeleteActivation removes an activation, but not what was signed for it: the
// rows of its hosts rest on that.
func (t *Txn) DeleteActivation(a *fleet.Activation) { t.remove("activations", a) }
