package logging

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// ToJournal reports whether w leads to systemd's journal: the variable
// JOURNAL_STREAM names the file that it does. A child whose output was taken
// elsewhere inherits the variable, but not the file.
func ToJournal(w io.Writer, getenv func(string) string) bool {
	f, ok := w.(*os.File)
	if !ok || getenv("JOURNAL_STREAM") == "" {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
