package seglog

import (
	"sync/atomic"
)

// hooks calls Options.OnSeal and Options.MayDelete.
//
// OnSeal has a goroutine of its own, so that a slow one holds up nobody. It is told of each sealed segment in order, and
// the state file notes how far, so that a segment which was sealed by a kill, by Close or by another program is told of
// when the log is opened next. The goroutine starts with the first call of a method: the hook may use the variable that
// Open's result is assigned to.
type hooks struct {
	work    signal
	started atomic.Bool
	asking  mutex // MayDelete is asked by one goroutine at a time
	l       *Log
}

func (h *hooks) init() { h.work = make(signal, 1) }

// attach makes h tell of the segments of l. Before it, and of a read-only log, start does nothing.
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

// startLocked is start for a caller that holds Log.mu, without which Close may be waiting already.
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

// tellAll tells of the sealed segments that OnSeal was not told of yet, until stop is closed.
func (h *hooks) tellAll(l *Log, stop <-chan struct{}) {
	if l.o.OnSeal == nil {
		return
	}
	for {
		info, ok, err := h.untold(l)
		if err != nil {
			l.backgroundError("sealed segment not told of", err)
			return
		}
		if !ok {
			return
		}
		l.o.OnSeal(info)
		l.state.stage(func(s *state) { s.told = max(s.told, info.Next) })
		if err := l.state.note(); err != nil { // it is told of twice then
			l.backgroundError("sealed segment not noted as told of", err)
		}
		l.stateDirty.Store(true)
		select {
		case <-stop:
			return
		default:
		}
	}
}

// told reports whether OnSeal needs no more to be told of the segments that end at or below next.
func (h *hooks) told(l *Log, next int64) bool {
	if l.o.OnSeal == nil {
		return true
	}
	l.state.mu.Lock()
	defer l.state.mu.Unlock()
	return l.state.cur.told >= next
}

// untold is the first sealed segment that OnSeal was not told of.
func (h *hooks) untold(l *Log) (info SegmentInfo, ok bool, err error) {
	l.state.mu.Lock()
	told := l.state.cur.told
	l.state.mu.Unlock()
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

// mayDelete asks Options.MayDelete.
func (h *hooks) mayDelete(l *Log, info SegmentInfo) bool {
	h.asking.Lock()
	defer h.asking.Unlock()
	return l.o.MayDelete(info)
}
