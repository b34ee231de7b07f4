package seglog

import (
	"math"
	"strconv"
	"strings"
)

// The names in a log directory. Those of segments are Kafka's; Kafka ignores all others.
const (
	logSuffix   = ".log"
	indexSuffix = ".index"
	timeSuffix  = ".timeindex"

	lockName  = "LOCK"
	stateName = "seglog.state"

	// Files on their way to their place. The next Open removes one that is left.
	nextName   = "seglog.next"      // the segment made ready for the next roll
	rollName   = "seglog.roll"      // the same, made by the roll itself
	cutName    = "seglog.cut"       // a copy of what TruncateTo, or a recovery after a failed flush, keeps of a segment
	stateTemp  = "seglog.state.new" // a state file
	repairTemp = "seglog.repairing" // a file of Repair's
	tmpPrefix  = "seglog."          // before the name of an index file; earlier builds also wrote .log files so

	// repairPrefix begins the names of files with what Repair took out of the log and recovery off its end; kept.
	repairPrefix = "seglog.repair-"
)

// Kafka keeps these files beside a segment: the aborted transactions in it, and the producers' state at its start. They go
// with the segment, since beside a new one with the same base offset they would be wrong.
const (
	transactionSuffix = ".txnindex"
	producerSuffix    = ".snapshot"
)

// fileName returns the name that Kafka uses: 20 digits, so that names sort like offsets. Kafka silently ignores files with
// other names. (An append that rolls calls it, and would pay 5 us for fmt, whose code is seldom in the processor's caches.)
func fileName(base int64, suffix string) string {
	name := []byte("00000000000000000000" + suffix)
	for i := 19; base > 0; i-- {
		name[i] = '0' + byte(base%10)
		base /= 10
	}
	return string(name)
}

// parseFileName is the inverse of fileName. A file whose name says that it begins above all offsets that a log gives out (usedUp) is
// none of the log's.
func parseFileName(name, suffix string) (base int64, ok bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 20 || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	base, err := strconv.ParseInt(digits, 10, 64)
	return base, err == nil && base <= math.MaxInt64-math.MaxInt32
}

// temporaryName reports whether name is that of a file on its way to its place. If nobody is working on it, it was left by a
// crash.
func temporaryName(name string) bool {
	switch name {
	case nextName, rollName, cutName, stateTemp, repairTemp:
		return true
	}
	rest, ok := strings.CutPrefix(name, tmpPrefix)
	if !ok {
		return false
	}
	if _, ok := parseFileName(rest, logSuffix); ok {
		return true
	}
	_, ok = indexBase(rest)
	return ok
}

// indexBase returns the base offset in the name of an index file.
func indexBase(name string) (int64, bool) {
	if base, ok := parseFileName(name, indexSuffix); ok {
		return base, true
	}
	return parseFileName(name, timeSuffix)
}
