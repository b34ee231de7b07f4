package seglog

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The decision table in docs/recovery.md must be the table that the code uses.
func TestDocRecoveryTable(t *testing.T) {
	var out strings.Builder
	out.WriteString("| | what Open finds in a segment | what it does |\n|---|---|---|\n")
	for _, c := range recoveryCases {
		fmt.Fprintf(&out, "| %c | %s | %s |\n", c.id, c.finds, c.does)
	}
	docBlock(t, "docs/recovery.md", "cases", out.String())
}

// TestDocState reads a state file by the table in docs/recovery.md: each field must be at the position in the table, and the
// table must not leave out any.
func TestDocState(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	for i := range 300 {
		_, err := l.Append(Record{Value: fmt.Appendf(nil, "%0*d", i%100, i)})
		require.NoError(t, err)
	}
	require.NoError(t, l.TruncateTo(290))
	require.NoError(t, l.Sync())
	require.NoError(t, l.Close())
	l, err = Open(dir, nil)
	require.NoError(t, err)
	require.NoError(t, l.DeleteBefore(207))
	require.NoError(t, l.Close())

	path := filepath.Join(dir, stateName)
	st, ok, err := readState(osFS{}, path)
	require.NoError(t, err)
	require.True(t, ok)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	slot := b[int(st.seq%2)*stateSlotGap:][:stateLen]
	fields := reflect.ValueOf(st)

	doc, err := os.ReadFile("docs/recovery.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(doc), "<!-- state -->")
	require.True(t, ok)
	table, _, ok := strings.Cut(rest, "<!-- /state -->")
	require.True(t, ok)
	seen, end := map[string]bool{"policy": true, "clean": true, "reset": true, "gaps": true, "failed": true}, 0 // in flags
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		if len(cells) < 6 {
			continue
		}
		pos, err := strconv.Atoi(strings.TrimSpace(cells[1]))
		if err != nil {
			continue // the head
		}
		size, err := strconv.Atoi(strings.TrimSpace(cells[2]))
		require.NoError(t, err)
		require.Equal(t, end, pos, "a hole before %s", row)
		end = pos + size
		name := strings.TrimSpace(cells[3])
		switch name {
		case "magic":
			require.EqualValues(t, uint64(stateMagic), binary.BigEndian.Uint64(slot[pos:]))
		case "crc":
			require.NotZero(t, binary.BigEndian.Uint32(slot[pos:]))
		case "flags":
			want := uint64(stateClean) | uint64(st.policy)<<statePolicyShift
			require.Equal(t, want, binary.BigEndian.Uint64(slot[pos:]))
		default:
			f := fields.FieldByName(name)
			require.True(t, f.IsValid(), "no field %s", name)
			got := binary.BigEndian.Uint64(slot[pos:])
			if f.CanInt() {
				require.Equal(t, f.Int(), int64(got), name)
			} else {
				require.Equal(t, f.Uint(), got, name)
			}
			seen[name] = true
		}
	}
	require.Equal(t, stateLen, end, "the table must end with the slot")
	for _, field := range reflect.VisibleFields(fields.Type()) {
		require.True(t, field.Anonymous || seen[field.Name], "the table leaves out %s", field.Name)
	}
}
