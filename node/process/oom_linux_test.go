package process

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestOOMReset(t *testing.T) {
	for _, own := range []string{"0", "300", "", "x"} {
		if s := oomReset(own); s != "" {
			t.Errorf("%q: got %q", own, s)
		}
	}
	// The line itself, in a shell that has an advantage if this one may give it.
	err := os.WriteFile("/proc/self/oom_score_adj", []byte("-5"), 0)
	if errors.Is(err, os.ErrPermission) {
		t.Log("without the right to lower the score the line is tried at 0")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0) })
	var out bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", oomReset("-500")+"cat /proc/self/oom_score_adj")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || strings.TrimSpace(out.String()) != "0" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}
