package measure

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// userHz is the unit of /proc/stat, the same on every Linux that Go runs on.
const userHz = 100

// StartNeighbours begins to watch what of the machine's processors goes to others than this process and its children, and
// returns the function that ends it. The share includes the kernel's own threads, so that a few percent are this program's
// doing; more than that are somebody's whose work is in the figures.
func StartNeighbours() (share func() float64) {
	busy, all, err := processors()
	own := ownTime()
	return func() float64 {
		busyNow, allNow, errNow := processors()
		if err != nil || errNow != nil || allNow == all {
			return 0
		}
		others := busyNow - busy - (ownTime() - own)
		return max(0, others.Seconds()/(allNow-all).Seconds())
	}
}

// processors reads the time that all processors together were busy, and how long they were there.
func processors() (busy, all time.Duration, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	return parseProcessors(string(b))
}

func parseProcessors(stat string) (busy, all time.Duration, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	var user, nice, system, idle, iowait, irq, softirq, steal int64
	if _, err := fmt.Sscanf(line, "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal); err != nil {
		return 0, 0, fmt.Errorf("/proc/stat: %w", err)
	}
	tick := time.Second / userHz
	busy = time.Duration(user+nice+system+irq+softirq+steal) * tick
	return busy, busy + time.Duration(idle+iowait)*tick, nil
}

// ownTime is the processor time of this process and of the children that have ended.
func ownTime() time.Duration {
	var children syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &children); err != nil {
		panic(err) // it fails for a bad argument only
	}
	return processTime() + time.Duration(children.Utime.Nano()+children.Stime.Nano())
}
