// Package seglog is Kafka's storage engine as a library: an append-only log of rolling segments with sparse offset and
// time indexes. The log lives in the operating system's page cache, makes appends durable by the policy that the caller
// picks, and hands its bytes to a socket without copying them through the process. The files are Kafka's, byte for byte, so
// every Kafka client decodes the bytes that a transfer sends.
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
//	FlushNone   all              what Sync, the seal that follows a roll, or the system flushed; never a hole
//
// All records that are read were checked against a CRC: by the read itself or, where Read takes a record out of a large
// batch, at most a minute before. Damage to durable records is a *CorruptError: the log is never silently truncated.
//
// # Vocabulary
//
// An offset is the number of a record; a position is a byte in a file. A batch is what one Append writes: the unit of
// atomicity and of the CRC. A segment is a file of batches, named by its base offset. Appends go to the last segment, the
// active one; when it is full, the log rolls to a new one, and seals the old one, which does not change any more. Records
// exist from the start offset up to the end offset; those below the recovery point are on stable storage, and those below
// the high watermark may be read. To flush is to make durable. A torn tail is what a crash left of batches that were not
// acknowledged; it is cut off when the log is opened. Corruption is durable bytes that fail their check. A section is a
// run of whole batches of one segment, pinned and ready to send. All ranges are half-open.
package seglog
