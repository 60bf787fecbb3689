package cli

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
	"fleet/node/ssm"
)

// someDirectory is a fleet of hosts named by words; one name twice.
func someDirectory(names string) *directory {
	targets := map[string]fleet.TargetView{
		"front":  {NodeSet: "web[01-02]"},
		"kind":   {Targets: []fleet.Target{{Key: "tag:kind", Values: []string{"db"}}}},
		"both":   {NodeSet: "@*", Targets: []fleet.Target{{Key: "tag:kind", Values: []string{"web", "cron"}}, {Key: "tag-key", Values: []string{"kind"}}}},
		"nested": {NodeSet: "@front,@kind!db2"},
		"old":    {NodeSet: "web[01-02],web[07-09]"},
		"a":      {NodeSet: "web01,@b"},
		"b":      {NodeSet: "@a"},
		"broken": {NodeSet: "web[1"},
		"future": {Targets: []fleet.Target{{Key: "fact:os", Values: []string{"linux"}}}},
	}
	d := &directory{target: func(name string) (*fleet.TargetView, error) {
		if t, ok := targets[name]; ok {
			t.Name = fleet.TargetName(name)
			return &t, nil
		}
		return nil, fleet.Errorf(fleet.NotFound, "there is no target %q", name)
	}}
	for i, name := range strings.Fields(names) {
		labels := map[string]string{"kind": strings.TrimRight(name, "0123456789")}
		d.all = append(d.all, fleet.NodeView{InstanceId: fleet.NodeID(fmt.Sprintf("mi-%017d", i)), Name: name, Labels: labels})
	}
	d.index()
	return d
}

func TestNodeSets(t *testing.T) {
	d := someDirectory("web01 web02 web03 db1 db2 cron twin twin")
	for _, c := range []struct{ sets, want, err string }{
		{"web01", "web01", ""},
		{"web[01-03]", "web01 web02 web03", ""},
		{"web[01-03],db1!web02", "web01 web03 db1", ""},
		{"db1 db1,db2", "db1 db2", ""},
		{"web*", "web01 web02 web03", ""},
		{"@*!web*!db*!cron", "twin twin", ""},
		{"mi-00000000000000003", "db1", ""},
		{"db1!mi-00000000000000003", "", "--node db1!mi-00000000000000003 names no host"},
		{"web[01-02]&db1", "", "names no host"},
		{"zzz*", "", "--node zzz* names no host"},
		{"web9", "", `there is no node "web9"`},
		{"wbe01", "", `there is no node "wbe01"`},
		{"web[01-05],db[1-4]", "", "there are no nodes db[3-4],web[04-05]"},
		{"web01!web77", "", `there is no node "web77"`},
		{"twin", "", "2 nodes are called twin"},
		{"web01!twin", "", "2 nodes are called twin"},
		{"@nothere", "", `there is no target "nothere"`},
		{"@front", "web01 web02", ""},
		{"@front!web01", "web02", ""},
		{"@kind", "db1 db2", ""},
		{"@both", "web01 web02 web03 cron", ""},
		{"@nested", "web01 web02 db1", ""},
		{"@front&web[01-03]!mi-00000000000000000", "web02", ""},
		{"@front^web[02-03]", "web01 web03", ""},
		{"@old", "web01 web02", ""},
		{"@a", "", "the target a means itself: @a is made of @b is made of @a"},
		{"@broken", "", "this [ is not closed"},
		{"@future", "", "labels that this program does not understand"},
		{"web[1", "", "this [ is not closed"},
	} {
		nodes, err := d.expand("--node", strings.Fields(c.sets))
		var got []string
		for _, n := range nodes {
			got = append(got, n.Name)
		}
		slices.SortFunc(got, func(a, b string) int {
			return strings.Index("web01 web02 web03 db1 db2 cron twin", a) - strings.Index("web01 web02 web03 db1 db2 cron twin", b)
		})
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, %v; want %s%s", c.sets, got, err, c.want, c.err)
		}
	}
	if len(d.notes) != 1 || d.notes[0] != "target old names hosts that are not in the fleet: web[07-09]" {
		t.Errorf("notes %q", d.notes)
	}
	if err := d.unknown([]string{"wbe01"}); !strings.Contains(fleet.HintOf(err), "did you mean web01?") {
		t.Errorf("hint %q", fleet.HintOf(err))
	}
}

// runContext is the context of a fleet run with these words.
func runContext(t *testing.T, line string) *cli.Context {
	t.Helper()
	w := newWorld(t)
	run := w.runCommand()
	l, err := arrange([]*cli.Command{run}, strings.Fields(line))
	if err != nil {
		t.Fatal(err)
	}
	set := flag.NewFlagSet("run", flag.ContinueOnError)
	for _, f := range run.Flags {
		if err := f.Apply(set); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Parse(append(slices.Clone(l.flags), append([]string{"--"}, l.rest...)...)); err != nil {
		t.Fatal(err)
	}
	return cli.NewContext(nil, set, nil)
}

func TestSelectionInThePlaceOfACommand(t *testing.T) {
	for _, c := range []struct{ line, sets, words, err string }{
		{"run web[1-3] -- uname -r", "web[1-3]", "uname -r", ""},
		{"run -w web[1-3] uname -r", "web[1-3]", "uname -r", ""},
		{"run -w a -w b -- x -- y", "a b", "x -- y", ""},
		{"run --all -- a -- b", "", "a -- b", ""},
		{"run --all a -- b", "", "a -- b", ""},
		{"run web1 --", "web1", "", ""},
		{"run --script x web[1-3] --", "web[1-3]", "", ""},
		{"run --target web -g db -w a -- x", "a @web @db", "x", ""},
		{"run -g web/x -- x", "", "", "target name"},
		{"run @web!web1 -- x", "@web!web1", "x", ""},
		{"run @web/ -- x", "", "", "cannot be in the name"},
		{"run web[1- -- x", "", "", "this [ is not closed"},
		{"run uname -r", "", "", "on which hosts?"},
		{"run -x web1 -- x", "", "", "on which hosts?"},
		{"run --all -x web[1 -- x", "", "", "this [ is not closed"},
		{"run --all -w a -- x", "", "", "--all is every host"},
		{"run -w= -- x", "", "", "--node names no host"},
	} {
		s, words, err := readSelection(runContext(t, c.line))
		if err != nil || c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || c.err == "" {
				t.Errorf("%s: %v, want %q", c.line, err, c.err)
			}
			continue
		}
		if strings.Join(s.sets, " ") != c.sets || strings.Join(words, " ") != c.words {
			t.Errorf("%s: sets %q, words %q", c.line, s.sets, words)
		}
	}
}

// What is signed holds IDs and labels, never a name or a set.
func TestFill(t *testing.T) {
	many := someDirectory(strings.Repeat("web ", 60)).all
	few := many[:2]
	label := []fleet.LabelFilter{{Key: "env", Values: []string{"prod", "test"}}, {Key: "rack"}}
	for _, c := range []struct {
		name string
		s    selection
		ids  int
		want string // keys of the targets with their numbers of values
	}{
		{"all", selection{all: true, nodes: many}, 0, "InstanceIds 1"},
		{"all but some", selection{all: true, nodes: few, named: true}, 2, ""},
		{"all but some of many", selection{all: true, nodes: many, named: true}, 0, "InstanceIds 60"},
		{"labels", selection{labels: label, nodes: many}, 0, "tag:env 2 tag-key 1"},
		{"a set", selection{nodes: few, named: true}, 2, ""},
		{"a large set", selection{nodes: many, named: true}, 0, "InstanceIds 60"},
		{"a set with labels", selection{nodes: few, named: true, labels: label}, 0, "InstanceIds 2 tag:env 2 tag-key 1"},
	} {
		var req ssm.SendCommandRequest
		c.s.fill(&req)
		var got []string
		for _, target := range req.Targets {
			got = append(got, target.Key, fmt.Sprint(len(target.Values)))
		}
		if len(req.InstanceIds) != c.ids || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %d IDs, targets %q", c.name, len(req.InstanceIds), got)
		}
	}
}

// TestNamedAsAnothersID: a host that joined under the ID of another is never
// taken for that, whichever of them is listed first.
func TestNamedAsAnothersID(t *testing.T) {
	d := someDirectory("mi-00000000000000001 web01")
	for _, set := range []string{"web01", "web*", "mi-00000000000000001", "@*!mi-00000000000000000"} {
		nodes, err := d.expand("--node", []string{set})
		if err != nil || len(nodes) != 1 || nodes[0].Name != "web01" {
			t.Errorf("%s: %v, %v; want web01", set, nodes, err)
		}
	}
	if nodes, err := d.expand("--node", []string{"mi-00000000000000000"}); err != nil || len(nodes) != 1 || nodes[0].Name == "web01" {
		t.Errorf("the other by its own ID: %v, %v", nodes, err)
	}
}
