package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/upgrade"
)

const (
	// uploadPart is how long a client may take for one part of a program,
	// uploadTime for all of it.
	uploadPart = 30 * time.Second
	uploadTime = 10 * time.Minute
)

// describeProgram asks no quorum: it is about this host.
func describeProgram(_ context.Context, c *call) error {
	req, err := decode[fleet.DescribeProgramRequest](c.body)
	if err != nil {
		return err
	}
	d, err := fleet.ParseDigest(req.Digest)
	if err != nil {
		return err
	}
	return c.writeJSON(fleet.DescribeProgramResult{Digest: req.Digest, Here: c.cfg.Control.HasProgram(d)})
}

// putProgram takes the bytes of a program.
func putProgram(ctx context.Context, c *call) error {
	d, err := fleet.ParseDigest(c.header.Get(client.DigestHeader))
	if err != nil {
		return err
	}
	size := c.req.ContentLength
	switch {
	case size <= 0:
		return fleet.Errorf(fleet.Invalid, "the request does not say how long the program is")
	case size > upgrade.MaxSize:
		return fleet.Errorf(fleet.TooLarge, "a program of %d bytes: at most %d", size, upgrade.MaxSize)
	}
	ctx, cancel := context.WithTimeout(ctx, uploadTime)
	defer cancel()
	if err := c.rc.SetWriteDeadline(time.Now().Add(uploadTime + writeTimeout)); err != nil {
		return fmt.Errorf("set write deadline: %w", err)
	}
	body := &slowly{r: io.LimitReader(c.req.Body, size+1), rc: c.rc}
	copies, err := c.cfg.Control.KeepProgram(ctx, d, size, body)
	if err != nil {
		return err
	}
	return c.writeJSON(fleet.PutProgramResult{Digest: d.String(), Copies: copies})
}

// slowly reads part by part; a client that does not send one in time is cut off.
type slowly struct {
	r  io.Reader
	rc *http.ResponseController
}

func (p *slowly) Read(b []byte) (int, error) {
	if err := p.rc.SetReadDeadline(time.Now().Add(uploadPart)); err != nil {
		return 0, fmt.Errorf("set read deadline: %w", err)
	}
	return p.r.Read(b)
}

func (c *call) writeJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return c.write(b)
}
