package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/seglog/seglog/internal/sim"
)

// fuzzNames are the fixed names in the encoding of a directory as one byte string for the fuzzer: for each file, a byte that
// picks the name, two bytes of length, and the contents. Bytes past these names stand for files of segments with small base
// offsets.
var fuzzNames = []string{stateName, nextName, cutName, "seglog.index", "LOCK", "README", "0.log", "00000000000000000000.deleted"}

func fuzzName(b byte) string {
	if int(b) < len(fuzzNames) {
		return fuzzNames[b]
	}
	n := int(b) - len(fuzzNames)
	return fileName(int64(n/3), []string{logSuffix, indexSuffix, timeSuffix}[n%3])
}

func fuzzWorld(b []byte) *sim.World {
	w := sim.NewWorld()
	for len(b) >= 3 {
		name, n := fuzzName(b[0]), int(binary.BigEndian.Uint16(b[1:]))
		b = b[3:]
		n = min(n, len(b))
		w.Put(name, bytes.Clone(b[:n]))
		b = b[n:]
	}
	return w
}

// fuzzBytes is the inverse of fuzzWorld, for files with a name that a byte can pick.
func fuzzBytes(w *sim.World) (b []byte) {
	for pick := range 256 {
		n, ok := w.Names[fuzzName(byte(pick))]
		if !ok {
			continue
		}
		content := w.Nodes[n].Cache
		b = append(b, byte(pick))
		b = binary.BigEndian.AppendUint16(b, uint16(len(content)))
		b = append(b, content...)
	}
	return b
}

// fuzzSeeds adds the directories of small logs, some closed and some killed.
func fuzzSeeds(f *testing.F) {
	for seed := range uint64(10) {
		c := newSimConfig(seed)
		c.failFlush = 0
		s := sim.NewFS(sim.NewWorld(), c.mapped)
		u := newSimUser(s, Options{Flush: c.opts.Flush, SegmentBytes: 4096, IndexBytes: 64}, seed)
		if err := u.open(); err != nil {
			f.Fatal(err)
		}
		for range 2 * seed {
			if err := u.append(1 + u.rng.IntN(2)); err != nil {
				f.Fatal(err)
			}
		}
		if seed%2 == 0 {
			if err := u.close(); err != nil {
				f.Fatal(err)
			}
			f.Add(fuzzBytes(s.Kill()))
			continue
		}
		f.Add(fuzzBytes(s.Kill()))
		ignore(u.log.Close())
	}
	f.Add([]byte{})
}

// FuzzOpen opens arbitrary directories. Open and reads must succeed or return an error with a reason, without much memory, and
// a log that opened must show the same records again after a kill.
func FuzzOpen(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		opts := &Options{SegmentBytes: 8192, IndexBytes: 64}
		s := sim.NewFS(fuzzWorld(b), len(b)%2 == 0)
		before := allocated()
		l, err := openFS(s, sim.Dir, opts)
		if spent := allocated() - before; spent > maxDamagedAllocation+64*uint64(len(b)) {
			t.Fatalf("Open allocated %d bytes for %d", spent, len(b))
		}
		if err != nil {
			if left := s.Left(); len(left) > 0 {
				t.Fatalf("not released: %v", left)
			}
			var c *CorruptError
			if errors.As(err, &c) && (c.Path == "" || c.Reason == "") {
				t.Fatalf("error without path or reason: %v", err)
			}
			return
		}
		shown, err := fuzzRead(t, l)
		if err != nil {
			ignore(l.Close())
			return
		}
		_, err = l.Append(Record{Value: []byte("appended")})
		if err != nil && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("append: %v", err)
		}
		appended := err == nil
		w := s.Kill()
		ignore(l.Close())
		again, err := openFS(sim.NewFS(w.Clone(), s.Mapped), sim.Dir, opts)
		if err != nil {
			t.Fatalf("second open: %v", err)
		}
		second, err := fuzzRead(t, again)
		if err != nil {
			t.Fatalf("second read: %v", err)
		}
		if appended && len(second) > 0 && string(second[len(second)-1].Value) == "appended" {
			second = second[:len(second)-1]
		}
		if len(second) != len(shown) {
			t.Fatalf("showed %d records, then %d", len(shown), len(second))
		}
		for i := range shown {
			if why := differ(&second[i], &shown[i]); why != "" {
				t.Fatalf("record %d changed: %s", shown[i].Offset, why)
			}
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// fuzzRead reads all records, by a walk and one by one, and checks that their offsets grow.
func fuzzRead(t *testing.T, l *Log) ([]Record, error) {
	var recs []Record
	last := int64(-1)
	o := l.Offsets()
	for r, err := range l.Records(o.Start) {
		if err != nil {
			return nil, err
		}
		if r.Offset <= last || r.Offset < o.Start || r.Offset >= o.End {
			t.Fatalf("record %d after %d, in %+v", r.Offset, last, o)
		}
		last = r.Offset
		recs = append(recs, r.Clone())
	}
	for i := range recs {
		r, err := l.Read(recs[i].Offset)
		if err != nil {
			return nil, err
		}
		if why := differ(&r, &recs[i]); why != "" {
			t.Fatalf("read of %d: %s", r.Offset, why)
		}
	}
	return recs, nil
}

// fuzzSource is a rand.Source that returns the fuzzer's bytes, one for each decision, so that the fuzzer steers the random
// user. Once the bytes are used up, it continues with then.
type fuzzSource struct {
	b    []byte
	then rand.Source
}

func (f *fuzzSource) Uint64() uint64 {
	if len(f.b) == 0 {
		return f.then.Uint64()
	}
	v := uint64(f.b[0])
	f.b = f.b[1:]
	// rand uses the high bits for small ranges and the low bits for powers of two, so repeat the byte in all positions.
	return v * 0x0101010101010101
}

// FuzzOps makes the calls that the input encodes, and checks the log that is recovered after a kill, and after a power cut,
// against the oracle.
func FuzzOps(f *testing.F) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 9))
		b := make([]byte, 100+rng.IntN(400))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(uint16(seed), b)
	}
	f.Fuzz(func(t *testing.T, config uint16, b []byte) {
		c := newSimConfig(uint64(config))
		source := &fuzzSource{b, rand.NewPCG(1, 10)}
		s := sim.NewFS(sim.NewWorld(), c.mapped)
		u := newSimUser(s, c.opts, 0)
		u.rng = rand.New(source)
		if c.opts.RetentionBytes > 0 {
			u.event("retention", func(o *oracle) { o.retained = &u.retained })
		}
		if err := u.open(); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < 60 && len(source.b) > 0; i++ {
			if err := u.step(); err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
			if u.wrong != nil {
				t.Fatalf("call %d: %v", i, u.wrong)
			}
		}
		w := s.Kill()
		ignore(u.log.Close())
		x := newCrasher(c.opts, c.mapped, uint64(config))
		if err := x.check(w, u.o, false, 1); err != nil {
			t.Fatalf("killed: %v", err)
		}
		cut := sim.RandomCut(x.rng)
		if err := x.check(cut.Apply(w), u.o, true, 1); err != nil {
			t.Fatalf("power cut, %s: %v", cut.What, err)
		}
		if len(s.Misuse) > 0 {
			t.Fatal(s.Misuse)
		}
	})
}
