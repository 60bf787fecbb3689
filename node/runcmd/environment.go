package runcmd

import (
	"path/filepath"
	"strings"

	"fleet/node/process"
)

// scriptEnvironment is what a script finds on a system besides what its document
// and its command add. getenv is asked where Windows has its folders; the agent
// gives nothing else of its own environment away.
func scriptEnvironment(goos string, account process.Account, getenv func(string) string) []string {
	if goos != "windows" {
		return []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
			"HOME=" + orElse(account.Home, "/"), "USER=" + account.Name, "LOGNAME=" + account.Name,
			"SHELL=" + orElse(account.Shell, "/bin/sh"),
		}
	}
	root := orElse(getenv("SystemRoot"), `C:\Windows`)
	system := root + `\System32`
	env := []string{
		"PATH=" + strings.Join([]string{system, root, system + `\Wbem`, system + `\WindowsPowerShell\v1.0`, system + `\OpenSSH`}, ";"),
		"PATHEXT=.COM;.EXE;.BAT;.CMD", "SystemRoot=" + root, "windir=" + root, `ComSpec=` + system + `\cmd.exe`,
		"USERNAME=" + account.Name[strings.LastIndexByte(account.Name, '\\')+1:],
	}
	if account.Home != "" {
		temp := account.Home + `\AppData\Local\Temp`
		if strings.EqualFold(filepath.ToSlash(account.Home), filepath.ToSlash(system+`\config\systemprofile`)) {
			temp = root + `\Temp` // what services of the system have
		}
		env = append(env, "USERPROFILE="+account.Home, "TEMP="+temp, "TMP="+temp)
	}
	for _, name := range []string{"SystemDrive", "ProgramData", "ProgramFiles", "CommonProgramFiles", "PUBLIC", "COMPUTERNAME",
		"NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE", "OS"} {
		if v := getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}
