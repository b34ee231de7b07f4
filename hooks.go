package seglog

import (
	"sync/atomic"
)

// hooks calls Options.OnSeal and Options.MayDelete.
//
// OnSeal has a goroutine of its own, so that a slow hook holds up nobody. It is called for each sealed segment in order. The
// state file notes how far it was called, so that segments which were sealed by Close, by recovery or by another program
// are not forgotten: the hook is called for them after the next Open. The goroutine starts with the first call of a method,
// so that the hook may use the variable to which the result of Open is assigned.
type hooks struct {
	work    signal
	started atomic.Bool
	asking  mutex // MayDelete is asked by one goroutine at a time
	l       *Log
}

func (h *hooks) init() { h.work = make(signal, 1) }

// attach makes h call OnSeal for the segments of l. Before that, and for a read-only log, start does nothing.
func (h *hooks) attach(l *Log) {
	if l.o.OnSeal != nil {
		h.l = l
	}
}

func (h *hooks) kick() {
	if h.l != nil {
		h.work.kick()
	}
}

// start starts the goroutine if there is a hook to call.
func (h *hooks) start() {
	l := h.l
	if l == nil || h.started.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h.startLocked()
}

// startLocked is start for a caller that holds Log.mu, which keeps Close from waiting for the background goroutines while
// one is added.
func (h *hooks) startLocked() {
	l := h.l
	if l == nil || l.closed.Load() || h.started.Swap(true) {
		return
	}
	l.background.Add(1)
	go func() {
		defer l.background.Done()
		started("hooks")
		for ok := true; ok; ok = l.await(h.work, nil) {
			h.tellAll(l, l.done)
		}
	}()
}

// tellAll calls OnSeal for the sealed segments for which it was not called yet, until stop is closed.
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
		l.stateDirty.Store(true)
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

// mayDelete calls Options.MayDelete.
func (h *hooks) mayDelete(l *Log, info SegmentInfo) bool {
	h.asking.Lock()
	defer h.asking.Unlock()
	return l.o.MayDelete(info)
}
