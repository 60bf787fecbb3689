package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
)

func (e *env) gossipKeyCommand() *cli.Command {
	return &cli.Command{
		Name: "gossip-key", Category: categoryNouns, Usage: "the key under which hosts gossip",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "status", Aliases: []string{"show"}, Usage: "how old it is, and who has the new one",
				Description: `The key is changed by itself: every 30 days, and when a host is removed or left.
The hosts get the new one with their heartbeats; when each that is heard of has it,
they use it; when each does that, the old one counts no more. A host that is away
gets it when it comes back.

Example:
  fleet gossip-key status

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.gossipKeyStatus),
			leaf(&cli.Command{
				Name: "rotate", Usage: "make a new one now",
				Description: `It takes a minute or two until the old key counts no more, ten minutes for each
step when a host that is heard of does not take it. --wait waits for it; what
interrupts that does not stop the rotation.

The key grants nothing: whoever has it reads and forges gossip, which is a hint.

Examples:
  fleet gossip-key rotate
  fleet gossip-key rotate --wait

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags([]cli.Flag{&cli.BoolFlag{Name: "wait", Usage: "return when the old key counts no more"}},
					outputFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.gossipKeyRotate),
		},
	}
}

func describeGossipKey(c *cli.Context, api *client.Client) (*fleet.DescribeGossipKeyResult, error) {
	call := api.Call
	if c.Bool("stale") {
		call = api.CallStale
	}
	result := new(fleet.DescribeGossipKeyResult)
	return result, call(c.Context, "DescribeGossipKey", fleet.DescribeGossipKeyRequest{}, result)
}

func (e *env) gossipKeyStatus(c *cli.Context) error {
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	key, err := describeGossipKey(c, api)
	if err != nil {
		return err
	}
	return e.printGossipKey(c, key)
}

func (e *env) printGossipKey(c *cli.Context, key *fleet.DescribeGossipKeyResult) error {
	return e.print(c, result{value: key, names: []string{fmt.Sprint(key.Number)}, table: func(w io.Writer) {
		fmt.Fprintf(w, "key      %d, made %s, the next by itself %s\n", key.Number, date(key.Made), date(key.Next))
		fmt.Fprintf(w, "stage    %s since %s\n", gossipStage(key), date(key.Since))
		fmt.Fprintf(w, "hosts    %d of %d that are heard of have what this stage gives them\n", key.Holding, key.Live)
		if len(key.Behind) > 0 {
			fmt.Fprintf(w, "not yet  %s\n", strings.Join(key.Behind, " "))
		}
	}})
}

// gossipStage says in words what a stage means.
func gossipStage(key *fleet.DescribeGossipKeyResult) string {
	switch key.Stage {
	case fleet.GossipKeySettled:
		return "settled: it is the only one,"
	case fleet.GossipKeySpreading:
		return fmt.Sprintf("spreading: hosts still use key %d,", key.Number-1)
	case fleet.GossipKeyRetiring:
		return fmt.Sprintf("in use, and key %d is still read", key.Number-1)
	}
	return key.Stage
}

// rotationPoll is how often "rotate --wait" looks how far it is.
const rotationPoll = time.Second

func (e *env) gossipKeyRotate(c *cli.Context) error {
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	var begun fleet.RotateGossipKeyResult
	if err := api.Call(c.Context, "RotateGossipKey", fleet.RotateGossipKeyRequest{}, &begun); err != nil {
		return err
	}
	if !c.Bool("wait") {
		return e.print(c, result{value: begun, names: []string{fmt.Sprint(begun.Number)}, table: func(w io.Writer) {
			fmt.Fprintf(w, "key %d is being spread; how far it is: fleet gossip-key status\n", begun.Number)
		}})
	}
	for {
		key, err := describeGossipKey(c, api)
		if err != nil {
			return err
		}
		if key.Number > begun.Number || key.Stage == fleet.GossipKeySettled {
			return e.printGossipKey(c, key)
		}
		select {
		case <-c.Context.Done():
			return fleet.Errorf(fleet.Unknown, "key %d is %s %d of %d hosts have it", key.Number, gossipStage(key), key.Holding, key.Live).
				WithHint("the rotation goes on without this command: fleet gossip-key status")
		case <-time.After(rotationPoll):
		}
	}
}
