package entry

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
)

const (
	testKey  = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
	testHash = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" // of {}
)

// parsers reads any request of an operation.
var parsers = map[string]func([]byte) (any, error){
	"CreateActivation":       func(b []byte) (any, error) { return ParseCreateActivation(b) },
	"DeleteActivation":       func(b []byte) (any, error) { return ParseDeleteActivation(b) },
	"AddTagsToResource":      func(b []byte) (any, error) { return ParseAddTags(b) },
	"RemoveTagsFromResource": func(b []byte) (any, error) { return ParseRemoveTags(b) },
	"SendCommand":            func(b []byte) (any, error) { return ParseSendCommand(b) },
	"CancelCommand":          func(b []byte) (any, error) { return ParseCancelCommand(b) },

	"DeregisterManagedInstance": func(b []byte) (any, error) { return ParseRemoveNode(b) },
	"RenameNode":                func(b []byte) (any, error) { return ParseRenameNode(b) },
	"CreateOperator":            func(b []byte) (any, error) { return ParseCreateOperator(b) },
	"DeleteOperator":            func(b []byte) (any, error) { return ParseDeleteOperator(b) },
	"PutTarget":                 func(b []byte) (any, error) { return ParsePutTarget(b) },
	"RotateGossipKey":           func(b []byte) (any, error) { return ParseRotateGossipKey(b) },
	"DeleteTarget":              func(b []byte) (any, error) { return ParseDeleteTarget(b) },
}

// object writes JSON with keys in order and values as they are.
func object(pairs ...string) string {
	var parts []string
	for i := 0; i < len(pairs); i += 2 {
		parts = append(parts, fmt.Sprintf("%q:%s", pairs[i], pairs[i+1]))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// command is a valid SendCommand with pairs added or, for "", left out.
func command(edit ...string) string {
	base := []string{
		"DocumentName", `"AWS-RunShellScript"`, "DocumentHash", `"` + testHash + `"`, "DocumentHashType", `"Sha256"`,
		"Targets", `[{"Key":"InstanceIds","Values":["*"]}]`, "MaxConcurrency", `"100%"`, "MaxErrors", `"100%"`,
	}
	var out []string
	for i := 0; i < len(base); i += 2 {
		keep := true
		for j := 0; j < len(edit); j += 2 {
			keep = keep && edit[j] != base[i]
		}
		if keep {
			out = append(out, base[i], base[i+1])
		}
	}
	for j := 0; j < len(edit); j += 2 {
		if edit[j+1] != "" {
			out = append(out, edit[j], edit[j+1])
		}
	}
	return object(out...)
}

func manyTags(n int) string {
	var tags []string
	for i := range n {
		tags = append(tags, fmt.Sprintf(`{"Key":"k%d","Value":"v"}`, i))
	}
	return "[" + strings.Join(tags, ",") + "]"
}

func many(n int, format string) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return "[" + strings.Join(out, ",") + "]"
}

func TestRequests(t *testing.T) {
	const node = `"mi-0123456789abcdef0"`
	for _, c := range []struct {
		name, operation, request string
		code                     string // "" is accepted
	}{
		{"activation", "CreateActivation", object("PublicKey", `"`+testKey+`"`), ""},
		{"activation with all", "CreateActivation", object("Description", `"för allt"`, "DefaultInstanceName", `"web box"`, "RegistrationLimit", "1000",
			"ExpirationDate", "1767229200.5", "Tags", manyTags(50), "PublicKey", `"`+testKey+`"`), ""},
		{"activation without key", "CreateActivation", object("Description", `"x"`), validation},
		{"activation with a short key", "CreateActivation", object("PublicKey", `"AAAA"`), validation},
		{"activation with a line break in the key", "CreateActivation", object("PublicKey", `"`+testKey[:10]+`\n`+testKey[10:]+`"`), validation},
		{"activation with stray bits in the key", "CreateActivation", object("PublicKey", `"`+testKey[:42]+`p="`), validation},
		{"activation for 1001", "CreateActivation", object("RegistrationLimit", "1001", "PublicKey", `"`+testKey+`"`), validation},
		{"activation for -1", "CreateActivation", object("RegistrationLimit", "-1", "PublicKey", `"`+testKey+`"`), validation},
		{"activation for 1.5", "CreateActivation", object("RegistrationLimit", "1.5", "PublicKey", `"`+testKey+`"`), validation},
		{"activation until ever", "CreateActivation", object("ExpirationDate", "1e300", "PublicKey", `"`+testKey+`"`), validation},
		{"activation until text", "CreateActivation", object("ExpirationDate", `"1767229200"`, "PublicKey", `"`+testKey+`"`), validation},
		{"activation with 51 tags", "CreateActivation", object("Tags", manyTags(51), "PublicKey", `"`+testKey+`"`), "TooManyTagsError"},
		{"activation with a tag twice", "CreateActivation",
			object("Tags", `[{"Key":"a","Value":"1"},{"Key":"a","Value":"2"}]`, "PublicKey", `"`+testKey+`"`), validation},
		{"activation with a reserved tag", "CreateActivation", object("Tags", `[{"Key":"aws:x","Value":""}]`, "PublicKey", `"`+testKey+`"`), validation},
		{"activation with a name of other letters", "CreateActivation", object("DefaultInstanceName", `"bücher"`, "PublicKey", `"`+testKey+`"`), validation},
		{"activation with a long description", "CreateActivation",
			object("Description", `"`+strings.Repeat("ä", 257)+`"`, "PublicKey", `"`+testKey+`"`), validation},
		{"activation with an escape sequence", "CreateActivation", object("Description", `"\u001b[2J"`, "PublicKey", `"`+testKey+`"`), validation},

		{"delete", "DeleteActivation", object("ActivationId", `"`+testID+`"`), ""},
		{"target of names", "PutTarget", object("Name", `"web.frontend"`, "NodeSet", `"web[01-20]!web07, @db&rack[1-2]n* ^x?"`), ""},
		{"target of labels", "PutTarget", object("Name", `"a"`, "Description", `"för allt"`, "Targets", `[{"Key":"tag:env","Values":["prod","test"]},{"Key":"tag-key","Values":["rack"]}]`), ""},
		{"target of both", "PutTarget", object("Name", `"a"`, "NodeSet", `"web1"`, "Targets", `[{"Key":"tag:env","Values":["prod"]}]`), ""},
		{"target of a long set", "PutTarget", object("Name", `"a"`, "NodeSet", `"`+strings.Repeat("x", MaxNodeSet)+`"`), ""},
		{"target of nothing", "PutTarget", object("Name", `"a"`), validation},
		{"target of spaces", "PutTarget", object("Name", `"a"`, "NodeSet", `"  "`), validation},
		{"target without a name", "PutTarget", object("NodeSet", `"web1"`), validation},
		{"target with a bad name", "PutTarget", object("Name", `"a/b"`, "NodeSet", `"web1"`), validation},
		{"target with the name of all", "PutTarget", object("Name", `"*"`, "NodeSet", `"web1"`), validation},
		{"target with a long name", "PutTarget", object("Name", `"`+strings.Repeat("x", 65)+`"`, "NodeSet", `"web1"`), validation},
		{"target of a set that is too long", "PutTarget", object("Name", `"a"`, "NodeSet", `"`+strings.Repeat("x", MaxNodeSet+1)+`"`), validation},
		{"target of a set with a control character", "PutTarget", object("Name", `"a"`, "NodeSet", `"web1\u001b[31m"`), validation},
		{"target of a set with a line break", "PutTarget", object("Name", `"a"`, "NodeSet", `"web1\n"`), validation},
		{"target of a set beyond ASCII", "PutTarget", object("Name", `"a"`, "NodeSet", `"wéb"`), validation},
		{"target of IDs as selectors", "PutTarget", object("Name", `"a"`, "Targets", `[{"Key":"InstanceIds","Values":["*"]}]`), "InvalidTarget"},
		{"target of five selectors", "PutTarget", object("Name", `"a"`, "Targets", many(5, `{"Key":"tag:k%d","Values":["v"]}`)), validation},
		{"target of a selector without values", "PutTarget", object("Name", `"a"`, "Targets", `[{"Key":"tag:env","Values":[]}]`), "InvalidTarget"},
		{"target with more", "PutTarget", object("Name", `"a"`, "NodeSet", `"web1"`, "Run", `"x"`), validation},
		{"rotation", "RotateGossipKey", "{}", ""},
		{"rotation with a member", "RotateGossipKey", object("Key", `"a"`), validation},
		{"remove a target", "DeleteTarget", object("Name", `"a"`), ""},
		{"remove no target", "DeleteTarget", "{}", validation},
		{"delete nothing", "DeleteActivation", "{}", "InvalidActivationId"},
		{"delete in capitals", "DeleteActivation", object("ActivationId", `"`+strings.ToUpper(testID)+`"`), "InvalidActivationId"},

		{"tags", "AddTagsToResource", object("ResourceType", `"ManagedInstance"`, "ResourceId", node, "Tags", manyTags(1)), ""},
		{"no tags", "AddTagsToResource", object("ResourceType", `"ManagedInstance"`, "ResourceId", node, "Tags", "[]"), validation},
		{"tags of a document", "AddTagsToResource", object("ResourceType", `"Document"`, "ResourceId", node, "Tags", manyTags(1)), "InvalidResourceType"},
		{"tags of no node", "AddTagsToResource", object("ResourceType", `"ManagedInstance"`, "ResourceId", `"web"`, "Tags", manyTags(1)), "InvalidResourceId"},
		{"tag without key", "AddTagsToResource", object("ResourceType", `"ManagedInstance"`, "ResourceId", node, "Tags", `[{"Value":"x"}]`), validation},
		{"untag", "RemoveTagsFromResource", object("ResourceType", `"ManagedInstance"`, "ResourceId", node, "TagKeys", `["a","b"]`), ""},
		{"untag nothing", "RemoveTagsFromResource", object("ResourceType", `"ManagedInstance"`, "ResourceId", node), validation},
		{"untag too much", "RemoveTagsFromResource", object("ResourceType", `"ManagedInstance"`, "ResourceId", node, "TagKeys", many(51, `"k%d"`)), validation},

		{"remove", "DeregisterManagedInstance", object("InstanceId", node), ""},
		{"remove nothing", "DeregisterManagedInstance", "{}", "InvalidInstanceId"},
		{"remove by name", "DeregisterManagedInstance", object("InstanceId", `"web1"`), "InvalidInstanceId"},
		{"remove several", "DeregisterManagedInstance", object("InstanceId", "["+node+"]"), validation},

		{"rename", "RenameNode", object("InstanceId", node, "Name", `"web1.example.com"`), ""},
		{"rename to nothing", "RenameNode", object("InstanceId", node), validation},
		{"rename to an ID", "RenameNode", object("InstanceId", node, "Name", node), validation},
		{"rename to an option", "RenameNode", object("InstanceId", node, "Name", `"-rf"`), validation},
		{"rename to a long name", "RenameNode", object("InstanceId", node, "Name", `"`+strings.Repeat("a", 254)+`"`), validation},
		{"rename to an escape sequence", "RenameNode", object("InstanceId", node, "Name", `"a\u001b[2Jb"`), validation},
		{"rename of a name", "RenameNode", object("InstanceId", `"web1"`, "Name", `"web2"`), "InvalidInstanceId"},
		{"operator", "CreateOperator", object("Name", `"eve@laptop"`, "PublicKey", `"`+testKey+`"`, "May", `["SendCommand","DescribeNodes"]`), ""},
		{"operator for all", "CreateOperator", object("Name", `"eve"`, "PublicKey", `"`+testKey+`"`, "May", `["*"]`), ""},
		{"operator for all and more", "CreateOperator", object("Name", `"eve"`, "PublicKey", `"`+testKey+`"`, "May", `["*","SendCommand"]`), validation},
		{"operator for nothing", "CreateOperator", object("Name", `"eve"`, "PublicKey", `"`+testKey+`"`, "May", `[]`), validation},
		{"operator for too much", "CreateOperator", object("Name", `"eve"`, "PublicKey", `"`+testKey+`"`, "May", many(101, `"Do%d"`)), validation},
		{"operator for a thing twice", "CreateOperator", object("Name", `"eve"`, "PublicKey", `"`+testKey+`"`, "May", `["SendCommand","SendCommand"]`), validation},
		{"operator for no operation", "CreateOperator", object("Name", `"eve"`, "PublicKey", `"`+testKey+`"`, "May", `["send command"]`), validation},
		{"operator without a name", "CreateOperator", object("PublicKey", `"`+testKey+`"`, "May", `["*"]`), validation},
		{"operator with a path for a name", "CreateOperator", object("Name", `"../eve"`, "PublicKey", `"`+testKey+`"`, "May", `["*"]`), validation},
		{"operator without a key", "CreateOperator", object("Name", `"eve"`, "May", `["*"]`), validation},
		{"operator with the key that everybody has", "CreateOperator",
			object("Name", `"eve"`, "PublicKey", `"`+strings.Repeat("A", 43)+`="`, "May", `["*"]`), validation},
		{"end of an operator", "DeleteOperator", object("Name", `"eve"`), ""},
		{"end of nobody", "DeleteOperator", "{}", validation},

		{"command", "SendCommand", command(), ""},
		{"command on named nodes", "SendCommand", command("Targets", "", "InstanceIds", "["+node+"]"), ""},
		{"command on 50 nodes", "SendCommand", command("Targets", "", "InstanceIds", many(50, `"mi-%017x"`)), ""},
		{"command on 51 nodes", "SendCommand", command("Targets", "", "InstanceIds", many(51, `"mi-%017x"`)), validation},
		{"command on a node twice", "SendCommand", command("Targets", "", "InstanceIds", "["+node+","+node+"]"), "DuplicateInstanceId"},
		{"command on an EC2 instance", "SendCommand", command("Targets", "", "InstanceIds", `["i-0123456789abcdef0"]`), "InvalidInstanceId"},
		{"command on both", "SendCommand", command("InstanceIds", "["+node+"]"), validation},
		{"command on nobody", "SendCommand", command("Targets", ""), validation},
		{"command on labels", "SendCommand", command("Targets", `[{"Key":"tag:role","Values":["web","db"]},{"Key":"tag-key","Values":["site"]}]`), ""},
		{"command on a label without values", "SendCommand", command("Targets", `[{"Key":"tag:role","Values":[]}]`), "InvalidTarget"},
		{"command on a bad label", "SendCommand", command("Targets", `[{"Key":"tag:","Values":["a"]}]`), "InvalidTarget"},
		{"command on a fact", "SendCommand", command("Targets", `[{"Key":"PlatformName","Values":["Debian"]}]`), "InvalidTarget"},
		{"command on 6 targets", "SendCommand", command("Targets", many(6, `{"Key":"tag:k%d","Values":["v"]}`)), validation},
		{"command on 5000 named nodes", "SendCommand", command("Targets", `[{"Key":"InstanceIds","Values":`+many(5000, `"mi-%017d"`)+`}]`), ""},
		{"command on 5001 named nodes", "SendCommand", command("Targets", `[{"Key":"InstanceIds","Values":`+many(5001, `"mi-%017d"`)+`}]`), "InvalidTarget"},
		{"command on 51 values", "SendCommand", command("Targets", `[{"Key":"tag:k","Values":`+many(51, `"v%d"`)+`}]`), "InvalidTarget"},
		{"command on all and one", "SendCommand", command("Targets", `[{"Key":"InstanceIds","Values":["*","web"]}]`), "InvalidTarget"},
		{"command with version", "SendCommand", command("DocumentVersion", `"$LATEST"`), ""},
		{"command with a bad version", "SendCommand", command("DocumentVersion", `"$NEWEST"`), validation},
		{"command without hash", "SendCommand", command("DocumentHash", ""), validation},
		{"command with a hash in capitals", "SendCommand", command("DocumentHash", `"`+strings.ToUpper(testHash)+`"`), validation},
		{"command with Sha1", "SendCommand", command("DocumentHashType", `"Sha1"`), validation},
		{"command on a short document name", "SendCommand", command("DocumentName", `"ab"`), validation},
		{"command with parameters", "SendCommand", command("Parameters", `{"commands":["\"; rm -rf / #","","{{x}}"]}`), ""},
		{"command with a parameter of a bad name", "SendCommand", command("Parameters", `{"a-b":["x"]}`), "InvalidParameters"},
		{"command with too many parameters", "SendCommand", command("Parameters",
			strings.NewReplacer("[", "{", "]", "}").Replace(many(201, `"p%d":null`))), "InvalidParameters"},
		{"command in 29 s", "SendCommand", command("TimeoutSeconds", "29"), validation},
		{"command in 31 days", "SendCommand", command("TimeoutSeconds", "2678400"), validation},
		{"command one at a time", "SendCommand", command("MaxConcurrency", `"1"`), ""},
		{"command on a tenth of them", "SendCommand", command("MaxConcurrency", `"10%"`, "MaxErrors", `"0%"`), ""},
		{"command with SSM's limits", "SendCommand", command("MaxConcurrency", "", "MaxErrors", ""), ""},
		{"command on nobody at once", "SendCommand", command("MaxConcurrency", `"0"`), validation},
		{"command on none of them", "SendCommand", command("MaxConcurrency", `"0%"`), validation},
		{"command on more than all", "SendCommand", command("MaxConcurrency", `"101%"`), validation},
		{"command on a fraction", "SendCommand", command("MaxConcurrency", `"2.5"`), validation},
		{"command on a number in words", "SendCommand", command("MaxConcurrency", `"ten"`), validation},
		{"command on too long a number", "SendCommand", command("MaxConcurrency", `"10000000"`), validation},
		{"command with fewer than no errors", "SendCommand", command("MaxErrors", `"-1"`), validation},
		{"command with a zero before its errors", "SendCommand", command("MaxErrors", `"05"`), validation},
		{"command with a long comment", "SendCommand", command("Comment", `"`+strings.Repeat("x", 101)+`"`), validation},
		{"command as a user", "SendCommand", command("RunAs", `"www-data"`), ""},
		{"command as an option", "SendCommand", command("RunAs", `"-x"`), validation},
		{"command as a long user", "SendCommand", command("RunAs", `"`+strings.Repeat("a", 33)+`"`), validation},
		{"command to S3", "SendCommand", command("OutputS3BucketName", `"b"`), validation},

		{"cancel", "CancelCommand", object("CommandId", `"`+testID+`"`), ""},
		{"cancel on 50 nodes", "CancelCommand", object("CommandId", `"`+testID+`"`, "InstanceIds", many(50, `"mi-%017x"`)), ""},
		{"cancel on 51 nodes", "CancelCommand", object("CommandId", `"`+testID+`"`, "InstanceIds", many(51, `"mi-%017x"`)), validation},
		{"cancel nothing", "CancelCommand", "{}", "InvalidCommandId"},
		{"cancel in capitals", "CancelCommand", object("CommandId", `"`+strings.ToUpper(testID)+`"`), "InvalidCommandId"},
		{"cancel on a node twice", "CancelCommand", object("CommandId", `"`+testID+`"`, "InstanceIds", "["+node+","+node+"]"), "DuplicateInstanceId"},
		{"cancel on a name", "CancelCommand", object("CommandId", `"`+testID+`"`, "InstanceIds", `["web"]`), "InvalidInstanceId"},
		{"cancel of an attempt", "CancelCommand", object("CommandId", `"`+testID+`"`, "Attempt", "1"), validation},

		{"another case", "DeleteActivation", object("activationid", `"`+testID+`"`), validation},
		{"a key twice", "DeleteActivation", object("ActivationId", `"`+testID+`"`, "ActivationId", `"`+testID+`"`), validation},
		{"bytes after it", "DeleteActivation", object("ActivationId", `"`+testID+`"`) + "{}", validation},
		{"not JSON", "DeleteActivation", "x", validation},
		{"null", "SendCommand", "null", validation},
		{"a list", "SendCommand", "[]", validation},
		{"invalid UTF-8", "SendCommand", command("Comment", "\"\xff\""), validation},
		{"deep", "SendCommand", command("Comment", strings.Repeat("[", 40)+strings.Repeat("]", 40)), validation},
		{"too large", "SendCommand", command("Comment", `"`+strings.Repeat("x", MaxRequest)+`"`), validation},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parsers[c.operation]([]byte(c.request))
			if c.code == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			var e *fleet.Error
			if !errors.As(err, &e) || e.Code != c.code || e.Kind != fleet.Invalid && e.Kind != fleet.TooLarge {
				t.Errorf("error %v (%+v); want the code %s", err, e, c.code)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	a, err := ParseCreateActivation([]byte(object("PublicKey", `"`+testKey+`"`)))
	if err != nil {
		t.Fatal(err)
	}
	if a.RegistrationLimit != 1 || a.Key().IsZero() {
		t.Errorf("activation %+v; want a limit of 1 and a key", a)
	}
	if e, err := a.Expires(testStamp); err != nil || e != testStamp+int64(24*time.Hour) {
		t.Errorf("it expires at %d (%v); want a day later", e, err)
	}
	c, err := ParseSendCommand([]byte(command()))
	if err != nil {
		t.Fatal(err)
	}
	if c.TimeoutSeconds != 3600 || c.Digest() != fleet.Sum([]byte("{}")) {
		t.Errorf("command %+v; want an hour and the digest of {}", c)
	}
}

func TestExpires(t *testing.T) {
	second := float64(testStamp / int64(time.Second))
	for name, c := range map[string]struct {
		date  float64
		after time.Duration // 0 is refused
	}{
		"in an hour":       {second + 3600, time.Hour},
		"with a fraction":  {second + 0.25, 250 * time.Millisecond},
		"now":              {second, 0},
		"before":           {second - 1, 0},
		"in 30 days":       {second + 30*86400, 30 * 24 * time.Hour},
		"after 30 days":    {second + 30*86400 + 1, 0},
		"in 1970":          {0.001, 0},
		"in milliseconds?": {second * 1000, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := &CreateActivationV1{ExpirationDate: c.date}
			got, err := r.Expires(testStamp)
			if (err == nil) != (c.after != 0) || err == nil && got != testStamp+int64(c.after) {
				t.Errorf("Expires = %d, %v; want %s after the stamp", got-testStamp, err, c.after)
			}
		})
	}
}

// FuzzRequests holds that each request decoder refuses or returns a request
// that means the same when it is written and read again.
func FuzzRequests(f *testing.F) {
	f.Add("CreateActivation", []byte(object("PublicKey", `"`+testKey+`"`, "Tags", manyTags(2))))
	f.Add("PutTarget", []byte(object("Name", `"a"`, "NodeSet", `"web[1-3]"`, "Targets", `[{"Key":"tag:env","Values":["prod"]}]`)))
	f.Add("RotateGossipKey", []byte("{}"))
	f.Add("DeleteTarget", []byte(object("Name", `"a"`)))
	f.Add("DeleteActivation", []byte(object("ActivationId", `"`+testID+`"`)))
	f.Add("AddTagsToResource", []byte(object("ResourceType", `"ManagedInstance"`, "ResourceId", `"mi-0123456789abcdef0"`, "Tags", manyTags(1))))
	f.Add("RemoveTagsFromResource", []byte(object("ResourceType", `"ManagedInstance"`, "ResourceId", `"mi-0123456789abcdef0"`, "TagKeys", `["a"]`)))
	f.Add("DeregisterManagedInstance", []byte(object("InstanceId", `"mi-0123456789abcdef0"`)))
	f.Add("RenameNode", []byte(object("InstanceId", `"mi-0123456789abcdef0"`, "Name", `"web2"`)))
	f.Add("CreateOperator", []byte(object("Name", `"eve"`, "PublicKey", `"`+testKey+`"`, "May", `["SendCommand"]`)))
	f.Add("DeleteOperator", []byte(object("Name", `"eve"`)))
	f.Add("SendCommand", []byte(command("Parameters", `{"commands":["true"]}`)))
	f.Add("CancelCommand", []byte(object("CommandId", `"`+testID+`"`, "InstanceIds", `["mi-0123456789abcdef0"]`)))
	f.Fuzz(func(t *testing.T, operation string, b []byte) {
		parse, ok := parsers[operation]
		if !ok {
			return
		}
		req, err := parse(b)
		if err != nil {
			if k := fleet.KindOf(err); k != fleet.Invalid && k != fleet.TooLarge {
				t.Fatalf("kind %s: %v", k, err)
			}
			return
		}
		again, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > MaxRequest {
			return // escapes made it longer
		}
		req2, err := parse(again)
		if err != nil {
			t.Fatalf("%s, written again, is refused: %v", again, err)
		}
		if third, err := json.Marshal(req2); err != nil || string(third) != string(again) {
			t.Fatalf("%s means %s when read again (%v)", again, third, err)
		}
	})
}
