package seglog

import (
	"sync"
	"time"
)

// peer is the connection of a running transfer, in either direction.
type peer struct {
	conn           interface{ SetDeadline(time.Time) error }
	previous, next *peer // its neighbours in the list of transfers
}

// transfers is the list of the running transfers, for Close to interrupt. It is linked, since small transfers come and go by
// the hundred thousand.
type transfers struct {
	mu    sync.Mutex
	first *peer
}

func (ts *transfers) add(p *peer) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	p.previous, p.next = nil, ts.first
	if p.next != nil {
		p.next.previous = p
	}
	ts.first = p
}

func (ts *transfers) drop(p *peer) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if p.previous == nil {
		ts.first = p.next
	} else {
		p.previous.next = p.next
	}
	if p.next != nil {
		p.next.previous = p.previous
	}
	p.previous, p.next = nil, nil
}

// interrupt makes the writes and reads that wait for a peer fail at once.
func (ts *transfers) interrupt() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	past := time.Unix(1, 0)
	for p := ts.first; p != nil; p = p.next {
		_ = p.conn.SetDeadline(past)
	}
}
