package seglog

import (
	"math/rand/v2"
	"testing"

	"github.com/seglog/seglog/internal/sim"
)

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
