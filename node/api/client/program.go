package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"fleet/node/fleet"
)

// programTime bounds the sending of one program to one host.
const programTime = 10 * time.Minute

// PutProgram brings a program to the quorum, unless the quorum host that answers
// has it. open gives its bytes from the beginning, each time that they are sent.
func (c *Client) PutProgram(ctx context.Context, d fleet.Digest, size int64, open func() (io.ReadCloser, error)) error {
	var there fleet.DescribeProgramResult
	if err := c.Call(ctx, "DescribeProgram", fleet.DescribeProgramRequest{Digest: d.String()}, &there); err != nil || there.Here {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, programTime, fleet.Errorf(fleet.Unknown, "not done within %s", programTime))
	defer cancel()
	_, err := c.repeat(ctx, func(ctx context.Context) ([]byte, error) {
		body, err := open()
		if err != nil {
			return nil, err
		}
		return c.putOnce(ctx, d, size, body)
	})
	return err
}

func (c *Client) putOnce(ctx context.Context, d fleet.Digest, size int64, body io.ReadCloser) (_ []byte, err error) {
	r := request{operation: "PutProgram"}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://fleet"+PathPrefix+r.operation, body)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make request: %w", err), body.Close())
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set(DigestHeader, d.String())
	res, err := c.http.Do(req) // closes body
	if err != nil {
		return nil, sendError(ctx, r, err)
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxError))
	if err != nil {
		return nil, fleet.Errorf(fleet.Unknown, "the connection ended in the answer: %w", err)
	}
	if res.StatusCode/100 != 2 {
		return nil, ParseError(res.StatusCode, answer)
	}
	var put fleet.PutProgramResult
	if err := json.Unmarshal(answer, &put); err != nil {
		return nil, fmt.Errorf("answer of %s: %w", r.operation, err)
	}
	return answer, nil
}
