package service

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
	"unicode/utf8"

	"fleet/node/fleet"
)

// plistTemplate is the service file of launchd: the arguments, and what was
// installed, go into it. ThrottleInterval is the seconds between two starts,
// ExitTimeOut those between SIGTERM and SIGKILL: more than the agent takes for
// an orderly end.
const plistTemplate = `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>%s</string>
	<key>ProgramArguments</key>
	<array>
%s	</array>
	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<true/>
	<key>ThrottleInterval</key>
	<integer>5</integer>
	<key>ExitTimeOut</key>
	<integer>30</integer>
	<key>ProcessType</key>
	<string>Interactive</string>
	<key>SoftResourceLimits</key>
	<dict>
		<key>NumberOfFiles</key>
		<integer>65536</integer>
	</dict>
	<key>StandardErrorPath</key>
	<string>%s</string>
	<key>%s</key>
	<string>%s</string>
	<key>%s</key>
	<%t/>
</dict>
</plist>
`

// Keys that are ours: launchd does not read them.
const (
	plistConfig = "FleetConfig"
	plistCopied = "FleetCopied"
)

// plist is the service file for a spec.
func plist(spec Spec, defaultConfig string, copied bool) (string, error) {
	file, err := plistText(spec.Config)
	if err != nil {
		return "", err
	}
	words := []string{launchdProgram, "agent"}
	if spec.Config != defaultConfig {
		words = append(words, "--config", file)
	}
	var args strings.Builder
	for _, w := range words {
		fmt.Fprintf(&args, "\t\t<string>%s</string>\n", w)
	}
	return fmt.Sprintf(plistTemplate, launchdLabel, args.String(), launchdLog, plistConfig, file, plistCopied, copied), nil
}

// plistText writes a path as text of XML.
func plistText(path string) (string, error) {
	if !utf8.ValidString(path) || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", fleet.Errorf(fleet.Invalid, "the path %.200q cannot stand in a service file: it holds a control character, or bytes that are not UTF-8", path)
	}
	var b bytes.Buffer
	if err := xml.EscapeText(&b, []byte(path)); err != nil {
		return "", err
	}
	return b.String(), nil
}

// parsePlist reads our keys. A file that is not XML has none of them.
func parsePlist(content []byte) unitFacts {
	var f unitFacts
	d := xml.NewDecoder(bytes.NewReader(content))
	key := "" // of the value that comes next
	for {
		token, err := d.Token()
		if err != nil {
			return f
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		switch name := start.Name.Local; {
		case name == "key" || name == "string" && key == plistConfig:
			var text string
			if err := d.DecodeElement(&text, &start); err != nil {
				return f
			}
			if name == "key" {
				key = text
				continue
			}
			f.config, f.ours = text, true
		case key == plistCopied:
			f.copied = name == "true"
		}
		key = ""
	}
}
