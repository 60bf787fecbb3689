package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// None is the value of a limit that does not limit.
const None = "none"

// Commands is what each command of this host may use, with all that it starts.
// The limits bind its control group; where the host has none, they do not bind,
// and "fleet status" says so.
type Commands struct {
	// MaxProcesses is how many processes and threads; a number or "none".
	MaxProcesses string `yaml:"max-processes"`

	// MaxMemory is bytes, with K, M, G or T for powers of 1024, or a share of
	// the host's memory as "80%", or "none". The pages of files that a command
	// reads and writes count, and are given up before anything is killed.
	MaxMemory string `yaml:"max-memory"`

	// MaxCPU is processors, as "1.5", or "none".
	MaxCPU string `yaml:"max-cpu"`
}

// Limits are the limits of Commands as numbers; 0 is none.
type Limits struct {
	Processes uint64
	Memory    uint64 // bytes
	CPU       float64
}

// Limits gives the limits of commands on a host with so many bytes of memory.
// A share of an unknown amount (0) is no limit.
func (c *Config) Limits(memory uint64) (l Limits, err error) {
	if l.Processes, err = parseProcesses(c.Commands.MaxProcesses); err != nil {
		return l, fmt.Errorf("commands.max-processes: %w", err)
	}
	if l.Memory, err = parseMemory(c.Commands.MaxMemory, memory); err != nil {
		return l, fmt.Errorf("commands.max-memory: %w", err)
	}
	if l.CPU, err = parseCPU(c.Commands.MaxCPU); err != nil {
		return l, fmt.Errorf("commands.max-cpu: %w", err)
	}
	return l, nil
}

func checked[T any](parse func(string) (T, error)) func(string) error {
	return func(v string) error {
		_, err := parse(v)
		return err
	}
}

// What is less than this leaves a shell no room to say what is wrong.
const (
	minProcesses = 16
	minMemory    = 16 << 20
	minCPU       = 0.01
)

func parseProcesses(v string) (uint64, error) {
	if v == None {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil || n < minProcesses {
		return 0, fmt.Errorf("%.40q is neither \"none\" nor a number from %d on", v, minProcesses)
	}
	return n, nil
}

func parseMemory(v string, of uint64) (uint64, error) {
	if v == None {
		return 0, nil
	}
	if share, ok := strings.CutSuffix(v, "%"); ok {
		n, err := strconv.ParseUint(share, 10, 8)
		if err != nil || n < 1 || n > 100 {
			return 0, fmt.Errorf("%.40q is not a share from 1%% to 100%%", v)
		}
		return of / 100 * n, nil
	}
	number, shift := v, 0
	for i, unit := range "KMGT" {
		if s, ok := strings.CutSuffix(v, string(unit)); ok {
			number, shift = s, 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%.40q is neither \"none\", a share as 80%%, nor bytes as 512M or 2G", v)
	}
	if n <<= shift; n < minMemory {
		return 0, fmt.Errorf("%.40q is less than 16M", v)
	}
	return n, nil
}

func parseCPU(v string) (float64, error) {
	if v == None {
		return 0, nil
	}
	n, err := strconv.ParseFloat(v, 64)
	if err != nil || !(n >= minCPU && n <= 100_000) {
		return 0, fmt.Errorf("%.40q is neither \"none\" nor a number of processors as 0.5 or 4", v)
	}
	return n, nil
}
