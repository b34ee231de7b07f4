package rows

import (
	"time"

	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

// appendWork is the rounds of the rows without a flush.
func appendWork(e *Env, perCall, size int) work {
	return work{callers: 1, perCall: perCall, valueSize: size, duration: pick(e, 70*time.Millisecond, 400*time.Millisecond)}
}

const killGuarantee = "everything whose append returned is there after kill -9; a power cut leaves a prefix"

// appendSubjects are seglog, the raw limits and the peers, in this order; limits says where the peers begin.
func appendSubjects(e *Env, limits ...candidate) (all []candidate, firstPeer int, absent []Line) {
	s := peers.Setup{Callers: 1}
	all = append([]candidate{seglogCandidate(s)}, limits...)
	can, absent := e.peerCandidates(s)
	return append(all, can...), len(limits) + 1, absent
}

func mappedFresh(dir string) (peers.Log, error) { return raw.Mapped(dir, false) }
func mappedAhead(dir string) (peers.Log, error) { return raw.Mapped(dir, true) }

func appendSmall(e *Env) (*Result, error) {
	subjects, firstPeer, absent := appendSubjects(e,
		limit("raw pwrite", raw.Pwrite),
		limit("raw pwrite + frame + CRC", raw.PwriteFramed),
		limit("raw mapped store + frame + CRC, fresh pages", mappedFresh),
		limit("raw mapped store + frame + CRC, mapped ahead", mappedAhead))
	lines, _ := e.compare(subjects, appendWork(e, 1, 128))
	r := &Result{Guarantee: killGuarantee, Unit: "records/s", CPUUnit: "ns/record"}
	if b := best(lines, survivesFrom(subjects, firstPeer)); b >= 0 {
		r.Checks = append(r.Checks, atLeast("seglog / best peer that survives kill -9 ("+lines[b].Name+")", 6, ratio(lines[0], lines[b])))
	}
	r.Checks = append(r.Checks, atMost("ns per Append, one caller", 150, 1e9/lines[0].Value))
	r.Lines = append(lines, absent...)
	return r, nil
}

func survivesFrom(subjects []candidate, firstPeer int) func(int) bool {
	return func(i int) bool { return i >= firstPeer && subjects[i].peer.SurvivesKill }
}

func appendBatches(e *Env) (*Result, error) {
	subjects, firstPeer, absent := appendSubjects(e,
		limit("raw pwrite, 100 values in one", raw.Pwrite))
	lines, _ := e.compare(subjects, appendWork(e, 100, 128))
	r := &Result{Guarantee: killGuarantee, Unit: "records/s", CPUUnit: "ns/record"}
	if b := best(lines, survivesFrom(subjects, firstPeer)); b >= 0 {
		r.Checks = append(r.Checks, atLeast("seglog / best peer that survives kill -9 ("+lines[b].Name+")", 2, ratio(lines[0], lines[b])))
	}
	for i, s := range subjects {
		if s.peer != nil && s.peer.Name == "pebble record writer" && len(lines[i].Rounds) > 0 {
			r.Checks = append(r.Checks, atLeast("seglog / pebble record writer (which loses appends on kill)", 1, ratio(lines[0], lines[i])))
		}
	}
	r.Lines = append(lines, absent...)
	return r, nil
}

func appendLarge(e *Env) (*Result, error) {
	subjects, _, absent := appendSubjects(e,
		limit("raw pwrite", raw.Pwrite),
		limit("raw pwrite + frame + CRC", raw.PwriteFramed),
		limit("raw mapped store + frame + CRC, fresh pages", mappedFresh))
	lines, _ := e.compare(subjects, appendWork(e, 1, 16<<10))
	r := &Result{Guarantee: killGuarantee, Unit: "records/s", CPUUnit: "ns/record"}
	r.Checks = []Check{atLeast("seglog / raw pwrite + frame + CRC", 1, ratio(lines[0], lines[2]))}
	r.Lines = append(lines, absent...)
	return r, nil
}

// sweepSizes feeds the chart of throughput by record size.
func sweepSizes(e *Env) (*Result, error) {
	r := &Result{XName: "bytes", Guarantee: killGuarantee, Unit: "records/s", CPUUnit: "ns/record"}
	for _, size := range []int{16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10} {
		subjects, _, _ := appendSubjects(e, limit("raw pwrite + frame + CRC", raw.PwriteFramed))
		kept := subjects[:0]
		for _, s := range subjects {
			if s.peer == nil || s.peer.Name != boltName {
				kept = append(kept, s)
			}
		}
		w := appendWork(e, 1, size)
		w.duration = pick(e, 20*time.Millisecond, 150*time.Millisecond)
		lines, _ := e.compare(kept, w)
		for _, l := range lines {
			l.X = float64(size)
			r.Lines = append(r.Lines, l)
		}
	}
	return r, nil
}

// boltName is left out of the sweeps: as a tree it is in another class and would only flatten the charts.
const boltName = "bbolt (a contrast)"
