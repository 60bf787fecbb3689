package upgrade

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"os"

	"fleet/node/fleet"
)

// modulePath is the main module of every program of fleet, as its build says.
const modulePath = "fleet"

// Inspect reads of a file which program it is and for which platform, and
// refuses what is no program of fleet.
func Inspect(path string) (p Program, err error) {
	f, err := os.Open(path)
	if err != nil {
		return p, fleet.Errorf(fleet.NotFound, "%w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return p, fmt.Errorf("look at %s: %w", path, err)
	case !info.Mode().IsRegular():
		return p, fleet.Errorf(fleet.Invalid, "%s is no file", path)
	case info.Size() == 0:
		return p, fleet.Errorf(fleet.Invalid, "%s is empty", path)
	case info.Size() > MaxSize:
		return p, fleet.Errorf(fleet.TooLarge, "%s has %d bytes; a program has at most %d", path, info.Size(), MaxSize)
	}
	if p.Platform, err = platformOf(f); err != nil {
		return p, fleet.Errorf(fleet.Invalid, "%s is no program that a host could run: %w", path, err)
	}
	build, err := buildinfo.Read(f)
	if err != nil || build.Main.Path != modulePath {
		what := "it was not built with Go"
		if err == nil {
			what = fmt.Sprintf("it is %.80q", build.Main.Path)
		}
		return p, fleet.Errorf(fleet.Invalid, "%s is a program for %s, and not fleet: %s", path, p.Platform, what)
	}
	h := sha256.New()
	if p.Size, err = io.Copy(h, io.NewSectionReader(f, 0, MaxSize+1)); err != nil {
		return p, fmt.Errorf("read %s: %w", path, err)
	}
	p.Digest = fleet.Digest(h.Sum(nil))
	return p, nil
}

// platformOf reads the head of an executable file.
func platformOf(f io.ReaderAt) (string, error) {
	head := make([]byte, 4)
	if _, err := f.ReadAt(head, 0); err != nil {
		return "", errors.New("it is too short")
	}
	var system, arch string
	switch {
	case bytes.Equal(head, []byte(elf.ELFMAG)):
		e, err := elf.NewFile(f)
		if err != nil {
			return "", err
		}
		system, arch = "linux", map[elf.Machine]string{
			elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_386: "386", elf.EM_ARM: "arm", elf.EM_RISCV: "riscv64",
			elf.EM_S390: "s390x", elf.EM_LOONGARCH: "loong64",
		}[e.Machine]
		if e.Machine == elf.EM_PPC64 && e.Data == elf.ELFDATA2LSB {
			arch = "ppc64le"
		}
		if e.OSABI == elf.ELFOSABI_FREEBSD {
			system = "freebsd"
		}
	case head[0] == 'M' && head[1] == 'Z':
		w, err := pe.NewFile(f)
		if err != nil {
			return "", err
		}
		system, arch = "windows", map[uint16]string{
			pe.IMAGE_FILE_MACHINE_AMD64: "amd64", pe.IMAGE_FILE_MACHINE_ARM64: "arm64", pe.IMAGE_FILE_MACHINE_I386: "386",
		}[w.Machine]
	case bytes.Equal(head, []byte{0xcf, 0xfa, 0xed, 0xfe}):
		m, err := macho.NewFile(f)
		if err != nil {
			return "", err
		}
		system, arch = "darwin", map[macho.Cpu]string{macho.CpuAmd64: "amd64", macho.CpuArm64: "arm64"}[m.Cpu]
	default:
		return "", errors.New("it is neither ELF nor PE nor Mach-O")
	}
	if arch == "" {
		return "", errors.New("it is for a processor that fleet is not built for")
	}
	return system + "/" + arch, nil
}
