package cli

import (
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

// commandIs explains the argument COMMAND.
const commandIs = `COMMAND is an ID, the first characters of one (four or more), or "last".`

// lastCommand is the word for the newest command.
const lastCommand = "last"

// prefixesFrom is how many of the newest commands are searched for one whose ID
// begins as was typed.
const prefixesFrom = 200

var idPrefix = regexp.MustCompile(`^[0-9a-f][0-9a-f-]{3,34}$`)

// checkCommandID refuses what names no command in any fleet.
func checkCommandID(text string) error {
	if text == lastCommand || idPrefix.MatchString(text) {
		return nil
	}
	_, err := fleet.ParseCommandID(text)
	return err
}

// reachCommand connects, within --timeout, and finds the command that the first
// argument means; end closes the connection.
func (e *env) reachCommand(c *cli.Context) (api *client.Client, id fleet.CommandID, end func(), err error) {
	if api, end, err = e.connectWithin(c); err != nil {
		return nil, "", nil, err
	}
	if id, err = findCommandID(c, api, c.Args().First()); err != nil {
		end()
		return nil, "", nil, err
	}
	return api, id, end, nil
}

// findCommandID is the command that a person means: by its ID, by the beginning
// of it (four characters or more, of the newest commands), or as "last".
func findCommandID(c *cli.Context, api *client.Client, text string) (fleet.CommandID, error) {
	if id, err := fleet.ParseCommandID(text); err == nil {
		return id, nil
	}
	limit := prefixesFrom
	if text == lastCommand {
		limit = 1
	}
	newest, err := newestCommands(c, api, ssm.ListCommandsRequest{}, limit)
	if err != nil {
		return "", err
	}
	if len(newest.Commands) == 0 {
		return "", fleet.Errorf(fleet.NotFound, "no command has run yet").WithHint(sayWhatRunsHint)
	}
	if text == lastCommand {
		return fleet.CommandID(newest.Commands[0].CommandId), nil
	}
	var found []string
	for _, cmd := range newest.Commands {
		if strings.HasPrefix(cmd.CommandId, text) {
			found = append(found, cmd.CommandId)
		}
	}
	switch len(found) {
	case 0:
		return "", fleet.Errorf(fleet.NotFound, "none of the newest %d commands begins with %s", len(newest.Commands), text).
			WithHint("see which there are: fleet command ls")
	case 1:
		return fleet.CommandID(found[0]), nil
	}
	return "", fleet.Errorf(fleet.Conflict, "%d commands begin with %s", len(found), text).WithHint("%s", strings.Join(found[:min(len(found), 5)], ", "))
}
