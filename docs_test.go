package seglog

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The code in the README must be that of an example, which is compiled and run.
func TestDocReadme(t *testing.T) {
	b, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	text := strings.ReplaceAll(string(b), "\r\n", "\n")
	_, rest, ok := strings.Cut(text, "\t// README\n")
	require.True(t, ok)
	code, _, ok := strings.Cut(rest, "\t// README end\n")
	require.True(t, ok)
	code = strings.TrimPrefix(strings.ReplaceAll(code, "\n\t", "\n"), "\t")
	docBlock(t, "README.md", "example", "```go\n"+code+"```\n")
}

// The file map in docs/design.md must name every file, in its layer in arch_test.go.
func TestDocFileMap(t *testing.T) {
	b, err := os.ReadFile("docs/design.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(b), "## File map")
	require.True(t, ok)
	table, _, _ := strings.Cut(rest, "\n## ")
	rows, layer := map[string]int{}, ""
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		if len(cells) < 5 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[2]) == "file" {
			continue
		}
		if l := strings.TrimSpace(cells[1]); l != "" {
			layer = l
		}
		n, err := strconv.Atoi(layer)
		require.NoError(t, err, row)
		for pattern := range strings.SplitSeq(cells[2], ",") {
			rows[strings.TrimSpace(pattern)] = n
		}
	}
	there := sources(t)
	for i, files := range layers {
		for _, file := range files {
			if there[file] == "" {
				continue
			}
			name := strings.TrimSuffix(file, ".go")
			n, ok := rows[name]
			for pattern, p := range rows {
				if match, err := path.Match(pattern, name); err == nil && match && !ok {
					n, ok = p, true
				}
			}
			require.True(t, ok, "docs/design.md does not name %s", file)
			require.Equal(t, i, n, "layer of %s in docs/design.md", file)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

// Links between files of the project must lead to existing files.
func TestDocLinks(t *testing.T) {
	pages, err := filepath.Glob("*.md")
	require.NoError(t, err)
	for _, pattern := range []string{"docs/*.md", "examples/*.md", "examples/*/*.md", "bench/*.md", "interop/*.md"} {
		more, err := filepath.Glob(pattern)
		require.NoError(t, err)
		pages = append(pages, more...)
	}
	require.Contains(t, pages, "README.md")
	for _, page := range pages {
		b, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			_, err := os.Stat(filepath.Join(filepath.Dir(page), m[1]))
			require.NoError(t, err, "%s links to %s", page, m[1])
		}
	}
}

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

var update = flag.Bool("update", false, "rewrite the generated files and the generated parts of docs/ and README.md")

// docBlock compares the text between <!-- name --> and <!-- /name --> in a document with want. With -update, it replaces the
// text.
func docBlock(t *testing.T, path, name, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	text := strings.ReplaceAll(string(b), "\r\n", "\n")
	before, rest, ok := strings.Cut(text, "<!-- "+name+" -->\n")
	require.True(t, ok, "%s has no marker %s", path, name)
	got, after, ok := strings.Cut(rest, "<!-- /"+name+" -->\n")
	require.True(t, ok, "%s has no end marker %s", path, name)
	if *update && got != want {
		text = before + "<!-- " + name + " -->\n" + want + "<!-- /" + name + " -->\n" + after
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return
	}
	require.Equal(t, want, got, "%s, %s: go test -run Doc -update", path, name)
}

// dump writes an annotated hex dump of b.
type dump struct {
	b   []byte
	pos int
	out strings.Builder
}

func (d *dump) line(n int, field, meaning string) []byte {
	p := d.b[d.pos : d.pos+n]
	fmt.Fprintf(&d.out, "%4d  %-23x  %-22s %s\n", d.pos, p, field, meaning)
	d.pos += n
	return p
}

func (d *dump) varint(field string, note func(int64) string) int64 {
	v, n := binary.Varint(d.b[d.pos:])
	d.line(n, field, note(v))
	return v
}

func (d *dump) bytes(field string) {
	n := d.varint(field+"Length", func(v int64) string {
		if v == -1 {
			return "-1: null"
		}
		return fmt.Sprint(v)
	})
	if n > 0 {
		d.line(int(n), field, fmt.Sprintf("%q", d.b[d.pos:d.pos+int(n)]))
	}
}

// batch dumps one uncompressed batch.
func (d *dump) batch(b batch) {
	be := binary.BigEndian
	for _, f := range []struct {
		at, end int
		name    string
		meaning string
	}{
		{atBaseOffset, atBatchLength, "baseOffset", ""},
		{atBatchLength, atLeaderEpoch, "batchLength", "this batch has 12 more bytes: %d"},
		{atLeaderEpoch, atMagic, "partitionLeaderEpoch", ""},
		{atMagic, atCRC, "magic", ""},
		{atCRC, atAttributes, "crc", "of all that follows"},
		{atAttributes, atLastOffsetDelta, "attributes", "not compressed, CreateTime"},
		{atLastOffsetDelta, atBaseTimestamp, "lastOffsetDelta", ""},
		{atBaseTimestamp, atMaxTimestamp, "baseTimestamp", ""},
		{atMaxTimestamp, atProducerID, "maxTimestamp", ""},
		{atProducerID, atProducerEpoch, "producerId", "-1"},
		{atProducerEpoch, atBaseSequence, "producerEpoch", "-1"},
		{atBaseSequence, atRecordsCount, "baseSequence", "-1"},
		{atRecordsCount, headerLen, "recordsCount", ""},
	} {
		meaning := f.meaning
		switch p := b[f.at:f.end]; {
		case f.name == "batchLength":
			meaning = fmt.Sprintf("%d; the batch has 12 bytes more", be.Uint32(p))
		case meaning == "" && len(p) == 8:
			meaning = fmt.Sprint(be.Uint64(p))
		case meaning == "" && len(p) == 4:
			meaning = fmt.Sprint(be.Uint32(p))
		case meaning == "":
			meaning = fmt.Sprint(p[0])
		}
		d.line(f.end-f.at, f.name, meaning)
	}
	plain := func(v int64) string { return fmt.Sprint(v) }
	for i := range b.count() {
		fmt.Fprintf(&d.out, "      record %d\n", i)
		d.varint("length", plain)
		d.line(1, "attributes", "none are defined")
		d.varint("timestampDelta", func(v int64) string { return fmt.Sprintf("%d: %d", v, b.baseTimestamp()+v) })
		d.varint("offsetDelta", func(v int64) string { return fmt.Sprintf("%d: offset %d", v, b.base()+v) })
		d.bytes("key")
		d.bytes("value")
		for range d.varint("headersCount", plain) {
			d.bytes("headerKey")
			d.bytes("headerValue")
		}
	}
}

// The worked examples in docs/format.md must be files as the package writes them.
func TestDocFormat(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, &Options{IndexBytes: 100, SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	_, err = l.Append(
		Record{Time: at, Key: []byte("k1"), Value: []byte("hello")},
		Record{Time: at.Add(7 * time.Millisecond), Headers: []Header{{Key: "h", Value: []byte("")}}})
	require.NoError(t, err)
	for i := range 3 {
		_, err = l.Append(Record{Time: at.Add(time.Duration(20-i) * time.Millisecond), Value: []byte("more")})
		require.NoError(t, err)
	}
	_, err = l.Append(Record{Value: make([]byte, minSegmentBytes-200)}) // in the next segment, as the last one of a closed log may do without indexes
	require.NoError(t, err)
	require.NoError(t, l.Close())
	read := func(suffix string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, fileName(0, suffix)))
		require.NoError(t, err)
		return b
	}
	log := read(logSuffix)
	first := batch(log)
	d := dump{b: log}
	d.batch(first)
	require.EqualValues(t, first.size(), d.pos)
	docBlock(t, "docs/format.md", "batch", "```\n pos  bytes                    field                  value\n"+d.out.String()+"```\n")

	var out strings.Builder
	fmt.Fprintf(&out, "```\n%s: %d batches\n", fileName(0, logSuffix), 4)
	for pos := int64(0); pos < int64(len(log)); {
		b := batch(log[pos:])
		fmt.Fprintf(&out, "  position %3d: offsets %d to %d, greatest time ..%03d\n", pos, b.base(), b.last(), b.maxTimestamp()%1000)
		pos += b.size()
	}
	x := read(indexSuffix)
	fmt.Fprintf(&out, "%s: %d bytes\n", fileName(0, indexSuffix), len(x))
	for i := range len(x) / offsetEntryLen {
		rel, pos := offsetEntry(x, i)
		fmt.Fprintf(&out, "  %08x %08x           last offset %d at position %d\n", rel, pos, rel, pos)
	}
	x = read(timeSuffix)
	fmt.Fprintf(&out, "%s: %d bytes\n", fileName(0, timeSuffix), len(x))
	for i := range len(x) / timeEntryLen {
		ms, rel := timeEntry(x, i)
		fmt.Fprintf(&out, "  %016x %08x   time ..%03d first reached at last offset %d\n", ms, rel, ms%1000, rel)
	}
	docBlock(t, "docs/format.md", "indexes", out.String()+"```\n")
}
