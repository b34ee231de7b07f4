// Package seglog is Kafka's storage engine as a library: an append-only log of rolling segments with sparse offset and
// time indexes that lives in the operating system's page cache, makes appends durable by the policy the caller picks, and
// hands its bytes to a socket without copying them through the process. The files are Kafka's, byte for byte, so what a
// transfer sends is what every Kafka client decodes.
//
//	log, err := seglog.Open("orders", nil)            // durable by default
//	offset, err := log.Append(seglog.Record{Value: v}) // on stable storage when it returns
//	record, err := log.Read(offset)
//	sent, err := log.TransferTo(offset, 1<<20, conn)   // sendfile
//
// # What survives
//
//	policy      process killed   power cut
//	FlushSync   all              all that was acknowledged
//	FlushAsync  all              all but the last FlushInterval or 2*FlushBytes, whichever is less; never a hole
//	FlushNone   all              what Sync, a roll or the operating system flushed; never a hole
//
// Whatever is read was checked against its CRC: by the read itself or, where Read takes a record out of a large batch, at most
// a minute before. Damage to what was durable is a *CorruptError, never wrong data and never
// a log that is shorter in silence.
//
// # Vocabulary
//
// An offset is the number of a record, a position a byte in a file. A batch is what one Append writes: the unit of
// atomicity and of the CRC. A segment is a file of batches named by its base offset; the last one is active, the others
// are sealed; the log rolls to a new one. Records from the start offset up to the end offset exist; below the recovery
// point they are on stable storage; below the high watermark they may be read. To flush is to make durable. A torn tail
// is what a crash left of batches that were not acknowledged, and is cut when the log is opened; corruption is durable
// bytes that fail their check. A section is whole batches of one segment, pinned and ready to send. All bounds are
// half-open.
package seglog
