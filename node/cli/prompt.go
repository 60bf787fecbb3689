package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"fleet/node/fleet"
)

// confirm asks a question on the terminal; anything but yes is no. Without a
// terminal it refuses and names the flag that answers.
func (e *env) confirm(question string) error {
	if !e.inTTY {
		return usagef("%s", question).withHint("there is no terminal to answer on: say --yes")
	}
	fmt.Fprintf(e.err, "%s [y/N] ", escape(question))
	answer, err := bufio.NewReader(io.LimitReader(e.in, 64)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was done")
}

// secret asks for a line that is not shown.
func (e *env) secret(prompt string) ([]byte, error) {
	if !e.inTTY {
		return nil, errors.New("there is no terminal to ask on")
	}
	fmt.Fprint(e.err, prompt)
	b, err := e.password()
	fmt.Fprintln(e.err)
	if err != nil {
		return nil, fmt.Errorf("read from the terminal: %w", err)
	}
	return b, nil
}

// PassphraseFile is the variable that names a file with the passphrase of the
// root key.
const PassphraseFile = "FLEET_ROOT_PASSPHRASE_FILE"

// passphrase gives that of an existing root key.
func (e *env) passphrase() ([]byte, error) { return e.passphraseOf("the root key", PassphraseFile) }

// newPassphrase asks twice for that of a new root key.
func (e *env) newPassphrase() ([]byte, error) {
	return e.newPassphraseOf("the root key", PassphraseFile)
}

// passphraseOf gives the passphrase of what there is: from the file that a
// variable names, or the terminal.
func (e *env) passphraseOf(what, variable string) ([]byte, error) {
	if path := e.getenv(variable); path != "" {
		return readPassphrase(variable, path)
	}
	b, err := e.secret("Passphrase of " + what + ": ")
	if err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "%s has a passphrase: %w", what, err).
			WithHint("put it into a file and name that in %s", variable)
	}
	return b, nil
}

// newPassphraseOf is passphraseOf for what is being made: it asks twice.
func (e *env) newPassphraseOf(what, variable string) ([]byte, error) {
	if path := e.getenv(variable); path != "" {
		return readPassphrase(variable, path)
	}
	first, err := e.secret("Passphrase for " + what + ": ")
	if err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "a passphrase for %s: %w", what, err).
			WithHint("put it into a file and name that in %s", variable)
	}
	again, err := e.secret("Again: ")
	if err != nil {
		return nil, err
	}
	if len(first) == 0 || !bytes.Equal(first, again) {
		return nil, fleet.Errorf(fleet.Invalid, "the passphrase is empty, or the two are not the same")
	}
	return first, nil
}

func readPassphrase(variable, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "%s: %w", variable, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "%s: %w", variable, err)
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 {
		return nil, fleet.Errorf(fleet.Invalid, "%s: the file %s is empty", variable, path)
	}
	return b, nil
}
