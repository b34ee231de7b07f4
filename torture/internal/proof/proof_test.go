package proof

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

const most = 100

// written returns a log with batches of one writer, and the ledger of its acknowledgments.
func written(t *testing.T, batches int) (*seglog.Log, *Ledger) {
	l, err := seglog.Open(t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	g := NewLedger(most, false)
	for seq := range batches {
		store(t, l, g, Batch{Run: 1, Seq: seq + 1})
	}
	return l, g
}

func store(t *testing.T, l *seglog.Log, g *Ledger, b Batch) {
	base, err := l.Append(b.Records(most)...)
	require.NoError(t, err)
	if g != nil {
		require.NoError(t, g.Acked(b, base))
	}
}

// TestCheckSees checks the checker: it must notice each way in which a log can be wrong.
func TestCheckSees(t *testing.T) {
	next := Batch{Run: 1, Seq: 6}
	cases := []struct {
		want   string // a part of the error; "" if the log is right
		change func(l *seglog.Log, g *Ledger) error
	}{
		{"", func(*seglog.Log, *Ledger) error { return nil }},
		{"", func(l *seglog.Log, g *Ledger) error { // as if the writer was killed before the acknowledgment
			_, err := l.Append(next.Records(most)...)
			return err
		}},
		{"the log ends at", func(l *seglog.Log, g *Ledger) error { return l.TruncateTo(l.Offsets().End - 1) }},
		{"nobody asked", func(l *seglog.Log, g *Ledger) error { return l.DeleteBefore(1) }},
		{"never appended", func(l *seglog.Log, g *Ledger) error {
			_, err := l.Append(Batch{Run: 1, Seq: 7}.Records(most)...)
			return err
		}},
		{"there twice", func(l *seglog.Log, g *Ledger) error {
			for range 2 {
				if _, err := l.Append(next.Records(most)...); err != nil {
					return err
				}
			}
			return nil
		}},
		{"was refused", func(l *seglog.Log, g *Ledger) error {
			g.Refused(next)
			_, err := l.Append(next.Records(most)...)
			return err
		}},
		{"half a batch", func(l *seglog.Log, g *Ledger) error {
			b := next
			for b.Len() == 1 {
				g.Refused(b)
				b.Seq++
			}
			_, err := l.Append(b.Records(most)[:b.Len()-1]...)
			return err
		}},
		{"was acknowledged", func(l *seglog.Log, g *Ledger) error {
			if err := l.TruncateTo(0); err != nil {
				return err
			}
			for seq := 6; l.Offsets().End <= g.End(); seq++ {
				if _, err := l.Append(Batch{Run: 1, Seq: seq}.Records(most)...); err != nil {
					return err
				}
			}
			return nil
		}},
		{"is not that of", func(l *seglog.Log, g *Ledger) error {
			r := next.Records(most)
			r[0].Value = []byte("something else")
			_, err := l.Append(r...)
			return err
		}},
	}
	for _, c := range cases {
		l, g := written(t, 5)
		require.NoError(t, c.change(l, g))
		_, err := g.Check(l)
		if c.want == "" {
			require.NoError(t, err)
			_, err = g.Check(l)
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, c.want)
	}
}

// A batch that was missing when the log was first checked must not appear later.
func TestCheckSeesALostBatchComeBack(t *testing.T) {
	l, g := written(t, 3)
	_, err := g.Check(l)
	require.NoError(t, err)
	store(t, l, nil, Batch{Run: 1, Seq: 4})
	_, err = g.Check(l)
	require.ErrorContains(t, err, "was not when the log was opened")
}

// A cut that was not acknowledged may or may not have happened.
func TestCheckTakesCutsThatWereNotAnswered(t *testing.T) {
	for _, happened := range []bool{false, true} {
		l, g := written(t, 5)
		at := l.Offsets().End - 1
		g.Cutting(at)
		if happened {
			require.NoError(t, l.TruncateTo(at))
		}
		_, err := g.Check(l)
		require.NoError(t, err)
		require.Equal(t, l.Offsets().End, g.End())
	}
}

func TestOffsetGivenOutTwice(t *testing.T) {
	g := NewLedger(most, false)
	require.NoError(t, g.Acked(Batch{Run: 1, Seq: 1}, 0))
	err := g.Acked(Batch{Run: 1, Seq: 2}, 0)
	require.True(t, err != nil && strings.Contains(err.Error(), "twice"), "%v", err)
}
