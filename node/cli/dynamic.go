package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/ssm"
	"fleet/node/wire"
)

// What completion offers of a fleet: from the agent of this host, else from
// what was learnt a few seconds ago, else from the fleet.

// Kinds of what is offered.
const (
	dynamicNodes       = "nodes"
	dynamicLabels      = "labels"
	dynamicCommands    = "commands"
	dynamicActivations = "activations"
	dynamicOperators   = "operators"
	dynamicTargets     = "targets"
)

const (
	// completeWithin bounds an answer: a person waits for it at each key.
	completeWithin = 300 * time.Millisecond

	// completeFresh is how old the answer may be that is given again.
	completeFresh = 5 * time.Second

	maxOffered      = 10000
	maxCompleteFile = 2 << 20
)

// safeWord is what may be put into a shell's line: letters that mean nothing
// to bash, zsh or fish. That a name passed its own check is not enough here:
// what is allowed in names may grow.
var safeWord = onFirstUse(`^[a-zA-Z0-9][a-zA-Z0-9_.:/=@+-]{0,260}$`)

// onFirstUse compiles a pattern when it is needed, not at each start.
func onFirstUse(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

// offered are the values of one kind that were learnt.
type offered struct {
	Version int                 `json:"version"`
	Values  map[string][]string `json:"values"` // by kind
}

// dynamic are the values of a kind that begin with typed, each behind head.
func (e *completer) dynamic(kind, head, typed string) []candidate {
	ctx, cancel := context.WithTimeout(e.ctx, completeWithin)
	defer cancel()
	var r []candidate
	for _, v := range e.learn(ctx, kind) {
		value, about, _ := strings.Cut(v, "\t")
		if kind == dynamicNodes && strings.HasPrefix(value, "mi-") != strings.HasPrefix(typed, "mi-") {
			continue // names, unless an ID was begun
		}
		if safeWord().MatchString(value) && validOffer(kind, value) && strings.HasPrefix(value, typed) {
			r = append(r, candidate{head + value, about})
		}
		if len(r) == maxOffered {
			break
		}
	}
	return r
}

// validOffer is the check of a value's own kind.
func validOffer(kind, value string) bool {
	var err error
	switch kind {
	case dynamicNodes:
		if _, err = fleet.ParseNodeID(value); err != nil {
			err = fleet.CheckNodeName(value)
		}
	case dynamicLabels:
		key, v, ok := strings.Cut(value, "=")
		return ok && fleet.CheckLabel(key, v) == nil
	case dynamicCommands:
		_, err = fleet.ParseCommandID(value)
	case dynamicActivations:
		_, err = fleet.ParseActivationID(value)
	case dynamicOperators:
		_, err = fleet.ParseOperatorName(value)
	case dynamicTargets:
		_, err = fleet.ParseTargetName(value)
	}
	return err == nil
}

func (e *completer) learn(ctx context.Context, kind string) []string {
	c, err := e.lineContext(ctx)
	if err != nil {
		return nil
	}
	if kind == dynamicNodes || kind == dynamicLabels {
		if nodes, err := e.local(c).Nodes(ctx); err == nil {
			return ofNodes(kind, len(nodes.Nodes), func(i int) (string, fleet.NodeID, map[string]string) {
				n := nodes.Nodes[i]
				return n.Name, n.InstanceId, n.Labels
			})
		}
	}
	cred, path, err := e.credential(c)
	if err != nil {
		return nil
	}
	file := e.completeFile(path)
	if values, ok := e.readOffered(file, kind); ok {
		return values
	}
	values, err := e.ask(ctx, c, cred, kind)
	if err != nil {
		return nil
	}
	e.writeOffered(file, kind, values)
	return values
}

// lineContext holds the flags of the unfinished line that say whom to ask.
func (e *completer) lineContext(ctx context.Context) (*cli.Context, error) {
	set := flag.NewFlagSet(completeCommand, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	for _, f := range flags(clientFlags(), socketFlag()) {
		if err := f.Apply(set); err != nil {
			return nil, err
		}
		name := f.Names()[0]
		if value := e.given[name]; value != "" {
			if err := set.Set(name, value); err != nil {
				return nil, err
			}
		}
	}
	c := cli.NewContext(cli.NewApp(), set, nil)
	c.Context = ctx
	return c, nil
}

func ofNodes(kind string, n int, get func(i int) (string, fleet.NodeID, map[string]string)) []string {
	var all []string
	for i := range n {
		name, id, labels := get(i)
		switch {
		case kind == dynamicLabels:
			for k, v := range labels {
				if fleet.CheckLabel(k, v) == nil {
					all = append(all, k+"="+v)
				}
			}
		// Checked before they are joined by a tab: a name may hold one.
		case validOffer(kind, name) && validOffer(kind, string(id)):
			all = append(all, name+"\t"+string(id), string(id)+"\t"+name)
		}
	}
	slices.SortFunc(all, naturalCompare)
	return slices.Compact(all)
}

// ask asks the fleet, from the memory of one host.
func (e *env) ask(ctx context.Context, c *cli.Context, cred identity.Credential, kind string) ([]string, error) {
	addresses, err := e.addresses(c)
	if err != nil {
		return nil, err
	}
	api, err := client.Open(ctx, cred, client.Options{Dial: e.dial, Now: e.now, Stale: true, Addresses: addresses})
	if err != nil {
		return nil, err
	}
	defer api.Close()
	var all []string
	switch kind {
	case dynamicNodes, dynamicLabels:
		var r fleet.DescribeNodesResult
		if err := api.Call(ctx, "DescribeNodes", fleet.DescribeNodesRequest{Brief: true}, &r); err != nil {
			return nil, err
		}
		return ofNodes(kind, len(r.Nodes), func(i int) (string, fleet.NodeID, map[string]string) {
			n := r.Nodes[i]
			return n.Name, n.InstanceId, n.Labels
		}), nil
	case dynamicCommands:
		var r ssm.ListCommandsResult
		if err := api.Call(ctx, "ListCommands", ssm.ListCommandsRequest{MaxResults: 50}, &r); err != nil {
			return nil, err
		}
		for _, cmd := range r.Commands {
			all = append(all, cmd.CommandId+"\t"+cmd.Status+" "+strings.Map(oneLine, what(cmd)))
		}
	case dynamicActivations:
		var r ssm.DescribeActivationsResult
		if err := api.Call(ctx, "DescribeActivations", ssm.DescribeActivationsRequest{}, &r); err != nil {
			return nil, err
		}
		for _, a := range r.ActivationList {
			all = append(all, a.ActivationId+"\t"+strings.Map(oneLine, a.Description))
		}
	case dynamicTargets:
		var r fleet.DescribeTargetsResult
		if err := api.Call(ctx, "DescribeTargets", fleet.DescribeTargetsRequest{}, &r); err != nil {
			return nil, err
		}
		for _, t := range r.Targets {
			all = append(all, string(t.Name)+"\t"+strings.Map(oneLine, firstOf(t.Description, t.NodeSet)))
		}
	case dynamicOperators:
		var r fleet.DescribeOperatorsResult
		if err := api.Call(ctx, "DescribeOperators", fleet.DescribeOperatorsRequest{}, &r); err != nil {
			return nil, err
		}
		for _, o := range r.Operators {
			all = append(all, string(o.Name))
		}
	}
	return all, nil
}

func oneLine(r rune) rune {
	if r == '\t' || r == '\n' || r == '\r' {
		return ' '
	}
	return r
}

// completeFile is where the answers for a credential are kept for a moment; ""
// when there is no place.
func (e *env) completeFile(credential string) string {
	dir := e.getenv("XDG_CACHE_HOME")
	switch {
	case filepath.IsAbs(dir):
	case e.home != "":
		dir = filepath.Join(e.home, ".cache")
	default:
		return ""
	}
	sum := fleet.Sum([]byte(credential))
	return filepath.Join(dir, "fleet", "complete-"+sum.String()[:16])
}

// readOffered reads answers that are fresh.
func (e *env) readOffered(path, kind string) ([]string, bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || e.now().Sub(info.ModTime()).Abs() > completeFresh {
		return nil, false
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCompleteFile+1))
	if err != nil {
		return nil, false
	}
	o, err := parseOffered(b)
	if err != nil {
		return nil, false
	}
	values, ok := o.Values[kind]
	return values, ok
}

func parseOffered(b []byte) (*offered, error) {
	if len(b) > maxCompleteFile {
		return nil, errors.New("it is too long")
	}
	var o offered
	if err := wire.StrictJSON(b, &o); err != nil {
		return nil, err
	}
	if o.Version != 1 {
		return nil, errors.New("it is of another version")
	}
	return &o, nil
}

// writeOffered keeps answers for the next key. That it may fail is of no
// account: the next one asks again.
func (e *env) writeOffered(path, kind string, values []string) {
	if path == "" || os.MkdirAll(filepath.Dir(path), 0o700) != nil {
		return
	}
	b, err := json.Marshal(offered{Version: 1, Values: map[string][]string{kind: values}})
	if err != nil || len(b) > maxCompleteFile {
		return
	}
	f, err := os.CreateTemp(filepath.Dir(path), "complete.*") // of mode 0600
	if err != nil {
		return
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the next one asks again
	}
}
