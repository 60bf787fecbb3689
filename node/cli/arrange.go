package cli

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/nodeset"
)

// line is a command line in order: which command, its flags, its arguments.
type line struct {
	path  []*cli.Command
	flags []string
	rest  []string
	help  bool
}

// args is the line as urfave/cli reads it: flags first, and a double dash, so
// that it takes no argument for a flag.
func (l *line) args() []string {
	args := []string{"fleet"}
	for _, c := range l.path {
		args = append(args, c.Name)
	}
	args = append(args, l.flags...)
	return append(append(args, "--"), l.rest...)
}

// arrange finds the command and puts its flags, wherever they stand, before
// its arguments. After a double dash everything is an argument; so it is for
// run from the first word of what the hosts shall run, because the flags after
// that word are meant for it. All mistakes of naming are found here, where
// there is a suggestion for them.
func arrange(tree []*cli.Command, args []string) (*line, error) {
	l := &line{}
	below := tree // where the next word is looked up; nil below a leaf
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			l.rest = append(l.rest, args[i+1:]...)
			i = len(args)
		case arg == "-h" || arg == "--help":
			l.help = true
		case arg == "--version" && len(l.path) == 0:
			l.path, below = append(l.path, find(tree, "version")), nil
		case len(arg) > 1 && arg[0] == '-':
			name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			flag := findFlag(l.path, below, name)
			if flag == nil || strings.HasPrefix(arg, "---") || len(name) > 1 != strings.HasPrefix(arg, "--") {
				return nil, unknownFlag(l, arg, name)
			}
			name = "--" + flag.Names()[0]
			if _, isBool := flag.(*cli.BoolFlag); isBool {
				if hasValue {
					name += "=" + value
				}
				l.flags = append(l.flags, name)
				continue
			}
			if !hasValue {
				i++
				if i == len(args) {
					return nil, usagef("%s needs a value", arg)
				}
				value = args[i]
			}
			l.flags = append(l.flags, name+"="+value)
		case below != nil:
			if arg == "help" && len(l.path) == 0 {
				l.help = true
				continue
			}
			c := find(below, arg)
			if c == nil {
				return nil, unknownCommand(l, below, arg)
			}
			l.path = append(l.path, c)
			below = c.Subcommands
		case l.path[0].Name == "run":
			l.rest = append(l.rest, args[i:]...)
			i = len(args)
		default:
			l.rest = append(l.rest, arg)
		}
	}
	if l.help {
		return l, nil
	}
	if len(l.path) == 0 {
		l.help = true // of the whole program
		return l, nil
	}
	if len(below) > 0 {
		return nil, usagef("%s: say what: one of %s", l.name(), strings.Join(names(below), ", ")).withHint("%s --help", l.name())
	}
	return l, l.checkFlags()
}

func (l *line) name() string {
	words := []string{"fleet"}
	for _, c := range l.path {
		words = append(words, c.Name)
	}
	return strings.Join(words, " ")
}

// checkFlags refuses flags that stood before the command and are another's.
func (l *line) checkFlags() error {
	for _, f := range l.flags {
		name, _, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		if flagOf(l.path[len(l.path)-1], name) == nil {
			return unknownFlag(l, "--"+name, name)
		}
	}
	return nil
}

func find(commands []*cli.Command, word string) *cli.Command {
	for _, c := range commands {
		if c.Name == word || slices.Contains(c.Aliases, word) {
			return c
		}
	}
	return nil
}

// findFlag finds a flag of the command, or, while that is not known yet, of
// any command that it may become.
func findFlag(path, below []*cli.Command, name string) cli.Flag {
	if len(below) == 0 && len(path) > 0 {
		return flagOf(path[len(path)-1], name)
	}
	for _, c := range below {
		if f := flagOf(c, name); f != nil {
			return f
		}
		if f := findFlag(nil, c.Subcommands, name); f != nil {
			return f
		}
	}
	return nil
}

func flagOf(c *cli.Command, name string) cli.Flag {
	for _, f := range c.Flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func unknownFlag(l *line, arg, name string) error {
	err := usagef("%s has no flag %q", l.name(), strings.SplitN(arg, "=", 2)[0])
	var known []string
	if len(l.path) > 0 {
		c := l.path[len(l.path)-1]
		for _, f := range c.Flags {
			known = append(known, f.Names()[0])
		}
		if c.Name == "run" && suggest(known, name) == "" {
			return err.withHint("what runs on the hosts comes after --: fleet run --all -- uname -r")
		}
	}
	if s := suggest(known, name); s != "" {
		return err.withHint("did you mean --%s?", s)
	}
	return err.withHint("%s --help", l.name())
}

func unknownCommand(l *line, below []*cli.Command, word string) error {
	err := usagef("%s has no command %q", l.name(), word)
	if s := suggest(names(below), word); s != "" {
		return err.withHint("did you mean %s %s?", l.name(), s)
	}
	return err.withHint("%s --help lists what there is", l.name())
}

func names(commands []*cli.Command) []string {
	var all []string
	for _, c := range commands {
		all = append(all, c.Name)
	}
	return all
}

// unknownValue refuses a value that is none of those that there are.
func unknownValue(flag, value string, known ...string) error {
	err := usagef("%s %.80q is none of %s", flag, value, strings.Join(known, ", "))
	for _, k := range known {
		if strings.EqualFold(k, value) {
			return err.withHint("did you mean %s?", k)
		}
	}
	if s := suggest(known, value); s != "" {
		return err.withHint("did you mean %s?", s)
	}
	return err
}

// suggest is the word that was probably meant; "" when none is near.
func suggest(words []string, typed string) string { return nodeset.Nearest(words, typed) }
