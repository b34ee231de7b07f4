package main

import (
	"sync/atomic"
	"time"
)

// Limits bound what clients can make the server hold, whoever they are and whatever they send. A zero field stands for
// its default.
type Limits struct {
	Conns         int   // connections; a further one is closed at once. Default 1000
	RequestBytes  int   // of a produce request; a larger one ends its connection. Default 100 MiB, Kafka's
	InFlightBytes int64 // of all requests being received or handled; further ones wait for room. Default 256 MiB
	Partitions    int   // of all topics together. Default 1000
	Groups        int   // with members. Default 1000
	GroupBytes    int64 // what the members of all groups have said about themselves and were assigned. Default 64 MiB
	OffsetBytes   int64 // committed offsets. Default 64 MiB

	// Patience is how long a new connection may be silent, and how long a client may take to send or to receive the
	// rest of a message, not counting a second for every 256 KiB of it. Default 30 s.
	Patience time.Duration
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.Conns, 1000)
	orDefault(&l.RequestBytes, 100<<20)
	orDefault(&l.InFlightBytes, 256<<20)
	orDefault(&l.Partitions, 1000)
	orDefault(&l.Groups, 1000)
	orDefault(&l.GroupBytes, 64<<20)
	orDefault(&l.OffsetBytes, 64<<20)
	orDefault(&l.Patience, 30*time.Second)
	l.InFlightBytes = max(l.InFlightBytes, int64(l.RequestBytes)+maxElements*elementBytes) // the largest one must fit
	return l
}

func orDefault[N ~int | ~int64](n *N, value N) {
	if *n <= 0 {
		*n = value
	}
}

const (
	// maxControlBytes bounds every request but Produce: names and numbers, of which a thousand partitions need some
	// 100 KiB.
	maxControlBytes = 1 << 20
	// maxElements bounds the array elements and tags of one request.
	maxElements = 1 << 15
	// elementBytes is what an element takes once it is decoded, and its part of the answer, which names settings in words.
	elementBytes = 1 << 10
	// maxFetchBytes bounds a fetch response, and with it how much a reader that is slow keeps pinned. Kafka:
	// fetch.max.bytes.
	maxFetchBytes = 55 << 20
	// maxFetchWait bounds a long poll. Clients ask for half a second unless told otherwise.
	maxFetchWait = time.Minute
	// maxProducers bounds the idempotent producers that a partition remembers.
	maxProducers = 10_000

	// idleTimeout ends a connection on which no request came for so long after another; Kafka's default.
	idleTimeout = 10 * time.Minute
	// slowest is the rate in bytes per second at which a client has to send and to receive.
	slowest = 256 << 10
)

// within is the time that n bytes may take on their way.
func (l *Limits) within(n int64) time.Duration {
	return l.Patience + time.Duration(n)*time.Second/slowest
}

// budget is an amount that many share. The zero value has nothing to give.
type budget struct {
	limit int64
	used  atomic.Int64
}

// take says whether n more were to be had. A negative n gives back.
func (b *budget) take(n int64) bool {
	if b.used.Add(n) > b.limit && n > 0 {
		b.used.Add(-n)
		return false
	}
	return true
}
