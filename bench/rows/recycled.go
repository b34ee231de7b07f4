package rows

import (
	"fmt"
	"time"

	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

// worthIt is what a second way to write must promise over the best one that there is, before anybody builds it.
const worthIt = 1.2

// recycledSegments asks what durable appends gain by the files of removed segments.
func recycledSegments(e *Env) (*Result, error) {
	r := &Result{XName: "callers", Guarantee: durableGuarantee, Unit: "records/s", CPUUnit: "ns/record"}
	r.Notes = []string{fmt.Sprintf("recycled files are of %d MiB; a round begins in the middle of the first, and a roll gives the next one its name, durably, in the background; the other layouts do not roll",
		raw.RecycledBytes>>20)}
	for _, callers := range []int{1, 16, 64, 256} {
		s := peers.Setup{Durable: true, Callers: callers}
		subjects := []candidate{seglogCandidate(s)}
		for _, layout := range raw.Layouts {
			subjects = append(subjects, limit("raw, "+layout.String(), func(dir string) (peers.Log, error) { return raw.Durable(dir, layout) }))
		}
		first := len(subjects)
		for _, how := range raw.Recyclings {
			subjects = append(subjects, limit("raw, "+how.String(), func(dir string) (peers.Log, error) { return raw.DurableRecycled(dir, how) }))
		}
		for i := range subjects {
			subjects[i].group = callers > 1 && subjects[i].peer == nil
		}
		subjects = append(subjects, peerCandidate(peers.Pebble, s), peerCandidate(peers.PebbleRecycled, s))
		w := durableWork(e, callers)
		w.duration = pick(e, 100*time.Millisecond, 400*time.Millisecond)
		lines, _ := e.compare(subjects, w)
		// Zeros before are no way for a log that goes on.
		today := best(lines, func(i int) bool {
			return i > 0 && i < first && subjects[i].line.Name != "raw, "+raw.ZeroFilled.String()
		})
		for i := first; today >= 0 && i < first+len(raw.Recyclings); i++ {
			r.Checks = append(r.Checks, overToday(callers, lines[i], lines[today]))
		}
		r.addAt(callers, lines)
	}
	return r, nil
}

// flushesInFlight asks what durable appends gain where a group does not wait for the flush of the one before.
func flushesInFlight(e *Env) (*Result, error) {
	r := &Result{XName: "callers", Guarantee: durableGuarantee + ", and so is all before it", Unit: "records/s", CPUUnit: "ns/record"}
	for _, callers := range []int{1, 4, 16, 64} {
		var subjects []candidate
		layouts := []raw.Layout{raw.ZeroFilled, raw.ZeroedAhead}
		for _, layout := range layouts {
			one := limit(fmt.Sprintf("%v, one flush at a time", layout), func(dir string) (peers.Log, error) { return raw.Durable(dir, layout) })
			one.group = callers > 1
			subjects = append(subjects, one)
			for _, o := range raw.Overlaps {
				subjects = append(subjects, limit(fmt.Sprintf("%v, %v", layout, o), func(dir string) (peers.Log, error) { return raw.InFlight(dir, layout, o) }))
			}
		}
		w := durableWork(e, callers)
		w.duration = pick(e, 60*time.Millisecond, 250*time.Millisecond)
		lines, _ := e.compare(subjects, w)
		perLayout := len(subjects) / len(layouts)
		for i := range lines {
			if alone := i / perLayout * perLayout; i != alone {
				r.Checks = append(r.Checks, overToday(callers, lines[i], lines[alone]))
			}
		}
		r.addAt(callers, lines)
	}
	return r, nil
}

func overToday(callers int, l, today Line) Check {
	return atLeast(fmt.Sprintf("%d callers: %s / %s", callers, l.Name, today.Name), worthIt, ratio(l, today))
}

func (r *Result) addAt(x int, lines []Line) {
	for _, l := range lines {
		l.X = float64(x)
		r.Lines = append(r.Lines, l)
	}
}

// recycledMappings asks what appends without a flush gain by the cached pages of removed segments.
func recycledMappings(e *Env) (*Result, error) {
	subjects := []candidate{seglogCandidate(peers.Setup{Callers: 1})}
	for _, how := range raw.Mappings {
		subjects = append(subjects, limit("raw mapped, "+how.String(), func(dir string) (peers.Log, error) { return raw.MappedOver(dir, how) }))
	}
	w := appendWork(e, 1, 128)
	w.duration = pick(e, 70*time.Millisecond, 200*time.Millisecond) // none of the removed segments comes round in it
	lines, _ := e.compare(subjects, w)
	w.latency, w.duration = true, w.duration/2
	clocked, _ := e.compare(subjects, w)
	r := &Result{Guarantee: killGuarantee, Unit: "records/s", CPUUnit: "ns/record", Notes: []string{
		"a file of 128 MiB after the other; the files of removed segments are flushed and in the cache, but not mapped unless it says so",
		"rate, CPU and allocations are of rounds without a clock, the percentiles of rounds beside them that take the time of each append",
	}}
	for i := range lines {
		lines[i].Latency = clocked[i].Latency
		if i > 2 {
			for _, fresh := range lines[1:3] {
				r.Checks = append(r.Checks, atLeast(fmt.Sprintf("%s / %s", lines[i].Name, fresh.Name), worthIt, ratio(lines[i], fresh)))
			}
		}
	}
	r.Lines = lines
	return r, nil
}
