package child

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

const tracedCuts = `7 write(1, "cut\n", 4) = 4
7 fdatasync(9) = 0
7 fsync(8) = 0
7 write(1, "over\n", 5) = 5
7 fdatasync(9) = 0
7 write(1, "cut\n", 4 <unfinished ...>
8 sync_file_range(3, 0, 4096, SYNC_FILE_RANGE_WRITE <unfinished ...>
7 <... write resumed>) = 4
7  fdatasync(9 <unfinished ...>
8 <... sync_file_range resumed>) = 0
7 <... fdatasync resumed>) = 0
7 write(2, "x", 1) = 1
7 fdatasync(10) = 0
7 write(1, "over\n", 5) = 5
7 fsync(8) = 0
7 write(1, "cut\n", 4) = 4
7 fdatasync(9) = 0
7 write(1, "over\n", 5) = 5
`

func TestFlushesOfCutsAreCounted(t *testing.T) {
	c, err := countFlushes(tracedCuts, 2)
	require.NoError(t, err)
	require.Equal(t, CutFlushes{Flushes: 1.5, Ranges: 0.5}, c, "the first cut, and calls between cuts, must not count")
	_, err = countFlushes(tracedCuts, 3)
	require.ErrorContains(t, err, "the trace shows 3 cuts begin and 3 end, not 4")
}

func TestStraceCountsFlushesOfACut(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("no strace")
	}
	c, err := CountCutFlushes(t.TempDir(), 1<<20, 5)
	require.NoError(t, err)
	require.GreaterOrEqual(t, c.Flushes, 1.0)
	require.LessOrEqual(t, c.Flushes, 6.0, "TruncateTo makes three to five flushes, and the log may make one more ahead of later appends")
}
