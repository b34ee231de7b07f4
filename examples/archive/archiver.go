package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/seglog/seglog"
)

// archiver copies sealed segments to a store, oldest first. Its two hooks do nothing but look at and change what is in
// memory, since the log waits for them; the work is done in run.
type archiver struct {
	store store
	tell  func(text string)
	pause time.Duration // after the first failure; doubled up to a minute

	mu       sync.Mutex
	waiting  []seglog.SegmentInfo // to be archived, in the order in which they were told of
	archived map[int64]seglog.SegmentInfo
	start    int64         // of the log: what lies below was deleted, on purpose
	wake     chan struct{} // has room for one: something waits
}

func newArchiver(s store) *archiver {
	return &archiver{store: s, tell: func(string) {}, pause: 100 * time.Millisecond,
		archived: map[int64]seglog.SegmentInfo{}, wake: make(chan struct{}, 1)}
}

// sealed is Options.OnSeal. A segment may be told of more than once, and before Open has returned.
func (a *archiver) sealed(s seglog.SegmentInfo) {
	a.mu.Lock()
	a.waiting = append(a.waiting, s)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// mayDelete is Options.MayDelete: yes to a segment whose very bytes are in the archive, to the best of what was read
// back from there, and to one that a kill kept from being deleted.
func (a *archiver) mayDelete(s seglog.SegmentInfo) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return s.Next <= a.start || same(a.archived[s.Base], s)
}

func same(a, b seglog.SegmentInfo) bool {
	return a.Base == b.Base && a.Next == b.Next && a.Bytes == b.Bytes
}

// run archives what is sealed until ctx ends. What an earlier run was not told of, because it was killed, it finds by
// looking: all segments but the last are sealed. Failures of the store are told and tried again; an archive of another
// log's history is an error.
func (a *archiver) run(ctx context.Context, l *seglog.Log) error {
	if err := a.catchUp(l); err != nil {
		return err
	}
	pause := a.pause
	for {
		s, ok := a.next()
		if !ok {
			select {
			case <-a.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		err := a.archive(ctx, l, s)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errOther), errors.Is(err, seglog.ErrFailed), errors.Is(err, seglog.ErrClosed):
			return err
		case err == nil:
			a.done(s, l.Offsets().Start)
			pause = a.pause
			// Retention was told no until now, and would ask again after a while.
			if _, err := l.Retain(); err != nil {
				a.tell(fmt.Sprintf("retention: %v", err))
			}
			continue
		case errors.Is(err, errGone):
			a.drop()
			continue
		}
		a.tell(fmt.Sprintf("segment %d: %v; tried again in %v", s.Base, err, pause))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, time.Minute)
	}
}

// catchUp queues all sealed segments before what was told of meanwhile; next sorts out what comes twice.
func (a *archiver) catchUp(l *seglog.Log) error {
	segments, err := l.Segments()
	if err != nil || len(segments) == 0 {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.start = l.Offsets().Start
	a.waiting = append(segments[:len(segments)-1:len(segments)-1], a.waiting...)
	return nil
}

// next is the segment to archive.
func (a *archiver) next() (s seglog.SegmentInfo, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.waiting) > 0 && same(a.archived[a.waiting[0].Base], a.waiting[0]) {
		a.waiting = a.waiting[1:]
	}
	if len(a.waiting) == 0 {
		a.waiting = nil
		return seglog.SegmentInfo{}, false
	}
	return a.waiting[0], true
}

// done notes a segment, and forgets those that are deleted: nobody asks for them any more.
func (a *archiver) done(s seglog.SegmentInfo, start int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.archived, func(_ int64, s seglog.SegmentInfo) bool { return s.Next <= start })
	a.archived[s.Base] = s
	a.start = start
}

// drop takes the first segment from the queue.
func (a *archiver) drop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting = a.waiting[1:]
}

var (
	// errGone: the log has no such segment any more. DeleteBefore or a cut took it; its owner did not want it.
	errGone = errors.New("the segment is gone")
	// errOther: the archive holds other bytes under a segment's name.
	errOther = errors.New("the archive has another history")
)

// archive copies a segment unless it is there, and reads back what is. The sum is that of the log's own file, so that a
// copy which went wrong anywhere on its way differs.
func (a *archiver) archive(ctx context.Context, l *seglog.Log, s seglog.SegmentInfo) error {
	if err := there(l, s); err != nil {
		return err
	}
	// A power cut may take what is not durable, and its offsets are given out again.
	if err := l.WaitDurable(ctx, s.Next-1); err != nil {
		return err
	}
	if err := there(l, s); err != nil {
		return err
	}
	name := filepath.Base(s.Path)
	sum, err := sumOf(s)
	if err != nil {
		return err
	}
	stored, err := a.sumIn(name)
	copied := false
	if errors.Is(err, fs.ErrNotExist) {
		if err = a.copy(name, s); err == nil {
			copied = true
			stored, err = a.sumIn(name)
		}
	}
	if err != nil {
		return err
	}
	if stored != sum {
		if copied {
			return errors.Join(fmt.Errorf("the copy has sum %08x over %d bytes, the file %08x over %d", stored.crc, stored.bytes, sum.crc, sum.bytes), a.store.remove(name))
		}
		return fmt.Errorf("%w: %s has sum %08x over %d bytes there, %08x over %d here", errOther, name, stored.crc, stored.bytes, sum.crc, sum.bytes)
	}
	a.tell(fmt.Sprintf("segment %d: offsets [%d, %d), %d bytes, CRC %08x", s.Base, s.Base, s.Next, s.Bytes, sum.crc))
	return nil
}

// there says whether the log still has a segment.
func there(l *seglog.Log, s seglog.SegmentInfo) error {
	segments, err := l.Segments()
	if err != nil {
		return err
	}
	if s.Next <= l.Offsets().Start || !slices.ContainsFunc(segments, func(now seglog.SegmentInfo) bool { return same(now, s) }) {
		return errGone
	}
	return nil
}

func (a *archiver) copy(name string, s seglog.SegmentInfo) error {
	f, err := os.Open(s.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.store.put(name, io.LimitReader(f, s.Bytes))
}

// sum is what is compared; both CRC and length, since a file that ends early is the commonest fault.
type sum struct {
	crc   uint32
	bytes int64
}

// sumOf reads a segment: as many bytes as it has, not what may be reserved behind them.
func sumOf(s seglog.SegmentInfo) (sum, error) {
	f, err := os.Open(s.Path)
	if err != nil {
		return sum{}, err
	}
	defer f.Close()
	return sumFrom(io.LimitReader(f, s.Bytes))
}

func (a *archiver) sumIn(name string) (sum, error) {
	r, err := a.store.get(name)
	if err != nil {
		return sum{}, err
	}
	defer r.Close()
	return sumFrom(r)
}

func sumFrom(r io.Reader) (sum, error) {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	n, err := io.Copy(h, r)
	return sum{h.Sum32(), n}, err
}
