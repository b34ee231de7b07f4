package seglog_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

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
