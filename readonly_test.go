package seglog_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

const besideBatch = 5 // the number of records in each batch of writingChild

// besideValue returns the value of record i of the batch with an id, and names both.
func besideValue(id, i int) []byte {
	return fmt.Appendf(nil, "%d %d %s", id, i, strings.Repeat("y", (id*31+i*7)%200))
}

// writingChild appends whole batches, rolls, deletes and cuts at the borders of batches, until its standard input ends.
func writingChild(args []string) error {
	p, _ := strconv.Atoi(args[1])
	l, err := seglog.Open(args[0], &seglog.Options{Flush: seglog.FlushPolicy(p), SegmentBytes: 8 << 10, IndexBytes: 512})
	if err != nil {
		return err
	}
	stop := make(chan bool)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	report("started")
	rng := rand.New(rand.NewPCG(5, uint64(p)))
	for id := 0; ; id++ {
		select {
		case <-stop:
			report("end %d %d", l.Offsets().Start, l.Offsets().End)
			return l.Close()
		default:
		}
		var batch []seglog.Record
		for i := range besideBatch {
			batch = append(batch, seglog.Record{Value: besideValue(id, i)})
		}
		if _, err := l.Append(batch...); err != nil {
			return err
		}
		o := l.Offsets()
		border := func(from, to int64) int64 { return (from + rng.Int64N(to-from+1)) / besideBatch * besideBatch }
		switch rng.IntN(60) {
		case 0:
			err = l.DeleteBefore(border(o.Start, o.Start+(o.End-o.Start)/2))
		case 1:
			err = l.TruncateTo(max(o.Start, border(o.End-(o.End-o.Start)/4, o.End)))
		case 2:
			time.Sleep(2 * time.Millisecond)
		}
		if err != nil {
			return err
		}
	}
}

// checkBeside walks over a read-only log, which must show whole batches, in order and without gaps. It returns the number of
// records.
func checkBeside(t *testing.T, l *seglog.Log, from int64) (n int) {
	t.Helper()
	lastID, i := -1, 0
	var got []string
	for r, err := range l.Records(from) {
		if err != nil {
			require.ErrorIs(t, err, seglog.ErrOutOfRange) // the writer deleted or cut the records during the walk
			return n
		}
		require.Equal(t, from+int64(n), r.Offset)
		var id, at int
		_, err = fmt.Sscanf(string(r.Value), "%d %d ", &id, &at)
		require.NoError(t, err)
		require.Equal(t, string(besideValue(id, at)), string(r.Value))
		require.Equal(t, i, at, "half a batch")
		if at == 0 {
			require.Greater(t, id, lastID)
		} else {
			require.Equal(t, lastID, id, "parts of two batches")
		}
		lastID, i = id, (i+1)%besideBatch
		got = append(got, string(r.Value))
		n++
	}
	require.Zero(t, i, "the last batch is incomplete: %q", got[max(0, len(got)-7):])
	return n
}

// A read-only log must follow the appends, rolls, deletions and truncations of a writer in another process, and never show a
// part of a batch.
func TestReadOnlyBesideProcess(t *testing.T) {
	for _, p := range policies {
		t.Run(p.String(), func(t *testing.T) {
			dir := t.TempDir()
			c := startChild(t, "write", dir, strconv.Itoa(int(p)))
			require.True(t, c.lines.Scan())
			r := open(t, dir, &seglog.Options{ReadOnly: true})
			walks, records := 0, 0
			for start := time.Now(); time.Since(start) < 1200*time.Millisecond; walks++ {
				o := r.Offsets()
				require.True(t, o.Start <= o.RecoveryPoint && o.RecoveryPoint <= o.HighWatermark && o.HighWatermark <= o.End, "%+v", o)
				records += checkBeside(t, r, o.Start)
				if walks%3 == 0 && o.End > o.Start {
					decodeBeside(t, r, o.Start)
				}
				if walks%10 == 0 { // a log that is opened now must be consistent, too
					fresh := open(t, dir, &seglog.Options{ReadOnly: true})
					checkBeside(t, fresh, fresh.Offsets().Start)
					require.NoError(t, fresh.Close())
				}
			}
			require.NoError(t, c.stdin.Close())
			lines := c.wait(t)
			require.NotEmpty(t, lines)
			var start, end int64
			_, err := fmt.Sscanf(lines[len(lines)-1], "end %d %d", &start, &end)
			require.NoError(t, err)
			require.EqualValues(t, end-start, checkBeside(t, r, start))
			require.Equal(t, start, r.Offsets().Start)
			require.Equal(t, end, r.Offsets().End)
			require.NoError(t, r.Close())
			requireReleased(t, dir)
			t.Logf("%d walks, %d records", walks, records)
			require.Greater(t, records, 1000)
		})
	}
}

// decodeBeside checks the batches that a read-only log sends.
func decodeBeside(t *testing.T, l *seglog.Log, from int64) {
	t.Helper()
	s, err := l.Section(from, 20000)
	if err != nil {
		require.ErrorIs(t, err, seglog.ErrOutOfRange)
		return
	}
	defer s.Close()
	var b bytes.Buffer
	_, err = s.WriteTo(&b)
	require.NoError(t, err)
	next := s.Base()
	for r, err := range seglog.Decode(&b) {
		require.NoError(t, err)
		require.Equal(t, next, r.Offset)
		next++
	}
	require.Equal(t, s.Next(), next)
}

// No call on a read-only log may write to the directory, and calls that would must fail with ErrReadOnly.
func TestReadOnlyWritesNothing(t *testing.T) {
	for name, dir := range map[string]string{"closed": closedLog(t, 300), "killed": killedLog(t, 100, 200)} {
		t.Run(name, func(t *testing.T) {
			before := contents(t, dir)
			l := open(t, dir, &seglog.Options{ReadOnly: true})
			_, err := l.Append(seglog.Record{})
			require.ErrorIs(t, err, seglog.ErrReadOnly)
			_, err = l.AppendBatch(plainBatch(0, "x"))
			require.ErrorIs(t, err, seglog.ErrReadOnly)
			_, err = l.TransferFrom(bytes.NewReader(plainBatch(0, "x")), -1)
			require.ErrorIs(t, err, seglog.ErrReadOnly)
			_, err = l.Retain()
			require.ErrorIs(t, err, seglog.ErrReadOnly)
			for _, err := range []error{l.Sync(), l.DeleteBefore(1), l.TruncateTo(1), l.Reset(1), l.WaitDurable(context.Background(), 1)} {
				require.ErrorIs(t, err, seglog.ErrReadOnly)
			}
			requireN(t, l, 0, 300)
			_, err = l.OffsetForTime(time.Now().Add(time.Hour))
			require.NoError(t, err)
			require.NoError(t, l.Close())
			_, err = l.Append(seglog.Record{})
			require.ErrorIs(t, err, seglog.ErrClosed)
			require.Equal(t, before, contents(t, dir))
			requireReleased(t, dir)
		})
	}
	_, err := seglog.Open(t.TempDir()+"/none", &seglog.Options{ReadOnly: true})
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Follow of a read-only log must yield every record that the writer appends, and end with its context; Wait must end with Close.
func TestReadOnlyFollow(t *testing.T) {
	for _, p := range policies {
		t.Run(p.String(), func(t *testing.T) {
			dir := t.TempDir()
			w := open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 4 << 10})
			r := open(t, dir, &seglog.Options{ReadOnly: true})
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			done := make(chan error, 1)
			go func() {
				i := 0
				for rec, err := range r.Follow(ctx, 0) {
					if err != nil || string(rec.Value) != string(value(i)) {
						done <- errors.Join(err, fmt.Errorf("record %d is %q", i, rec.Value))
						return
					}
					if i++; i == 300 {
						break
					}
				}
				done <- ctx.Err()
			}()
			for i := range 300 {
				appendN(t, w, i, 1)
				if i%50 == 0 {
					time.Sleep(5 * time.Millisecond)
				}
			}
			require.NoError(t, <-done)
			go func() { done <- r.Wait(ctx, 1000) }()
			time.Sleep(5 * time.Millisecond)
			require.NoError(t, r.Close())
			require.ErrorIs(t, <-done, seglog.ErrClosed)
			require.NoError(t, w.Close())
		})
	}
	// A read-only log can send to a follower.
	dir := t.TempDir()
	w := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4 << 10})
	appendN(t, w, 0, 300)
	r := open(t, dir, &seglog.Options{ReadOnly: true})
	here, there := connected(t, "tcp")
	go func() {
		r.TransferTo(0, math.MaxInt64, here)
		here.Close()
	}()
	f := open(t, t.TempDir(), nil)
	_, err := f.TransferFrom(there, -1)
	require.NoError(t, err)
	requireN(t, f, 0, 300)
}

// A read-only log must not report a segment as sealed that the writer has rolled but not sealed yet, since it may still change.
func TestReadOnlySegmentsAreSealedByTheWriter(t *testing.T) {
	dir := t.TempDir()
	o := &seglog.Options{SegmentBytes: 4096, Flush: seglog.FlushNone}
	l := open(t, dir, o)
	early, err := os.ReadFile(filepath.Join(dir, "seglog.state")) // the state before any seal
	require.NoError(t, err)
	for range 300 {
		_, err := l.Append(seglog.Record{Value: make([]byte, 100)})
		require.NoError(t, err)
	}
	want, err := l.Segments()
	require.NoError(t, err)
	require.Greater(t, len(want), 5)
	require.NoError(t, l.Close())

	r := open(t, dir, &seglog.Options{ReadOnly: true})
	got, err := r.Segments()
	require.NoError(t, err)
	require.Len(t, got, len(want))
	for i, s := range got {
		require.Equal(t, i < len(got)-1, s.Sealed, "segment %d of a closed log", s.Base)
	}
	require.NoError(t, r.Close())

	require.NoError(t, os.WriteFile(filepath.Join(dir, "seglog.state"), early, 0o644))
	r = open(t, dir, &seglog.Options{ReadOnly: true})
	got, err = r.Segments()
	require.NoError(t, err)
	require.Len(t, got, len(want))
	for _, s := range got {
		require.False(t, s.Sealed, "segment %d, although the writer has sealed none", s.Base)
	}
	require.NoError(t, r.Close())
}

// Without a state file, a read-only log can't know where the batches must end. If good batches follow bad bytes, the bytes are
// not the end of the log, and Open must refuse it, as it does for a writer. A torn last batch ends the log.
func TestReadOnlyWithoutAState(t *testing.T) {
	o, _ := recoverOptions()
	for _, damage := range []string{"none", "in the middle", "at the end"} {
		dir := t.TempDir()
		l := open(t, dir, o)
		appendN(t, l, 0, 30)
		require.NoError(t, l.Close())
		require.NoError(t, os.Remove(filepath.Join(dir, "seglog.state")))
		names := files(t, dir, "*.log")
		last := names[len(names)-1]
		var size int64
		spoil(t, last, func(b []byte) []byte {
			size = int64(len(b))
			switch damage {
			case "in the middle":
				b[len(b)/2] ^= 1
			case "at the end":
				b[len(b)-1] ^= 1
			}
			return b
		})
		r, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
		if damage == "in the middle" {
			var corrupt *seglog.CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.Equal(t, last, corrupt.Path)
			require.Less(t, corrupt.Pos, size/2)
			require.Greater(t, corrupt.NextOffset, corrupt.Offset)
			continue
		}
		require.NoError(t, err, damage)
		want := 30
		if damage == "at the end" {
			want--
		}
		require.EqualValues(t, want, r.Offsets().End, damage)
		requireN(t, r, 0, want)
		require.NoError(t, r.Close())
	}
}

// A read-only log, while its writer cuts and appends, must show one consistent history and never report a cut as damage. To
// check that, each record names its predecessor, a section must hold the batches up to its Next, and a snapshot must be whole.
func TestReadOnlyBesideCuts(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, &seglog.Options{SegmentBytes: 4096, Flush: seglog.FlushNone})
	stop := time.Now().Add(2 * time.Second)
	if testing.Short() {
		stop = time.Now().Add(500 * time.Millisecond)
	}
	ctx, cancel := context.WithDeadline(t.Context(), stop) // a follower may wait for a record when the writer has made its last
	defer cancel()
	going := func() bool { return time.Now().Before(stop) && !t.Failed() }
	passing := func(err error) bool {
		return err == nil || errors.Is(err, seglog.ErrOutOfRange) || errors.Is(err, seglog.ErrBusy)
	}
	value := func(id, before uint64) []byte {
		v := binary.BigEndian.AppendUint64(nil, id)
		return append(binary.BigEndian.AppendUint64(v, before), make([]byte, id%150)...)
	}
	ids := []uint64{} // by offset
	id := uint64(0)
	var all sync.WaitGroup
	run := func(body func()) {
		all.Add(1)
		go func() {
			defer all.Done()
			for going() {
				body()
			}
		}()
	}
	rng := rand.New(rand.NewPCG(1, 1))
	run(func() {
		for range 20 {
			records := make([]seglog.Record, 1+rng.IntN(20))
			for i := range records {
				before := uint64(0)
				if len(ids) > 0 {
					before = ids[len(ids)-1]
				}
				id++
				records[i].Value = value(id, before)
				ids = append(ids, id)
			}
			if _, err := w.Append(records...); err != nil {
				t.Error(err)
			}
		}
		end := int64(len(ids)) - rng.Int64N(min(400, int64(len(ids))))
		if err := w.TruncateTo(end); err != nil {
			t.Error(err)
		}
		ids = ids[:end]
		time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
	})
	for range 2 {
		r := open(t, dir, &seglog.Options{ReadOnly: true})
		run(func() {
			last := uint64(0)
			for rec, err := range r.Follow(ctx, seglog.Oldest) {
				if !passing(err) {
					t.Errorf("Follow: %v", err)
				}
				if err != nil || !going() {
					return
				}
				if before := binary.BigEndian.Uint64(rec.Value[8:]); rec.Offset > 0 && last != 0 && before != last {
					t.Errorf("the record at offset %d follows record %d, but was appended after record %d", rec.Offset, last, before)
				}
				last = binary.BigEndian.Uint64(rec.Value)
			}
		})
		run(func() {
			end := r.Offsets().End
			s, err := r.Section(max(0, end-1-rand.Int64N(100)), 1<<20)
			if !passing(err) {
				t.Errorf("Section: %v", err)
			}
			if err != nil {
				return
			}
			defer s.Close()
			time.Sleep(time.Duration(rand.IntN(2)) * time.Millisecond)
			var b bytes.Buffer
			if _, err := s.WriteTo(&b); err != nil {
				t.Errorf("WriteTo: %v", err)
			}
			next := s.Base()
			for rec, err := range seglog.Decode(&b) {
				if err != nil {
					t.Errorf("Decode: %v", err)
					return
				}
				next = rec.Offset + 1
			}
			if next != s.Next() {
				t.Errorf("the section ends at offset %d, its Next is %d", next, s.Next())
			}
		})
		run(func() {
			if _, err := r.Read(rand.Int64N(r.Offsets().End + 1)); !passing(err) {
				t.Errorf("Read: %v", err)
			}
		})
	}
	r := open(t, dir, &seglog.Options{ReadOnly: true})
	n, into := 0, t.TempDir()
	run(func() {
		n++
		to := filepath.Join(into, strconv.Itoa(n))
		if err := r.Snapshot(to); err != nil {
			if !passing(err) {
				t.Errorf("Snapshot: %v", err)
			}
			return
		}
		if report, err := seglog.Verify(to, nil); err != nil || !report.OK() {
			t.Errorf("Snapshot %d: %v, %v", n, err, report.Problems)
		}
	})
	all.Wait()
	require.Positive(t, w.Stats().Truncations)
}

// A read-only log must not end before the recovery point that its writer has noted, as if the rest had never been there.
func TestReadOnlyOfALogCutShort(t *testing.T) {
	for _, policy := range []seglog.FlushPolicy{seglog.FlushSync, seglog.FlushNone} {
		dir := t.TempDir()
		l := open(t, dir, &seglog.Options{Flush: policy, SegmentBytes: 8192})
		for range 90 {
			_, err := l.Append(seglog.Record{Value: make([]byte, 100)})
			require.NoError(t, err)
		}
		require.NoError(t, l.Close())
		r, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
		require.NoError(t, err)
		require.EqualValues(t, 90, r.Offsets().End)
		require.NoError(t, r.Close())
		segments := files(t, dir, "*.log")
		last := segments[len(segments)-1]
		st, err := os.Stat(last)
		require.NoError(t, err)
		size := st.Size()
		first := storedBatches(t, dir)[0]
		require.Zero(t, size%int64(len(first.bytes)), "the file would not end with a batch")
		one := int64(len(first.bytes))
		for _, size := range []int64{size - one, size / one / 2 * one, 0} {
			require.NoError(t, os.Truncate(last, size))
			_, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
			require.ErrorIs(t, err, seglog.ErrCorrupt, "a last segment of %d bytes", size)
			require.ErrorContains(t, err, last)
		}
	}
}

// Between two damaged places, a read-only log of a closed directory must find the same sound batches as a log that is opened for
// writing.
func TestReadOnlyBetweenTwoDamages(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, nil)
	appendN(t, l, 0, 300)
	require.NoError(t, l.Close())
	path := files(t, dir, "*.log")[0]
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	all := storedBatches(t, dir)
	pos := 0
	for _, s := range all {
		if s.base == 10 || s.base == 250 {
			clear(b[pos : pos+len(s.bytes)])
		}
		pos += len(s.bytes)
	}
	require.NoError(t, os.WriteFile(path, b, 0o600))
	for _, readOnly := range []bool{true, false} {
		l := open(t, dir, &seglog.Options{ReadOnly: readOnly})
		var next []int64
		for from := int64(0); from < 300; {
			for r, err := range l.Records(from) {
				if err != nil {
					var damage *seglog.CorruptError
					require.ErrorAs(t, err, &damage)
					next = append(next, damage.Offset, damage.NextOffset)
					from = damage.NextOffset
					break
				}
				from = r.Offset + 1
			}
		}
		require.Equal(t, []int64{10, 11, 250, 251}, next, "read-only: %v", readOnly)
		require.NoError(t, l.Close())
	}
}
