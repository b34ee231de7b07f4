//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// child is a process of the soak. ended is closed once it is gone and all its lines were noted; err is then why.
type child struct {
	role  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	heap  atomic.Int64 // as it reported last
	tasks atomic.Int64 // its goroutines
	ended chan struct{}
	err   error
}

// startChild runs this program again in another role. note gets its lines, but for those about its heap, one by one.
func startChild(role, dir string, note func(line string) error, args ...string) (*child, error) {
	c := &child{role: role, ended: make(chan struct{})}
	c.cmd = exec.Command(os.Args[0], append([]string{"-role", role, "-dir", dir}, args...)...)
	c.cmd.Stderr = os.Stderr
	// Interrupts are for the parent, whose end is theirs.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(c.ended)
		var wrong error
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if rest, ok := strings.CutPrefix(lines.Text(), "heap "); ok {
				var heap, tasks int64
				if _, err := fmt.Sscan(rest, &heap, &tasks); err == nil {
					c.heap.Store(heap)
					c.tasks.Store(tasks)
				}
				continue
			}
			if wrong == nil {
				wrong = note(lines.Text())
			}
		}
		err := c.cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == -1 {
			err = errKilled
		}
		if c.err = err; wrong != nil {
			c.err = wrong
		}
	}()
	return c, nil
}

var errKilled = errors.New("killed")

func (c *child) say(text string) error {
	_, err := io.WriteString(c.stdin, text)
	return err
}

// kill is kill -9. Nothing but the kill must have ended the child.
func (c *child) kill() error {
	err := c.cmd.Process.Kill()
	<-c.ended
	if c.err != errKilled {
		return errors.Join(err, fmt.Errorf("the %s process did not die of the kill: %w", c.role, c.err))
	}
	return err
}

// end lets the child end in order.
func (c *child) end() error {
	err := c.stdin.Close() // closed already if the child has ended
	select {
	case <-c.ended:
		return c.err
	case <-time.After(time.Minute):
		return errors.Join(err, errors.New("did not end within a minute"), c.kill())
	}
}
