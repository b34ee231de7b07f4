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

// The child of TestKill opens the store in the directory childDir, and makes the changes that follow from the seed until it is
// killed.
const (
	childDir  = "RAFTSTORE_CHILD_DIR"
	childSeed = "RAFTSTORE_CHILD_SEED"

	childSteps = 80 // the number of changes of a child that is not killed
)

// killed sets a segment size that is small, but large enough for each StoreLogs of the model to fit in one batch, so that it
// takes effect as a whole or not at all.
var killed = &Options{SegmentBytes: 1 << 14}

// child makes changes that follow from the seed; its parent gets the same changes from the same generator. It reports the
// beginning and the end of each change.
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

// observe returns a model with the contents of a store.
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

// TestKill kills a process with SIGKILL at a random point of its changes, many times in the same directory. The finished
// changes must be in the store, and the unfinished change must have taken effect as a whole or not at all.
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
		require.True(t, ended, "the child exited before it was killed")
	}
	t.Logf("%d kills, %d changes, %d unfinished changes that had taken effect", rounds, k.changes, k.happened)
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
				at = n * 5 // the runtime makes some of these calls, too
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
	t.Logf("%d kills, %d changes, %d unfinished changes that had taken effect", killedAt, k.changes, k.happened)
	require.Greater(t, killedAt, each*4)
}

// killing is a store whose processes are killed, and a model of its contents.
type killing struct {
	t                 *testing.T
	dir               string
	m                 *model
	seed              uint64
	changes, happened int
}

// run runs a child until it ends, and checks the store that it left. It calls progress with the number of finished changes, so
// that the caller can kill the child.
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

// check compares the store with the changes that the child finished, and possibly the unfinished one.
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
		k.m.first = got.first // an empty store accepts any index
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
