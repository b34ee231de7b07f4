package seglog

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Stats remembers the sum of the sealed segments for as long as the list of segments is the same, and it is right after rolls,
// seals, deletions and cuts.
func TestStatsBytesFollowTheSegments(t *testing.T) {
	l, err := Open(t.TempDir(), &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	defer l.Close()
	check := func() {
		t.Helper()
		var want int64
		for _, s := range l.view.Load().segs {
			size, err := l.size(s)
			require.NoError(t, err)
			want += size
		}
		require.Equal(t, want, l.Stats().Bytes)
	}
	for i := range 400 {
		appendNumbered(t, l)
		check()
		switch i % 50 {
		case 20:
			require.NoError(t, l.DeleteBefore(l.Offsets().End-30))
		case 40:
			require.NoError(t, l.TruncateTo(l.Offsets().End-10))
		}
		check()
	}
	l.Stats()
	v, n := l.sized.of, l.sized.n
	require.Same(t, l.view.Load(), v)
	require.Greater(t, n, 3, "sealed segments are summed once")
	require.NoError(t, l.Reset(7))
	check()
	appendNumbered(t, l)
	check()
}
