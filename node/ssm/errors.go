package ssm

// Names of SSM's errors that operations here answer with.
const (
	InvalidInstanceId                     = "InvalidInstanceId"
	InvalidCommandId                      = "InvalidCommandId"
	InvalidPluginName                     = "InvalidPluginName"
	InvalidResourceId                     = "InvalidResourceId"
	InvalidResourceType                   = "InvalidResourceType"
	InvalidActivationId                   = "InvalidActivationId"
	InvalidFilter                         = "InvalidFilter"
	InvalidFilterKey                      = "InvalidFilterKey"
	InvalidFilterValue                    = "InvalidFilterValue"
	InvalidNextToken                      = "InvalidNextToken"
	InvalidInstanceInformationFilterValue = "InvalidInstanceInformationFilterValue"
	InvocationDoesNotExist                = "InvocationDoesNotExist"
	InternalServerError                   = "InternalServerError"
	ValidationException                   = "ValidationException"
)
