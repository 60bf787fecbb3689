// Package faults ends and pauses real processes of fleet at exact steps and
// looks at what came of it. Its tests are the twins of TestKillTable and
// TestHistories in package node, which do the same to whole nodes in virtual
// time: there thousands of times, here with a kernel, a disk and signals. They
// have the build tag faults and run on loopback addresses; "make test-faults"
// runs them.
package faults
