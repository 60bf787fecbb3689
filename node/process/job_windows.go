package process

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Cgroups is where control groups can be made: Windows has job objects, which
// need no place and are made for each child, also without a Cgroups.
type Cgroups struct{}

// OpenCgroups is there for the systems that have control groups.
func OpenCgroups() *Cgroups { return &Cgroups{} }

// String says how children are contained, for a person.
func (c *Cgroups) String() string { return "job objects" }

// group is the job object of one child: whatever the child starts is in it and
// cannot leave. The system kills what is in it when the last handle is closed,
// and only this process has one: so nothing outlives this process but what
// leave has let go.
type group struct {
	job    windows.Handle
	limits Limits
	killed bool // its processes were ended by terminate

	refused error // the limit of processors could not be set; nil if it could
}

type pressure struct{ kills, refusals uint64 }

// cpuRate is JOBOBJECT_CPU_RATE_CONTROL_INFORMATION.
type cpuRate struct {
	flags uint32
	rate  uint32 // hundredths of a percent of all processors
}

const (
	cpuRateEnable  = 0x1
	cpuRateHardCap = 0x4
	cpuRateAll     = 10_000
)

// accounting is JOBOBJECT_BASIC_ACCOUNTING_INFORMATION.
type accounting struct {
	totalUserTime, totalKernelTime           int64
	thisPeriodUserTime, thisPeriodKernelTime int64
	pageFaults                               uint32
	totalProcesses                           uint32
	activeProcesses                          uint32
	terminatedProcesses                      uint32 // for a limit
}

// join makes a job with limits. With both a group and an error, the job is
// there, without what holds its processes together. A limit of processors that
// cannot be set costs nothing else: see unbound.
func (c *Cgroups) join(_ string, limits Limits) (*group, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make a job object: %w", err)
	}
	g := &group{job: job, limits: limits}
	if err := g.limit(windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE); err != nil {
		return g, err
	}
	if limits.CPU > 0 {
		share := limits.CPU / float64(runtime.NumCPU()) * cpuRateAll
		if share < cpuRateAll { // else it is no limit
			rate := cpuRate{flags: cpuRateEnable | cpuRateHardCap, rate: max(1, uint32(share))}
			if err := g.set(windows.JobObjectCpuRateControlInformation, unsafe.Pointer(&rate), unsafe.Sizeof(rate)); err != nil {
				g.refused = fmt.Errorf("limit of processors: %w", err)
			}
		}
	}
	return g, nil
}

// limit sets the limits that are numbers, and more flags.
func (g *group) limit(flags uint32) error {
	var info windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	basic := &info.BasicLimitInformation
	basic.LimitFlags = flags
	if g.limits.Tasks > 0 { // processes: a job does not count threads
		basic.LimitFlags |= windows.JOB_OBJECT_LIMIT_ACTIVE_PROCESS
		basic.ActiveProcessLimit = uint32(min(g.limits.Tasks, 1<<31))
	}
	if g.limits.Memory > 0 {
		basic.LimitFlags |= windows.JOB_OBJECT_LIMIT_JOB_MEMORY
		info.JobMemoryLimit = uintptr(g.limits.Memory)
	}
	if g.limits.NoCore { // nor a window that asks what to do
		basic.LimitFlags |= windows.JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION
	}
	if err := g.set(windows.JobObjectExtendedLimitInformation, unsafe.Pointer(&info), unsafe.Sizeof(info)); err != nil {
		return fmt.Errorf("limits of a job object: %w", err)
	}
	return nil
}

func (g *group) set(class uint32, info unsafe.Pointer, size uintptr) error {
	_, err := windows.SetInformationJobObject(g.job, class, uintptr(info), uint32(size))
	return err
}

// unbound names the limits that the job could not be given; "" for none.
func (g *group) unbound() string {
	if g == nil || g.refused == nil {
		return ""
	}
	return g.refused.Error()
}

// place puts a suspended child into the job.
func (g *group) place(child windows.Handle) error {
	if err := windows.AssignProcessToJobObject(g.job, child); err != nil {
		return fmt.Errorf("put a process into its job object: %w", err)
	}
	return nil
}

func (g *group) account() (a accounting, err error) {
	err = windows.QueryInformationJobObject(g.job, windows.JobObjectBasicAccountingInformation,
		uintptr(unsafe.Pointer(&a)), uint32(unsafe.Sizeof(a)), nil)
	return a, err
}

// since is what the limits did. Memory that a job may not have is refused to
// the program, which is not killed for it and not counted.
func (g *group) since() pressure {
	if g == nil || g.killed { // terminate would be counted too
		return pressure{}
	}
	a, err := g.account()
	if err != nil {
		return pressure{}
	}
	return pressure{refusals: uint64(a.terminatedProcesses)}
}

// terminate ends all that is in the job and says what is still there after
// killPatience.
func (g *group) terminate() (survivors int) {
	g.killed = true
	look := time.NewTicker(pollEnd) // nothing can be waited for: a job is not signalled when it is empty
	defer look.Stop()
	for deadline := time.Now().Add(killPatience); ; <-look.C {
		// Again each time: what a process was starting may have come in since.
		terminateErr := windows.TerminateJobObject(g.job, killedCode)
		a, err := g.account()
		switch {
		case err == nil && a.activeProcesses == 0:
			return 0
		case time.Now().Before(deadline):
		case errors.Join(err, terminateErr) != nil:
			return max(1, int(a.activeProcesses))
		default:
			return int(a.activeProcesses)
		}
	}
}

const (
	killedCode = 1 // exit code of what is killed, as that of taskkill
	pollEnd    = 2 * time.Millisecond
)

// leave closes the job. What a child that ended by itself has left stays, under
// its limits: the system keeps the job as long as a process is in it.
func (g *group) leave() {
	if g == nil {
		return
	}
	if !g.killed {
		_ = g.limit(0) // else it is killed with the handle
	}
	_ = windows.CloseHandle(g.job) // fails only for a handle that is not ours
}

// killLeft kills what a child left that had reached its limit.
func (p *Process) killLeft() (any bool, survivors int) {
	a, err := p.group.account()
	if err != nil || a.activeProcesses == 0 {
		return false, 0
	}
	return true, p.group.terminate()
}

// KillLeftover has nothing to do: what ran when an earlier agent died was
// killed with that agent's handle of its job.
func (c *Cgroups) KillLeftover(context.Context, Identity) (killed int, err error) { return 0, nil }

// memoryStatus is MEMORYSTATUSEX.
type memoryStatus struct {
	length, load                                             uint32
	total, free, totalPage, freePage, totalVirtual, freeVirt uint64
	freeExtended                                             uint64
}

var globalMemoryStatus = windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")

// TotalMemory is how many bytes of memory this host has; 0 when it does not say.
func TotalMemory() uint64 {
	var m memoryStatus
	m.length = uint32(unsafe.Sizeof(m))
	if ok, _, _ := globalMemoryStatus.Call(uintptr(unsafe.Pointer(&m))); ok == 0 {
		return 0
	}
	return m.total
}
