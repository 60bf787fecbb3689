package gossip

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// A packet is: version 1, nonce 24, ciphertext and tag of memberlist's message
// under XChaCha20-Poly1305, with the ring's label as additional data.
const (
	sealVersion  = 1
	sealOverhead = 1 + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead

	// packetSize is the largest packet that is sent: it fits an Ethernet frame
	// with room for tunnels.
	packetSize = 1400

	// maxPacketSize is the largest that is looked at: others may be configured
	// for jumbo frames.
	maxPacketSize = 9216
)

var errSealed = errors.New("packet refused: size, version or key")

// keyring seals with its first key and opens with any. It is never changed:
// SetKeys makes another.
type keyring struct {
	aeads []cipher.AEAD
	label []byte
}

func newKeyring(keys [][]byte, label string) (*keyring, error) {
	if len(keys) == 0 {
		return nil, errors.New("no gossip key")
	}
	k := &keyring{label: []byte(label)}
	for i, key := range keys {
		aead, err := chacha20poly1305.NewX(key)
		if err != nil {
			return nil, fmt.Errorf("gossip key %d: %w", i+1, err)
		}
		k.aeads = append(k.aeads, aead)
	}
	return k, nil
}

func (k *keyring) seal(plain []byte) []byte {
	var nonce [chacha20poly1305.NonceSizeX]byte
	_, _ = rand.Read(nonce[:]) // it never fails: it ends the program instead
	return k.sealWith(nonce, plain)
}

func (k *keyring) sealWith(nonce [chacha20poly1305.NonceSizeX]byte, plain []byte) []byte {
	out := make([]byte, 0, sealOverhead+len(plain))
	out = append(out, sealVersion)
	out = append(out, nonce[:]...)
	return k.aeads[0].Seal(out, nonce[:], plain, k.label)
}

// open returns the message in a slice of its own.
func (k *keyring) open(b []byte) ([]byte, error) {
	if len(b) <= sealOverhead || len(b) > maxPacketSize || b[0] != sealVersion {
		return nil, errSealed
	}
	nonce, sealed := b[1:1+chacha20poly1305.NonceSizeX], b[1+chacha20poly1305.NonceSizeX:]
	for _, aead := range k.aeads {
		if plain, err := aead.Open(nil, nonce, sealed, k.label); err == nil {
			return plain, nil
		}
	}
	return nil, errSealed
}
