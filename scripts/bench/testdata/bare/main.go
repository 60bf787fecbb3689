// Command bench is the bare server that fleet is compared with in
// docs/performance.md: mutual TLS 1.3 and a child process, and nothing else. No
// agreement, no journal, no result that outlives a connection.
//
//	bench serve DIR N    N listeners, DIR/bare.addrs lists them; ends with stdin
//	bench run DIR        asks all at once and prints how long it took
package main

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	err := errors.New("usage: bench serve DIR N | bench run DIR")
	switch {
	case len(os.Args) == 4 && os.Args[1] == "serve":
		err = serve(os.Args[2], os.Args[3])
	case len(os.Args) == 3 && os.Args[1] == "run":
		err = run(os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// config makes one key pair for both ends: that costs what two cost.
func config(seed []byte) (*tls.Config, error) {
	key := ed25519.NewKeyFromSeed(seed)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"bare"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAnyClientCert, RootCAs: pool, InsecureSkipVerify: true, SessionTicketsDisabled: true,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			peer, err := x509.ParseCertificate(raw[0])
			if err != nil {
				return err
			}
			if !peer.PublicKey.(ed25519.PublicKey).Equal(key.Public()) {
				return errors.New("a stranger")
			}
			return peer.CheckSignature(peer.SignatureAlgorithm, peer.RawTBSCertificate, peer.Signature)
		},
	}, nil
}

var seed = make([]byte, ed25519.SeedSize)

func serve(dir, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	cfg, err := config(seed)
	if err != nil {
		return err
	}
	var addrs []string
	for range n {
		l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
		if err != nil {
			return err
		}
		addrs = append(addrs, l.Addr().String())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go answer(c)
			}
		}()
	}
	path := filepath.Join(dir, "bare.addrs")
	if err := os.WriteFile(path+".new", []byte(strings.Join(addrs, "\n")), 0o600); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func answer(c net.Conn) {
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	out, err := exec.Command("/bin/sh", "-c", line).CombinedOutput()
	if err != nil {
		return
	}
	_, _ = c.Write(out)
}

func run(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "bare.addrs"))
	if err != nil {
		return err
	}
	cfg, err := config(seed)
	if err != nil {
		return err
	}
	addrs := strings.Fields(string(b))
	failures := make([]error, len(addrs))
	start := time.Now()
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() {
			c, err := tls.Dial("tcp", addr, cfg)
			if err != nil {
				failures[i] = err
				return
			}
			defer c.Close()
			if _, err := c.Write([]byte("hostname\n")); err != nil {
				failures[i] = err
				return
			}
			if out, err := io.ReadAll(c); err != nil || len(out) == 0 {
				failures[i] = fmt.Errorf("%s: no answer (%v)", addr, err)
			}
		})
	}
	wg.Wait()
	fmt.Printf("%d answers in %.3fs\n", len(addrs), time.Since(start).Seconds())
	return errors.Join(failures...)
}
