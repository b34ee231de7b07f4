package measure

import "golang.org/x/sys/unix"

// AllowFiles lets the process have n files open if it may raise its limit so far, and returns how many it may have open.
func AllowFiles(n uint64) (uint64, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur >= n {
		return l.Cur, err
	}
	raised := unix.Rlimit{Cur: n, Max: max(n, l.Max)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) != nil { // above the hard limit, which takes a right to raise
		return l.Cur, nil
	}
	return n, nil
}
