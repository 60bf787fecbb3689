package cli

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// signatureSuffix names the signature that lies beside a file.
const signatureSuffix = ".sig"

// signCommand and verifyCommand vouch for files by an operator's key: the
// checksums of a release, above all. They need no fleet that answers.
func (e *env) signCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "sign", Usage: "vouch for a file with an operator's key", ArgsUsage: "FILE",
		Description: `Writes FILE.sig, which names FILE by its SHA-256 and the operator by key.
No host is asked. "fleet debug verify" checks it.

Example:
  fleet debug sign dist/SHA256SUMS

Exit codes: 0 done, 1 it failed, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "signature", Usage: "write the signature to `FILE` (default: the signed file's name and .sig)"},
		}, clientFlags()),
	}, 1, 1, e.sign)
}

func (e *env) verifyCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "verify", Usage: "check a file that an operator vouched for", ArgsUsage: "FILE",
		Description: `Compares FILE with FILE.sig and the key that made it with the one that --key
names, or else with the key of the credential here. No host is asked.

Example:
  fleet debug verify SHA256SUMS --key ed25519:zH0...

Exit codes: 0 it is what the operator signed, 1 it is not, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "signature", Usage: "`FILE` with the signature (default: the signed file's name and .sig)"},
			&cli.StringFlag{Name: "key", Usage: "`KEY` of the operator, as \"fleet operator ls\" and \"fleet whoami\" show it"},
		}, clientFlags()),
	}, 1, 1, e.verify)
}

func (e *env) sign(c *cli.Context) error {
	path := c.Args().First()
	cred, _, err := e.credential(c)
	if err != nil {
		return err
	}
	digest, size, err := digestOf(path)
	if err != nil {
		return err
	}
	b, err := identity.SignFile(cred.Key, identity.FileSignature{
		Fleet: cred.Fleet, Operator: cred.Operator, Digest: digest, Size: size, Made: e.now().Unix(),
	})
	if err != nil {
		return err
	}
	to := firstOf(c.String("signature"), path+signatureSuffix)
	if err := os.WriteFile(to, b, 0o644); err != nil {
		return fleet.Errorf(fleet.Invalid, "write the signature: %w", err)
	}
	fmt.Fprintf(e.out, "%s  signed by %s, %s\n", to, cred.Operator, cred.Key.Public().Text())
	return nil
}

func (e *env) verify(c *cli.Context) error {
	path := c.Args().First()
	want, err := e.signer(c)
	if err != nil {
		return err
	}
	e.sent = true // what is wrong from here on is wrong with the files
	b, err := readCapped(firstOf(c.String("signature"), path+signatureSuffix), identity.MaxFileSignature)
	if err != nil {
		return err
	}
	s, err := identity.ParseFileSignature(b)
	if err != nil {
		return err
	}
	if s.Key != want {
		return fleet.Errorf(fleet.Conflict, "%s was signed by %s with another key, %s", path, s.Operator, s.Key.Text()).
			WithHint("--key KEY, if that is the key you trust")
	}
	digest, size, err := digestOf(path)
	if err != nil {
		return err
	}
	if digest != s.Digest || size != s.Size {
		return fleet.Errorf(fleet.Corrupt, "%s is not the file that %s signed: its SHA-256 is %s, not %s", path, s.Operator, digest, s.Digest).
			WithHint("get the file and its signature again from where they were published")
	}
	fmt.Fprintf(e.out, "%s  signed by %s at %s\n", escapeCell(path), s.Operator, time.Unix(s.Made, 0).UTC().Format(time.RFC3339))
	return nil
}

// signer is the key whose signature counts: as --key says, else one's own.
func (e *env) signer(c *cli.Context) (fleet.PublicKey, error) {
	if text := c.String("key"); text != "" {
		return fleet.ParsePublicKey(text)
	}
	cred, _, err := e.credential(c)
	if err != nil {
		return fleet.PublicKey{}, usagef("whose signature counts? There is no credential here").withHint("--key KEY")
	}
	return cred.Key.Public(), nil
}

// digestOf reads a file to its end.
func digestOf(path string) (_ fleet.Digest, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return fleet.Digest{}, 0, fleet.Errorf(fleet.NotFound, "%w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return fleet.Digest{}, 0, fmt.Errorf("read %s: %w", path, err)
	}
	return fleet.Digest(h.Sum(nil)), size, nil
}

// readCapped reads a small file.
func readCapped(path string, limit int64) ([]byte, error) {
	b, err := readSome(path, limit+1)
	if err != nil {
		return nil, fleet.Errorf(fleet.NotFound, "%w", err)
	}
	if int64(len(b)) > limit {
		return nil, fleet.Errorf(fleet.TooLarge, "%s has over %d bytes", path, limit)
	}
	return b, nil
}
