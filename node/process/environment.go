package process

import (
	"path/filepath"
	"regexp"
	"strings"

	"fleet/node/fleet"
)

// MaxEnvValue is the longest "NAME=value" that Linux lets one string of an
// environment be, less its final zero (MAX_ARG_STRLEN).
const MaxEnvValue = 128<<10 - 1

// refused are variables that make the dynamic loader, libc or a shell run or
// load what they name: an environment must not turn into code. A name that
// ends in "*" stands for all that begin so.
var refused = []string{
	"LD_*", "DYLD_*", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "NLSPATH", "MALLOC_*", "RESOLV_HOST_CONF",
	"BASH_ENV", "BASH_FUNC_*", "BASHOPTS", "SHELLOPTS", "ENV", "PS4", "IFS", "PROMPT_COMMAND",
	MarkVariable,
}

// refusedAnyCase are those of .NET, which PowerShell is made of, and of
// PowerShell itself. They count in any case, as Windows reads names, and on
// every system, because both run on every system. In upper case.
var refusedAnyCase = []string{
	"COR_*", "CORECLR_*", "DOTNET_STARTUP_HOOKS", "DOTNET_ADDITIONAL_DEPS", "DOTNET_SHARED_STORE", "PSMODULEPATH",
}

var (
	envNamePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	markPattern    = regexp.MustCompile(`^[A-Za-z0-9._/-]{0,128}$`)
)

// CheckEnv refuses an environment with a string that is not NAME=value, that
// is longer than MaxEnvValue, that holds a NUL byte, that names a variable
// twice, or that names one which makes the loader, a shell or a
// runtime run code. The error never holds a value: it may be a secret.
func CheckEnv(env []string) error {
	seen := make(map[string]bool, len(env))
	for _, s := range env {
		name, _, ok := strings.Cut(s, "=")
		switch {
		case !ok || !envNamePattern.MatchString(name):
			return fleet.Errorf(fleet.Invalid, "environment: %.64q is not the name of a variable", name)
		case hasNUL(s):
			return fleet.Errorf(fleet.Invalid, "environment: the value of %.64s holds a NUL byte", name)
		case len(s) > MaxEnvValue:
			return fleet.Errorf(fleet.TooLarge, "environment: the value of %.64s has %d bytes, at most %d are possible",
				name, len(s)-len(name)-1, MaxEnvValue-len(name)-1)
		case seen[name]:
			return fleet.Errorf(fleet.Invalid, "environment: %.64s is set twice", name)
		case isRefused(name):
			return fleet.Errorf(fleet.Invalid, "environment: %.64s may not be set: it would make other code run", name)
		}
		seen[name] = true
	}
	return nil
}

func isRefused(name string) bool {
	return matches(refused, name) || matches(refusedAnyCase, strings.ToUpper(name))
}

func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		prefix, wild := strings.CutSuffix(p, "*")
		if name == p || wild && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func validMark(s string) bool { return markPattern.MatchString(s) }

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }

func isAbs(path string) bool { return filepath.IsAbs(path) }
