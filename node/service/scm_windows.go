package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"

	"fleet/node/config"
	"fleet/node/fleet"
)

// Places in the registry. What fleet keeps of the installation lies where
// services have such things, and goes with the service.
const (
	// What the manager has of fleet.
	scmName        = "fleet"
	scmDisplayName = "fleet"
	scmDescription = "Runs this host's part of its fleet: carries out the commands that its operators send."
	scmRestart     = 5 * time.Second // from the agent's end to its next start, however it ended
	scmEventLog    = `Get-WinEvent -FilterHashtable @{LogName='Application'; ProviderName='` + scmName + `'} -MaxEvents 50`

	scmKey        = `SYSTEM\CurrentControlSet\Services\` + scmName
	scmParameters = scmKey + `\Parameters`
	eventsKey     = `SYSTEM\CurrentControlSet\Services\EventLog\Application\` + scmName

	configValue = "Config"
	copiedValue = "Copied"
)

const (
	scmEnd  = 40 * time.Second // an orderly end of the agent, and some
	scmPoll = 200 * time.Millisecond
	// scmPreShutdown is the time that the system gives before it shuts down.
	scmPreShutdown = 30 * time.Second
	// scmCalm is how long the agent must run until a failure counts as the first.
	scmCalm = 24 * time.Hour
)

// scm is the service control manager of Windows.
type scm struct{}

func connect(access uint32) (*mgr.Mgr, error) {
	h, err := windows.OpenSCManager(nil, nil, access)
	if err != nil {
		return nil, scmError("reach the service control manager", err)
	}
	return &mgr.Mgr{Handle: h}, nil
}

// scmError says what was done, and what an error of the manager asks for.
func scmError(doing string, err error) error {
	switch {
	case errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return fleet.Errorf(fleet.Denied, "%s: %w", doing, err).WithHint("run it as an administrator")
	case errors.Is(err, windows.ERROR_SERVICE_MARKED_FOR_DELETE):
		return fleet.Errorf(fleet.Conflict, "%s: %w", doing, err).
			WithHint("something still looks at the service that is being removed: close the Services window, then again")
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// with does something with the service; there is false when there is none.
func (scm) with(access uint32, do func(*mgr.Service) error) (there bool, err error) {
	m, err := connect(windows.SC_MANAGER_CONNECT)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, m.Disconnect()) }()
	name, err := windows.UTF16PtrFromString(scmName)
	if err != nil {
		return false, err
	}
	h, err := windows.OpenService(m.Handle, name, access)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return false, nil
	}
	if err != nil {
		return false, scmError("open the service "+scmName, err)
	}
	s := &mgr.Service{Name: scmName, Handle: h}
	defer func() { err = errors.Join(err, s.Close()) }()
	return true, do(s)
}

func (scm) program() program { return program{path: Place, name: Place, run: runCommand} }

// facts are what Install wrote; ours is false when there is nothing of it.
func (scm) facts() (unitFacts, error) {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, scmParameters, registry.QUERY_VALUE)
	if errors.Is(err, registry.ErrNotExist) {
		return unitFacts{}, nil
	}
	if err != nil {
		return unitFacts{}, fmt.Errorf("read the service's parameters: %w", err)
	}
	defer k.Close()
	file, _, err := k.GetStringValue(configValue)
	if err != nil {
		return unitFacts{}, nil // of another
	}
	copied, _, _ := k.GetIntegerValue(copiedValue) // absent is 0
	return unitFacts{ours: true, config: file, copied: copied != 0}, nil
}

func writeFacts(f unitFacts) (err error) {
	k, _, err := registry.CreateKey(registry.LOCAL_MACHINE, scmParameters, registry.SET_VALUE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	var copied uint32
	if f.copied {
		copied = 1
	}
	return errors.Join(k.SetStringValue(configValue, f.config), k.SetDWordValue(copiedValue, copied))
}

// Check says what keeps Install from succeeding.
func (s scm) Check(ctx context.Context, spec Spec) error {
	if !windows.GetCurrentProcessToken().IsElevated() {
		return fleet.Errorf(fleet.Denied, "installing the service needs an administrator").
			WithHint("in a terminal that runs as administrator; or run the agent as yourself: --foreground")
	}
	there, facts, err := s.state()
	if err != nil {
		return err
	}
	if there && !facts.ours && !spec.Force {
		return fleet.Errorf(fleet.Conflict, "there is a service %q that fleet did not install", scmName).
			WithHint("remove it: sc.exe delete %s; or replace it: --force", scmName)
	}
	if strings.ContainsFunc(spec.Config, func(r rune) bool { return r < ' ' || r == '"' }) {
		return fleet.Errorf(fleet.Invalid, "the path %.200q cannot stand in a command line: it holds a control character or a quote", spec.Config)
	}
	_, err = s.program().mustCopy(ctx, spec)
	return err
}

// state is whether the service is there, and what Install wrote of it.
func (s scm) state() (there bool, facts unitFacts, err error) {
	there, err = s.with(windows.SERVICE_QUERY_STATUS, func(*mgr.Service) error { return nil })
	if err != nil || !there {
		return false, facts, err
	}
	facts, err = s.facts()
	return true, facts, err
}

// Install puts the program in its place and tells the manager of it.
func (s scm) Install(ctx context.Context, spec Spec) error {
	if err := s.Check(ctx, spec); err != nil {
		return err
	}
	there, before, err := s.state()
	if err != nil {
		return err
	}
	copied, err := s.program().mustCopy(ctx, spec)
	if err != nil {
		return err
	}
	if copied {
		if err := copyProgram(spec.Binary, Place); err != nil {
			return fmt.Errorf("install the program: %w", err)
		}
	}
	// Before the service exists: one without its source would log what nobody
	// can read.
	if err := addEventSource(); err != nil {
		return fmt.Errorf("tell the event log of fleet: %w", err)
	}
	if !there {
		if err := create(spec); err != nil {
			return scmError("create the service", err)
		}
	}
	if _, err := s.with(windows.SERVICE_ALL_ACCESS, func(service *mgr.Service) error {
		if there { // one that was made just now has it
			if err := update(service, spec); err != nil {
				return err
			}
		}
		return configure(service)
	}); err != nil {
		return scmError("configure the service", err)
	}
	// What an earlier installation put there is still ours.
	if err := writeFacts(unitFacts{config: spec.Config, copied: copied || before.ours && before.copied}); err != nil {
		return fmt.Errorf("write the service's parameters: %w", err)
	}
	return nil
}

func scmConfig() mgr.Config {
	return mgr.Config{
		ServiceType: windows.SERVICE_WIN32_OWN_PROCESS, StartType: mgr.StartAutomatic, ErrorControl: mgr.ErrorNormal,
		DisplayName: scmDisplayName, Description: scmDescription, Dependencies: []string{"Tcpip"},
		ServiceStartName: "LocalSystem",
	}
}

func create(spec Spec) (err error) {
	m, err := connect(windows.SC_MANAGER_CONNECT | windows.SC_MANAGER_CREATE_SERVICE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Disconnect()) }()
	s, err := m.CreateService(scmName, Place, scmConfig(), scmArgs(spec, config.DefaultFile)...)
	if err != nil {
		return err
	}
	return s.Close()
}

// update gives a service that was there what create gives a new one.
func update(s *mgr.Service, spec Spec) error {
	c := scmConfig()
	c.BinaryPathName = windows.ComposeCommandLine(append([]string{Place}, scmArgs(spec, config.DefaultFile)...))
	return s.UpdateConfig(c)
}

// configure gives a service what is told of it apart.
func configure(s *mgr.Service) error {
	// The last action counts for all failures that follow.
	again := []mgr.RecoveryAction{{Type: mgr.ServiceRestart, Delay: scmRestart}}
	if err := known(s.SetRecoveryActions(again, uint32(scmCalm.Seconds()))); err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	// Also when the agent says itself that it failed.
	if err := known(s.SetRecoveryActionsOnNonCrashFailures(true)); err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	wait := struct{ milliseconds uint32 }{uint32(scmPreShutdown.Milliseconds())}
	if err := known(windows.ChangeServiceConfig2(s.Handle, windows.SERVICE_CONFIG_PRESHUTDOWN_INFO, (*byte)(unsafe.Pointer(&wait)))); err != nil {
		return fmt.Errorf("time to stop before a shutdown: %w", err)
	}
	return nil
}

// known passes over what the manager of services does not know (Wine's does not
// know all): the service runs without it, and not at all if that were an error.
func known(err error) error {
	if errors.Is(err, windows.ERROR_INVALID_LEVEL) {
		return nil
	}
	return err
}

// addEventSource makes fleet a source of the event log, with the messages that
// Windows has for those who bring none.
func addEventSource() error {
	if err := eventlog.Remove(scmName); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return err
	}
	return eventlog.InstallAsEventCreate(scmName, eventlog.Info|eventlog.Warning|eventlog.Error)
}

var errNotInstalled = fleet.Errorf(fleet.NotFound, "the service is not installed").WithHint("fleet agent --service")

// Start starts the service and does not wait until it is ready.
func (s scm) Start(context.Context) error {
	there, err := s.with(windows.SERVICE_START, func(service *mgr.Service) error {
		if err := service.Start(); err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
			return scmError("start the service", err)
		}
		return nil
	})
	if err == nil && !there {
		return errNotInstalled
	}
	return err
}

// Stop stops the service and waits for its end.
func (s scm) Stop(ctx context.Context) error {
	there, err := s.with(windows.SERVICE_STOP|windows.SERVICE_QUERY_STATUS, func(service *mgr.Service) error {
		return stopService(ctx, service)
	})
	if err == nil && !there {
		return errNotInstalled
	}
	return err
}

// Disable keeps the service from starting at boot, and stops it.
func (s scm) Disable(ctx context.Context) error {
	const access = windows.SERVICE_STOP | windows.SERVICE_QUERY_STATUS | windows.SERVICE_QUERY_CONFIG | windows.SERVICE_CHANGE_CONFIG
	there, err := s.with(access, func(service *mgr.Service) error {
		cfg, err := service.Config()
		if err != nil {
			return scmError("read the service's configuration", err)
		}
		cfg.StartType = mgr.StartDisabled
		if err := service.UpdateConfig(cfg); err != nil {
			return scmError("disable the service", err)
		}
		return stopService(ctx, service)
	})
	if err == nil && !there {
		return errNotInstalled
	}
	return err
}

func stopService(ctx context.Context, s *mgr.Service) error {
	ctx, cancel := context.WithTimeout(ctx, scmEnd)
	defer cancel()
	ticker := time.NewTicker(scmPoll)
	defer ticker.Stop()
	for {
		now, err := s.Query()
		if err != nil {
			return scmError("ask for the service's state", err)
		}
		switch now.State {
		case svc.Stopped:
			return nil
		case svc.StopPending:
		default:
			// One that is still starting cannot be told yet: the next time.
			_, err := s.Control(svc.Stop)
			if err != nil && !errors.Is(err, windows.ERROR_SERVICE_CANNOT_ACCEPT_CTRL) && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) &&
				!errors.Is(err, windows.ERROR_INVALID_SERVICE_CONTROL) {
				return scmError("stop the service", err)
			}
		}
		select {
		case <-ctx.Done():
			return fleet.Errorf(fleet.Unavailable, "the service has not stopped within %s", scmEnd).
				WithHint("sc.exe queryex %s shows its process", scmName)
		case <-ticker.C:
		}
	}
}

// Restart restarts the service and does not wait until it is ready.
func (s scm) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Status is what the manager and the registry say.
func (s scm) Status(context.Context) (Status, error) {
	var st Status
	there, err := s.with(windows.SERVICE_QUERY_STATUS, func(service *mgr.Service) error {
		now, err := service.Query()
		if err != nil {
			return scmError("ask for the service's state", err)
		}
		scmFacts{state: uint32(now.State), pid: now.ProcessId, exit: now.Win32ExitCode, specific: now.ServiceSpecificExitCode}.describe(&st)
		return nil
	})
	if err != nil || !there {
		return Status{}, err
	}
	facts, err := s.facts()
	if err != nil {
		return Status{}, err
	}
	st.Installed, st.Foreign, st.Copied = true, !facts.ours, facts.copied
	st.File, st.Config = `HKLM\`+scmKey, firstOf(facts.config, config.DefaultFile)
	if _, err := os.Stat(Place); err == nil {
		st.Program = Place
	}
	return st, nil
}

// Removes lists what Uninstall removes.
func (s scm) Removes(ctx context.Context) ([]string, error) {
	st, err := s.Status(ctx)
	if err != nil || st.Foreign || !st.Installed {
		return nil, err
	}
	paths := []string{st.File, `HKLM\` + eventsKey}
	if st.Copied && st.Program != "" {
		paths = append(paths, st.Program)
	}
	return paths, nil
}

// Uninstall stops the service and removes what Install wrote. The events stay.
func (s scm) Uninstall(ctx context.Context) error {
	st, err := s.Status(ctx)
	if err != nil || !st.Installed {
		return err
	}
	if st.Foreign {
		return fleet.Errorf(fleet.Conflict, "fleet did not install the service %q", scmName).WithHint("sc.exe delete %s", scmName)
	}
	_, err = s.with(windows.SERVICE_STOP|windows.SERVICE_QUERY_STATUS|windows.DELETE, func(service *mgr.Service) error {
		if err := stopService(ctx, service); err != nil {
			return err
		}
		if err := service.Delete(); err != nil {
			return scmError("remove the service", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// They go with the service, unless somebody still looks at it.
	if err := registry.DeleteKey(registry.LOCAL_MACHINE, scmParameters); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return fmt.Errorf("remove the service's parameters: %w", err)
	}
	if err := eventlog.Remove(scmName); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return fmt.Errorf("remove fleet from the event log: %w", err)
	}
	if !st.Copied {
		return nil
	}
	if err := removeProgram(Place); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// removeProgram removes a program and its directory. If it is the one that
// runs, it is put aside and goes at the next start of the system.
func removeProgram(path string) error {
	dir, aside := filepath.Dir(path), path+asideSuffix
	err := os.Remove(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Rename(path, aside); err != nil {
			return err
		}
		return errors.Join(removeAtBoot(aside), removeAtBoot(dir))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(removeAtBoot(aside), removeAtBoot(dir))
	}
	_ = os.Remove(dir) // somebody else may have put something there
	return nil
}

func removeAtBoot(path string) error {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	if err := windows.MoveFileEx(p, nil, windows.MOVEFILE_DELAY_UNTIL_REBOOT); err != nil {
		return fmt.Errorf("remove %s at the next start of the system: %w", path, err)
	}
	return nil
}

// Commands are what a person types.
func (scm) Commands() (restart, logs string) { return "Restart-Service " + scmName, scmEventLog }

// Logs says where the log is: the event log is read by its own programs.
func (scm) Logs(context.Context, int) ([]string, error) {
	return []string{"they are in the event log, Application, source " + scmName + ": eventvwr, or " + scmEventLog}, nil
}
