package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/seglog/seglog/internal/vfs"
)

// ledger is the contents of the state file and the listing of the directory.
type ledger struct {
	st       state
	promised bool
	torn     int // slots of the state file that are damaged
	dir      directory
}

// sealed reports whether all of segment i must be flushed and trimmed, with its indexes beside it.
func (g *ledger) sealed(i int) bool {
	last := i+1 == len(g.dir.bases)
	if !g.promised {
		return !last
	}
	return g.st.isSealed(g.dir.bases[i]) && !last
}

// belowStart reports whether a segment that ends where following begins lies wholly below the start, and waits for its
// deletion. It may never be sealed.
func (g *ledger) belowStart(following int64) bool {
	return g.promised && following >= 0 && following <= g.st.start
}

// promises returns the state that the log promises, or nil if it promises none.
func (g *ledger) promises() *state {
	if !g.promised {
		return nil
	}
	return &g.st
}

func (g *ledger) gaps() bool { return !g.promised || g.st.gaps }

// read reads the state file and lists the directory, once.
func (g *ledger) read(e *env) error {
	*g = ledger{}
	f, err := e.fs.Open(filepath.Join(e.dir, stateName), vfs.OpenRead)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("seglog: read %s: %w", e.dir, err)
	default:
		g.st, g.promised, err = readSlots(f)
		if err == nil {
			g.torn, err = tornSlots(f)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("seglog: read %s: %w", filepath.Join(e.dir, stateName), err)
		}
	}
	if !g.promised {
		g.st = state{cut: -1}
	}
	g.dir, err = e.list()
	for len(g.dir.bases) > 0 && g.dir.bases[0] < g.st.first {
		g.dir.bases = g.dir.bases[1:] // of a deletion that goes on, or was cut short
	}
	return err
}

// tornSlots counts the slots that hold neither a state nor zeros.
func tornSlots(f vfs.File) (torn int, err error) {
	for i := range int64(2) {
		var b [stateLen]byte
		n, err := f.ReadAt(b[:], i*stateSlotGap)
		if err != nil && err != io.EOF {
			return 0, err
		}
		var s state
		if !s.decode(b[:n]) && !isZero(b[:n]) {
			torn++
		}
	}
	return torn, nil
}

const (
	lookTries = 100
	tornTries = 3                    // a slot that is being written is whole again at once
	lookPause = 5 * time.Millisecond // a cut seldom takes longer; one that still runs after half a second was interrupted
)

// look reads state file and directory until both are of the same moment, with no cut under way.
func (v *verifier) look() error {
	for try := 0; ; try++ {
		if err := v.ledger.read(&v.e); err != nil {
			return err
		}
		after, promised, err := readState(v.e.fs, filepath.Join(v.e.dir, stateName))
		if err != nil {
			return fmt.Errorf("seglog: verify %s: %w", v.e.dir, err)
		}
		settled := v.promised == promised && (!promised || v.st.sameSegments(&after))
		if settled && v.st.cut < 0 && (v.torn == 0 || try >= tornTries) || try == lookTries {
			return nil
		}
		select {
		case <-time.After(lookPause):
		case <-v.ctx.Done():
			return v.ctx.Err()
		}
	}
}

// verifier is one run of Verify.
type verifier struct {
	e      env // fs and dir
	ctx    context.Context
	o      VerifyOptions
	report *Report

	ledger
	done, total int64
	bare        int // missing index files in a directory without seglog.state
	check       recordCheck
	epochs      epochs
}

func (v *verifier) tell(done int64) {
	if v.o.Progress != nil {
		v.o.Progress(min(done, v.total), v.total)
	}
}
