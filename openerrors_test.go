package seglog

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// Whichever system call fails in Open, the error must begin with the package's name and contain the directory.
func TestOpenErrorsNameTheLog(t *testing.T) {
	d := newDamaged(t, false)
	failed := d.w.Clone() // with the note that a flush failed, which makes Open copy the segments and the state
	b := append([]byte(nil), failed.Get(stateName)...)
	st, ok, err := readSlots(bytesFile{b: b})
	require.NoError(t, err)
	require.True(t, ok)
	st.failed = true
	for range 2 {
		st.seq++
		st.encode(b[int64(st.seq%2)*stateSlotGap:])
	}
	failed.Put(stateName, b)
	stateless := d.w.Clone()
	stateless.Drop(stateName)
	met := 0
	for what, w := range map[string]*sim.World{"killed": d.w, "failed": failed, "without a state": stateless, "empty": sim.NewWorld()} {
		for kind := range sim.Kinds {
			for nth := 1; ; nth++ {
				s := sim.NewFS(w.Clone(), true)
				s.Fault = func(k sim.Kind, n int, _ string) *sim.Fault {
					if k == kind && n == nth {
						return &sim.Fault{Err: syscall.EIO}
					}
					return nil
				}
				l, err := openFS(s, sim.Dir, &d.opts)
				if err == nil {
					ignore(l.Close())
				} else {
					require.Regexp(t, `^seglog: `, err.Error(), "%s, %v %d", what, kind, nth)
					require.Contains(t, err.Error(), sim.Dir, "%s, %v %d", what, kind, nth)
					met++
				}
				if len(s.Faults) == 0 || nth > 40 {
					break
				}
			}
		}
	}
	require.Greater(t, met, 50, fmt.Sprint(met))
}

// bytesFile is a read-only file in memory.
type bytesFile struct {
	vfs.File
	b []byte
}

func (f bytesFile) ReadAt(p []byte, pos int64) (int, error) {
	return copy(p, f.b[min(pos, int64(len(f.b))):]), nil
}
