package node

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"fleet/node/fleet"
	"fleet/node/journal"
	"fleet/node/rpc"
)

// What is wrong with the host is an answer, which the operator reads; what is
// wrong with the order is an error.
func TestNotNow(t *testing.T) {
	full := &os.PathError{Op: "write", Path: "/d/trust.json", Err: syscall.ENOSPC}
	for _, tt := range []struct {
		err  error
		want string // empty: an error
	}{
		{fmt.Errorf("save: %w", full), "the disk is full: save: write /d/trust.json"},
		{fmt.Errorf("journal: %w", journal.ErrFailed), "journal: the journal failed"},
		{fleet.Errorf(fleet.Unavailable, "the disk of /d is full"), "the disk of /d is full"},
		{fleet.Errorf(fleet.Invalid, "no trust.json"), ""},
		{fleet.Errorf(fleet.Denied, "signed by another root"), ""},
	} {
		resp, err := notNow(tt.err)
		switch {
		case tt.want == "":
			if err == nil || resp != nil {
				t.Errorf("%v: %v, %v", tt.err, resp, err)
			}
		case err != nil || resp.State != rpc.DeliverNotReady || !strings.HasPrefix(resp.Reason, tt.want):
			t.Errorf("%v: %+v, %v; want %q", tt.err, resp, err, tt.want)
		}
	}
}
