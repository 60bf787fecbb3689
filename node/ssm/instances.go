package ssm

// PingStatus of a managed node.
const (
	PingOnline         = "Online"
	PingConnectionLost = "ConnectionLost"
	PingInactive       = "Inactive" // known, but never heard of since the quorum started
)

// InstanceInformationFilter is the older filter form; same keys.
type InstanceInformationFilter struct {
	Key      string   `json:"key"`
	ValueSet []string `json:"valueSet"` // 1 to 100
}

// InstanceInformationStringFilter keys: InstanceIds, PingStatus, AgentVersion,
// ActivationIds, ResourceType and tag:K.
type InstanceInformationStringFilter struct {
	Key    string   `json:"Key"`
	Values []string `json:"Values"` // 1 to 100
}

// DescribeInstanceInformationRequest asks for a page of managed nodes.
type DescribeInstanceInformationRequest struct {
	InstanceInformationFilterList []InstanceInformationFilter       `json:"InstanceInformationFilterList,omitempty"`
	Filters                       []InstanceInformationStringFilter `json:"Filters,omitempty"`
	MaxResults                    int                               `json:"MaxResults,omitempty"` // 5 to 50
	NextToken                     string                            `json:"NextToken,omitempty"`
}

// DescribeInstanceInformationResult is a page of managed nodes.
type DescribeInstanceInformationResult struct {
	InstanceInformationList []InstanceInformation `json:"InstanceInformationList"`
	NextToken               string                `json:"NextToken,omitempty"`
}

// InstanceInformation is one managed node. (What the host reports about its
// platform comes with the inventory.)
type InstanceInformation struct {
	InstanceId       string `json:"InstanceId"`
	PingStatus       string `json:"PingStatus"`
	LastPingDateTime Time   `json:"LastPingDateTime,omitempty"`
	AgentVersion     string `json:"AgentVersion,omitempty"`
	ActivationId     string `json:"ActivationId,omitempty"`
	RegistrationDate Time   `json:"RegistrationDate,omitempty"`
	ResourceType     string `json:"ResourceType"`
	Name             string `json:"Name,omitempty"`
	IPAddress        string `json:"IPAddress,omitempty"`
	ComputerName     string `json:"ComputerName,omitempty"`
}

// DeregisterManagedInstanceRequest removes a node from the fleet for good.
type DeregisterManagedInstanceRequest struct {
	InstanceId string `json:"InstanceId"`
}

// DeregisterManagedInstanceResult is empty.
type DeregisterManagedInstanceResult struct{}
