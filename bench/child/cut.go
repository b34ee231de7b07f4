package child

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/seglog/seglog"
)

// CutFlushes is what a TruncateTo asks of the disk.
type CutFlushes struct {
	Flushes float64 // fsync and fdatasync, of all files, those that were begun for appends to come included
	Ranges  float64 // sync_file_range, which waits for the data alone
}

// cutRecord is the size of the records that are cut off, one batch each.
const cutRecord = 1 << 10

// The child writes one of these before each cut and the other behind it, so that a trace shows which calls lie between.
const (
	cutBegins = "cut"
	cutIsOver = "over"
)

// CountCutFlushes has a child, under strace, fill a log in dir with records of so many bytes and make cuts of five of them,
// each behind five durable appends. It counts what the disk is asked for in the mean of those cuts, but for the first one, which also removes
// the indexes of the segment.
func CountCutFlushes(dir string, bytes int64, cuts int) (CutFlushes, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return CutFlushes{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return CutFlushes{}, err
	}
	trace := filepath.Join(dir, "trace")
	cmd := exec.Command(strace, "-f", "-qq", "-e", "trace=fsync,fdatasync,sync_file_range,syncfs,msync,write", "-o", trace,
		self, filepath.Join(dir, "log"), strconv.FormatInt(bytes, 10), strconv.Itoa(cuts+1))
	cmd.Env = append(os.Environ(), roleVariable+"=cut")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		return CutFlushes{}, fmt.Errorf("strace: %w: %s", err, out)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		return CutFlushes{}, err
	}
	return countFlushes(string(text), cuts)
}

// A traced call, which strace shows in two lines if another thread's comes between; the second has no parenthesis behind the
// name.
var tracedCall = regexp.MustCompile(`^\d+ +(fsync|fdatasync|syncfs|msync|sync_file_range|write)\((.*)`)

func countFlushes(trace string, cuts int) (c CutFlushes, err error) {
	begun, over := 0, 0
	for line := range strings.Lines(trace) {
		call := tracedCall.FindStringSubmatch(line)
		switch {
		case call == nil:
		case call[1] == "write" && strings.HasPrefix(call[2], `1, "`+cutBegins+`\n"`):
			begun++
		case call[1] == "write" && strings.HasPrefix(call[2], `1, "`+cutIsOver+`\n"`):
			over++
		case call[1] == "write" || begun == over || begun == 1:
		case call[1] == "sync_file_range":
			c.Ranges++
		default:
			c.Flushes++
		}
	}
	if begun != cuts+1 || over != begun {
		return c, fmt.Errorf("the trace shows %d cuts begin and %d end, not %d", begun, over, cuts+1)
	}
	c.Flushes /= float64(cuts)
	c.Ranges /= float64(cuts)
	return c, nil
}

func cut(args []string) (err error) {
	bytes, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	cuts, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	opts := seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 1<<31 - 1}
	log, err := seglog.Open(args[0], &opts)
	if err != nil {
		return err
	}
	record := seglog.Record{Value: make([]byte, cutRecord)}
	for range bytes / cutRecord {
		if _, err := log.Append(record); err != nil {
			return err
		}
	}
	if err := log.Close(); err != nil {
		return err
	}
	opts.Flush = seglog.FlushSync
	if log, err = seglog.Open(args[0], &opts); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	for range cuts {
		for range 5 {
			if _, err := log.Append(record); err != nil {
				return err
			}
		}
		os.Stdout.WriteString(cutBegins + "\n")
		if err := log.TruncateTo(log.Offsets().End - 5); err != nil {
			return err
		}
		os.Stdout.WriteString(cutIsOver + "\n")
	}
	return nil
}
