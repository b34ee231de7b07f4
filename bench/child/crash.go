package child

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/seglog/seglog"
)

// Crash has a child append at least bytes to a new log in dir, without a flush and within one segment, and kills it. What
// is left is the directory of a process that died with everything above its recovery point.
func Crash(dir string, bytes int64) error {
	p, err := start("crash", dir, strconv.FormatInt(bytes, 10))
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(p.out).ReadString('\n')
	if err != nil || line != "appended\n" {
		p.stop()
		return fmt.Errorf("the writer said %q: %w", line, err)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	p.cmd.Wait()
	return nil
}

func crash(args []string) error {
	want, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	log, err := seglog.Open(args[0], &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: want + want/4})
	if err != nil {
		return err
	}
	records := make([]seglog.Record, 16)
	value := make([]byte, 1024)
	for i := range records {
		records[i].Value = value
	}
	for appended := int64(0); appended < want; appended += int64(len(records) * len(value)) {
		if _, err := log.Append(records...); err != nil {
			return err
		}
	}
	fmt.Println("appended")
	_, err = io.Copy(io.Discard, os.Stdin) // until the kill
	return err
}
