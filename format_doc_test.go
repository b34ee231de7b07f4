package seglog

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

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
	l, err := Open(dir, &Options{IndexBytes: 100})
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
