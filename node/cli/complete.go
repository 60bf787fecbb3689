package cli

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
)

// Completion: the shells' scripts ask the hidden command __complete what may
// stand at the cursor. What a flag's value or an argument is, is read from the
// literal of the command, whose words the help shows as well: NODE, FILE,
// KEY=VALUE. So a command that is added completes without more.
//
// The first line of the answer is the mode, then a value and what it is,
// parted by a tab, on each line. Names of hosts are others' words: only those
// that pass the check of names, in letters that mean nothing to any shell, are
// offered (dynamic.go).

//go:embed completion/fleet.bash
var bashCompletion string

//go:embed completion/fleet.zsh
var zshCompletion string

//go:embed completion/fleet.fish
var fishCompletion string

// completeCommand is the word with which the scripts ask.
const completeCommand = "__complete"

// Modes of an answer.
const (
	modeValues  = ":values"
	modeNoSpace = ":nospace" // more belongs to the word
	modeFiles   = ":files"
	modeDirs    = ":dirs"
)

func (e *env) completionCommand() *cli.Command {
	scripts := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	shells := []string{"bash", "zsh", "fish"}
	return leaf(&cli.Command{
		Name: "completion", Category: categoryMe, ArgsUsage: "bash|zsh|fish", Usage: "print the completion of commands, flags and hosts for a shell",
		Description: `Names of hosts and labels come from this host's agent, or from the fleet with
the operator's credential; when neither answers at once there are none.

Examples:
  source <(fleet completion bash)
  fleet completion bash > /usr/share/bash-completion/completions/fleet
  fleet completion zsh > "${fpath[1]}/_fleet"
  fleet completion fish > ~/.config/fish/completions/fleet.fish

Exit codes: 0 done, 64 usage`,
	}, 1, 1, func(c *cli.Context) error {
		shell := c.Args().First()
		script, ok := scripts[shell]
		if !ok {
			err := usagef("there is no completion for %.40q, but for %s", shell, strings.Join(shells, ", "))
			if s := suggest(shells, shell); s != "" {
				err = err.withHint("did you mean fleet completion %s?", s)
			}
			return err
		}
		_, err := io.WriteString(e.out, script)
		return err
	})
}

// candidate is a word that may stand at the cursor.
type candidate struct{ value, about string }

type completion struct {
	mode   string
	values []candidate
}

// completer finds what may stand in place of the last word of a line.
type completer struct {
	*env
	ctx   context.Context // of the one answer
	given map[string]string
}

// complete answers a shell's script. It says nothing when it has nothing to
// say: whatever it wrote would land in the line that somebody edits.
func (e *env) complete(ctx context.Context, args []string) {
	var words []string
	switch {
	case len(args) == 2 && args[0] == "--line":
		words = shellWords(args[1])
		words = words[min(1, len(words)):] // the program
	case len(args) > 0 && args[0] == "--":
		words = args[1:]
	}
	if len(words) == 0 {
		words = []string{""}
	}
	r := (&completer{e, ctx, map[string]string{}}).completions(e.commands(), words)
	last := words[len(words)-1]
	fmt.Fprintln(e.out, firstOf(r.mode, modeValues))
	for _, v := range r.values {
		if strings.HasPrefix(v.value, last) && !strings.ContainsAny(v.value, "\t\n") {
			fmt.Fprintf(e.out, "%s\t%s\n", v.value, plainText(v.about))
		}
	}
}

// completions is what may stand in place of the last word.
func (e *completer) completions(tree []*cli.Command, words []string) completion {
	var path []*cli.Command
	below, arguments := tree, 0
	var waiting cli.Flag // for its value
	onlyArguments := false
	for _, word := range words[:len(words)-1] {
		switch {
		case waiting != nil:
			e.given[waiting.Names()[0]] = word
			waiting = nil
		case !onlyArguments && word == "--":
			onlyArguments = true
		case !onlyArguments && len(word) > 1 && word[0] == '-':
			name, value, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
			if flag := findFlag(path, below, name); flag != nil {
				e.given[flag.Names()[0]] = value
				if _, isBool := flag.(*cli.BoolFlag); !isBool && !hasValue {
					waiting = flag
				}
			}
		case len(below) > 0:
			if word == "help" && len(path) == 0 {
				continue
			}
			c := find(below, word)
			if c == nil {
				return completion{}
			}
			path, below = append(path, c), c.Subcommands
		default:
			arguments++
			onlyArguments = onlyArguments || path[0].Name == "run" // the rest is for the hosts
		}
	}
	last := words[len(words)-1]
	switch {
	case waiting != nil:
		return e.flagValues(path, waiting, "", last)
	case !onlyArguments && strings.HasPrefix(last, "-"):
		if name, value, ok := strings.Cut(last, "="); ok {
			if flag := findFlag(path, below, strings.TrimLeft(name, "-")); flag != nil {
				return e.flagValues(path, flag, name+"=", value)
			}
			return completion{}
		}
		return e.flagNames(path)
	case len(below) > 0:
		return commandNames(below)
	case len(path) == 0:
		return completion{}
	}
	return e.argumentValues(path, arguments, last)
}

func commandNames(commands []*cli.Command) completion {
	var r completion
	for _, c := range commands {
		if !c.Hidden {
			r.values = append(r.values, candidate{c.Name, c.Usage})
		}
	}
	return r
}

// flagNames are the flags of the command that were not given yet.
func (e *completer) flagNames(path []*cli.Command) completion {
	r := completion{values: []candidate{{"--help", "say more"}}}
	if len(path) == 0 {
		r.values = append(r.values, candidate{"--version", "say which version this is"})
		return r
	}
	for _, f := range path[len(path)-1].Flags {
		name := f.Names()[0]
		_, repeated := f.(*cli.StringSliceFlag)
		_, given := e.given[name]
		if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() || given && !repeated {
			continue
		}
		r.values = append(r.values, candidate{"--" + name, flagRow(f)[1]})
	}
	return r
}

// flagValues are the values of a flag; each is put behind prefix.
func (e *completer) flagValues(path []*cli.Command, f cli.Flag, prefix, typed string) completion {
	name, kind := f.Names()[0], ""
	if doc, ok := f.(cli.DocGenerationFlag); ok {
		kind = valueName(doc.GetUsage())
	}
	switch {
	case name == "context":
		kind = "CONTEXT"
	case name == "target":
		kind = "TARGET"
	case name == "log-level":
		kind = "LEVEL"
	case name == "log-format":
		kind = "LOGFORM"
	case name == "status" && len(path) > 0 && path[0].Name == "command":
		kind = "COMMANDSTATUS"
	}
	r := e.valuesOf(kind, typed)
	for i := range r.values {
		r.values[i].value = prefix + r.values[i].value
	}
	return r
}

// argumentWord is one word of ArgsUsage: "[NODE...]" is NODE, any number.
var argumentWord = onFirstUse(`([A-Z][A-Z-]*|[a-z]+(?:\|[a-z]+)+)[A-Z=]*(\.\.\.)?`)

// argumentValues are the values of the n-th argument, by the words of the
// command's ArgsUsage.
func (e *completer) argumentValues(path []*cli.Command, n int, typed string) completion {
	c := path[len(path)-1]
	words := argumentWord().FindAllStringSubmatch(c.ArgsUsage, -1)
	if c.Name == "run" || len(words) == 0 {
		return completion{}
	}
	word := words[min(n, len(words)-1)]
	if n >= len(words) && word[2] == "" {
		return completion{}
	}
	if strings.Contains(word[1], "|") {
		return choices(strings.Split(word[1], "|")...)
	}
	kind := strings.TrimSuffix(word[1], "-") // KEY- removes KEY
	if kind == "NAME" {
		kind = map[string]string{"context": "CONTEXT", "logout": "CONTEXT", "operator": "OPERATOR", "target": "TARGET"}[path[0].Name]
	}
	if path[0].Name == "operator" && c.Name == "add" {
		return completion{} // a name that there is not yet
	}
	return e.valuesOf(kind, typed)
}

func choices(values ...string) completion {
	var r completion
	for _, v := range values {
		r.values = append(r.values, candidate{value: v})
	}
	return r
}

// valuesOf are the values of a kind, as the help calls it.
func (e *completer) valuesOf(kind, typed string) completion {
	switch kind {
	case "FILE", "PATH":
		return completion{mode: modeFiles}
	case "DIR", "DIRECTORY":
		return completion{mode: modeDirs}
	case "FORM":
		return choices(formTable, formJSON, formYAML, formName)
	case "LEVEL":
		return choices("debug", "info", "warn", "error")
	case "LOGFORM":
		return choices("text", "json")
	case "SHELL":
		return choices(shells...)
	case "STATUS":
		return choices(fleet.PingOnline, fleet.PingConnectionLost, fleet.PingUnknown)
	case "COMMANDSTATUS":
		return choices(commandStates...)
	case "CONTEXT":
		names, err := e.contexts()
		if err != nil {
			return completion{}
		}
		return choices(names...)
	case "NODE", "HOST", "SET":
		// Several are parted by commas: the last is completed.
		head := typed[:strings.LastIndexByte(typed, ',')+1]
		if target, ok := strings.CutPrefix(typed[len(head):], "@"); ok && kind == "SET" {
			return completion{values: e.dynamic(dynamicTargets, head+"@", target)}
		}
		return completion{values: e.dynamic(dynamicNodes, head, typed[len(head):])}
	case "KEY", "KEY=VALUE":
		return e.labelValues(typed)
	case "OPERATION":
		return choices(grantable()...)
	case "COMMAND":
		return completion{values: e.dynamic(dynamicCommands, "", typed)}
	case "ACTIVATION":
		return completion{values: e.dynamic(dynamicActivations, "", typed)}
	case "TARGET":
		return completion{values: e.dynamic(dynamicTargets, "", typed)}
	case "OPERATOR":
		return completion{values: e.dynamic(dynamicOperators, "", typed)}
	}
	return completion{}
}

// notCompleted are the words for values that nobody but who types them knows.
var notCompleted = []string{
	"VALUE", "NAME", "PUBLICKEY", "TEXT", "DURATION", "N", "ID", "USER", "PATTERN", "WHEN", "NAME=VALUE", "ADDRESS", "IP:PORT", "ADDRESS:PORT", "SIZE",
}

// labelValues are the keys of labels and, behind a key, its values.
func (e *completer) labelValues(typed string) completion {
	all := e.dynamic(dynamicLabels, "", "")
	if strings.Contains(typed, "=") {
		return completion{values: all}
	}
	r := completion{mode: modeNoSpace}
	for _, label := range all {
		key, _, _ := strings.Cut(label.value, "=")
		if v := (candidate{value: key + "="}); !slices.Contains(r.values, v) {
			r.values = append(r.values, v)
		}
	}
	return r
}

// plainText keeps of a description what any terminal and shell shows as it is.
func plainText(s string) string {
	const most = 60
	s = strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || !unicode.IsPrint(r) || strings.ContainsRune("`$\\\"'", r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = s[:most-3] + "..."
	}
	return strings.TrimSpace(s)
}

// shellWords splits an unfinished line as a shell would, without expanding
// anything. The last word is the one at the cursor; it may be empty.
func shellWords(line string) []string {
	var words []string
	var word strings.Builder
	began := false
	quote := rune(0)
	escaped := false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, began = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, began = r, true
		case unicode.IsSpace(r):
			if began {
				words = append(words, word.String())
				word.Reset()
				began = false
			}
		default:
			word.WriteRune(r)
			began = true
		}
	}
	return append(words, word.String())
}
