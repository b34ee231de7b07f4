// Package linear checks that concurrent calls of a log are linearizable: that what Append, AppendAt, Read, Offsets, TruncateTo,
// Reset and DeleteBefore return could have come from the same calls made one after the other, each at some moment between
// its beginning and its end. The calls are real ones, on real files; porcupine searches for the order.
//
// Under FlushSync an append has two such moments: it takes its offset, which AppendAt and the end of the log tell, and becomes
// readable once it is flushed, at the latest when it returns.
package linear
