package private

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Rights that read a file, and those that put something into a directory or
// hand it on.
const (
	reading = windows.FILE_READ_DATA | windows.GENERIC_READ | windows.GENERIC_ALL | windows.MAXIMUM_ALLOWED |
		windows.WRITE_DAC | windows.WRITE_OWNER
	changing = windows.FILE_WRITE_DATA | windows.FILE_APPEND_DATA | fileDeleteChild | windows.GENERIC_WRITE | windows.GENERIC_ALL |
		windows.MAXIMUM_ALLOWED | windows.WRITE_DAC | windows.WRITE_OWNER | windows.DELETE

	fileDeleteChild = 0x40
)

// Loose says why others may read the file; "" when they may not.
func Loose(f *os.File) (why string, err error) {
	sd, err := windows.GetSecurityInfo(windows.Handle(f.Fd()), windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return "", fmt.Errorf("access list of %s: %w", f.Name(), err)
	}
	return others(sd, reading)
}

// Repair is what a person types to make a file or directory private.
func Repair(path string) string {
	rights := "F"
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		rights = "(OI)(CI)F"
	}
	return fmt.Sprintf(`icacls "%[1]s" /inheritance:r /grant:r "*S-1-5-18:%[2]s" "*S-1-5-32-544:%[2]s"`, path, rights)
}

// Restrict makes a file or directory private, with all that will be made in it.
// A file system without access lists is no error.
func Restrict(path string) error {
	user, err := ownSID()
	if err != nil {
		return err
	}
	inherit := ""
	if info, err := os.Lstat(path); err != nil {
		return err
	} else if info.IsDir() {
		inherit = "OICI"
	}
	sd, err := windows.SecurityDescriptorFromString(fmt.Sprintf("D:P(A;%[1]s;FA;;;SY)(A;%[1]s;FA;;;BA)(A;%[1]s;FA;;;%[2]s)", inherit, user))
	if err != nil {
		return fmt.Errorf("access list: %w", err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return fmt.Errorf("access list: %w", err)
	}
	err = windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
	switch {
	case errors.Is(err, windows.ERROR_NOT_SUPPORTED), errors.Is(err, windows.ERROR_INVALID_FUNCTION):
		return nil // Loose says it of each file
	case err != nil:
		return fmt.Errorf("access list of %s: %w", path, err)
	}
	return nil
}

// Usurped says why somebody else could change what is in a directory; "" when
// nobody can. Any user may make a directory in %ProgramData% before we do, and
// would own it.
func Usurped(path string) (why string, err error) {
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return "", fmt.Errorf("access list of %s: %w", path, err)
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return "", fmt.Errorf("owner of %s: %w", path, err)
	}
	if ok, err := trusted(owner); err != nil || !ok {
		return "it belongs to " + name(owner), err
	}
	return others(sd, changing)
}

// others says to whom a list gives one of the rights that is not trusted.
func others(sd *windows.SECURITY_DESCRIPTOR, rights windows.ACCESS_MASK) (why string, err error) {
	dacl, _, err := sd.DACL()
	if errors.Is(err, windows.ERROR_OBJECT_NOT_FOUND) || err == nil && dacl == nil {
		return "it has no access list: everybody may do everything", nil
	}
	if err != nil {
		return "", fmt.Errorf("access list: %w", err)
	}
	for i := range uint32(dacl.AceCount) {
		var ace *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(dacl, i, &ace); err != nil {
			return "", fmt.Errorf("access list: %w", err)
		}
		switch {
		case ace.Header.AceType == windows.ACCESS_DENIED_ACE_TYPE, ace.Header.AceFlags&windows.INHERIT_ONLY_ACE != 0, ace.Mask&rights == 0:
			continue
		case ace.Header.AceType != windows.ACCESS_ALLOWED_ACE_TYPE:
			return "its access list has entries of a kind that is not understood", nil
		}
		sid := (*windows.SID)(unsafe.Pointer(&ace.SidStart))
		if ok, err := trusted(sid); err != nil || !ok {
			return "its access list lets in " + name(sid), err
		}
	}
	return "", nil
}

// trusted are those who could take any file anyway, and we.
func trusted(sid *windows.SID) (bool, error) {
	user, err := ownSID()
	if err != nil {
		return false, err
	}
	// Owner rights are the owner's, who can change the list anyway.
	return sid.Equals(user) || sid.IsWellKnown(windows.WinLocalSystemSid) ||
		sid.IsWellKnown(windows.WinBuiltinAdministratorsSid) || sid.IsWellKnown(windows.WinCreatorOwnerRightsSid), nil
}

func ownSID() (*windows.SID, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("user of this process: %w", err)
	}
	return user.User.Sid, nil
}

// name is an account for a person: its name, or its number where it has none.
func name(sid *windows.SID) string {
	account, domain, _, err := sid.LookupAccount("")
	if err != nil {
		return sid.String()
	}
	if domain == "" {
		return account
	}
	return domain + `\` + account
}
