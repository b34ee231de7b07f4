package main

import (
	"fmt"
	"math/rand/v2"

	"github.com/seglog/seglog"
)

// value is what the record at an offset holds, so that a wrong one is seen.
func value(offset int64) []byte { return fmt.Appendf(nil, "record %d %0*d", offset, offset%300, 0) }

func appendForEver(dir string, p seglog.FlushPolicy) error {
	l, err := seglog.Open(dir, &seglog.Options{Flush: p, SegmentBytes: 1 << 20})
	if err != nil {
		return err
	}
	for next := l.Offsets().End; ; {
		batch := make([]seglog.Record, 1+rand.IntN(5))
		for i := range batch {
			batch[i].Value = value(next + int64(i))
		}
		if _, err := l.Append(batch...); err != nil {
			return err
		}
		next += int64(len(batch))
		fmt.Println(next) // straight to the pipe: everything below is acknowledged
	}
}
