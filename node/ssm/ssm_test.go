package ssm

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// testdata/model.json holds, of the public service model, the members of the
// shapes used here and the names of all errors.
type model struct {
	Shapes map[string]map[string]string `json:"shapes"`
	Errors []string                     `json:"errors"`
}

func loadModel(t *testing.T) model {
	t.Helper()
	b, err := os.ReadFile("testdata/model.json")
	if err != nil {
		t.Fatal(err)
	}
	var m model
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// ours are the members that SSM does not have.
var ours = map[string]bool{
	"CreateActivationRequest.PublicKey": true,
	"CreateActivationRequest.Replaces":  true,
	"Activation.Replaces":               true,
	"Activation.ReplacesName":           true,
	"SendCommandRequest.RunAs":          true,
	"Command.Operator":                  true,
	"Command.RunAs":                     true,
}

func TestShapesAreTheModels(t *testing.T) {
	m := loadModel(t)
	shapes := []any{
		Tag{}, AddTagsToResourceRequest{}, AddTagsToResourceResult{}, RemoveTagsFromResourceRequest{},
		RemoveTagsFromResourceResult{}, ListTagsForResourceRequest{}, ListTagsForResourceResult{},
		CreateActivationRequest{}, CreateActivationResult{}, DeleteActivationRequest{}, DeleteActivationResult{},
		DescribeActivationsFilter{}, DescribeActivationsRequest{}, DescribeActivationsResult{}, Activation{},
		InstanceInformationFilter{}, InstanceInformationStringFilter{}, DescribeInstanceInformationRequest{},
		DescribeInstanceInformationResult{}, InstanceInformation{},
		DeregisterManagedInstanceRequest{}, DeregisterManagedInstanceResult{},
		Target{}, SendCommandRequest{}, SendCommandResult{}, Command{}, CommandFilter{}, ListCommandsRequest{},
		ListCommandsResult{}, ListCommandInvocationsRequest{}, ListCommandInvocationsResult{}, CommandInvocation{},
		CommandPlugin{}, GetCommandInvocationRequest{}, GetCommandInvocationResult{},
	}
	if len(shapes) != len(m.Shapes) {
		t.Errorf("%d shapes checked, testdata/model.json has %d", len(shapes), len(m.Shapes))
	}
	for _, shape := range shapes {
		typ := reflect.TypeOf(shape)
		members, ok := m.Shapes[typ.Name()]
		if !ok {
			t.Errorf("%s is no shape of the model", typ.Name())
			continue
		}
		for i := range typ.NumField() {
			field := typ.Field(i)
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if ours[typ.Name()+"."+name] {
				continue
			}
			want, ok := members[name]
			if !ok {
				t.Errorf("%s.%s: the model has no member %q", typ.Name(), field.Name, name)
				continue
			}
			if got := kindOf(field.Type); got != want {
				t.Errorf("%s.%s is a %s, in the model a %s", typ.Name(), field.Name, got, want)
			}
		}
	}
}

func kindOf(t reflect.Type) string {
	if t == reflect.TypeFor[Time]() {
		return "timestamp"
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Int:
		return "integer"
	case reflect.Bool:
		return "boolean"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "map"
	case reflect.Struct:
		return "structure"
	}
	return t.Kind().String()
}

func TestErrorsAreTheModels(t *testing.T) {
	known := map[string]bool{ValidationException: true} // of the protocol, not of the service
	for _, name := range loadModel(t).Errors {
		known[name] = true
	}
	for _, name := range []string{InvalidInstanceId, InvalidCommandId, InvalidPluginName, InvalidResourceId, InvalidResourceType,
		InvalidActivationId, InvalidFilter, InvalidFilterKey, InvalidFilterValue, InvalidNextToken,
		InvalidInstanceInformationFilterValue, InvocationDoesNotExist, InternalServerError, ValidationException} {
		if !known[name] {
			t.Errorf("%s is no error of the model", name)
		}
	}
}

func TestTime(t *testing.T) {
	at := time.Date(2026, 11, 22, 1, 2, 3, 456_789_000, time.UTC)
	got, err := json.Marshal(TimeOf(at.UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	if want := "1795309323.456789"; string(got) != want {
		t.Errorf("%v as JSON: got %s, want %s", at, got, want)
	}
	if back := TimeOf(at.UnixNano()).Nanos(); back != at.UnixNano() {
		t.Errorf("there and back: got %d, want %d", back, at.UnixNano())
	}
	if got, want := ISO(at.UnixNano()), "2026-11-22T01:02:03.456Z"; got != want {
		t.Errorf("ISO: got %s, want %s", got, want)
	}
	if got := ISO(0); got != "" {
		t.Errorf("ISO of no time: got %q, want none", got)
	}
}
