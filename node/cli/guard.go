package cli

import (
	"context"

	"fleet/node/fleet"
	"fleet/node/logging"
	"fleet/node/service"
	"fleet/node/upgrade"
)

// keeper is the manager of this host's service, if a program can be exchanged
// under it.
func (e *env) keeper() (service.Keeper, error) {
	manager, err := e.manager()
	if err != nil {
		return nil, err
	}
	keeper, ok := manager.(service.Keeper)
	if !ok {
		return nil, fleet.Errorf(fleet.Unavailable, "upgrades by the fleet need systemd in this release").
			WithHint("replace the program by hand: run the new one as \"fleet agent --service\"")
	}
	return keeper, nil
}

// guard is what the old program does while the new one has to prove itself. No
// person types it: its service file does.
func (e *env) guard(ctx context.Context, dir string) error {
	keeper, err := e.keeper()
	if err != nil {
		return err
	}
	form := logging.Text
	if logging.ToJournal(e.err, e.getenv) {
		form = logging.Journal
	}
	notify := service.NewNotifier(e.getenv)
	g := upgrade.Guard{
		DataDir: dir, Keeper: keeper, Now: e.now, Ready: func() error { return notify.Ready("guarding") },
		Log: logging.New(e.err, form, logging.NewLevels(0)),
	}
	return g.Run(ctx)
}
