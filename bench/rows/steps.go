package rows

import (
	"errors"
	"fmt"

	"github.com/seglog/seglog/bench/child"
	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/raw"
)

// sendSteps is the transfer row in pieces: what a call costs shows in the small ones, what a byte costs in the large ones.
func sendSteps(e *Env) (*Result, error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	log, files, err := transferLog(dir, pick(e, int64(128<<20), int64(1<<30)))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	defer closeFiles(files)
	receiver, err := child.StartReceiver()
	if err != nil {
		return nil, err
	}
	defer receiver.Close()
	ways, release, err := raw.Ways()
	if err != nil {
		return nil, err
	}
	defer release()
	size := int64(0)
	for _, f := range files {
		size += f.size
	}
	r := &Result{
		XName: "bytes", Guarantee: "the same file bytes, unchanged; the receiver, a process of its own, reads them all",
		Unit: "bytes/s", CPUUnit: "CPU s/GB of the sender",
		Notes: []string{"a log in cache is sent from its start in pieces of up to that size, loopback TCP, congestion control " + child.Congestion + " on both ends; seglog sends whole batches of 14 KiB"},
	}
	for _, step := range []int64{16 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20, 1 << 30} {
		total := min(size, pick(e, int64(64<<20), int64(1<<30)), 4096*step)
		lines := []Line{{Name: "seglog Section, " + BytesName(step), X: float64(step), CRC: "by the receiver"}}
		sends := []func() error{func() error {
			for offset, left := int64(0), total; left > 0; {
				s, err := log.Section(offset, min(step, left))
				if err != nil {
					return err
				}
				if s.Len() > left { // one batch is more: no way to end there
					return errors.Join(raw.SendFile(receiver.Conn, files[0].File, 0, left), s.Close())
				}
				n, err := s.WriteTo(receiver.Conn)
				if err = errors.Join(err, s.Close()); err != nil {
					return err
				}
				offset, left = s.Next(), left-n
			}
			return nil
		}}
		for _, w := range ways {
			lines = append(lines, Line{Name: fmt.Sprintf("%s, %s", w.Name, BytesName(step)), X: float64(step), CRC: "no"})
			sends = append(sends, func() error {
				left := total
				for _, f := range files {
					for pos := int64(0); pos < f.size && left > 0; {
						n := min(step, f.size-pos, left)
						if err := w.Send(receiver.Conn, f.File, pos, n); err != nil {
							return err
						}
						pos, left = pos+n, left-n
					}
				}
				return nil
			})
		}
		series := measure.Interleave(e.Rounds, sendSubjects(lines, sends, receiver, total))
		for i := range lines {
			lines[i] = fill(lines[i], &series[i], series[i].Throughputs())
			lines[i].CPU = measure.Median(series[i].CPUPerGB())
			lines[i].Allocs = measure.Median(series[i].AllocsPerOp())
		}
		if b := best(lines, func(i int) bool { return i > 0 }); b >= 0 {
			r.Checks = append(r.Checks, atLeast("seglog / best raw way ("+lines[b].Name+")", 0.9, ratio(lines[0], lines[b])))
		}
		r.Lines = append(r.Lines, lines...)
	}
	return r, nil
}
