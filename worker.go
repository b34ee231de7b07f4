package seglog

import (
	"sync"
	"time"
)

// worker does one kind of background work of a log. It has a goroutine only while there is work to do, so that a process can
// have thousands of logs that nobody appends to.
type worker struct {
	name string
	// round does the work there is now, and returns the time until there is more; 0 means that kick will tell.
	round func() time.Duration

	mu     sync.Mutex
	ended  sync.Cond // signalled when runs becomes false
	timer  *time.Timer
	begun  bool // kicks have an effect
	asked  bool // for a round
	runs   bool // the goroutine exists
	closed bool
}

func newWorker(name string, round func() time.Duration) *worker {
	w := &worker{name: unique(name), round: round}
	w.ended.L = &w.mu
	return w
}

// kick asks for a round. Requests made before the round begins count as one.
func (w *worker) kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = true
	w.startLocked()
}

// begin starts the worker, if kick was called before.
func (w *worker) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun = true
	w.startLocked()
}

func (w *worker) startLocked() {
	if w.asked && w.begun && !w.runs && !w.closed {
		w.runs = true
		go w.run()
	}
}

// close waits for the end of the round that is under way. No other will follow.
func (w *worker) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.timer != nil {
		w.timer.Stop()
	}
	for w.runs {
		w.ended.Wait()
	}
}

func (w *worker) run() {
	started(w.name)
	for due := time.Duration(0); w.next(due); due = w.round() {
		yield("work")
	}
}

// next reports whether there is to be another round at once. If not, the worker's goroutine is about to end, and due, if it is
// not 0, is the time until the next round.
func (w *worker) next(due time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked && !w.closed {
		w.asked = false
		return true
	}
	w.runs = false
	w.ended.Broadcast()
	switch {
	case w.closed || due == 0:
	case w.timer == nil:
		w.timer = time.AfterFunc(due, w.kick)
	default:
		w.timer.Reset(due)
	}
	return false
}
