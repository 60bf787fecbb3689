package ssm

// Limits of texts in answers, in characters.
const (
	MaxStandardOutput = 24000 // GetCommandInvocation, stdout
	MaxStandardError  = 8000  // GetCommandInvocation, stderr
	MaxPluginOutput   = 2500  // ListCommandInvocations, stdout and stderr together
)

// Target is one selector of a command: Key is InstanceIds, tag:K or tag-key.
type Target struct {
	Key    string   `json:"Key"`
	Values []string `json:"Values"`
}

// SendCommandRequest runs a document on the selected nodes.
type SendCommandRequest struct {
	InstanceIds      []string            `json:"InstanceIds,omitempty"` // at most 50; excludes Targets
	Targets          []Target            `json:"Targets,omitempty"`     // at most 5, joined by AND
	DocumentName     string              `json:"DocumentName"`
	DocumentVersion  string              `json:"DocumentVersion,omitempty"`
	DocumentHash     string              `json:"DocumentHash,omitempty"`     // hex SHA-256 of the content
	DocumentHashType string              `json:"DocumentHashType,omitempty"` // Sha256
	TimeoutSeconds   int                 `json:"TimeoutSeconds,omitempty"`   // delivery, 30 to 2592000, default 3600
	Comment          string              `json:"Comment,omitempty"`          // at most 100
	Parameters       map[string][]string `json:"Parameters,omitempty"`
	MaxConcurrency   string              `json:"MaxConcurrency,omitempty"`
	MaxErrors        string              `json:"MaxErrors,omitempty"`

	// RunAs is ours: the user that the steps run as; "" is root.
	RunAs string `json:"RunAs,omitempty"`
}

// SendCommandResult is the accepted command.
type SendCommandResult struct {
	Command Command `json:"Command"`
}

// CancelCommandRequest cancels a command, or some targets of it.
type CancelCommandRequest struct {
	CommandId   string   `json:"CommandId"`
	InstanceIds []string `json:"InstanceIds,omitempty"` // at most 50; none is all
}

// CancelCommandResult has no members.
type CancelCommandResult struct{}

// Command is one command with its counters.
type Command struct {
	CommandId             string              `json:"CommandId"`
	DocumentName          string              `json:"DocumentName"`
	DocumentVersion       string              `json:"DocumentVersion,omitempty"`
	Comment               string              `json:"Comment,omitempty"`
	ExpiresAfter          Time                `json:"ExpiresAfter"`
	Parameters            map[string][]string `json:"Parameters,omitempty"`
	InstanceIds           []string            `json:"InstanceIds,omitempty"` // when IDs were named
	Targets               []Target            `json:"Targets,omitempty"`     // when selectors were
	RequestedDateTime     Time                `json:"RequestedDateTime"`
	Status                string              `json:"Status"`
	StatusDetails         string              `json:"StatusDetails"`
	MaxConcurrency        string              `json:"MaxConcurrency,omitempty"`
	MaxErrors             string              `json:"MaxErrors,omitempty"`
	TargetCount           int                 `json:"TargetCount"`
	CompletedCount        int                 `json:"CompletedCount"`
	ErrorCount            int                 `json:"ErrorCount"`
	DeliveryTimedOutCount int                 `json:"DeliveryTimedOutCount"`
	TimeoutSeconds        int                 `json:"TimeoutSeconds"`

	// Ours: who sent it, and the user that its steps run as ("" is root).
	Operator string `json:"Operator,omitempty"`
	RunAs    string `json:"RunAs,omitempty"`
}

// CommandFilter keys: InvokedAfter, InvokedBefore (ISO 8601), Status,
// DocumentName; ExecutionStage (Executing, Complete) for commands. Ours:
// Operator.
type CommandFilter struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// ListCommandsRequest asks for a page of commands, newest first.
type ListCommandsRequest struct {
	CommandId  string          `json:"CommandId,omitempty"`
	InstanceId string          `json:"InstanceId,omitempty"`
	MaxResults int             `json:"MaxResults,omitempty"` // 1 to 50
	NextToken  string          `json:"NextToken,omitempty"`
	Filters    []CommandFilter `json:"Filters,omitempty"` // 1 to 5
}

// ListCommandsResult is a page of commands.
type ListCommandsResult struct {
	Commands  []Command `json:"Commands"`
	NextToken string    `json:"NextToken,omitempty"`
}

// ListCommandInvocationsRequest asks for a page of invocations: of one
// command, of one node, or both.
type ListCommandInvocationsRequest struct {
	CommandId  string          `json:"CommandId,omitempty"`
	InstanceId string          `json:"InstanceId,omitempty"`
	MaxResults int             `json:"MaxResults,omitempty"` // 1 to 50
	NextToken  string          `json:"NextToken,omitempty"`
	Filters    []CommandFilter `json:"Filters,omitempty"`
	Details    bool            `json:"Details,omitempty"` // with the plugins and their output
}

// ListCommandInvocationsResult is a page of invocations.
type ListCommandInvocationsResult struct {
	CommandInvocations []CommandInvocation `json:"CommandInvocations"`
	NextToken          string              `json:"NextToken,omitempty"`
}

// CommandInvocation is one command on one node.
type CommandInvocation struct {
	CommandId         string          `json:"CommandId"`
	InstanceId        string          `json:"InstanceId"`
	InstanceName      string          `json:"InstanceName"`
	Comment           string          `json:"Comment,omitempty"`
	DocumentName      string          `json:"DocumentName"`
	DocumentVersion   string          `json:"DocumentVersion,omitempty"`
	RequestedDateTime Time            `json:"RequestedDateTime"`
	Status            string          `json:"Status"`
	StatusDetails     string          `json:"StatusDetails"`
	TraceOutput       string          `json:"TraceOutput,omitempty"` // what a person should know of the outcome
	CommandPlugins    []CommandPlugin `json:"CommandPlugins"`        // empty unless Details was asked for
}

// CommandPlugin is one step of a document on one node.
type CommandPlugin struct {
	Name                   string `json:"Name"` // of the step
	Status                 string `json:"Status"`
	StatusDetails          string `json:"StatusDetails"`
	ResponseCode           int    `json:"ResponseCode"`
	ResponseStartDateTime  Time   `json:"ResponseStartDateTime,omitempty"`
	ResponseFinishDateTime Time   `json:"ResponseFinishDateTime,omitempty"`
	Output                 string `json:"Output,omitempty"` // at most MaxPluginOutput
}

// GetCommandInvocationRequest asks for one step of one invocation.
type GetCommandInvocationRequest struct {
	CommandId  string `json:"CommandId"`
	InstanceId string `json:"InstanceId"`
	PluginName string `json:"PluginName,omitempty"` // name of the step; needed when there are several
}

// GetCommandInvocationResult is one step of one invocation.
type GetCommandInvocationResult struct {
	CommandId              string `json:"CommandId"`
	InstanceId             string `json:"InstanceId"`
	Comment                string `json:"Comment,omitempty"`
	DocumentName           string `json:"DocumentName"`
	DocumentVersion        string `json:"DocumentVersion,omitempty"`
	PluginName             string `json:"PluginName,omitempty"`
	ResponseCode           int    `json:"ResponseCode"`           // -1 before the step ran
	ExecutionStartDateTime string `json:"ExecutionStartDateTime"` // ISO 8601
	ExecutionElapsedTime   string `json:"ExecutionElapsedTime"`   // ISO 8601 duration
	ExecutionEndDateTime   string `json:"ExecutionEndDateTime"`
	Status                 string `json:"Status"`
	StatusDetails          string `json:"StatusDetails"`
	StandardOutputContent  string `json:"StandardOutputContent"` // at most MaxStandardOutput
	StandardErrorContent   string `json:"StandardErrorContent"`  // at most MaxStandardError
}
