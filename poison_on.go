//go:build seglog_poison

package seglog

// poison overwrites a record that was lent, once its step is over: in a program built with -tags seglog_poison, one that is
// kept without Clone shows at once rather than when its buffer is used again.
func poison(r *Record) {
	fill := func(b []byte) {
		for i := range b {
			b[i] = 0xdb
		}
	}
	fill(r.Key)
	fill(r.Value)
	for i := range r.Headers {
		fill(r.Headers[i].Value)
		r.Headers[i] = Header{Key: "kept without Clone"}
	}
}
