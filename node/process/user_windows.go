package process

import "os"

func directoryUser(string) (Account, bool) { return Account{}, false }

func loginShell(string) string { return "" }

func ownedByUs(os.FileInfo) bool { return true }
