// Package stagger asks several hosts for one thing that any of them may have,
// and does not wait for the silent: the next is asked when the one before has
// failed or has had a while. Who was asked first may still be the one that
// answers. (As browsers try the addresses of a site: RFC 8305.)
package stagger

import (
	"context"
	"time"
)

// First asks 0, 1, ... n-1 until one of them answers without an error, and gives
// its answer. The others are told by their context, and First returns when all
// have ended. When none answers, the errors are those of all that were asked, by
// their number; nil stands for who was not asked, because ctx ended.
//
// Ask may call answering when an answer begins to come: nobody else is asked
// then, however long the rest takes, unless it fails.
func First[T any](ctx context.Context, n int, while time.Duration,
	ask func(ctx context.Context, i int, answering func()) (T, error)) (T, []error) {
	type outcome struct {
		i      int
		answer T
		err    error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var none T
	errs := make([]error, n)
	outcomes, begun := make(chan outcome), make(chan int)
	patience := time.NewTimer(while)
	defer patience.Stop()
	asked, pending, answering := 0, 0, 0
	next := func() {
		if asked == n || ctx.Err() != nil {
			return
		}
		i := asked
		asked++
		pending++
		patience.Reset(while)
		go func() {
			answer, err := ask(ctx, i, func() {
				select {
				case begun <- i:
				case <-ctx.Done():
				}
			})
			outcomes <- outcome{i, answer, err}
		}()
	}
	begins := make([]bool, n)
	won := false
	answer := none
	for next(); pending > 0; {
		select {
		case i := <-begun:
			if !begins[i] {
				begins[i] = true
				answering++
			}
		case <-patience.C:
			if answering == 0 && !won {
				next()
			}
		case o := <-outcomes:
			pending--
			if begins[o.i] {
				answering--
			}
			switch {
			case won:
			case o.err == nil:
				won, answer = true, o.answer
				cancel()
			default:
				errs[o.i] = o.err
				if answering == 0 {
					next()
				}
			}
		}
	}
	if won {
		return answer, nil
	}
	return none, errs
}
