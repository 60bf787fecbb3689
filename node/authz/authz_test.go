package authz

import (
	"strings"
	"testing"

	"fleet/node/fleet"
)

func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, op := range Operations {
		if seen[op.Name] {
			t.Errorf("%s stands twice", op.Name)
		}
		seen[op.Name] = true
		if op.Class.String() == "" {
			t.Errorf("%s: no class", op.Name)
		}
		if op.Permission == "" {
			t.Errorf("%s: no permission", op.Name)
		}
		if op.Class.Granted() && op.Permission != op.Name {
			t.Errorf("%s: a log entry is checked against its own name, the table says %s", op.Name, op.Permission)
		}
		if got, ok := Lookup(op.Name); !ok || got != op {
			t.Errorf("Lookup(%s): got %v %v", op.Name, got, ok)
		}
	}
}

func TestAllowed(t *testing.T) {
	all := fleet.Operator{Name: "root", May: []string{All}}
	sender := fleet.Operator{Name: "ci", May: []string{"SendCommand"}}
	none := fleet.Operator{Name: "guest"}
	tests := []struct {
		name      string
		operator  fleet.Operator
		operation string
		want      string // part of the error; "" is allowed
		kind      fleet.Kind
	}{
		{"all may sign", all, "ChangeQuorum", "", 0},
		{"named may sign", sender, "SendCommand", "", 0},
		{"named may not another", sender, "CreateActivation", "ci may not CreateActivation", fleet.Denied},
		{"none may not sign", none, "SendCommand", "guest may not SendCommand", fleet.Denied},
		{"any may read", none, "DescribeNodes", "", 0},
		{"nobody may not read", fleet.Operator{}, "DescribeNodes", "needs an operator", fleet.Denied},
		{"nobody with all may not sign", fleet.Operator{May: []string{All}}, "SendCommand", "needs an operator", fleet.Denied},
		{"local is not for operators", all, "LocalStatus", "local socket", fleet.Denied},
		{"unknown", all, "DropTables", `no operation "DropTables"`, fleet.NotFound},
		{"another case is unknown", all, "sendCommand", "no operation", fleet.NotFound},
		{"star is no operation", all, "*", "no operation", fleet.NotFound},
		{"a permission that only begins alike", fleet.Operator{Name: "x", May: []string{"SendCommandX", "Send*"}}, "SendCommand", "may not", fleet.Denied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Allowed(tt.operator, tt.operation)
			if tt.want == "" {
				if err != nil {
					t.Fatalf("got %v, want allowed", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want an error with %q", err, tt.want)
			}
			if got := fleet.KindOf(err); got != tt.kind {
				t.Errorf("kind: got %v, want %v", got, tt.kind)
			}
		})
	}
}
