package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/seglog/seglog"
	"github.com/twmb/franz-go/pkg/kerr"
)

// refuse is a protocol error with the reason that makes it understandable. Clients show the reason where the response
// has a field for it.
func refuse(e *kerr.Error, format string, args ...any) error {
	return fmt.Errorf("%w (%s)", e, fmt.Sprintf(format, args...))
}

// code is the protocol's number for err.
func code(err error) int16 {
	var k *kerr.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &k):
		return k.Code
	case errors.Is(err, seglog.ErrOutOfRange):
		return kerr.OffsetOutOfRange.Code
	case errors.Is(err, seglog.ErrTooLarge), errors.Is(err, seglog.ErrInflated):
		return kerr.MessageTooLarge.Code
	case errors.Is(err, seglog.ErrInvalid):
		return kerr.InvalidRecord.Code
	case errors.Is(err, seglog.ErrCorrupt):
		return kerr.CorruptMessage.Code
	case errors.Is(err, seglog.ErrClosed), errors.Is(err, context.Canceled):
		// The log was closed to be opened with other settings, or deleted, or the server stops: look again and retry.
		return kerr.NotLeaderForPartition.Code
	case errors.Is(err, seglog.ErrFailed), errors.As(err, new(syscall.Errno)): // a full disk, say, which may be mended
		return kerr.KafkaStorageError.Code
	default:
		return kerr.UnknownServerError.Code
	}
}

// reason is the text that goes with code: nil without an error.
func reason(err error) *string {
	if err == nil {
		return nil
	}
	text := err.Error()
	return &text
}
