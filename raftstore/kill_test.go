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

	childSteps = 80 // of one that nobody kills
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
	for step := uint64(1); step <= childSteps; step++ {
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
	k := &killing{t: t, dir: t.TempDir(), m: &model{first: 1, values: make(map[string]uint64)}}
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3))
	for range rounds {
		cmd := exec.Command(os.Args[0])
		changes, longer, ended := 1+r.IntN(60), time.Duration(r.IntN(2000))*time.Microsecond, false
		k.run(cmd, func(done int) {
			if done == changes && !ended {
				ended = true
				time.AfterFunc(longer, func() { _ = cmd.Process.Kill() })
			}
		})
		require.True(t, ended, "the child ended by itself")
	}
	t.Logf("%d kills, %d changes, %d changes that were under way had happened", rounds, k.changes, k.happened)
}

// TestKillAtCalls kills a process at its first, second, ... call of each kind that changes files, before the call is made.
func TestKillAtCalls(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if err := exec.Command(strace, "-o", os.DevNull, "true").Run(); err != nil {
		t.Skip("strace may not trace here: ", err)
	}
	each := 8
	if testing.Short() {
		each = 2
	}
	k := &killing{t: t, dir: t.TempDir(), m: &model{first: 1, values: make(map[string]uint64)}}
	killedAt := 0
	for _, call := range []string{"fdatasync", "fsync", "pwrite64", "renameat", "unlinkat", "ftruncate", "fallocate", "openat", "close", "mmap", "munmap"} {
		for n := 1; n <= each; n++ {
			at := n
			if call == "openat" || call == "close" || call == "mmap" {
				at = n * 5 // the runtime makes some of them
			}
			cmd := exec.Command(strace, "-f", "-qq", "-o", os.DevNull, "-e", "trace="+call,
				"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, at), os.Args[0])
			changes := k.changes
			k.run(cmd, func(int) {})
			if k.changes-changes < childSteps {
				killedAt++
			}
		}
	}
	t.Logf("%d kills, %d changes, %d changes that were under way had happened", killedAt, k.changes, k.happened)
	require.Greater(t, killedAt, each*4)
}

// killing is a directory whose processes are killed, and what must be in it.
type killing struct {
	t                 *testing.T
	dir               string
	m                 *model
	seed              uint64
	changes, happened int
}

// run runs a child until it is killed, by whoever is told how much it has done, and checks what it left.
func (k *killing) run(cmd *exec.Cmd, progress func(done int)) {
	k.t.Helper()
	k.seed++
	cmd.Env = append(os.Environ(), childDir+"="+k.dir, fmt.Sprintf("%s=%d", childSeed, k.seed))
	out, err := cmd.StdoutPipe()
	require.NoError(k.t, err)
	cmd.Stderr = os.Stderr
	require.NoError(k.t, cmd.Start())
	done, begun := 0, 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch lines.Text() {
		case "begin":
			begun++
		case "done":
			done++
			progress(done)
		default:
			k.t.Errorf("child: %s", lines.Text())
		}
	}
	_ = cmd.Wait()
	k.check(done, begun)
}

// check compares the store with the changes that the child finished, and the one that it was at.
func (k *killing) check(done, begun int) {
	k.t.Helper()
	gen := rand.New(rand.NewPCG(k.seed, 2))
	for step := range done {
		k.m.pick(gen, k.seed<<20|uint64(step+1)).apply(k.m)
	}
	name := "nothing"
	after := k.m.clone()
	if begun > done {
		op := k.m.pick(gen, k.seed<<20|uint64(done+1))
		op.apply(after)
		name = op.name
	}
	k.changes += done

	s, err := Open(k.dir, killed)
	require.NoError(k.t, err, name)
	got, err := observe(s)
	require.NoError(k.t, err, name)
	if begun > done && !sameModel(got, k.m) {
		k.happened++
		k.m = after
	}
	k.m.restart()
	if len(k.m.terms) == 0 {
		k.m.first = got.first // an empty store takes any index
	}
	k.m.check(k.t, s)
	require.NoError(k.t, s.Close())
}

func sameModel(a, b *model) bool {
	if len(a.terms) == 0 && len(b.terms) == 0 {
		return fmt.Sprint(a.values) == fmt.Sprint(b.values)
	}
	return a.first == b.first && fmt.Sprint(a.terms, a.marks, a.values) == fmt.Sprint(b.terms, b.marks, b.values)
}
