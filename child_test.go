package seglog_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// Tests that need a second process run this binary again, with the role of the child in the environment. A child that fails
// writes the error to standard error and exits with status 1.
const childRole = "SEGLOG_TEST_CHILD"

var childRoles = map[string]func(args []string) error{
	"append":   killedAppender,
	"change":   killedChanger,
	"open":     killedOpener,
	"transfer": transferringChild,
	"follow":   killedFollower,
	"write":    writingChild,
}

// addRole registers a role from a file that is built on some systems only.
func addRole(name string, role func(args []string) error) bool {
	childRoles[name] = role
	return true
}

func init() {
	role := os.Getenv(childRole)
	if role == "" {
		return
	}
	if err := childRoles[role](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, role, "failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is a running child process.
type child struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner // its reports
	stdin io.WriteCloser
}

func startChild(t testing.TB, role string, args ...string) *child {
	t.Helper()
	return startCommand(t, role, os.Args[0], args...)
}

func startCommand(t testing.TB, role, command string, args ...string) *child {
	t.Helper()
	cmd := exec.Command(command, args...)
	cmd.Env = append(os.Environ(), childRole+"="+role, "GORACE=halt_on_error=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })
	return &child{cmd: cmd, lines: bufio.NewScanner(out), stdin: stdin}
}

// kill kills the child with SIGKILL, and returns its reports that were not read yet.
func (c *child) kill(t testing.TB) (rest []string) {
	t.Helper()
	require.NoError(t, c.cmd.Process.Kill())
	for c.lines.Scan() {
		rest = append(rest, c.lines.Text())
	}
	err := c.cmd.Wait()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, -1, exit.ExitCode(), "the child did not die of the kill; it reported %q", rest)
	return rest
}

// wait waits for the child to exit, and returns its reports that were not read yet.
func (c *child) wait(t testing.TB) (rest []string) {
	t.Helper()
	for c.lines.Scan() {
		rest = append(rest, c.lines.Text())
	}
	require.NoError(t, c.cmd.Wait())
	return rest
}
