package seglog_test

import (
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// transferringChild transfers from the same log over several connections at once.
func transferringChild(args []string) error {
	l, err := seglog.Open(args[0], &seglog.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer l.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for i := range 4 {
		here, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return err
		}
		there, err := ln.Accept()
		if err != nil {
			return err
		}
		wg.Add(2)
		go func() {
			defer wg.Done()
			io.Copy(io.Discard, there)
		}()
		go func() {
			defer wg.Done()
			defer here.Close()
			sent, err := l.TransferTo(int64(100*i), math.MaxInt64, here)
			if err != nil {
				panic(err)
			}
			report("sent %d", sent)
		}()
	}
	wg.Wait()
	if s := l.Stats(); s.SentCopied != 0 {
		return fmt.Errorf("%d bytes were copied", s.SentCopied)
	}
	return nil
}

// These expressions match a traced call: its thread, name and arguments, and its result. If a call of another thread comes in
// between, strace shows the two in separate lines.
var (
	tracedCall   = regexp.MustCompile(`^(\d+) +(sendfile|sendfile64|splice)\((.*)$`)
	tracedResult = regexp.MustCompile(`^(\d+) .*\) += (\d+)$`)
	// sendfile(socket, file, [offset], ...), splice(file, [offset], pipe, NULL, ...), splice(pipe, NULL, socket, NULL, ...)
	fromFile = regexp.MustCompile(`^\d+, (\d+, )?\[\d+\]`)
	fromPipe = regexp.MustCompile(`^\d+, NULL, \d+, NULL`)
)

// sentBytes returns the numbers of bytes that, by a trace, sockets accepted from sendfile and from splice.
func sentBytes(t *testing.T, trace string) (bySendfile, bySplice int64) {
	intoSocket := map[string]*int64{} // by thread: the sum to which its running call adds
	for line := range strings.Lines(trace) {
		line = strings.TrimSuffix(line, "\n")
		if call := tracedCall.FindStringSubmatch(line); call != nil {
			intoSocket[call[1]] = nil
			switch args := call[3]; {
			case call[2] != "splice":
				require.Regexp(t, fromFile, args, "sendfile uses the shared file position: %s", line)
				intoSocket[call[1]] = &bySendfile
			case fromPipe.MatchString(args):
				intoSocket[call[1]] = &bySplice
			default:
				require.Regexp(t, fromFile, args, "splice uses the shared file position: %s", line)
			}
		}
		if done := tracedResult.FindStringSubmatch(line); done != nil && intoSocket[done[1]] != nil {
			n, err := strconv.ParseInt(done[2], 10, 64)
			require.NoError(t, err)
			*intoSocket[done[1]] += n
		}
	}
	return bySendfile, bySplice
}

// A trace of the system calls must show sendfile for small sections and splice for large ones, each with an explicit offset:
// several transfers share a descriptor, and with it the file position.
func TestTransfersWithExplicitOffsets(t *testing.T) {
	t.Run("sendfile", func(t *testing.T) {
		sendfile, splice := traceTransfers(t, 128<<10)
		require.NotZero(t, sendfile)
		require.Zero(t, splice)
	})
	t.Run("splice", func(t *testing.T) {
		sendfile, splice := traceTransfers(t, 4<<20)
		require.NotZero(t, splice)
		require.NotZero(t, sendfile, "the last segment is small")
	})
}

func traceTransfers(t *testing.T, segmentBytes int64) (bySendfile, bySplice int64) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if err := exec.Command(strace, "-o", os.DevNull, "true").Run(); err != nil {
		t.Skip("strace may not trace here: ", err)
	}
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: segmentBytes})
	for i := range 450 {
		_, err := l.Append(seglog.Record{Value: make([]byte, 10000+i)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	trace := filepath.Join(t.TempDir(), "trace")
	c := startCommand(t, "transfer", strace, "-f", "-qq", "-o", trace, "-e", "trace=/^(sendfile|splice)", os.Args[0], dir)
	var reported int64
	for _, line := range c.wait(t) {
		var sent int64
		_, err := fmt.Sscanf(line, "sent %d", &sent)
		require.NoError(t, err)
		reported += sent
	}
	var want int64
	all := storedBatches(t, dir)
	for i := range 4 {
		b, _ := expected(all, int64(100*i), math.MaxInt64, false)
		want += int64(len(b))
	}
	require.Equal(t, want, reported)
	text, err := os.ReadFile(trace)
	require.NoError(t, err)
	bySendfile, bySplice = sentBytes(t, string(text))
	require.Equal(t, want, bySendfile+bySplice, "bytes sent without a copy")
	return bySendfile, bySplice
}
