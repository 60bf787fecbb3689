package fleet

// CreateOperatorRequest lets a person or program sign requests.
type CreateOperatorRequest struct {
	Name      string   `json:"Name"`
	PublicKey []byte   `json:"PublicKey"` // Ed25519
	May       []string `json:"May"`       // names of operations, or "*" alone; nothing that the caller may not do
}

// CreateOperatorResult is the operator that was made.
type CreateOperatorResult struct {
	Operator OperatorView `json:"Operator"`
}

// DeleteOperatorRequest ends an operator's rights.
type DeleteOperatorRequest struct {
	Name string `json:"Name"`
}

// DeleteOperatorResult has no members.
type DeleteOperatorResult struct{}

// DescribeOperatorsRequest has no members.
type DescribeOperatorsRequest struct{}

// DescribeOperatorsResult is the operators by name, and those whose rights
// have ended.
type DescribeOperatorsResult struct {
	Operators []OperatorView `json:"Operators"`
	Former    []OperatorView `json:"Former,omitempty"`
}

// OperatorView is one operator.
type OperatorView struct {
	Name    OperatorName `json:"Name"`
	Keys    []string     `json:"Keys"` // as PublicKey.Text writes them
	May     []string     `json:"May"`
	Created Instant      `json:"Created"`
	Ended   Instant      `json:"Ended,omitempty"`
}
