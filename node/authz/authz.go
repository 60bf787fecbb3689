// Package authz decides whether an operator may do an operation. It is one
// table and one function, used by every front door (node/api) and by the only
// writer (node/control), so that no second path to the same power can lack the
// check; raftfsm repeats the part that a log entry needs, on its own, because
// it must not trust whoever proposed.
//
// Invariants: an operation that is not in the table is allowed to nobody; a
// signed or guarded operation needs its own name (or "*") in the operator's
// row, content the name of the signed operation that it is for; a read needs a
// row; what the local socket serves is never served to operators, nor
// the other way round.
package authz

import (
	"slices"

	"fleet/node/fleet"
)

// Class is what a caller must bring for an operation.
type Class uint8

// Classes. The zero value is none of them, so that a forgotten one allows nothing.
const (
	Signed  Class = iota + 1 // a proof of its own, over the exact body
	Read                     // a connection that an operator proved
	Guarded                  // a read that is granted by name: it gives more than who runs commands needs
	Local                    // only the local socket, by its file permissions
	Content                  // a connection that an operator proved, and the permission: bytes that decide nothing
)

var classNames = map[Class]string{Signed: "signed", Read: "read", Guarded: "guarded", Local: "local", Content: "content"}

// Granted reports whether an operator may do operations of the class only if
// his row says so.
func (c Class) Granted() bool { return c == Signed || c == Guarded }

func (c Class) String() string { return classNames[c] }

// All is the word in an operator's row that allows every signed operation.
const All = "*"

// Operation is one row of the table.
type Operation struct {
	Name  string
	Class Class

	// Permission is the word that an operator's row must hold for a signed or
	// guarded operation. For a read it is the word that policies will narrow by.
	Permission string
}

// Operations is the table.
var Operations = []Operation{
	{"CreateActivation", Signed, "CreateActivation"},
	{"DeleteActivation", Signed, "DeleteActivation"},
	{"AddTagsToResource", Signed, "AddTagsToResource"},
	{"RemoveTagsFromResource", Signed, "RemoveTagsFromResource"},
	{"DeregisterManagedInstance", Signed, "DeregisterManagedInstance"},
	{"RenameNode", Signed, "RenameNode"},
	{"SendCommand", Signed, "SendCommand"},
	{"CancelCommand", Signed, "CancelCommand"},
	{"PutTarget", Signed, "PutTarget"},
	{"DeleteTarget", Signed, "DeleteTarget"},
	{"ChangeQuorum", Signed, "ChangeQuorum"},
	{"CreateOperator", Signed, "CreateOperator"},
	{"DeleteOperator", Signed, "DeleteOperator"},
	{"RotateGossipKey", Signed, "RotateGossipKey"},

	{"GetCallerIdentity", Read, "GetCallerIdentity"},
	{"DescribeInstanceInformation", Read, "DescribeNodes"},
	{"DescribeNodes", Read, "DescribeNodes"},
	{"ListTagsForResource", Read, "DescribeNodes"},
	{"DescribeActivations", Read, "DescribeActivations"},
	{"DescribeOperators", Read, "DescribeOperators"},
	{"DescribeTargets", Read, "DescribeNodes"},
	{"ListCommands", Read, "ListCommands"},
	{"ListCommandInvocations", Read, "ListCommands"},
	{"GetCommandInvocation", Read, "GetCommandOutput"},
	{"GetCommandOutput", Read, "GetCommandOutput"},
	{"WatchCommand", Read, "GetCommandOutput"},
	{"DescribeQuorum", Read, "DescribeQuorum"},
	{"DescribeGossipKey", Read, "DescribeQuorum"},
	{"GetStatus", Read, "DescribeQuorum"},
	{"GetTrust", Read, "DescribeQuorum"},
	{"GetCandidate", Read, "DescribeQuorum"},

	{"CreateBackup", Guarded, "CreateBackup"},

	// A program that a command may name later. Who may not send the command has
	// no use for it, and shall not fill the disks of the quorum.
	{"DescribeProgram", Read, "DescribeNodes"},
	{"PutProgram", Content, "SendCommand"},

	{"LocalStatus", Local, "LocalStatus"},
	{"LocalNodes", Local, "LocalNodes"},
}

var byName = func() map[string]Operation {
	m := make(map[string]Operation, len(Operations))
	for _, op := range Operations {
		m[op.Name] = op
	}
	return m
}()

// Lookup finds an operation by its exact name.
func Lookup(name string) (Operation, bool) {
	op, ok := byName[name]
	return op, ok
}

// Allowed reports whether the operator of this row may do the operation: nil,
// or an error of kind Denied (NotFound for an operation that there is not).
// The caller has verified that the operator made the request.
func Allowed(operator fleet.Operator, operation string) error {
	op, ok := byName[operation]
	if !ok {
		return fleet.Errorf(fleet.NotFound, "there is no operation %.64q", operation)
	}
	if operator.Name == "" {
		return fleet.Errorf(fleet.Denied, "%s needs an operator", op.Name)
	}
	switch op.Class {
	case Read:
		return nil
	case Signed, Guarded, Content:
		if slices.Contains(operator.May, op.Permission) || slices.Contains(operator.May, All) {
			return nil
		}
		return fleet.Errorf(fleet.Denied, "operator %s may not %s", operator.Name, op.Name).
			WithHint("ask an operator who may for the permission %s", op.Permission)
	default:
		return fleet.Errorf(fleet.Denied, "%s is served on the local socket only", op.Name)
	}
}
