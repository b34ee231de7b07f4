package raw

import "sync"

// ahead has a goroutine prepare a file by stretches, in front of the one who writes to it. The next stretch is asked for when
// half of the last one is used up.
type ahead struct {
	stretch int64
	more    chan struct{} // asks for the next stretch, and is closed at the end
	laid    chan error    // says that one is there
	asked   bool
	done    int64 // bytes below are prepared or written
	working sync.WaitGroup
}

// newAhead begins with the stretch at 0, and waits for it. lay prepares the stretch at pos.
func newAhead(stretch int64, lay func(pos int64) error) (*ahead, error) {
	a := &ahead{stretch: stretch, more: make(chan struct{}, 1), laid: make(chan error, 1)}
	a.working.Go(func() {
		pos := int64(0)
		for range a.more {
			a.laid <- lay(pos)
			pos += stretch
		}
	})
	return a, a.want(stretch / 2)
}

// want returns once all up to end is prepared, having asked for more in time. Zeros must never be laid where an append may be,
// so one that outruns them waits.
func (a *ahead) want(end int64) error {
	for {
		if !a.asked && end+a.stretch/2 > a.done {
			a.more <- struct{}{}
			a.asked = true
		}
		if !a.asked {
			return nil
		}
		if end <= a.done {
			select {
			case err := <-a.laid:
				a.asked = false
				a.done += a.stretch
				return err
			default:
				return nil
			}
		}
		if err := <-a.laid; err != nil {
			return err
		}
		a.asked = false
		a.done += a.stretch
	}
}

// close returns when nothing is being prepared any more.
func (a *ahead) close() {
	close(a.more)
	a.working.Wait()
}
