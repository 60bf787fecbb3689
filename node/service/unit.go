package service

import (
	_ "embed"
	"fmt"
	"strings"

	"fleet/node/fleet"
)

// ProgramPath is where the program of systemd's service lies.
const ProgramPath = "/usr/bin/fleet"

// PreviousSuffix follows the name of the program in that of the one before,
// which an upgrade keeps.
const PreviousSuffix = ".previous"

// unitTemplate is the service file of systemd. Packages install it as it is.
//
//go:embed fleet.service
var unitTemplate string

// Sections and keys that begin with "X-" are ours: systemd does not read them.
const unitSection = "[X-Fleet]"

// unit is the service file for a spec: the template, the configuration file if
// it is not the default, and a section that says what was installed.
func unit(spec Spec, defaultConfig string, copied bool) (string, error) {
	text := unitTemplate
	if spec.Config != defaultConfig {
		word, err := unitWord(spec.Config)
		if err != nil {
			return "", err
		}
		start := "ExecStart=" + ProgramPath + " agent"
		text = strings.Replace(text, start+"\n", start+" --config "+word+"\n", 1)
	}
	return text + fmt.Sprintf("\n%s\nConfig=%s\nCopied=%t\n", unitSection, spec.Config, copied), nil
}

// unitWord writes a path as one word of a command line of systemd.
func unitWord(path string) (string, error) {
	if strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", fleet.Errorf(fleet.Invalid, "the path %.200q cannot stand in a service file: it holds a control character", path)
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`, `$`, `$$`).Replace(path) + `"`, nil
}

// unitFacts are what a service file says in our section.
type unitFacts struct {
	ours   bool
	config string
	copied bool
}

func parseUnit(text string) unitFacts {
	_, section, ours := strings.Cut(text, "\n"+unitSection+"\n")
	f := unitFacts{ours: ours}
	for line := range strings.Lines(section) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "Config":
			f.config = value
		case "Copied":
			f.copied = value == "true"
		}
	}
	return f
}
