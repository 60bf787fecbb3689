package config

import (
	"fmt"
	"strings"

	"fleet/node/fleet"
)

// Upgrade is what this host demands of a new program for its agent.
type Upgrade struct {
	// Signers are public keys of builders, "ed25519:...", separated by commas:
	// every one of them must have signed a program ("fleet debug sign"), besides
	// the operator who sends it. "" demands nobody.
	Signers string `yaml:"signers,omitempty"`
}

// maxSigners bounds the list.
const maxSigners = 8

// UpgradeSigners gives the keys of Upgrade.Signers.
func (c *Config) UpgradeSigners() ([]fleet.PublicKey, error) {
	keys, err := parseSigners(c.Upgrade.Signers)
	if err != nil {
		return nil, fmt.Errorf("upgrade.signers: %w", err)
	}
	return keys, nil
}

func parseSigners(v string) ([]fleet.PublicKey, error) {
	if v == "" {
		return nil, nil
	}
	var keys []fleet.PublicKey
	for word := range strings.SplitSeq(v, ",") {
		k, err := fleet.ParsePublicKey(strings.TrimSpace(word))
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) > maxSigners {
		return nil, fmt.Errorf("%d keys, at most %d are allowed", len(keys), maxSigners)
	}
	return keys, nil
}
