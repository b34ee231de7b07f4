package sched

import (
	"sync"
	"time"
)

// Worker does one kind of background work of a log. It has a goroutine only while there is work to do, so that a process can
// have thousands of logs that nobody appends to.
type Worker struct {
	name  string
	round func() time.Duration

	mu     sync.Mutex
	ended  sync.Cond // signalled when runs becomes false
	timer  *time.Timer
	begun  bool // calls of Kick have an effect
	asked  bool // for a round
	runs   bool // the goroutine exists
	closed bool
}

// NewWorker returns a worker whose goroutine has that name in a simulation. It does nothing until Begin is called. round does
// the work there is at the time, and returns the time until there is more; 0 means that Kick will tell.
func NewWorker(name string, round func() time.Duration) *Worker {
	w := &Worker{name: Unique(name), round: round}
	w.ended.L = &w.mu
	return w
}

// Kick asks for a round. Requests made before the round begins count as one.
func (w *Worker) Kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = true
	w.startLocked()
}

// Begin lets the worker run. If Kick was called before, the first round starts at once.
func (w *Worker) Begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun = true
	w.startLocked()
}

func (w *Worker) startLocked() {
	if w.asked && w.begun && !w.runs && !w.closed {
		w.runs = true
		go w.run()
	}
}

// Close waits for the end of the round that is under way. No other will follow.
func (w *Worker) Close() {
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

func (w *Worker) run() {
	Started(w.name)
	ended := false
	defer func() {
		if !ended { // a round has called runtime.Goexit, as a failing test does in a hook
			w.mu.Lock()
			defer w.mu.Unlock()
			w.runs = false
			w.ended.Broadcast()
		}
	}()
	for due := time.Duration(0); w.next(due); due = w.round() {
		Yield("work")
	}
	ended = true // next has said so, and another goroutine may run by now
}

// next reports whether there is to be another round at once. If not, the worker's goroutine is about to end, and due, if it is
// not 0, is the time until the next round.
func (w *Worker) next(due time.Duration) bool {
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
		w.timer = time.AfterFunc(due, w.Kick)
	default:
		w.timer.Reset(due)
	}
	return false
}
