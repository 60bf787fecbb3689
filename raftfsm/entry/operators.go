package entry

import (
	"regexp"

	"fleet/node/fleet"
)

// CreateOperator lets a person or program sign requests. Its request is a
// CreateOperatorV1.
type CreateOperator struct{ Authority }

// Kind is KindCreateOperator.
func (*CreateOperator) Kind() Kind { return KindCreateOperator }

// Check accepts the form.
func (e *CreateOperator) Check() error { return e.check(false) }

// DeleteOperator ends an operator's rights. Its request is a
// DeleteOperatorV1.
type DeleteOperator struct{ Authority }

// Kind is KindDeleteOperator.
func (*DeleteOperator) Kind() Kind { return KindDeleteOperator }

// Check accepts the form.
func (e *DeleteOperator) Check() error { return e.check(false) }

// Limits of operators.
const (
	MaxMay       = 100  // operations that a row names
	MaxOperators = 1000 // who may sign, in one fleet
)

// AllOperations is the word in an operator's row that stands for every
// operation, those of later releases included.
const AllOperations = "*"

// The form of an operation's name. Which names there are changes with releases
// and is not for Apply to know.
var operationPattern = regexp.MustCompile(`^[A-Z][A-Za-z0-9]{2,63}$`)

// CreateOperatorV1 is the signed request for an operator.
type CreateOperatorV1 struct {
	Name      string   `json:"Name"`
	PublicKey string   `json:"PublicKey"` // Ed25519, standard base64
	May       []string `json:"May"`       // names of operations, or "*" alone
}

// ParseCreateOperator reads the request of a CreateOperator.
func ParseCreateOperator(b []byte) (*CreateOperatorV1, error) { return parse[CreateOperatorV1](b) }

func (r *CreateOperatorV1) check() error {
	if _, err := fleet.ParseOperatorName(r.Name); err != nil {
		return invalidf(validation, "%v", err)
	}
	key, err := decodeKey(r.PublicKey)
	if err != nil {
		return err
	}
	if key.IsZero() {
		return invalidf(validation, "PublicKey is no key")
	}
	if len(r.May) == 0 || len(r.May) > MaxMay {
		return invalidf(validation, "May names %d operations; 1 to %d are needed", len(r.May), MaxMay)
	}
	seen := map[string]bool{}
	for _, word := range r.May {
		switch {
		case word == AllOperations && len(r.May) > 1:
			return invalidf(validation, "May has * and other words: * is all of them")
		case word != AllOperations && !operationPattern.MatchString(word):
			return invalidf(validation, "May: %.80q is not the name of an operation", word)
		case seen[word]:
			return invalidf(validation, "May names %s twice", word)
		}
		seen[word] = true
	}
	return nil
}

// Key is the operator's key. It is zero unless the request was parsed.
func (r *CreateOperatorV1) Key() fleet.PublicKey {
	key, err := decodeKey(r.PublicKey)
	if err != nil {
		return fleet.PublicKey{}
	}
	return key
}

// DeleteOperatorV1 is the signed request to end an operator's rights.
type DeleteOperatorV1 struct {
	Name string `json:"Name"`
}

// ParseDeleteOperator reads the request of a DeleteOperator.
func ParseDeleteOperator(b []byte) (*DeleteOperatorV1, error) { return parse[DeleteOperatorV1](b) }

func (r *DeleteOperatorV1) check() error {
	if _, err := fleet.ParseOperatorName(r.Name); err != nil {
		return invalidf(validation, "%v", err)
	}
	return nil
}
