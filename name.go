package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
)

// A roll takes the segment that was made ready as seglog.next. It gets its name a moment later, in the background: on
// ext4 a rename costs an append 60 us and more (docs/performance.md). Until then it is the unnamed segment: always the
// last one, never counted as durable, and found by whoever opens the log after a kill, since the base offset of its
// first batch says what it is.

// nameLast gives the unnamed segment its name, if there is one.
func (l *Log) nameLast() error {
	if l.unnamed.Load() == nil {
		return nil
	}
	l.naming.Lock()
	defer l.naming.Unlock()
	t := l.unnamed.Load()
	if t == nil {
		return nil
	}
	if err := l.fs.rename(filepath.Join(l.dir, nextName), t.h.path); err != nil {
		return fmt.Errorf("seglog: name segment %d: %w", t.seg.base, err)
	}
	l.names.Add(1)
	l.unnamed.Store(nil)
	return nil
}

// isTemporary reports whether a file of that name is one of the log's own on its way to its place, which an Open after a kill
// removes. Any other name, whatever it begins with, is somebody else's.
func isTemporary(name string) bool {
	switch name {
	case nextName, cutName, repairTemp:
		return true
	}
	rest, ok := strings.CutPrefix(name, tmpPrefix)
	if ok {
		_, ok = indexBase(rest)
	}
	return ok
}

func (e *env) isDir(name string) bool {
	info, err := e.fs.stat(filepath.Join(e.dir, name))
	return err == nil && info.isDir
}

// unnamedBase is the base offset of the segment in seglog.next; ok is false if there is none, or no whole batch in it.
func (e *env) unnamedBase() (base int64, ok bool, err error) {
	f, err := e.fs.open(filepath.Join(e.dir, nextName), openRead)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("seglog: open %s: %w", e.dir, err)
	}
	base, ok, err = firstBase(f)
	if err = errors.Join(err, f.Close()); err != nil {
		err = fmt.Errorf("seglog: read %s: %w", filepath.Join(e.dir, nextName), err)
	}
	return base, ok, err
}

// firstBase is the base offset of the batch that f begins with.
func firstBase(f file) (base int64, ok bool, err error) {
	size, err := f.size()
	if err != nil {
		return 0, false, err
	}
	var c scanner
	c.init(&fileRange{f, 0, min(size, maxSegmentBytes)}, nextName, 0, -1, -1)
	c.gaps = true
	b, err := c.scan()
	if err == nil {
		return b.base(), true, nil
	}
	if errors.Is(err, ErrCorrupt) || err == io.EOF {
		err = nil
	}
	return 0, false, err
}

// openLog opens the .log file of a segment, under its name or, while it has none, as seglog.next. It may get its name
// between the two looks, and another file be seglog.next at the second.
func (e *env) openLog(base int64, mode openMode) (f file, path string, err error) {
	path = e.path(base, logSuffix)
	f, err = e.acquire(path, mode)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, path, err
	}
	next := filepath.Join(e.dir, nextName)
	g, nextErr := e.acquire(next, mode)
	if nextErr == nil {
		at, ok, err := firstBase(g)
		if err == nil && ok && at == base {
			return g, next, nil
		}
		if err = errors.Join(err, g.Close()); err != nil {
			return nil, path, err
		}
	}
	f, err = e.acquire(path, mode)
	return f, path, err
}
