package devfleet

import (
	"testing"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/identity"
)

// TestDismissedOperator ends an operator's rights while he watches a command
// on a voter that does not lead: the stream ends, and no door opens again.
func TestDismissedOperator(t *testing.T) {
	f := startFleet(t, 3, 3)
	s := &scene{Fleet: f, dir: t.TempDir()}
	s.connect(t)
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	public := key.Public()
	s.call(t, "CreateOperator", fleet.CreateOperatorRequest{Name: "bob", PublicKey: public[:], May: []string{"SendCommand"}}, nil)
	bob := f.Credential()
	bob.Operator, bob.Key = "bob", key
	for _, n := range s.voters() {
		if !n.Leads() {
			bob.Addresses = []string{n.Address()}
		}
	}
	opts := client.Options{Timeout: patience, Addresses: bob.Addresses}
	var c *client.Client
	await(t, "the voter knows bob", func() bool {
		c, err = client.Open(t.Context(), bob, opts)
		return err == nil
	})
	defer c.Close()
	id := s.send(t, s.sign(t, "SendCommand", s.script("sleep 600", f.Nodes()[0].ID())))
	seen, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: id}, func(fleet.WatchEvent) error {
			select {
			case seen <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	<-seen
	s.call(t, "DeleteOperator", fleet.DeleteOperatorRequest{Name: "bob"}, nil)
	if err := <-ended; fleet.KindOf(err) != fleet.Unauthenticated && fleet.KindOf(err) != fleet.Denied {
		t.Errorf("the stream of a dismissed operator ended with %v", err)
	}
	for _, n := range s.voters() {
		await(t, n.Name()+" refuses bob", func() bool {
			c, err := client.Open(t.Context(), bob, client.Options{Timeout: patience, Addresses: []string{n.Address()}})
			if err == nil {
				c.Close()
			}
			return fleet.KindOf(err) == fleet.Unauthenticated
		})
	}
}
