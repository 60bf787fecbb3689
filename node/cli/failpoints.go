//go:build !failpoints || !unix

package cli

import "fleet/node/failpoint"

// failpoints listens to nothing: this is the program that users run.
func failpoints() failpoint.Hook { return nil }
