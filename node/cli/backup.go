package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
	"github.com/urfave/cli/v2"

	"fleet/node/backup"
	"fleet/node/config"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
)

// BackupPassphraseFile is the variable that names a file with the passphrase of
// backups.
const BackupPassphraseFile = "FLEET_BACKUP_PASSPHRASE_FILE"

// maxGuess bounds what a backup may ask for one try of a passphrase, as a power of
// two: 1 GiB of memory. Who made it would otherwise choose.
const maxGuess = 20

// maxKeyFile bounds the files that name recipients and identities, in bytes.
const maxKeyFile = 64 << 10

func (e *env) backupCommand() *cli.Command {
	return &cli.Command{
		Name: "backup", Aliases: []string{"backups"}, Category: categoryNouns, Usage: "what was decided, in a file outside of the fleet",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "create", ArgsUsage: "FILE", Usage: "write a backup of what the fleet has decided",
				Description: `It holds hosts, labels, operators, activations, saved targets, commands and their
outcomes; not the output of commands, and no private key unless --with-keys says
so: then the keys of this host, a voter's, with which an empty machine can become
it again. Who opens such a backup has stolen that voter. It is encrypted, to
those who hold the key of a --recipient or to a passphrase, and signed with your
operator key. FILE is new: nothing is overwritten.

A recipient is an age public key ("age-keygen" makes one); its private key is not
needed here, so that no machine that makes backups can read them. Without one a
passphrase is asked for, or read from the file that ` + BackupPassphraseFile + `
names. To restore a backup the root key is needed as well.

Examples:
  fleet backup create acme-2026-11-26.backup --recipient age1qyqszq...
  fleet backup create voter1.backup --recipient age1qyqszq... --with-keys
  fleet backup create /mnt/safe/acme.backup --recipients-file /etc/fleet/backup.pub

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags([]cli.Flag{
					&cli.StringSliceFlag{Name: "recipient", Aliases: []string{"r"}, Usage: "age public `KEY` that can open it; may be repeated"},
					&cli.StringFlag{Name: "recipients-file", Aliases: []string{"R"}, Usage: "`FILE` with such keys, one in a line"},
					&cli.BoolFlag{Name: "with-keys", Usage: "put the private keys of this host, a voter, into it; needs a recipient"},
				}, dataDirFlags(), outputFlag(), staleFlag(), clientFlags(), waitFlag()),
			}, 1, 1, e.backupCreate),
			leaf(&cli.Command{
				Name: "inspect", Aliases: []string{"show"}, ArgsUsage: "FILE", Usage: "verify a backup and say what it holds",
				Description: `All of it is read and every signature in it is checked, as a restore would: that
the root key of the fleet that is shown began it, and that an operator of that
fleet made it. No host is asked. Without --identity the passphrase is asked for, or read from the
file that ` + BackupPassphraseFile + ` names.

Examples:
  fleet backup inspect acme.backup --identity backup.key
  fleet backup inspect acme.backup -o json

Exit codes: 0 it is whole, 1 it is damaged, not there or signed by a stranger, 4 the key or passphrase
does not open it, 64 usage`,
				Flags: flags(identityFlag(), outputFlag()),
			}, 1, 1, e.backupInspect),
			leaf(&cli.Command{
				Name: "restore", ArgsUsage: "FILE", Usage: "make this host decide alone from a backup, when every voter is lost",
				Description: `Where a voter is left with its log, "fleet quorum recover" loses less.

It runs as root, with the agent stopped, where the root key is: on a host that
was of the fleet when the backup was made, or, with a backup that was made with
--with-keys, on an empty machine, which then is the host of those keys. It has to
answer at the address that the fleet knows that host by.

What was decided after the backup is lost: hosts that joined later have to join
again; hosts and operators that were removed later are back, and have to be
removed again; commands that were sent later are not known any more. The fleet
enters a new epoch, in which this host alone votes and one signature makes a
ticket, until others are made voters again. The lost voters are fenced off: if
they come back, no host believes them.

Without --identity the passphrase of the backup is asked for, or read from the
file that ` + BackupPassphraseFile + ` names; that of the root key likewise from
` + PassphraseFile + `.

Example:
  systemctl stop fleet
  fleet backup restore acme.backup --identity backup.key --root-key /media/usb/acme.key
  systemctl start fleet
  fleet quorum add host2 host3 --root-key /media/usb/acme.key

Exit codes: 0 done, 1 it failed and the fleet is as it was, 4 the key or passphrase
does not open the backup, 64 usage`,
				Flags: flags(identityFlag(), []cli.Flag{
					rootKeyFlag(),
					&cli.BoolFlag{Name: "force", Usage: "also if voters answer, or a stranger signed the backup"},
				}, yesFlag("do not ask"), dataDirFlags(), outputFlag()),
			}, 1, 1, e.backupRestore),
		},
	}
}

// dataDirFlags name the data directory of this host.
func dataDirFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "`FILE` instead of " + config.DefaultFile},
		&cli.StringFlag{Name: "data-dir", Usage: "`DIR` with the host's data (default: the configuration's)"},
	}
}

func identityFlag() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "identity", Aliases: []string{"i"}, Usage: "`FILE` with the age private key that opens it"}}
}

// backupInfo is what create and inspect print.
type backupInfo struct {
	File       string             `json:"File"`
	Size       int64              `json:"Size"`
	FleetId    fleet.ID           `json:"FleetId"`
	FleetName  string             `json:"FleetName"`
	Operator   fleet.OperatorName `json:"Operator"`   // whose key signed it
	KnownKey   bool               `json:"KnownKey"`   // whether that key is an operator's of the state itself
	Made       fleet.Instant      `json:"Made"`       // by the clock of who signed it
	LastChange fleet.Instant      `json:"LastChange"` // by the fleet's time
	LogIndex   uint64             `json:"LogIndex"`
	Trust      uint32             `json:"Trust"`
	Epoch      uint32             `json:"Epoch"`
	Voters     []string           `json:"Voters"`
	Keys       string             `json:"Keys,omitempty"` // the host whose private keys are in it
	Hosts      int                `json:"Hosts"`
	Operators  int                `json:"Operators"`
	Targets    int                `json:"Targets"`
	Commands   int                `json:"Commands"`
}

func infoOf(path string, b *backup.Backup) (*backupInfo, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("look at the backup: %w", err)
	}
	s := b.State()
	f, trust := s.Fleet(), s.Trust()
	info := &backupInfo{
		File: path, Size: stat.Size(), FleetId: f.ID, FleetName: f.Name, Operator: b.Signature.Operator, KnownKey: b.SignedByOperator(),
		Made: fleet.InstantOf(time.Unix(b.Signature.Made, 0).UnixNano()), LastChange: fleet.InstantOf(s.LastStamp()), LogIndex: b.FSM.Applied(),
		Trust: trust.Version, Epoch: trust.Epoch, Hosts: len(s.Nodes()), Operators: len(s.Operators()), Targets: len(s.SavedTargets()), Commands: len(s.Commands(0, "")),
	}
	host, err := enrol.KeptHost(b.Parts)
	if err != nil {
		return nil, err
	}
	if host != nil {
		info.Keys = host.NodeName
	}
	for _, v := range trust.Voters {
		name := string(v.Node)
		if n := s.Node(v.Node); n != nil {
			name = n.Name
		}
		info.Voters = append(info.Voters, name)
	}
	return info, nil
}

func (e *env) backupPrint(c *cli.Context, info *backupInfo) error {
	return e.print(c, result{value: info, names: []string{info.File}, table: func(w io.Writer) {
		by := string(info.Operator)
		if !info.KnownKey {
			by += "  (a key that the fleet did not know as an operator's)"
		}
		properties(w, "backup", info.File, "size", size(uint64(info.Size)), "fleet", info.FleetName+"  "+string(info.FleetId), "signed by", by,
			"made", date(info.Made), "last change", date(info.LastChange), "log index", fmt.Sprint(info.LogIndex),
			"trust", fmt.Sprintf("version %d, epoch %d", info.Trust, info.Epoch), "voters", foldNames(info.Voters),
			"keys of", info.Keys, "holds", strings.Join([]string{
				count(info.Hosts, "host"), count(info.Operators, "operator"), count(info.Targets, "saved target"), count(info.Commands, "command"),
			}, ", "))
	}})
}

func (e *env) backupCreate(c *cli.Context) error {
	path := c.Args().First()
	if err := checkForm(c); err != nil {
		return err
	}
	if c.Bool("with-keys") && c.String("recipients-file") == "" && len(c.StringSlice("recipient")) == 0 {
		return usagef("--with-keys needs a recipient: a passphrase can be guessed").withHint("--recipient KEY")
	}
	recipients, err := e.recipients(c)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fleet.Errorf(fleet.Conflict, "%s is there already", path).WithHint("name a new one: nothing is overwritten")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fleet.Errorf(fleet.Invalid, "write the backup: %w", err)
	}
	cred, _, err := e.credential(c)
	if err != nil {
		return err
	}
	var keys map[string][]byte
	if c.Bool("with-keys") {
		if keys, err = e.hostKeys(c, cred.Fleet); err != nil {
			return err
		}
	}
	api, end, err := e.connectWithin(c)
	if err != nil {
		return err
	}
	defer end()
	state, err := api.State(c.Context)
	if err != nil {
		return err
	}
	b, err := e.writeBackup(path, cred, state, keys, recipients)
	if err := errors.Join(err, state.Close()); err != nil {
		return err
	}
	info, err := infoOf(path, b)
	if err != nil {
		return err
	}
	return e.backupPrint(c, info)
}

// writeBackup writes a whole backup or none: what lies under its name is
// complete and on disk.
func (e *env) writeBackup(path string, cred identity.Credential, state io.Reader, keys map[string][]byte, recipients []age.Recipient) (_ *backup.Backup, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.partial") // 0600
	if err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "write the backup: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	b := &backup.Backup{Parts: keys, Signature: identity.FileSignature{
		Fleet: cred.Fleet, Operator: cred.Operator, Key: cred.Key.Public(), Made: e.now().Unix(),
	}}
	w, err := backup.NewWriter(f, cred.Fleet, recipients...)
	if err == nil {
		b.FSM, err = w.State(cred.Fleet, state)
	}
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		if err == nil {
			err = w.Part(name, bytes.NewReader(keys[name]))
		}
	}
	if err == nil {
		err = w.Close(cred.Key, b.Signature)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("write the backup: %w", err)
	}
	return b, intoPlace(f.Name(), path)
}

// intoPlace gives a file its name, which nothing has yet, for good. A link fails
// where the name exists by now; a rename would replace it, and is for file systems
// without links, such as those of sticks.
func intoPlace(made, path string) error {
	err := os.Link(made, path)
	if err == nil {
		err = os.Remove(made)
	} else if _, there := os.Lstat(path); errors.Is(there, fs.ErrNotExist) {
		err = os.Rename(made, path)
	}
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if runtime.GOOS == "windows" {
		return nil // a directory cannot be synced there
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems cannot
		return fmt.Errorf("write the backup: %w", err)
	}
	return nil
}

// hostKeys is what a backup with keys has of this host.
func (e *env) hostKeys(c *cli.Context, of fleet.ID) (map[string][]byte, error) {
	cfg, err := e.hostConfig(c)
	if err != nil {
		return nil, err
	}
	return enrol.Kept(cfg.DataDir, of)
}

// recipients is who can open the backup.
func (e *env) recipients(c *cli.Context) ([]age.Recipient, error) {
	lines := strings.Join(c.StringSlice("recipient"), "\n")
	if path := c.String("recipients-file"); path != "" {
		b, err := readCapped(path, maxKeyFile)
		if err != nil {
			return nil, err
		}
		lines += "\n" + string(b)
	}
	if strings.TrimSpace(lines) != "" {
		all, err := age.ParseRecipients(strings.NewReader(lines))
		if err != nil {
			return nil, usagef("a recipient is not an age public key: %s", err).withHint("age-keygen makes a pair: the public key begins with age1")
		}
		return all, nil
	}
	phrase, err := e.backupPassphrase(true)
	if err != nil {
		return nil, err
	}
	r, err := age.NewScryptRecipient(string(phrase))
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	return []age.Recipient{r}, nil
}

// backupPassphrase is that of a backup: of a new one it is asked for twice.
func (e *env) backupPassphrase(fresh bool) ([]byte, error) {
	path := e.getenv(BackupPassphraseFile)
	if path == "" && !e.inTTY {
		return nil, usagef("what opens the backup?").
			withHint("--recipient or --identity, or put the passphrase into a file and name that in %s", BackupPassphraseFile)
	}
	if fresh {
		return e.newPassphraseOf("the backup", BackupPassphraseFile)
	}
	return e.passphraseOf("the backup", BackupPassphraseFile)
}

// identities is what opens a backup.
func (e *env) identities(c *cli.Context) ([]age.Identity, error) {
	if path := c.String("identity"); path != "" {
		b, err := readCapped(path, maxKeyFile)
		if err != nil {
			return nil, err
		}
		all, err := age.ParseIdentities(strings.NewReader(string(b)))
		if err != nil {
			return nil, fleet.Errorf(fleet.Invalid, "%s holds no age private key", path).WithHint("name the file that age-keygen wrote")
		}
		return all, nil
	}
	phrase, err := e.backupPassphrase(false)
	if err != nil {
		return nil, err
	}
	i, err := age.NewScryptIdentity(string(phrase))
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	i.SetMaxWorkFactor(maxGuess)
	return []age.Identity{i}, nil
}

// openBackup reads and verifies a backup.
func (e *env) openBackup(c *cli.Context, path string) (_ *backup.Backup, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fleet.Errorf(fleet.NotFound, "%w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	ids, err := e.identities(c)
	if err != nil {
		return nil, err
	}
	e.sent = true // what is wrong from here on is wrong with the file
	return backup.Read(f, ids...)
}

func (e *env) backupInspect(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	path := c.Args().First()
	b, err := e.openBackup(c, path)
	if err != nil {
		return err
	}
	info, err := infoOf(path, b)
	if err != nil {
		return err
	}
	slices.Sort(info.Voters)
	if err := e.backupPrint(c, info); err != nil || info.KnownKey {
		return err
	}
	return fleet.Errorf(fleet.Other, "it is signed by %s with a key that the fleet did not know as an operator's", info.Operator).
		WithHint("find out who made it before you rely on it")
}

func (e *env) backupRestore(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	cfg, err := e.hostConfig(c)
	if err != nil {
		return err
	}
	file, root, err := e.openRootKey(c)
	if err != nil {
		return err
	}
	b, err := e.openBackup(c, c.Args().First())
	if err != nil {
		return err
	}
	done, err := enrol.RestoreFleet(c.Context, enrol.RestoreOptions{
		DataDir: cfg.DataDir, Backup: b, Root: root, File: file, Force: c.Bool("force"), Now: e.now, Dial: e.dial,
		Confirm: func(r *enrol.Recoverable) error {
			e.showRestorable(r, b)
			if c.Bool("yes") {
				return nil
			}
			return e.confirm(fmt.Sprintf("Make %s the only voter of the fleet %s, from this backup?", r.NodeName, r.Fleet))
		},
	})
	if err != nil {
		return err
	}
	return e.recovered(c, cfg, file, done)
}

// showRestorable says what a backup brings back and what is lost.
func (e *env) showRestorable(r *enrol.Recoverable, b *backup.Backup) {
	fmt.Fprintf(e.err, "backup        %s, signed by %s at %s\n", count(len(b.State().Nodes()), "host"), b.Signature.Operator,
		time.Unix(b.Signature.Made, 0).UTC().Format(time.RFC3339))
	fmt.Fprintf(e.err, "last change   %s, %s ago\n", r.Written.UTC().Format(time.RFC3339), e.now().Sub(r.Written).Round(time.Second))
	fmt.Fprintf(e.err, "other voters  %s\n", escapeCell(voterStates(r.Voters)))
	e.warningLines([]fleet.Warning{{
		Message: "what was decided after the last change is lost: later hosts have to join again, hosts and operators that were removed later are back",
	}, aloneWarning(r)})
}
