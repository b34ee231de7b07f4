//go:build go1.25

package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"

	"github.com/seglog/seglog/internal/sim"
)

// mostCopies bounds the number of snapshots of one log, since every one of them is opened in every state that a crash leaves.
const mostCopies = 3

// snapshot copies the log into a directory of its own. The copy is made by l, which is the log itself or a read-only log in
// another process.
func (w *schedLog) snapshot(l *Log, by string, asked int) {
	if w.copies >= mostCopies {
		return
	}
	w.copies++
	c := &histCall{kind: histCopy, name: fmt.Sprint(sim.Copies, w.copies), policy: w.opts.Flush}
	w.note(fmt.Sprintf("begin %s: snapshot to %s", by, c.name), func(h *history) {
		h.begin(c)
		c.asked, c.noted = min(asked, c.begin), math.MaxInt64
		if l.o.ReadOnly && w.opts.Flush == FlushSync {
			c.noted = notedPoint(w.sim.World)
		}
	})
	err := l.Snapshot(c.name)
	w.note(fmt.Sprintf("end %s: snapshot to %s, %v", by, c.name, err), func(h *history) { c.err = err; h.finish(c) })
	w.fine("snapshot", err, ErrBusy)
	if err != nil && len(w.sim.Faults) == 0 {
		if names, _ := w.sim.List(c.name); len(names) > 0 {
			w.bad("a failed snapshot left %v: %w", names, err)
		}
	}
}

// checkCopies opens each copy in a state of the disk, and returns an error for the first that is wrong.
func (v histView) checkCopies(state *sim.World, mapped bool) error {
	for _, c := range v.h.calls {
		if c.kind != histCopy || c.begin >= v.n {
			continue
		}
		if err := v.checkCopy(c, state, mapped); err != nil {
			return fmt.Errorf("snapshot in %s: %w", c.name, err)
		}
	}
	return nil
}

func (v histView) checkCopy(c *histCall, state *sim.World, mapped bool) error {
	whole := v.ended(c) && c.err == nil
	s := sim.NewFS(state.Clone(), mapped)
	s.ForgetErrors()
	names, _ := s.List(c.name)
	if !whole && !slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(name, logSuffix) }) {
		return nil // no segment of the copy exists yet
	}
	l, err := openFS(s, c.name, &Options{ReadOnly: v.n%2 == 0, SegmentBytes: 4096})
	if err != nil {
		if !whole && (errors.Is(err, ErrCorrupt) || errors.Is(err, fs.ErrNotExist)) {
			return nil // an unfinished copy may refuse to open; if it opens, it must be whole
		}
		return fmt.Errorf("refused to open: %w", err)
	}
	got, err := readLog(l)
	if err == nil {
		err = v.checkMoment(c, got)
	}
	if err = errors.Join(err, l.Close()); err != nil {
		return err
	}
	if left := append(s.Left(), s.Misuse...); len(left) > 0 {
		return fmt.Errorf("resources not released, or misuse of the file system: %v", left)
	}
	return nil
}

// checkMoment checks that a copy shows the log as of a single moment during the call.
func (v histView) checkMoment(c *histCall, got *content) error {
	v.n = min(v.n, c.end)
	base, since, calls := v.base()
	if err := v.checkShown(got, base, calls, c.asked); err != nil {
		return err
	}
	low, high := v.starts(base, calls)
	before, _ := histView{v.h, c.asked}.starts(base, calls)
	low = min(low, before)
	for _, cut := range calls { // a Reset below the start, and a deletion after it
		if cut.kind == histCut && cut.reset && cut.begin < c.end && (!v.ended(cut) || cut.end > c.asked) {
			low = min(low, cut.offset)
		}
	}
	if err := checkStart(got, low, high); err != nil {
		return err
	}
	for i := range base.recs {
		if err := v.lost(got, calls, &base.recs[i], base.recs[i].Offset, since); err != nil {
			return err
		}
	}
	for _, a := range calls {
		if a.kind != histAppend || a.err != nil || a.end >= c.asked {
			continue
		}
		for i := range a.recs {
			if a.offset+int64(i) >= c.noted {
				continue // the state file did not cover the record yet: its keeper or flusher was parked
			}
			if err := v.lost(got, calls, &a.recs[i], a.offset+int64(i), a.begin); err != nil {
				return err
			}
		}
	}
	// The log never held records that a cut removed together with records that were appended after the cut.
	for _, cut := range calls {
		if cut.kind != histCut || cut.err != nil || !v.ended(cut) {
			continue
		}
		var old, young *Record
		for i := range got.recs {
			r := &got.recs[i]
			a := v.h.byID[schedID(r)].call
			switch {
			case a.begin > cut.end:
				young = r
			case (cut.reset || r.Offset >= cut.offset) && (a.begin < since || a.end < cut.begin):
				old = r
			}
		}
		if old != nil && young != nil {
			return fmt.Errorf("two histories: a cut removed record %x at %d before record %x at %d was appended", schedID(old), old.Offset, schedID(young), young.Offset)
		}
	}
	return nil
}

// notedPoint returns the recovery point in the state file.
func notedPoint(w *sim.World) int64 {
	if _, ok := w.Names[stateName]; !ok {
		return 0
	}
	var best state
	for at, b := 0, w.Get(stateName); at < 2*stateSlotGap && at < len(b); at += stateSlotGap {
		if s := (state{}); s.decode(b[at:min(at+stateLen, len(b))]) && s.seq >= best.seq {
			best = s
		}
	}
	return best.recoveryPoint
}
