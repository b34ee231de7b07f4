// Package child holds what runs in a process of its own: the receiving ends of connections, whose processor time must not
// be counted with the sender's, and the writer that is killed. The program starts itself again with a role.
package child

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

const roleVariable = "SEGLOG_BENCH_ROLE"

var roles = map[string]func(args []string) error{
	"receive": receive,
	"fetch":   fetch,
	"crash":   crash,
	"send":    send,
	"cold":    cold,
	"cut":     cut,
}

// Main runs the role this process was started for, and does not return then. Every main that starts children calls it first.
func Main() {
	role, ok := os.LookupEnv(roleVariable)
	if !ok {
		return
	}
	if err := roles[role](os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "child %s: %v\n", role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// process is a child and its two pipes. It ends when its standard input does, and with its parent in any case.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.ReadCloser
}

func start(role string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd: cmd, in: in, out: out}, nil
}

func (p *process) stop() error {
	p.in.Close()
	return p.cmd.Wait()
}

// Congestion is the congestion control set on both ends of every connection measured. Under BBR, the default of some
// machines, pacing hides what the ways of sending differ by.
const Congestion = "cubic"

// Tune sets it, and checks that it took.
func Tune(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, Congestion)
	})
	if err != nil {
		return err
	}
	return set
}
