// Command packages makes a deb and an rpm of a staged tree: the files that
// "make packages" has laid out below -stage as they are to lie below /.
//
// The same tree gives the same bytes: every time in a package is
// SOURCE_DATE_EPOCH, owners are root, modes come from this file and not from
// the stage, and nothing names the machine that builds.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/rpm"
)

func main() {
	var o options
	flag.StringVar(&o.stage, "stage", "", "`DIR` with the files as they lie below /")
	flag.StringVar(&o.scripts, "scripts", "", "`DIR` with postinst, prerm and postrm")
	flag.StringVar(&o.version, "version", "", "`VERSION` of the program")
	flag.StringVar(&o.arch, "arch", "amd64", "`ARCH` as Go names it")
	flag.StringVar(&o.out, "out", ".", "`DIR` for the packages")
	flag.Int64Var(&o.epoch, "epoch", 0, "`SECONDS` since 1970 that every file carries")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "packages:", err)
		os.Exit(1)
	}
}

type options struct {
	stage, scripts, version, arch, out string
	epoch                              int64
}

func run(o options) error {
	if o.stage == "" || o.scripts == "" || o.version == "" || o.epoch == 0 {
		return errors.New("-stage, -scripts, -version and -epoch are needed")
	}
	for name, packager := range map[string]nfpm.Packager{"deb": deb.Default, "rpm": rpm.DefaultRPM} {
		if err := write(o, name, packager); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func write(o options, name string, packager nfpm.Packager) (err error) {
	info, err := describe(o, name)
	if err != nil {
		return err
	}
	info = nfpm.WithDefaults(info)
	if err := nfpm.PrepareForPackager(info, name); err != nil {
		return err
	}
	path := filepath.Join(o.out, packager.ConventionalFileName(info))
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fmt.Println(path)
	return packager.Package(info, f)
}

// describe is the package's metadata and contents.
func describe(o options, name string) (*nfpm.Info, error) {
	contents, err := stage(o, name)
	if err != nil {
		return nil, err
	}
	info := &nfpm.Info{
		Name: "fleet", Arch: o.arch, Platform: "linux", Version: o.version, Section: "admin", Priority: "optional",
		Maintainer:  "fleet <root@localhost>",
		Description: "Run your own machines, together, without a server.\nEvery host runs one binary; the hosts find each other by gossip and\nkeep in Raft what was decided. It does on-premise what AWS Systems\nManager does inside AWS.",
		License:     "Apache-2.0", MTime: time.Unix(o.epoch, 0).UTC(),
		Overridables: nfpm.Overridables{
			Contents: contents,
			Scripts: nfpm.Scripts{
				PostInstall: filepath.Join(o.scripts, "postinst"), PreRemove: filepath.Join(o.scripts, "prerm"),
				PostRemove: filepath.Join(o.scripts, "postrm"),
			},
		},
	}
	info.RPM.Group, info.RPM.Summary, info.RPM.BuildHost = "System Environment/Daemons", "Run your own machines, together, without a server", "localhost"
	return info, nil
}

// zshDirs are where each distribution's zsh looks.
var zshDirs = map[string]string{"deb": "/usr/share/zsh/vendor-completions", "rpm": "/usr/share/zsh/site-functions"}

// stage lists the staged files.
func stage(o options, packager string) (files.Contents, error) {
	var contents files.Contents
	mtime := time.Unix(o.epoch, 0).UTC()
	err := filepath.WalkDir(o.stage, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(o.stage, path)
		if err != nil {
			return err
		}
		at := "/" + filepath.ToSlash(rel)
		if rest, ok := strings.CutPrefix(at, "/usr/share/zsh/"); ok {
			at = zshDirs[packager] + "/" + filepath.Base(rest)
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(at, "/usr/bin/") {
			mode = 0o755
		}
		contents = append(contents, &files.Content{
			Source: path, Destination: at,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: mtime},
		})
		return nil
	})
	contents = append(contents, &files.Content{
		Destination: "/etc/fleet", Type: files.TypeDir,
		FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: 0o755, MTime: mtime},
	})
	return contents, err
}
