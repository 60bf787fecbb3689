package private

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/windows"
)

// setList gives a file another access list.
func setList(t *testing.T, path, sddl string) {
	t.Helper()
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		t.Fatal(err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		t.Fatal(err)
	}
	err = windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
	if err != nil {
		t.Fatal(err)
	}
}

func loose(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	why, err := Loose(f)
	if err != nil {
		t.Fatal(err)
	}
	return why
}

func TestRestrict(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	user, err := ownSID()
	if err != nil {
		t.Fatal(err)
	}
	setList(t, file, "D:P(A;;FA;;;"+user.String()+")(A;;FR;;;WD)")
	if why := loose(t, file); !strings.Contains(why, "lets in") {
		t.Errorf("a file that everyone may read is called private: %q", why)
	}
	setList(t, dir, "D:P(A;OICI;FA;;;"+user.String()+")(A;OICI;FA;;;WD)")
	if why, err := Usurped(dir); err != nil || !strings.Contains(why, "lets in") {
		t.Errorf("a directory that everyone may change: %q, %v", why, err)
	}
	for _, path := range []string{dir, file} {
		if err := Restrict(path); err != nil {
			t.Fatal(err)
		}
	}
	if why := loose(t, file); why != "" {
		t.Errorf("after Restrict: %s", why)
	}
	if why, err := Usurped(dir); err != nil || why != "" {
		t.Errorf("after Restrict: %q, %v", why, err)
	}
	b, err := os.ReadFile(file)
	if err != nil || string(b) != "x" {
		t.Errorf("we cannot read it any more: %q, %v", b, err)
	}
	later := filepath.Join(dir, "later")
	if err := os.WriteFile(later, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if why := loose(t, later); why != "" {
		t.Errorf("what is made in a private directory: %s", why)
	}
}

func TestOnlyRightsThatMatterCount(t *testing.T) {
	user, err := ownSID()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, list string
		loose      bool
	}{
		{"nobody", "D:P", false},
		{"system and administrators", "D:P(A;;FA;;;SY)(A;;FA;;;BA)", false},
		{"we", "D:P(A;;FA;;;" + user.String() + ")", false},
		{"everyone reads", "D:P(A;;FA;;;SY)(A;;FR;;;WD)", true},
		{"users read", "D:P(A;;FR;;;BU)", true},
		{"everyone may see its attributes", "D:P(A;;0x80;;;WD)", false},
		{"everyone is denied", "D:P(D;;FA;;;WD)", false},
		{"everyone, for what is made below", "D:P(A;OICIIO;FA;;;WD)", false},
		{"a user may take it", "D:P(A;;WO;;;BU)", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			sd, err := windows.SecurityDescriptorFromString(test.list)
			if err != nil {
				t.Fatal(err)
			}
			why, err := others(sd, reading)
			if err != nil || (why != "") != test.loose {
				t.Errorf("got %q, %v", why, err)
			}
		})
	}
}

func TestAFileWithoutAListIsEverybodys(t *testing.T) {
	sd, err := windows.NewSecurityDescriptor()
	if err != nil {
		t.Fatal(err)
	}
	if err := sd.SetDACL(nil, true, false); err != nil {
		t.Fatal(err)
	}
	if why, err := others(sd, reading); err != nil || why == "" {
		t.Errorf("got %q, %v", why, err)
	}
}
