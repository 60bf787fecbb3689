package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/config"
	"fleet/node/fleet"
)

// A bundle is for somebody else's eyes. Two things keep secrets out of it: what
// holds one (keys, gossip keys, journal, outputs, replicated state) is listed
// and never read into it, and all that is in it passes a redactor that knows
// the words of this host's secrets and the forms of all.

const (
	bundleLines  = 2000     // of the log
	maxMember    = 32 << 20 // bytes of one file in it
	maxSecret    = 64 << 10 // bytes that are read of a file with a secret
	bundleHeader = 64       // bytes of a store's file that are shown
)

func (e *env) debugBundle() *cli.Command {
	return leaf(&cli.Command{
		Name: "bundle", Usage: "collect what a person needs who shall find a fault of this host",
		Description: `A tar.gz with versions, configuration, status, this host's list of nodes,
trust.json, certificates, sizes of the stores, the end of the log, goroutines
and facts of the system. No key, token, parameter, output or command is in it;
read it all the same before you send it away. The agent need not run.

Example:
  fleet debug bundle --file /tmp/host1.tar.gz

Exit codes: 0 done, 1 it failed, 4 not root, 64 usage`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "file", Aliases: []string{"o"}, Usage: "write it to the new `FILE` (default fleet-HOST-TIME.tar.gz)"},
			&cli.StringFlag{Name: "config", Usage: "`FILE` with the configuration of the host"},
			&cli.StringFlag{Name: "data-dir", Usage: "`DIR` with the host's data (default: the configuration's)"},
		},
	}, 0, 0, func(c *cli.Context) error {
		b := e.collect(c)
		host, err := e.hostname()
		if err != nil || fleet.CheckNodeName(host) != nil {
			host = "host"
		}
		path := firstOf(c.String("file"), fmt.Sprintf("fleet-%s-%s.tar.gz", host, e.now().UTC().Format("20060102T150405Z")))
		if err := e.writeFile(path, func(w io.Writer) error { return b.write(w, e.now()) }); err != nil {
			return err
		}
		for _, problem := range b.missing {
			fmt.Fprintf(e.err, "not in it: %s\n", escapeCell(problem))
		}
		return nil
	})
}

// bundle is what was collected, redacted.
type bundle struct {
	names   []string
	content map[string][]byte
	missing []string // what could not be had, and why
	hide    *redactor
}

// add takes one file. What could not be had is noted, in the bundle too.
func (b *bundle) add(name string, content []byte, err error) {
	if err != nil {
		note := b.hide.text(name + ": " + err.Error())
		b.missing = append(b.missing, note)
		return
	}
	b.names = append(b.names, name)
	b.content[name] = []byte(b.hide.text(string(content[:min(len(content), maxMember)])))
}

func (b *bundle) addJSON(name string, v any, err error) {
	var content []byte
	if err == nil {
		content, err = json.MarshalIndent(v, "", "  ")
	}
	b.add(name, append(content, '\n'), err)
}

func (b *bundle) write(w io.Writer, now time.Time) error {
	b.names = append(b.names, "missing.txt")
	b.content["missing.txt"] = []byte(strings.Join(append(b.missing, ""), "\n"))
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, name := range b.names {
		content := b.content[name]
		if err := t.WriteHeader(&tar.Header{Name: "fleet/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: now, Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := t.Write(content); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}

func (e *env) collect(c *cli.Context) *bundle {
	ctx := c.Context
	b := &bundle{content: map[string][]byte{}, hide: &redactor{}}
	flags := map[string]string{}
	if dir := c.String("data-dir"); dir != "" {
		if abs, err := filepath.Abs(dir); err == nil {
			flags["data-dir"] = abs
		}
	}
	file, err := e.configFile(c)
	var cfg *config.Config
	if err == nil {
		cfg, err = config.Load(config.Sources{File: file, Getenv: e.getenv, Flags: flags})
	}
	if err != nil {
		b.add("config.json", nil, err)
		cfg = config.Default() // a bundle of a host with a broken configuration is wanted above all
		if dir := flags["data-dir"]; dir != "" {
			cfg.DataDir = dir
		}
	}
	b.hide.learn(cfg.DataDir, e.credentialDir())
	if err == nil {
		b.addJSON("config.json", cfg.Values(), nil)
	}
	b.addJSON("version.json", versionResult{Version: e.version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}, nil)
	e.collectAgent(ctx, b, cfg)
	collectData(b, cfg.DataDir)
	e.collectService(ctx, b)
	collectSystem(b)
	return b
}

// collectAgent asks the running agent.
func (e *env) collectAgent(ctx context.Context, b *bundle, cfg *config.Config) {
	local := client.OpenLocal(firstOf(e.getenv("FLEET_SOCKET"), cfg.Socket, config.DefaultSocket))
	status, err := local.Status(ctx)
	b.addJSON("status.json", status, err)
	if err != nil {
		return // it does not run: one line about that is enough
	}
	nodes, err := local.Nodes(ctx)
	b.addJSON("nodes.json", nodes, err)
	facts, err := local.RuntimeFacts(ctx)
	b.addJSON("runtime.json", facts, err)
	var goroutines bytes.Buffer
	err = local.Profile(ctx, "goroutine", "debug=2", &goroutines)
	b.add("goroutines.txt", goroutines.Bytes(), err)
	if facts == nil || facts.PID <= 0 {
		return
	}
	for _, name := range []string{"limits", "cgroup", "status"} {
		content, err := readSome(fmt.Sprintf("/proc/%d/%s", facts.PID, name), maxSecret)
		if !errors.Is(err, fs.ErrNotExist) {
			b.add("process/"+name, content, err)
		}
	}
}

// collectData looks at the data directory: names and sizes of all, the content
// of nothing but trust.json and certificates, which are public.
func collectData(b *bundle, dir string) {
	var list strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintf(&list, "%s: %v\n", path, err)
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil // gone since
		}
		rel, _ := filepath.Rel(dir, path) // it is below dir
		switch {
		case d.IsDir() && (rel == "work" || rel == "blob"):
			entries, err := os.ReadDir(path)
			fmt.Fprintf(&list, "%s %12s %s %s (%d entries, %v)\n", info.Mode(), "", info.ModTime().UTC().Format(time.RFC3339), rel, len(entries), err)
			return fs.SkipDir // what commands made is theirs
		default:
			fmt.Fprintf(&list, "%s %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), rel)
		}
		return nil
	})
	b.add("data.txt", []byte(list.String()), err)
	trust, err := readSome(filepath.Join(dir, "trust.json"), maxMember)
	b.add("trust.json", trust, err)
	for _, name := range []string{"agent", "quorum", "issuer"} {
		content, err := readSome(filepath.Join(dir, "keys", name+".crt"), maxSecret)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		b.add("certificates/"+name+".txt", describeCertificates(content), err)
	}
	var headers strings.Builder
	var failures []error
	for _, name := range []string{"journal", "quorum"} {
		err := filepath.WalkDir(filepath.Join(dir, name), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // an ordinary host has no store of the quorum
			}
			if err != nil {
				fmt.Fprintf(&headers, "%s: %v\n", path, err)
				return nil
			}
			if !d.Type().IsRegular() || filepath.Base(path) != "journal" && filepath.Ext(path) != ".db" {
				return nil
			}
			// The first bytes are a version or a page header, no content.
			head, err := readSome(path, bundleHeader)
			if filepath.Base(path) == "journal" {
				head, _, _ = bytes.Cut(head, []byte("\n"))
			}
			fmt.Fprintf(&headers, "%s: %v\n%s\n", filepath.Base(path), err, hex.Dump(head))
			return nil
		})
		failures = append(failures, err)
	}
	b.add("headers.txt", []byte(headers.String()), errors.Join(failures...))
}

// describeCertificates says what certificates say; other blocks are left out.
func describeCertificates(b []byte) []byte {
	var text strings.Builder
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return []byte(text.String())
		}
		if block.Type != "CERTIFICATE" {
			fmt.Fprintf(&text, "a block of type %q, which is left out\n\n", block.Type)
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			fmt.Fprintf(&text, "a damaged certificate: %v\n\n", err)
			continue
		}
		fmt.Fprintf(&text, "subject    %s\nnames      %v\nissuer     %s\nserial     %s\nfrom       %s\nto         %s\nkey        %s\nauthority  %t\nSHA-256    %s\n\n",
			cert.Subject, cert.URIs, cert.Issuer, cert.SerialNumber, cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339),
			cert.PublicKeyAlgorithm, cert.IsCA, fleet.Sum(block.Bytes))
	}
}

func (e *env) collectService(ctx context.Context, b *bundle) {
	m, err := e.manager()
	if err != nil {
		b.add("service.json", nil, err)
		return
	}
	status, err := m.Status(ctx)
	b.addJSON("service.json", status, err)
	if status.File != "" {
		unit, err := readSome(status.File, maxSecret)
		b.add("service.txt", unit, err)
	}
	lines, err := m.Logs(ctx, bundleLines)
	b.add("log.txt", []byte(strings.Join(append(lines, ""), "\n")), err)
}

// collectSystem takes facts of the system that are nobody's secret.
func collectSystem(b *bundle) {
	for _, path := range []string{
		"/etc/os-release", "/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/self/mountinfo", "/proc/cgroups",
		"/proc/sys/kernel/random/boot_id", "/proc/net/dev", "/sys/fs/selinux/enforce",
	} {
		content, err := readSome(path, maxSecret)
		if err == nil {
			b.add("system/"+strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "-"), content, nil)
		}
	}
}

// readSome reads the first bytes of a file.
func readSome(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, max))
	return b, errors.Join(err, f.Close())
}

// redactor takes secrets out of text.
type redactor struct{ words []string }

const redacted = "[redacted]"

// shortest is the length from which a word of a secret file counts: shorter
// ones are the words of its format.
const shortest = 16

var secretWord = regexp.MustCompile(`[A-Za-z0-9+/_=-]{16,}`)

// publicWords stand beside the keys in files that hold secrets.
var publicWords = regexp.MustCompile(`^(mi-[0-9a-f]{17}|-+(BEGIN|END)|[A-Z]+-----)`)

// learn reads what must not be in the bundle: every word of the files with
// keys. Fields of a credential that are no key are public.
func (r *redactor) learn(dataDir, credentials string) {
	var files []string
	for _, pattern := range []string{
		filepath.Join(dataDir, "keys", "*.key"), filepath.Join(dataDir, "gossip.keys"), filepath.Join(credentials, "*"),
	} {
		found, _ := filepath.Glob(pattern) // the patterns are right
		files = append(files, found...)
	}
	for _, path := range files {
		b, err := readSome(path, maxSecret)
		if err != nil {
			continue // nor can anybody else read it as this user
		}
		var cred struct {
			Key   string `json:"key"`
			Fleet string `json:"fleet"`
		}
		if json.Unmarshal(b, &cred) == nil && cred.Fleet != "" {
			b = []byte(cred.Key)
		}
		for _, word := range secretWord.FindAllString(string(b), -1) {
			if !publicWords.MatchString(word) && len(word) >= shortest {
				r.words = append(r.words, word)
			}
		}
	}
	// The longer first: a word may be a part of another.
	slices.SortFunc(r.words, func(a, b string) int { return len(b) - len(a) })
}

// secretForms are what looks like a secret, whoever's it is.
var secretForms = []*regexp.Regexp{
	regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*(PRIVATE|SECRET) KEY-----.*?(-----END [A-Z ]*KEY-----|$)`),
	regexp.MustCompile(`fleet1_[A-Za-z0-9_.=-]+`), // join tokens
	regexp.MustCompile(`AGE-SECRET-KEY-1[A-Z0-9]+`),
	regexp.MustCompile(`(?i)\b(password|passphrase|passwd|secret|token|seed|authorization)(["']?\s*[=:]\s*)("[^"]*"|[^\s,;]+)`),
}

func (r *redactor) text(s string) string {
	for _, word := range r.words {
		s = strings.ReplaceAll(s, word, redacted)
	}
	for i, form := range secretForms {
		to := redacted
		if i == len(secretForms)-1 {
			to = "${1}${2}" + redacted
		}
		s = form.ReplaceAllString(s, to)
	}
	return s
}
