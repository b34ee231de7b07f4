package seglog

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/seglog/seglog/internal/commit"
	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// Open opens the log in dir, and creates the directory if necessary. A nil opts means the zero Options: a durable log
// that keeps everything.
//
// Only one Log at a time may write a directory; a second Open returns ErrLocked at once. Open first recovers from the
// death of the previous writer (docs/recovery.md): it cuts off a torn tail and reports it to Options.Logger. If durable
// records are damaged, it returns a *CorruptError and changes nothing.
func Open(dir string, opts *Options) (*Log, error) { return openFS(osFS{}, dir, opts) }

func openFS(fsys vfs.FS, dir string, opts *Options) (*Log, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if dir == "" {
		return nil, invalid("the name of the directory is empty")
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("seglog: open %s: %w", dir, err)
	}
	l, err := openDir(fsys, dir, o)
	var doubt *writeBackError
	if errors.As(err, &doubt) {
		// A write-back had failed before, and the kernel reported it only now. It is noted in the state file, so the second
		// attempt copies what the log keeps to new files.
		if again, e := openDir(fsys, dir, o); e == nil {
			return again, nil
		}
	}
	return l, err
}

func openDir(fsys vfs.FS, dir string, o Options) (*Log, error) {
	l := &Log{done: make(chan struct{})}
	l.fs, l.dir, l.o, l.cachedEnd = roomFS{fsys, &l.env}, dir, o, cachedEnd()
	l.env.stats = &l.counters
	l.opened.budget, l.opened.limit = openBudgetOf(fsys), o.MaxOpenSegments
	l.reads = readCacheOf(fsys)
	l.flushes = commit.New(l.flushRound, l.noteRecoveryPoint, l.end.Load)
	l.flushes.Started, l.flushes.Woken = func() { sched.Started("flusher") }, func() { sched.Yield("flushed") }
	l.writer.sealed.L = &l.mu
	var due dueTimes
	l.keeper = sched.NewWorker("keeper", func() time.Duration { return l.keep(&due) })
	l.retention = sched.NewWorker("retention", l.retainRound)
	l.preparer = sched.NewWorker("preparer", l.prepareAhead)
	l.opened.first = l.keeper.Kick // which closes it after a while
	l.hooks.init(l)
	returned := false
	defer func() {
		if !returned { // the Logger's handler panicked
			_ = l.release()
		}
	}()
	err := l.open()
	returned = true
	if err != nil {
		if e := l.release(); e != nil {
			err = errors.Join(err, e)
		}
		if text := err.Error(); !strings.HasPrefix(text, "seglog: ") || !strings.Contains(text, l.dir) {
			err = fmt.Errorf("seglog: open %s: %w", l.dir, err)
		}
		return nil, err
	}
	return l, nil
}

// cachedEnd returns how much of the end of a log is expected to stay in the page cache.
var cachedEnd = sync.OnceValue(func() int64 { return memoryLimit() / 2 })
