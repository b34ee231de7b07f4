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

// transferringChild sends the same bytes over several connections at once.
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

var (
	sendfileCall = regexp.MustCompile(`sendfile(?:64)?\(\d+, \d+, (NULL|\[\d+\])`)
	sendfileDone = regexp.MustCompile(`sendfile.* = (\d+)$`) // also of a call that strace shows in two lines
)

// The system calls say it: sendfile, with an explicit offset each time, and no read or write of the bytes.
func TestSendfileWithExplicitOffsets(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if err := exec.Command(strace, "-o", os.DevNull, "true").Run(); err != nil {
		t.Skip("strace may not trace here: ", err)
	}
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 1 << 20})
	for i := range 500 {
		_, err := l.Append(seglog.Record{Value: make([]byte, 10000+i)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	trace := filepath.Join(t.TempDir(), "trace")
	c := startCommand(t, "transfer", strace, "-f", "-qq", "-o", trace, "-e", "trace=/^sendfile", os.Args[0], dir)
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
	var traced int64
	calls := 0
	for line := range strings.Lines(string(text)) {
		if call := sendfileCall.FindStringSubmatch(line); call != nil {
			calls++
			require.NotEqual(t, "NULL", call[1], "sendfile moves the shared file position: %s", line)
		}
		if done := sendfileDone.FindStringSubmatch(strings.TrimSuffix(line, "\n")); done != nil {
			n, err := strconv.ParseInt(done[1], 10, 64)
			require.NoError(t, err)
			traced += n
		}
	}
	require.NotZero(t, calls)
	require.Equal(t, want, traced, "bytes that sendfile sent")
}
