package interop

import (
	"context"
	"math/rand"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// The same appends through seglog and through Kafka must give the same bytes in every file, and both programs must read them
// alike.
func TestSameBytes(t *testing.T) {
	needKafka(t)
	for i := range int64(*shapes) {
		s := randomShape(*seed + i)
		t.Run(s.name, func(t *testing.T) {
			kafka, ours := topicDir(t), topicDir(t)
			kafkaAppend(t, kafka, s.kafka(), s.batches)
			seglogAppend(t, ours, s.options, s.batches)
			requireSameFiles(t, kafka, ours)
			requireSound(t, ours, s.kafka(), false)
			requireRecords(t, ours, kafkaDump(t, ours))
			requireSameLookups(t, ours, s)
		})
	}
}

// A full index must roll the segment: the time index if times grow, otherwise the offset index.
func TestSameBytesIndexFull(t *testing.T) {
	needKafka(t)
	if testing.Short() {
		t.Skip("writes 150 MB twice")
	}
	for _, test := range []struct {
		name  string
		step  int64
		count int
	}{
		{"times=grow", 1, 10<<20/12 + 500},
		{"times=constant", 0, 10<<20/8 + 500},
	} {
		t.Run(test.name, func(t *testing.T) {
			kafka, ours := topicDir(t), topicDir(t)
			s := &shape{options: seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 1 << 30, IndexBytes: 1}}
			b := batch{Records: []record{{T: ms0}}, Repeat: test.count, Step: test.step}
			kafkaAppend(t, kafka, s.kafka(), []batch{b})
			require.Len(t, segmentFiles(t, kafka), 6, "Kafka did not roll once")

			l, err := seglog.Open(ours, &s.options)
			require.NoError(t, err)
			for i := range int64(test.count) {
				_, err := l.Append(seglog.Record{Time: time.UnixMilli(ms0 + i*test.step)})
				require.NoError(t, err)
			}
			require.NoError(t, l.Close())
			requireSameFiles(t, kafka, ours)
		})
	}
}

// requireSameLookups looks up records by offset and by time in both programs. Kafka opens the directory as after a clean
// shutdown, so that it trusts seglog's indexes.
func requireSameLookups(t *testing.T, dir string, s *shape) {
	t.Helper()
	batches := kafkaDump(t, dir)
	offsets, times := offsetsAndTimes(rand.New(rand.NewSource(1)), batches)
	var kafka struct{ Bases, Offsets []int64 }
	before := segmentFiles(t, dir)
	ask(t, request{Cmd: "lookup", Dir: copyDir(t, dir), Opts: s.kafka(), Offsets: offsets, Times: times}, &kafka)
	require.Equal(t, before, segmentFiles(t, dir))

	l, err := seglog.Open(dir, &s.options)
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	for i, offset := range offsets {
		section, err := l.Section(offset, 1)
		require.NoError(t, err)
		require.Equal(t, kafka.Bases[i], section.Base(), "batch for offset %d", offset)
		require.NoError(t, section.Close())
	}
	for i, ms := range times {
		got, err := l.OffsetForTime(time.UnixMilli(ms))
		require.NoError(t, err)
		want := kafka.Offsets[i]
		if want == -1 {
			want = l.Offsets().End
		}
		require.Equal(t, want, got, "offset for time %d", ms)
	}
}

// If the log is closed and opened again between appends, seglog's files must equal those of one long session. (Kafka forgets
// at a restart the number of bytes since its last index entry, and so spaces entries more widely.)
func TestSameBytesInSessions(t *testing.T) {
	needKafka(t)
	for i := range int64(*shapes) / 4 {
		s := randomShape(*seed + 1000 + i)
		t.Run(s.name, func(t *testing.T) {
			kafka, ours := topicDir(t), topicDir(t)
			rnd := rand.New(rand.NewSource(i))
			for rest := s.batches; len(rest) > 0; {
				n := 1 + rnd.Intn(len(rest))
				kafkaAppend(t, kafka, s.kafka(), rest[:n])
				seglogAppend(t, ours, s.options, rest[:n])
				rest = rest[n:]
			}
			requireSameLogs(t, kafka, ours)
			requireSound(t, ours, s.kafka(), false)
			requireSameLookups(t, ours, s)
		})
	}
}

// requireSameLogs compares only the .log files.
func requireSameLogs(t *testing.T, kafka, ours string) {
	t.Helper()
	want, got := segmentFiles(t, kafka), segmentFiles(t, ours)
	for name := range want {
		if name[20:] == ".log" {
			require.Equal(t, want[name], got[name], name)
		}
	}
}

// Kafka and seglog must both recover a directory that a kill of seglog left, without the loss of a record.
func TestKafkaRecoversKilledSeglog(t *testing.T) {
	needKafka(t)
	for i := range int64(6) {
		s := randomShape(*seed + 2000 + i)
		t.Run(s.name, func(t *testing.T) {
			dir := topicDir(t)
			l, err := seglog.Open(dir, &s.options)
			require.NoError(t, err)
			defer l.Close()
			for _, b := range s.batches {
				_, err := l.Append(toSeglog(b)...)
				require.NoError(t, err)
			}
			end := l.Offsets().End
			// Rolled segments are sealed in the background; a copy must not mix files from before and after a seal.
			require.NoError(t, l.Sync())
			waitSealed(t, dir)
			killed := copyDir(t, dir)

			var answer struct{ Start, End int64 }
			ask(t, request{Cmd: "recover", Dir: killed, Opts: s.kafka()}, &answer)
			require.Equal(t, end, answer.End)
			requireSound(t, killed, s.kafka(), false)

			whole := topicDir(t)
			seglogAppend(t, whole, s.options, s.batches)
			requireSameFiles(t, whole, killed)
		})
	}
}

// waitSealed waits until the directory does not change from one check to the next.
func waitSealed(t *testing.T, dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for before := segmentFiles(t, dir); ; {
		select {
		case <-ctx.Done():
			require.Fail(t, "the directory keeps changing")
		case <-time.After(50 * time.Millisecond):
		}
		now := segmentFiles(t, dir)
		if sameFiles(before, now) {
			return
		}
		before = now
	}
}

func sameFiles(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if string(a[name]) != string(b[name]) {
			return false
		}
	}
	return true
}

// Seglog must open a directory that a kill of Kafka left, with indexes that have 10 MiB of zeros after their entries, without
// the loss of a record.
func TestSeglogOpensKilledKafka(t *testing.T) {
	needKafka(t)
	for i := range int64(6) {
		s := randomShape(*seed + 3000 + i)
		t.Run(s.name, func(t *testing.T) {
			dir, killed := topicDir(t), topicDir(t)
			opts := s.kafka()
			opts.MaxIndexSize = 1 << 20
			ask(t, request{Cmd: "write", Dir: dir, Opts: opts, Batches: s.batches, CopyTo: killed}, nil)
			requireRecords(t, killed, kafkaDump(t, dir))
			seglogAppend(t, killed, s.options, nil)
			requireSameFiles(t, dir, killed)
			requireSound(t, killed, opts, false)
		})
	}
}

// A directory goes back and forth between the programs, each of which appends to it, with and without Kafka's mark of a clean
// shutdown.
func TestTakingTurns(t *testing.T) {
	needKafka(t)
	for i := range int64(*shapes) / 6 {
		s := randomShape(*seed + 4000 + i)
		t.Run(s.name, func(t *testing.T) {
			rnd := rand.New(rand.NewSource(i))
			dir, whole := topicDir(t), topicDir(t)
			ours := rnd.Intn(2) == 0
			for rest := s.batches; len(rest) > 0; ours = !ours {
				n := min(len(rest), 1+len(s.batches)/6+rnd.Intn(5))
				if ours {
					seglogAppend(t, dir, s.options, rest[:n])
				} else {
					if rnd.Intn(2) == 0 {
						ask(t, request{Cmd: "recover", Dir: dir, Opts: s.kafka()}, nil)
					}
					kafkaAppend(t, dir, s.kafka(), rest[:n])
				}
				rest = rest[n:]
				requireGood(t, dir, s.kafka(), false)
			}
			kafkaAppend(t, whole, s.kafka(), s.batches)
			requireSameLogs(t, whole, dir)
			requireSameLookups(t, dir, s)
		})
	}
}
