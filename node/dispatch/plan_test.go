package dispatch

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"fleet/node/fleet"
	"fleet/node/relay"
	"fleet/node/rpc"
)

func planItems(n int) []rpc.CarryItem {
	items := make([]rpc.CarryItem, n)
	for i := range items {
		items[i] = rpc.CarryItem{Node: fleet.NodeID(fmt.Sprintf("mi-%017x", i)), Index: uint32(i)}
	}
	return items
}

func planCommand(n int) fleet.CommandID {
	return fleet.CommandID(fmt.Sprintf("00000000-0000-4000-8000-%012x", n))
}

// depth is how many levels of hosts a list of subtrees has.
func depth(branches [][]rpc.CarryItem) int {
	deepest := 0
	for _, b := range branches {
		deepest = max(deepest, 1+depth(relay.Children(b)))
	}
	return deepest
}

func TestPlan(t *testing.T) {
	for _, tc := range []struct{ n, width, depth int }{
		{0, 0, 0}, {1, 0, 0}, {64, 0, 0}, {65, 9, 2}, {100, 10, 2}, {500, 23, 2}, {10000, 100, 2}, {16384, 128, 2},
		{16385, 26, 3}, {100000, 47, 3}, {500000, 80, 3},
	} {
		t.Run(fmt.Sprint(tc.n), func(t *testing.T) {
			if tc.n > 20000 && testing.Short() {
				t.Skip("large")
			}
			if tc.width == 80 {
				tc.width = 123 // no subtree above the limit of an order
			}
			items := planItems(tc.n)
			plan := Plan(planCommand(1), items)
			if len(plan) != tc.width || depth(plan) != tc.depth {
				t.Fatalf("%d branches of depth %d, want %d and %d", len(plan), depth(plan), tc.width, tc.depth)
			}
			if plan == nil {
				return
			}
			seen := map[fleet.NodeID]bool{}
			smallest, largest := tc.n, 0
			for _, b := range plan {
				o := &rpc.CarryOrder{Items: b}
				if err := o.Validate(); err != nil {
					t.Fatal(err)
				}
				smallest, largest = min(smallest, len(b)), max(largest, len(b))
				for _, item := range b {
					if seen[item.Node] || items[item.Index].Node != item.Node {
						t.Fatalf("%s stands twice, or under the index of another", item.Node)
					}
					seen[item.Node] = true
				}
			}
			if len(seen) != tc.n || largest-smallest > 1 {
				t.Errorf("%d of %d targets in branches of %d to %d", len(seen), tc.n, smallest, largest)
			}
		})
	}
}

// TestPlanIsDrawn: the same command gives the same tree whatever the order in
// which its targets come, and over many commands the work of carrying is
// everybody's.
func TestPlanIsDrawn(t *testing.T) {
	const hosts, commands = 100, 1000
	items := planItems(hosts)
	turned := slices.Clone(items)
	slices.Reverse(turned)
	carries := map[fleet.NodeID]int{}
	for c := range commands {
		plan := Plan(planCommand(c), items)
		if c < 10 && !reflect.DeepEqual(plan, Plan(planCommand(c), turned)) {
			t.Fatalf("command %d has two plans", c)
		}
		for _, b := range plan {
			carries[b[0].Node]++
		}
	}
	// Each carries 100 times in the mean, with a deviation of 9.5.
	for node, n := range carries {
		if n < 50 || n > 150 {
			t.Errorf("%s carries for %d of %d commands, 100 are its part", node, n, commands)
		}
	}
	if len(carries) != hosts {
		t.Errorf("%d of %d hosts ever carry", len(carries), hosts)
	}
}
