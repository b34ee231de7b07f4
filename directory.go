package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/seglog/seglog/internal/vfs"
)

// isDir reports whether name is a directory inside the log's directory.
func (e *env) isDir(name string) bool {
	info, err := e.fs.Stat(filepath.Join(e.dir, name))
	return err == nil && info.IsDir
}

// unnamedBase returns the base offset of the segment in seglog.next, and the leader epoch of its first batch; ok is false if
// there is no such file, or no whole batch in it.
//
// Builds before version 2 of seglog.state renamed a segment only a moment after the roll. Until then it was called
// seglog.next although it was the last segment of the log, and the base offset of its first batch told which. A directory
// that such a build left after a kill still opens.
func (e *env) unnamedBase() (base int64, epoch int32, ok bool, err error) {
	f, err := e.fs.Open(filepath.Join(e.dir, nextName), vfs.OpenRead)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("seglog: open %s: %w", e.dir, err)
	}
	base, epoch, ok, err = firstBatch(f)
	if err = errors.Join(err, f.Close()); err != nil {
		err = fmt.Errorf("seglog: read %s: %w", filepath.Join(e.dir, nextName), err)
	}
	return base, epoch, ok, err
}

// firstBatch returns the base offset and the leader epoch of the batch that f begins with.
func firstBatch(f vfs.File) (base int64, epoch int32, ok bool, err error) {
	size, err := f.Size()
	if err != nil {
		return 0, 0, false, err
	}
	var c scanner
	c.init(&fileRange{f, 0, min(size, maxSegmentBytes)}, nextName, 0, -1, -1)
	c.gaps = true
	b, err := c.scan()
	if err == nil {
		return b.base(), b.epoch(), true, nil
	}
	if errors.Is(err, ErrCorrupt) || err == io.EOF {
		err = nil
	}
	return 0, 0, false, err
}

// openLog opens the .log file of a segment, under its final name or, if it does not have that yet, as seglog.next. It may be
// renamed between the two attempts, and seglog.next then be another file, so the final name is tried again.
func (e *env) openLog(base int64, mode vfs.OpenMode) (f vfs.File, path string, err error) {
	path = e.path(base, logSuffix)
	f, err = e.acquire(path, mode)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, path, err
	}
	next := filepath.Join(e.dir, nextName)
	g, nextErr := e.acquire(next, mode)
	if nextErr == nil {
		at, _, ok, err := firstBatch(g)
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

// swapSuffix ends the names of the files that Kafka's compaction puts in the place of segments. A broker that was killed
// meanwhile may have removed some of these segments already.
const swapSuffix = ".log.swap"

// cleanedSuffix ends the names of the files that Kafka's compaction, or its split of a segment, writes before it calls them
// swaps. While there is one, no segment was removed yet: a broker that starts removes it, and with it the swaps of the same or
// a greater base offset (LogLoader.removeTempFilesAndCollectSwapFiles, KAFKA-6264). The segments hold all records.
const cleanedSuffix = ".cleaned"

// cleanedBase returns the base offset in the name of such a file, of batches or of an index.
func cleanedBase(name string) (base int64, ok bool) {
	name, ok = strings.CutSuffix(name, cleanedSuffix)
	if !ok {
		return 0, false
	}
	for _, suffix := range []string{logSuffix, indexSuffix, timeSuffix, transactionSuffix} {
		if base, ok = parseFileName(name, suffix); ok {
			return base, true
		}
	}
	return 0, false
}

// unfinished returns an error for a directory of Kafka in which a compaction was interrupted: some of its records are in the
// files that the broker puts in place when it starts again.
func (e *env) unfinished(dir directory) error {
	if len(dir.swaps) == 0 {
		return nil
	}
	base, _ := parseFileName(dir.swaps[0], swapSuffix)
	return &CorruptError{Path: filepath.Join(e.dir, dir.swaps[0]), Offset: base,
		Reason: "a compaction by Kafka was interrupted: start and stop the broker once to finish it"}
}

// directory is what list found in a log's directory.
type directory struct {
	bases        []int64  // base offsets of the segments, ascending
	unnamed      int64    // the last of them, if the segment is still called seglog.next (see unnamedBase); otherwise -1
	unnamedEpoch int32    // of the first batch in it
	leftover     []string // index files without a .log, and the engine's own temporary files
	swaps        []string // .log.swap files of a broker that was killed in a compaction
	cleaned      []string // files of a broker that was killed earlier in a compaction
	// producers are the offsets in the names of the files in which a broker keeps its knowledge of producers.
	producers []int64
}

func (e *env) list() (directory, error) {
	list := func() ([]string, error) { return e.fs.List(e.dir) }
	if e.dirH != nil {
		list = e.dirH.List
	}
	names, err := list()
	if err != nil {
		return directory{}, fmt.Errorf("seglog: list %s: %w", e.dir, err)
	}
	d := directory{unnamed: -1}
	var indexes []string
	cleaned := int64(math.MaxInt64)
	for _, name := range names {
		if base, ok := parseFileName(name, logSuffix); ok {
			d.bases = append(d.bases, base)
		} else if _, ok := indexBase(name); ok {
			indexes = append(indexes, name)
		} else if offset, ok := parseFileName(name, producerSuffix); ok {
			d.producers = append(d.producers, offset)
		} else if _, ok := parseFileName(name, swapSuffix); ok {
			d.swaps = append(d.swaps, name)
		} else if base, ok := cleanedBase(name); ok {
			cleaned, d.cleaned = min(cleaned, base), append(d.cleaned, name)
		} else if temporaryName(name) && !e.isDir(name) {
			d.leftover = append(d.leftover, name)
		}
	}
	d.swaps = slices.DeleteFunc(d.swaps, func(name string) bool {
		base, _ := parseFileName(name, swapSuffix)
		return base >= cleaned
	})
	slices.Sort(d.bases)
	if slices.Contains(d.leftover, nextName) {
		base, epoch, ok, err := e.unnamedBase()
		if err != nil {
			return directory{}, err
		}
		if n := len(d.bases); ok && n > 0 && base > d.bases[n-1] {
			d.bases, d.unnamed, d.unnamedEpoch = append(d.bases, base), base, epoch
			d.leftover = slices.DeleteFunc(d.leftover, func(name string) bool { return name == nextName })
		}
	}
	for _, name := range indexes {
		base, _ := indexBase(name)
		if _, ok := slices.BinarySearch(d.bases, base); !ok {
			d.leftover = append(d.leftover, name)
		}
	}
	return d, nil
}

// dropStale makes a seglog.next a leftover whose batches were removed by a cut. A power cut that takes the name of a segment
// away may leave blocks of a removed one in the file, which hold an offset that the segment before has given out again.
func (d *directory) dropStale(st *state) {
	if d.unnamed >= 0 && st.stale(d.unnamed, d.unnamedEpoch) {
		d.bases, d.unnamed = d.bases[:len(d.bases)-1], -1
		d.leftover = append(d.leftover, nextName)
	}
}

// after returns the base offset of the first segment behind base, or -1 if there is none.
func (d directory) after(base int64) int64 {
	for _, b := range d.bases {
		if b > base {
			return b
		}
	}
	return -1
}
