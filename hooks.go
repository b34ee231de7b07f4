package seglog

import (
	"sync/atomic"
	"time"

	"github.com/seglog/seglog/internal/sched"
)

// hooks calls Options.OnSeal and Options.MayDelete.
//
// OnSeal has a worker of its own, so that a slow hook holds up nobody. It is called for each sealed segment in order. The
// state file notes how far it was called, so that segments which were sealed by Close, by recovery or by another program
// are not forgotten: the hook is called for them after the next Open. The worker begins with the first call that appends,
// reads, deletes or asks for the offsets, and not with what the keeper does before Open returns, so that the hook may use the
// variable to which the result of Open is assigned.
type hooks struct {
	work     *sched.Worker
	attached bool // there is a hook to call
	started  atomic.Bool
	asking   sched.Mutex // MayDelete is asked by one goroutine at a time
}

func (h *hooks) init(l *Log) {
	h.work = sched.NewWorker("hooks", func() time.Duration {
		h.tellAll(l, l.done)
		return 0
	})
}

// attach lets h call OnSeal for the segments of l. Before that, and for a read-only log, kick and start do nothing.
func (h *hooks) attach(l *Log) {
	h.attached = l.o.OnSeal != nil
	h.kick() // segments may have been sealed since OnSeal was called last
}

func (h *hooks) kick() {
	if h.attached {
		h.work.Kick()
	}
}

// start is called by methods that the program calls, and not by those that the keeper calls.
func (h *hooks) start() {
	if h.attached && !h.started.Load() && !h.started.Swap(true) {
		h.work.Begin()
	}
}

// tellAll calls OnSeal for each sealed segment for which it was not called yet. It returns when there is none left, or early if
// stop is closed or a segment can't be read.
func (h *hooks) tellAll(l *Log, stop <-chan struct{}) {
	if l.o.OnSeal == nil {
		return
	}
	for {
		info, ok, err := h.untold(l)
		if err != nil {
			l.backgroundError("OnSeal not called for a sealed segment", err)
			return
		}
		if !ok {
			return
		}
		l.o.OnSeal(info)
		l.state.stage(func(s *state) { s.told = max(s.told, info.Next) })
		if err := l.state.note(); err != nil { // after a restart OnSeal is called again
			l.backgroundError("call of OnSeal not noted", err)
		}
		l.stateChanged()
		l.kickRetention()
		select {
		case <-stop:
			return
		default:
		}
	}
}

// told reports whether OnSeal was called for all segments that end at or below next, or there is no OnSeal.
func (h *hooks) told(l *Log, next int64) bool {
	if l.o.OnSeal == nil {
		return true
	}
	l.state.mu.Lock()
	defer l.state.unlock()
	return l.state.cur.told >= next
}

// untold returns the first sealed segment for which OnSeal was not called; ok is false if there is none.
func (h *hooks) untold(l *Log) (info SegmentInfo, ok bool, err error) {
	l.state.mu.Lock()
	told := l.state.cur.told
	l.state.unlock()
	segs := l.view.Load().segs
	for i := max(0, (&view{segs}).find(told)); i+1 < len(segs); i++ {
		s, next := segs[i], segs[i+1].base
		if next <= told || s.is(phaseGone) {
			continue
		}
		if !s.is(phaseSealed) {
			return SegmentInfo{}, false, nil
		}
		info, err = l.trueInfo(s, next)
		if err == errGone {
			continue
		}
		return info, err == nil, err
	}
	return SegmentInfo{}, false, nil
}

// mayDelete calls Options.MayDelete, unless the log is closed: Close waits for a call that runs, and none begins after it.
func (h *hooks) mayDelete(l *Log, info SegmentInfo) bool {
	h.asking.Lock()
	defer h.asking.Unlock()
	return !l.closed.Load() && l.o.MayDelete(info)
}
