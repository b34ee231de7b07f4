package seglog

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// These tests are about code of the caller that the log calls, and that does what it should not.

// discarding is a compressor whose output gets lost, as that of one that is never flushed.
type discarding struct{ io.Writer }

func (discarding) Close() error { return nil }

// A compressor that loses what it was given must not cost the records that a cut keeps.
func TestCompressorThatLosesBytes(t *testing.T) {
	old, _ := compressors.Load(CodecGzip)
	defer compressors.Store(CodecGzip, old)
	l, err := Open(t.TempDir(), &Options{SegmentBytes: 64 << 10})
	require.NoError(t, err)
	var records []Record
	for range 5 {
		records = append(records, Record{Value: []byte("a value of some length")})
	}
	size, _, err := encodedSize(records, 1)
	require.NoError(t, err)
	b := make(batch, size)
	encode(b, 0, 0, records, 1)
	packed, _, err := deflate(CodecGzip, b[headerLen:])
	require.NoError(t, err)
	b = append(b[:headerLen:headerLen], packed...)
	b[atAttributes+1] |= byte(CodecGzip)
	b.seal()
	_, err = l.AppendBatch(b)
	require.NoError(t, err)
	RegisterCompressor(CodecGzip, func(io.Writer) (io.WriteCloser, error) { return discarding{io.Discard}, nil })
	err = l.TruncateTo(3)
	require.ErrorIs(t, err, ErrInvalid)
	require.NotErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "compressor")
	require.ErrorContains(t, err, fileName(0, logSuffix))
	got, err := readLog(l)
	require.NoError(t, err)
	require.Len(t, got.recs, 5)
	compressors.Store(CodecGzip, old)
	require.NoError(t, l.TruncateTo(3))
	got, err = readLog(l)
	require.NoError(t, err)
	require.Len(t, got.recs, 3)
	require.NoError(t, l.Close())
}

// closing is a writer that closes the section that is being written to it.
type closing struct {
	s *Section
	n int
}

func (c *closing) Write(p []byte) (int, error) {
	c.n += len(p)
	return len(p), c.s.Close()
}

// A section that its writer closes ends with an error after what was written.
func TestWriterThatClosesTheSection(t *testing.T) {
	l, err := Open(t.TempDir(), &Options{SegmentBytes: 4 << 20, Flush: FlushNone})
	require.NoError(t, err)
	for range 10 {
		_, err := l.Append(Record{Value: make([]byte, 100_000)})
		require.NoError(t, err)
	}
	s, err := l.Section(0, 1<<20)
	require.NoError(t, err)
	w := &closing{s: s}
	n, err := s.WriteTo(w)
	require.ErrorIs(t, err, errSectionClosed)
	require.EqualValues(t, w.n, n)
	require.NoError(t, l.Close())
}

// panicking is a handler that panics for one message.
type panicking struct {
	slog.Handler
	message string
}

func (p panicking) Enabled(context.Context, slog.Level) bool { return true }

func (p panicking) Handle(_ context.Context, r slog.Record) error {
	if r.Message == p.message {
		panic("of the handler")
	}
	return nil
}

// If code of the caller panics in Open or Verify, and the caller recovers, nothing may stay open or locked.
func TestPanicOfTheCallersCode(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	o := Options{SegmentBytes: 4096}
	l, err := openFS(s, sim.Dir, &o)
	require.NoError(t, err)
	appendValues(t, l, 200)
	o.Logger = slog.New(panicking{slog.DiscardHandler, "seglog: opened"})
	for range 2 {
		s.Kill() // so that the next Open recovers
		s = sim.NewFS(s.World, true)
		require.PanicsWithValue(t, "of the handler", func() { _, _ = openFS(s, sim.Dir, &o) })
		require.Empty(t, s.Left())
	}
	require.PanicsWithValue(t, "of the caller", func() {
		_, _ = verifyFS(s, sim.Dir, &VerifyOptions{Progress: func(int64, int64) { panic("of the caller") }})
	})
	require.Empty(t, s.Left())
	ignore(l.Close())
}

// A Close beside a snapshot ends it with ErrClosed.
func TestSnapshotBesideClose(t *testing.T) {
	for i := range 40 {
		l, err := Open(t.TempDir(), &Options{SegmentBytes: 4096, Flush: FlushNone})
		require.NoError(t, err)
		appendValues(t, l, 100)
		to, done := t.TempDir(), make(chan error)
		go func() { done <- l.Snapshot(filepath.Join(to, "copy")) }()
		time.Sleep(time.Duration(i) * 50 * time.Microsecond)
		require.NoError(t, l.Close())
		if err := <-done; err != nil {
			require.ErrorIs(t, err, ErrClosed)
		}
	}
}

// A read-only log that was opened before there was a state file must see a cut as soon as there is one.
func TestReadOnlyOpenedBeforeTheState(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(dir, &Options{SegmentBytes: 64 << 10})
	require.NoError(t, err)
	appendValues(t, w, 30)
	require.NoError(t, w.Close())
	require.NoError(t, os.Remove(filepath.Join(dir, stateName)))
	l, err := Open(dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	require.False(t, l.readOnly.promised)
	w, err = Open(dir, &Options{SegmentBytes: 64 << 10})
	require.NoError(t, err)
	require.NoError(t, w.Reset(22))
	appendValues(t, w, 30)
	l.readOnly.opened = time.Now()
	next := int64(22)
	for r, err := range l.Records(Oldest) {
		require.NoError(t, err)
		require.Equal(t, next, r.Offset)
		next++
	}
	require.EqualValues(t, 52, next)
	require.NoError(t, l.Close())
	require.NoError(t, w.Close())
}
