package rows

import (
	"fmt"
	"time"

	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

const durableGuarantee = "everything whose append returned is there after a power cut"

func durableWork(e *Env, callers int) work {
	return work{callers: callers, perCall: 1, valueSize: 1 << 10, latency: true, duration: pick(e, 100*time.Millisecond, 500*time.Millisecond)}
}

// durableSubjects are seglog, the raw layouts, the peers as their users get them, and, with more than one caller, the
// peers without group commit once more behind an external one.
func durableSubjects(e *Env, callers int) (all []candidate, absent []Line) {
	s := peers.Setup{Durable: true, Callers: callers}
	all = []candidate{seglogCandidate(s)}
	for _, layout := range raw.Layouts {
		c := limit("raw pwrite + fdatasync, "+layout.String(), func(dir string) (peers.Log, error) { return raw.Durable(dir, layout) })
		if c.group = callers > 1; c.group {
			c.line.Name = "raw group commit, " + layout.String()
		}
		all = append(all, c)
	}
	can, absent := e.peerCandidates(s)
	all = append(all, can...)
	if callers > 1 {
		for _, c := range can {
			if !c.peer.Groups {
				c.group = true
				c.line.Name += ", external group commit"
				all = append(all, c)
			}
		}
	}
	return all, absent
}

func durableFor(callers int) func(e *Env) (*Result, error) {
	return func(e *Env) (*Result, error) {
		subjects, absent := durableSubjects(e, callers)
		lines, _ := e.compare(subjects, durableWork(e, callers))
		r := &Result{Guarantee: durableGuarantee, Unit: "records/s", CPUUnit: "ns/record"}
		target := 0.9
		if callers == 1 {
			target = 0.95
		}
		if b := best(lines, func(i int) bool { return i > 0 && subjects[i].peer == nil }); b >= 0 {
			r.Checks = append(r.Checks, atLeast("seglog / best raw layout ("+lines[b].Name+")", target, ratio(lines[0], lines[b])))
		}
		for i, s := range subjects {
			if callers > 1 && s.peer != nil && s.peer.Name == "pebble record writer" && len(lines[i].Rounds) > 0 {
				r.Checks = append(r.Checks, atLeast("seglog / pebble", 1.4, ratio(lines[0], lines[i])))
			}
		}
		r.Lines = append(lines, absent...)
		return r, nil
	}
}

// sweepCallers feeds the chart of durable throughput by callers.
func sweepCallers(e *Env) (*Result, error) {
	r := &Result{XName: "callers", Guarantee: durableGuarantee, Unit: "records/s", CPUUnit: "ns/record"}
	for _, callers := range []int{1, 4, 16, 64, 256, 1024, 4096} {
		subjects, _ := durableSubjects(e, callers)
		kept := subjects[:0]
		for _, s := range subjects {
			grouped := s.peer == nil || s.peer.Name == peers.Seglog.Name || s.peer.Groups
			if (s.peer == nil || s.peer.Name != boltName) && (grouped || !s.group && callers <= 256) {
				kept = append(kept, s)
			}
		}
		w := durableWork(e, callers)
		w.duration = pick(e, 40*time.Millisecond, 250*time.Millisecond)
		lines, _ := e.compare(kept, w)
		for _, l := range lines {
			l.X = float64(callers)
			r.Lines = append(r.Lines, l)
		}
	}
	for i, l := range r.Lines {
		// One name per curve: with one caller there is nothing to group.
		for _, layout := range raw.Layouts {
			if l.Name == fmt.Sprintf("raw pwrite + fdatasync, %v", layout) {
				r.Lines[i].Name = fmt.Sprintf("raw group commit, %v", layout)
			}
		}
	}
	return r, nil
}
