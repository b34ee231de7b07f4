package seglog

import (
	"errors"
	"fmt"

	"github.com/seglog/seglog/internal/vfs"
)

// Every error of this package wraps one of these, or an *OffsetError, a *CorruptError, the error of the operating
// system that caused it (an *fs.PathError, which names operation and path), or one of package io where a stream or file
// breaks off. Errors of a Reader, Writer, Context or hook of the caller are wrapped as they are.
var (
	// ErrClosed: the log or the section was closed before or during the call.
	ErrClosed = errors.New("seglog: log is closed")
	// ErrLocked: another process, or another Log in this one, has the directory open for writing.
	ErrLocked = vfs.ErrLocked
	// ErrReadOnly: the call writes and the log was opened with Options.ReadOnly.
	ErrReadOnly = errors.New("seglog: log is read-only")
	// ErrTooLarge: a batch is larger than Options.MaxBatchBytes, or a log has used up all offsets.
	ErrTooLarge = errors.New("seglog: too large")
	// ErrInvalid: an argument, an option or an encoded batch handed in by the caller is malformed, or a Reader or Writer
	// of the caller breaks its contract. Nothing was stored of it.
	ErrInvalid = errors.New("seglog: invalid")
	// ErrConflict: the log does not end at the offset that AppendAt was given. Nothing was stored.
	ErrConflict = errors.New("seglog: offset is not the end of the log")
	// ErrFailed: an earlier write or flush failed, and the log takes no more appends. The records below
	// Offsets().RecoveryPoint are on stable storage, those between it and End are in doubt. Reads go on. The way back
	// is Close and Open. The error also wraps the first failure.
	ErrFailed = errors.New("seglog: log has failed")
	// ErrOutOfRange: no record has that offset, any more or yet. The error is an *OffsetError.
	ErrOutOfRange = errors.New("seglog: offset out of range")
	// ErrCorrupt: durable bytes fail their check. The error is a *CorruptError.
	ErrCorrupt = errors.New("seglog: corrupt")
	// ErrNotJoined: a batch handed to TransferFrom does not continue the log.
	ErrNotJoined = errors.New("seglog: batches do not join the log")
	// ErrBusy: the writer in another process changes the log faster than a read-only log can follow. A later call may
	// succeed.
	ErrBusy = errors.New("seglog: log changes too fast")
	// ErrOldFormat: the log holds messages of format 0 or 1, which Kafka wrote before version 0.11, and which this package
	// does not read. The error is a *CorruptError as well, and nothing was changed.
	ErrOldFormat = errors.New("seglog: old message format")
	// ErrCodec: records are compressed with a codec for which RegisterDecompressor was not called. They can still be
	// transferred.
	ErrCodec = errors.New("seglog: no decompressor registered")
	// ErrInflated: a compressed batch inflates to more than Options.MaxInflatedBytes, or its headers take more memory than
	// that. AppendBatch does not store such a batch. If the log holds one, stored under another limit or by TransferFrom, it
	// is not damaged: it can be transferred, and read with a higher limit.
	ErrInflated = errors.New("seglog: compressed batch exceeds Options.MaxInflatedBytes")
)

// OffsetError is the error for an offset that has no record: it lies outside the readable range, or it is missing in that
// range, because of a compaction, a control batch or a gap. errors.Is(err, ErrOutOfRange) is true.
type OffsetError struct {
	Offset  int64   // the offset that was asked for
	Offsets Offsets // the bounds of the log at that moment
}

func (e *OffsetError) Error() string {
	if e.Offset >= e.Offsets.Start && e.Offset < e.Offsets.HighWatermark {
		return fmt.Sprintf("seglog: offset %d is missing in [%d, %d): a compaction, a control batch or a cut took its record", e.Offset, e.Offsets.Start, e.Offsets.HighWatermark)
	}
	return fmt.Sprintf("seglog: offset %d out of range: the readable range is [%d, %d)", e.Offset, e.Offsets.Start, e.Offsets.HighWatermark)
}

// Is reports whether target is ErrOutOfRange.
func (e *OffsetError) Is(target error) bool { return target == ErrOutOfRange }

// CorruptError says which bytes fail their check, and where. errors.Is(err, ErrCorrupt) is true.
type CorruptError struct {
	Path   string // of the file; "" for a stream
	Pos    int64  // position of the bad batch or entry in the file or stream
	Offset int64  // offset of the first record that is lost; -1 if not known
	// NextOffset is where reading can go on behind the damage: the offset of the next good batch, or the end of the log.
	// Records and Follow from there yield the rest. It is 0 if it is not known, as for a stream.
	NextOffset int64
	Reason     string
	cause      error
}

// Unwrap returns the cause, such as io.ErrUnexpectedEOF for bytes that end too early, or nil.
func (e *CorruptError) Unwrap() error { return e.cause }

func (e *CorruptError) Error() string {
	path := e.Path
	if path == "" {
		path = "stream"
	}
	return fmt.Sprintf("seglog: corrupt: %s at position %d, offset %d: %s", path, e.Pos, e.Offset, e.Reason)
}

// Is reports whether target is ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// closedError is ErrClosed, with a text that names what was closed.
type closedError string

func (e closedError) Error() string { return string(e) }

// Is reports whether target is ErrClosed.
func (e closedError) Is(target error) bool { return target == ErrClosed }

const errSectionClosed = closedError("seglog: section is closed")

// failedError is the error of a log that has failed: ErrFailed, and the failure that latched it.
type failedError struct{ cause error }

func (e *failedError) Error() string {
	return "seglog: log has failed, close and reopen it: " + e.cause.Error()
}

func (e *failedError) Unwrap() []error { return []error{ErrFailed, e.cause} }

// errCount: a Reader of the caller broke its contract.
var errCount = fmt.Errorf("%w: Read returned a negative count or more bytes than there was room for", ErrInvalid)

// errWritten: a Writer of the caller broke its contract.
var errWritten = fmt.Errorf("%w: Write returned a negative count or more bytes than it was given", ErrInvalid)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// writeBackError is a failed flush or write-back of a file that holds records, after which the stored bytes are in doubt.
type writeBackError struct{ err error }

func (e *writeBackError) Error() string { return e.err.Error() }
func (e *writeBackError) Unwrap() error { return e.err }

// refuse completes the error for bad bytes of which nothing is promised and behind which a good batch stands.
func (e *CorruptError) refuse(found, next int64) {
	e.NextOffset = next
	e.Reason += fmt.Sprintf("; good batches go on at position %d, offset %d, and there is no good %s that tells how far the log was durable: Repair can mend it", found, next, stateName)
}
