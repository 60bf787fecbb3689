//go:build !linux

package doctor

import (
	"fmt"
	"runtime"
)

// mounted says nothing here.
func mounted(string) (state State, text, remedy string) { return OK, "", "" }

func (e *examination) clock() {
	e.add("clock", Skipped, "whether the clock is kept in step is not looked at on "+runtime.GOOS, "")
}

func platformFindings(Options) []Finding { return nil }

// firewallRule is what opens a port.
func firewallRule(port string) string {
	if runtime.GOOS == "windows" {
		return fmt.Sprintf("netsh advfirewall firewall add rule name=fleet dir=in action=allow protocol=TCP localport=%s"+
			" && netsh advfirewall firewall add rule name=fleet dir=in action=allow protocol=UDP localport=%s", port, port)
	}
	return "open port " + port + ", TCP and UDP"
}

func portOwner(uint16) string { return "" }
