package raftstore

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The child of TestKill opens the store in this directory, and makes the changes that follow from the seed until it is
// killed.
const (
	childDir  = "RAFTSTORE_CHILD_DIR"
	childSeed = "RAFTSTORE_CHILD_SEED"
)

// killed has small segments, and no StoreLogs of the model is split into batches, so that each is whole or not there.
var killed = &Options{SegmentBytes: 1 << 14}

// child reads nothing: its changes follow from the seed, and its parent has them from the same generator. It says before
// each that it begins and after each that it is done.
func child() {
	fail := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	s, err := Open(os.Getenv(childDir), killed)
	fail(err)
	seed, err := strconv.ParseUint(os.Getenv(childSeed), 10, 64)
	fail(err)
	m, err := observe(s)
	fail(err)
	r := rand.New(rand.NewPCG(seed, 2))
	for step := uint64(1); ; step++ {
		op := m.pick(r, seed<<20|step)
		fmt.Println("begin")
		fail(op.run(s))
		op.apply(m)
		fmt.Println("done")
	}
}

// observe makes a model of what a store holds.
func observe(s *Store) (*model, error) {
	o := s.log.Offsets()
	m := &model{first: uint64(o.Start), values: make(map[string]uint64)}
	for i := o.Start; i < o.End; i++ {
		rec, err := s.log.Read(i)
		if err != nil {
			return nil, err
		}
		e := entry(0, 0)
		commit, err := decode(&rec, e)
		if err != nil {
			return nil, err
		}
		m.terms, m.marks = append(m.terms, e.Term), append(m.marks, commit)
	}
	for i := range 4 {
		key := fmt.Sprint("key", i)
		v, err := s.GetUint64([]byte(key))
		if err != nil {
			return nil, err
		}
		if v != 0 {
			m.values[key] = v
		}
	}
	m.restart()
	return m, nil
}

// TestKill kills a process with -9 at a random point of its changes, many times in the same directory. What it said was
// done must be there, and of the change it was at, all or nothing.
func TestKill(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	dir := t.TempDir()
	m := &model{first: 1, values: make(map[string]uint64)}
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3))
	var changes, halves int
	for round := range rounds {
		done, begun := killOne(t, dir, uint64(round+1), 1+r.IntN(60), time.Duration(r.IntN(2000))*time.Microsecond)
		gen := rand.New(rand.NewPCG(uint64(round+1), 2))
		for step := range done {
			m.pick(gen, uint64(round+1)<<20|uint64(step+1)).apply(m)
		}
		after := m.clone()
		if begun > done {
			op := m.pick(gen, uint64(round+1)<<20|uint64(done+1))
			op.apply(after)
		}
		changes += done

		s, err := Open(dir, killed)
		require.NoError(t, err)
		got, err := observe(s)
		require.NoError(t, err)
		if begun > done && !sameModel(got, m) {
			halves++
			m = after
		}
		m.restart()
		if len(m.terms) == 0 {
			m.first = got.first // an empty store takes any index
		}
		m.check(t, s)
		require.NoError(t, s.Close())
	}
	t.Logf("%d kills, %d changes, %d of %d that were under way had happened", rounds, changes, halves, rounds)
}

func sameModel(a, b *model) bool {
	if len(a.terms) == 0 && len(b.terms) == 0 {
		return fmt.Sprint(a.values) == fmt.Sprint(b.values)
	}
	return a.first == b.first && fmt.Sprint(a.terms, a.marks, a.values) == fmt.Sprint(b.terms, b.marks, b.values)
}

// killOne runs a child for so many changes and then a little longer, and returns how many it finished and began.
func killOne(t *testing.T, dir string, seed uint64, changes int, longer time.Duration) (done, begun int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprintf("%s=%d", childSeed, seed))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	ended := false
	for lines.Scan() {
		switch lines.Text() {
		case "begin":
			begun++
		case "done":
			done++
		default:
			t.Errorf("child: %s", lines.Text())
		}
		if done == changes && !ended {
			ended = true
			time.AfterFunc(longer, func() { _ = cmd.Process.Kill() })
		}
	}
	_ = cmd.Wait()
	require.True(t, ended, "the child ended by itself")
	return done, begun
}
