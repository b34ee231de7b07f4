package seglog

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
	"github.com/seglog/seglog/internal/sim"
)

var (
	modelOps  = flag.Int("ops", 0, "model test: number of calls per run; 0: 200")
	modelSeed = flag.Uint64("model-seed", 0, "model test: seed; 0 takes one from the clock")
)

// modelUser is a simUser that also makes all kinds of reads, and checks their results.
type modelUser struct{ *simUser }

// next makes a random call.
func (u *modelUser) next() error {
	calls := []func() error{
		u.readOne, u.readOutside, u.walk, u.walkAll, u.section, u.transferWhole, u.byTime, u.wait, u.follow, u.refused, u.beside,
	}
	if n := u.rng.IntN(30); n < len(calls) {
		return calls[n]()
	}
	return u.step()
}

// live returns the readable records.
func (u *modelUser) live() []*Record {
	l := u.o.only()
	var recs []*Record
	for _, s := range l.slots[min(l.start-l.first, int64(len(l.slots))):] {
		recs = append(recs, s.rec)
	}
	return recs
}

func (u *modelUser) readOne() error {
	recs := u.live()
	if len(recs) == 0 {
		return nil
	}
	want := recs[u.rng.IntN(len(recs))]
	got, err := u.log.Read(want.Offset)
	if err == nil && differ(&got, want) != "" {
		u.bad("read %d: %s", want.Offset, differ(&got, want))
	}
	return err
}

// readOutside reads offsets outside of the log.
func (u *modelUser) readOutside() error {
	l := u.o.only()
	for _, offset := range []int64{-1, l.start - 1, l.end(), l.end() + 1 + u.rng.Int64N(100)} {
		if offset >= l.start && offset < l.end() {
			continue
		}
		_, err := u.log.Read(offset)
		var out *OffsetError
		if !errors.As(err, &out) || !errors.Is(err, ErrOutOfRange) || out.Offset != offset || out.Offsets.Start != l.start || out.Offsets.End != l.end() {
			u.bad("read %d outside [%d, %d): %v", offset, l.start, l.end(), err)
		}
	}
	return nil
}

// walk reads a few records from a random offset on.
func (u *modelUser) walk() error {
	recs := u.live()
	if len(recs) == 0 {
		return nil
	}
	at := u.rng.IntN(len(recs))
	left := u.rng.IntN(10)
	for got, err := range u.log.Records(recs[at].Offset) {
		if err != nil {
			return err
		}
		if why := differ(&got, recs[at]); why != "" {
			u.bad("walk at %d: %s", recs[at].Offset, why)
		}
		at++
		if left--; left < 0 {
			break
		}
	}
	return nil
}

func (u *modelUser) walkAll() error { return u.verify() }

// decodes checks the records in a stream that was sent from offset on.
func (u *modelUser) decodes(stream []byte, offset int64) {
	l := u.o.only()
	for got, err := range Decode(bytes.NewReader(stream)) {
		if err != nil {
			u.bad("decode the stream from %d: %w", offset, err)
			return
		}
		at := got.Offset - l.first
		if at < 0 {
			continue // a deleted record in a batch with others that are not
		}
		if at >= int64(len(l.slots)) {
			u.bad("record %d was sent, but does not exist", got.Offset)
		} else if why := differ(&got, l.slots[at].rec); why != "" {
			u.bad("record %d in the stream: %s", got.Offset, why)
		}
	}
}

// section reads a few sections in a row from a random offset on, as a server does.
func (u *modelUser) section() error {
	recs := u.live()
	if len(recs) == 0 {
		return nil
	}
	at := recs[u.rng.IntN(len(recs))].Offset
	for range 1 + u.rng.IntN(3) {
		s, err := u.log.Section(at, 1+u.rng.Int64N(3000))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		n, err := s.WriteTo(&b)
		if err != nil {
			return err
		}
		if n != s.Len() || n != int64(b.Len()) || s.Base() > at || s.Next() <= at {
			u.bad("section from %d: wrote %d of %d, [%d, %d)", at, n, s.Len(), s.Base(), s.Next())
		}
		if err := s.Close(); err != nil {
			return err
		}
		u.decodes(b.Bytes(), at)
		if at = s.Next(); at >= u.end() {
			break
		}
	}
	return nil
}

// transferWhole transfers the whole log to another log, which must then hold the same records.
func (u *modelUser) transferWhole() error {
	recs := u.live()
	if len(recs) == 0 {
		return nil
	}
	var stream bytes.Buffer
	for at := recs[0].Offset; at < u.end(); {
		s, err := u.log.Section(at, 1<<20)
		if err != nil {
			return err
		}
		_, err = s.WriteTo(&stream)
		at = s.Next()
		if err := errors.Join(err, s.Close()); err != nil {
			return err
		}
	}
	follower, err := openFS(sim.NewFS(sim.NewWorld(), true), sim.Dir, &Options{Flush: FlushNone, SegmentBytes: 64 << 10})
	if err != nil {
		return err
	}
	size := int64(stream.Len())
	if n, err := follower.TransferFrom(&stream, -1); err != nil || n != size {
		u.bad("TransferFrom of a whole log took %d bytes of %d: %v", n, size, err)
	}
	got, err := readLog(follower)
	if err != nil {
		u.bad("read the follower: %w", err)
		return follower.Close()
	}
	byOffset := map[int64]*Record{}
	for i := range got.recs {
		byOffset[got.recs[i].Offset] = &got.recs[i]
	}
	for _, want := range recs {
		if r := byOffset[want.Offset]; r == nil || differ(r, want) != "" {
			u.bad("record %d did not arrive", want.Offset)
		}
	}
	return follower.Close()
}

func (u *modelUser) byTime() error {
	recs := u.live()
	at := time.UnixMilli(1_700_000_000_000 + u.rng.Int64N(u.id*10+100))
	want := u.end()
	for _, r := range recs {
		if !r.Time.Before(at) {
			want = r.Offset
			break
		}
	}
	got, err := u.log.OffsetForTime(at)
	if err == nil && got != want {
		u.bad("offset for time %v is %d, want %d", at, got, want)
	}
	return err
}

func (u *modelUser) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := u.log.Wait(ctx, u.end()); !errors.Is(err, context.DeadlineExceeded) {
		u.bad("wait for %d, which does not exist: %v", u.end(), err)
	}
	recs := u.live()
	if len(recs) == 0 {
		return nil
	}
	offset := recs[u.rng.IntN(len(recs))].Offset
	if err := u.log.Wait(context.Background(), offset); err != nil {
		return err
	}
	err := u.log.WaitDurable(context.Background(), offset)
	if err == nil && u.log.Offsets().RecoveryPoint <= offset {
		u.bad("WaitDurable(%d) returned, but the recovery point is %d", offset, u.log.Offsets().RecoveryPoint)
	}
	return err
}

// follow checks that Follow yields records appended while it waits.
func (u *modelUser) follow() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	from := u.end()
	seen := make(chan error, 1)
	var got []Record
	go func() {
		defer close(seen)
		for r, err := range u.log.Follow(ctx, from) {
			if err != nil {
				seen <- err
				return
			}
			if got = append(got, r.Clone()); len(got) == 3 {
				return
			}
		}
	}()
	err := errors.Join(u.append(1), u.append(2))
	if err != nil {
		cancel()
	}
	if ferr := <-seen; ferr != nil || err != nil {
		return errors.Join(err, ferr)
	}
	l := u.o.only()
	for i := range got {
		if why := differ(&got[i], l.slots[from-l.first+int64(i)].rec); why != "" {
			u.bad("followed to %d: %s", from+int64(i), why)
		}
	}
	return nil
}

// refused makes calls that the log must refuse without any change.
func (u *modelUser) refused() error {
	was := u.log.Offsets()
	_, err1 := u.log.Append()
	_, err2 := u.log.AppendBatch([]byte("not a batch"))
	_, err3 := u.log.Append(Record{Value: make([]byte, u.opts.SegmentBytes)})
	_, err4 := u.log.Append(Record{Time: time.UnixMilli(-5)})
	if !errors.Is(err1, ErrInvalid) || !errors.Is(err2, ErrInvalid) || !errors.Is(err3, ErrTooLarge) || !errors.Is(err4, ErrInvalid) {
		u.bad("invalid appends: %v, %v, %v, %v", err1, err2, err3, err4)
	}
	spoilt := encoded(u.batch(2, was.End), was.End)
	spoilt[len(spoilt)-1] ^= 1
	if n, err := u.log.TransferFrom(bytes.NewReader(spoilt), -1); n != 0 || !errors.Is(err, ErrCorrupt) {
		u.bad("transfer of a damaged batch took %d bytes: %v", n, err)
	}
	for _, err := range []error{u.log.TruncateTo(was.End + 1), u.log.TruncateTo(was.Start - 1), u.log.DeleteBefore(was.End + 1)} {
		if err == nil {
			u.bad("a cut or deletion outside of the log succeeded")
		}
	}
	if second, err := openFS(u.fsys, u.dir, &u.opts); !errors.Is(err, ErrLocked) {
		u.bad("opened twice: %v, %v", second, err)
	}
	if now := u.log.Offsets(); now.End != was.End || now.Start != was.Start {
		u.bad("refused calls changed %+v to %+v", was, now)
	}
	return nil
}

// beside opens the directory read-only while the writer has it open.
func (u *modelUser) beside() error {
	opts := u.opts
	opts.ReadOnly = true
	l, err := openFS(u.fsys, u.dir, &opts)
	if err != nil {
		return err
	}
	got, err := readLog(l)
	if err != nil {
		return fmt.Errorf("read-only: %w", errors.Join(err, l.Close()))
	}
	live := map[int64]*Record{}
	for _, r := range u.live() {
		live[r.Offset] = r
	}
	for i := range got.recs {
		want := live[got.recs[i].Offset]
		if want == nil || differ(&got.recs[i], want) != "" {
			u.bad("a read-only log beside this one shows a record %d that does not exist", got.recs[i].Offset)
		}
	}
	if durable := u.o.only().durable; durable > got.start {
		// Other processes may see durable records a little later.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := l.Wait(ctx, durable-1); err != nil {
			u.bad("a read-only log beside this one ends at %d, but records below %d are durable: %w", got.end, durable, err)
		}
	}
	if _, err := l.Append(Record{}); !errors.Is(err, ErrReadOnly) {
		u.bad("append to a read-only log: %v", err)
	}
	return l.Close()
}

// run opens the log, makes random calls, and closes it.
func (u *modelUser) run(ops int) error {
	if err := u.open(); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	for i := range ops {
		if err := errors.Join(u.next(), u.wrong); err != nil {
			return fmt.Errorf("call %d: %w", i, err)
		}
	}
	if err := u.verify(); err != nil {
		return err
	}
	return errors.Join(u.close(), u.wrong)
}

// TestModel makes random calls and compares every result with a slice of records.
func TestModel(t *testing.T) {
	seed, ops := *modelSeed, *modelOps
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	runs := 24
	if ops == 0 {
		ops = 200
		if race.On {
			runs = 8
		}
	}
	for i := range uint64(runs) {
		seed := seed + i
		rng := rand.New(rand.NewPCG(seed, 6))
		c := newSimConfig(seed)
		c.opts.RetentionBytes = 0
		before := runtime.NumGoroutine()
		u := &modelUser{newSimUser(sim.NewFS(sim.NewWorld(), c.mapped), c.opts, seed)}
		real := rng.IntN(6) == 0
		if real {
			u.fsys, u.sim, u.dir = osFS{}, nil, t.TempDir()
		}
		err := u.run(ops)
		require.NoErrorf(t, err, "-model-seed=%d -ops=%d, real files %v, %v", seed, ops, real, c)
		if !real {
			require.Empty(t, u.sim.Left(), "-model-seed=%d", seed)
			require.Empty(t, u.sim.Misuse, "-model-seed=%d", seed)
		}
		for range 200 {
			if runtime.NumGoroutine() <= before {
				break
			}
			time.Sleep(time.Millisecond)
		}
		require.LessOrEqual(t, runtime.NumGoroutine(), before, "goroutines left, -model-seed=%d", seed)
	}
	t.Logf("%d runs of %d calls, from -model-seed=%d on", runs, ops, seed)
}
