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

// The tests that need a second process run this binary again, with the role of the child in the environment: its exit
// status is 0, or it says on standard error what went wrong.
const childRole = "SEGLOG_TEST_CHILD"

var childRoles = map[string]func(args []string) error{
	"append":   killedAppender,
	"change":   killedChanger,
	"open":     killedOpener,
	"transfer": transferringChild,
	"follow":   killedFollower,
	"write":    writingChild,
}

// addRole is for the files of one system only.
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
	lines *bufio.Scanner // what it reports
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

// kill is kill -9. It returns what the child had reported by then and was not read yet.
func (c *child) kill(t testing.TB) (rest []string) {
	t.Helper()
	require.NoError(t, c.cmd.Process.Kill())
	for c.lines.Scan() {
		rest = append(rest, c.lines.Text())
	}
	err := c.cmd.Wait()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, -1, exit.ExitCode(), "the child did not die of the kill but said: %q", rest)
	return rest
}

// wait lets the child end by itself, and returns what it reported.
func (c *child) wait(t testing.TB) (rest []string) {
	t.Helper()
	for c.lines.Scan() {
		rest = append(rest, c.lines.Text())
	}
	require.NoError(t, c.cmd.Wait())
	return rest
}
