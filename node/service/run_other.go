//go:build !windows

package service

import "context"

// Supervised runs the agent, and tells the manager that started this process how it is.
func Supervised(ctx context.Context, getenv func(string) string, agent func(context.Context, *Notifier) error) error {
	return agent(ctx, NewNotifier(getenv))
}
