package peers

import "sync"

// Group puts a group commit in front of a log that has none: while one append runs, the values of further callers gather,
// and the next append carries them all. It is what a user of such a log would have to write.
func Group(log Log) Log {
	g := &group{log: log, next: newGathering()}
	g.work.L = &g.mu
	g.done.Go(g.run)
	return g
}

type group struct {
	log  Log
	mu   sync.Mutex
	work sync.Cond
	next *gathering // guarded by mu
	stop bool       // guarded by mu
	done sync.WaitGroup
}

// gathering is what one append will carry. err is set before ready is closed.
type gathering struct {
	values [][]byte
	ready  chan struct{}
	err    error
}

func newGathering() *gathering { return &gathering{ready: make(chan struct{})} }

func (g *group) run() {
	write := g.log.Appender()
	for {
		g.mu.Lock()
		for len(g.next.values) == 0 && !g.stop {
			g.work.Wait()
		}
		batch := g.next
		if len(batch.values) == 0 {
			g.mu.Unlock()
			return
		}
		g.next = newGathering()
		g.mu.Unlock()
		batch.err = write(batch.values)
		close(batch.ready)
	}
}

func (g *group) Appender() Append {
	return func(values [][]byte) error {
		g.mu.Lock()
		batch := g.next
		first := len(batch.values) == 0
		batch.values = append(batch.values, values...)
		g.mu.Unlock()
		if first {
			g.work.Signal()
		}
		<-batch.ready
		return batch.err
	}
}

// Close appends what has gathered and closes the log.
func (g *group) Close() error {
	g.mu.Lock()
	g.stop = true
	g.mu.Unlock()
	g.work.Signal()
	g.done.Wait()
	return g.log.Close()
}
