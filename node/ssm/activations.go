package ssm

// CreateActivationRequest makes a permission to enrol hosts.
type CreateActivationRequest struct {
	Description         string `json:"Description,omitempty"`         // at most 256
	DefaultInstanceName string `json:"DefaultInstanceName,omitempty"` // at most 256; for hosts that give no name
	RegistrationLimit   int    `json:"RegistrationLimit,omitempty"`   // 1 to 1000, default 1
	ExpirationDate      Time   `json:"ExpirationDate,omitempty"`      // at most 30 days ahead, default 24 hours
	Tags                []Tag  `json:"Tags,omitempty"`

	// PublicKey is ours: the Ed25519 key whose seed is the code. The caller
	// makes the code, so it never travels.
	PublicKey []byte `json:"PublicKey,omitempty"`

	// Replaces is ours: the ID of a node whose place the host takes.
	Replaces string `json:"Replaces,omitempty"`
}

// CreateActivationResult names the activation.
type CreateActivationResult struct {
	ActivationId   string `json:"ActivationId"`
	ActivationCode string `json:"ActivationCode,omitempty"` // empty when the caller made the code
}

// DeleteActivationRequest ends an activation; hosts that enrolled with it stay.
type DeleteActivationRequest struct {
	ActivationId string `json:"ActivationId"`
}

// DeleteActivationResult is empty.
type DeleteActivationResult struct{}

// DescribeActivationsFilter keys: ActivationIds, DefaultInstanceName.
type DescribeActivationsFilter struct {
	FilterKey    string   `json:"FilterKey"`
	FilterValues []string `json:"FilterValues"`
}

// DescribeActivationsRequest asks for a page of activations.
type DescribeActivationsRequest struct {
	Filters    []DescribeActivationsFilter `json:"Filters,omitempty"`
	MaxResults int                         `json:"MaxResults,omitempty"` // 1 to 50
	NextToken  string                      `json:"NextToken,omitempty"`
}

// DescribeActivationsResult is a page of activations.
type DescribeActivationsResult struct {
	ActivationList []Activation `json:"ActivationList"`
	NextToken      string       `json:"NextToken,omitempty"`
}

// Activation is one activation.
type Activation struct {
	ActivationId        string `json:"ActivationId"`
	Description         string `json:"Description,omitempty"`
	DefaultInstanceName string `json:"DefaultInstanceName,omitempty"`
	RegistrationLimit   int    `json:"RegistrationLimit"`
	RegistrationsCount  int    `json:"RegistrationsCount"`
	ExpirationDate      Time   `json:"ExpirationDate"`
	Expired             bool   `json:"Expired"`
	CreatedDate         Time   `json:"CreatedDate"`
	Tags                []Tag  `json:"Tags,omitempty"`

	// Ours: whose place the host takes that enrols with it, and what that one is
	// called.
	Replaces     string `json:"Replaces,omitempty"`
	ReplacesName string `json:"ReplacesName,omitempty"`
}
