package seglog

import "errors"

// RecoveryCase returns the letter of the recovery case whose text Open logs as found.
func RecoveryCase(finds string) string {
	for _, c := range append(recoveryCases, emptyLog) {
		if c.finds == finds {
			return string(c.id)
		}
	}
	return ""
}

// Rest puts the log to rest, if it is not in use, and reports whether it rests.
func Rest(l *Log) (rests bool, err error) {
	if err := errors.Join(l.state.flush(), l.rest(false)); err != nil {
		return false, err
	}
	l.opened.closeAll()
	return l.atRest() && !l.state.isOpen(), nil
}

// StopRetention ends the retention in the background.
func StopRetention(l *Log) { l.retention.Close() }

// Unsealed returns the number of segments that wait for their seal.
func Unsealed(l *Log) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.writer.sealing)
}
