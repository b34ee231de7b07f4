package seglog

import (
	"bytes"
	"go/ast"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// bare lists the functions that may make errors that wrap nothing, with the reason.
var bare = map[string]string{
	"(recordReader).err":   "the reason in a CorruptError or in ErrInvalid",
	"(batch).checkRecords": "as above",
	"(Log).openReadOnly":   "inside an fs.PathError",
	"(verifier).run":       "inside an fs.PathError",
	"(osFS).MkdirAll":      "inside an fs.PathError",
}

// Every error must wrap a sentinel of errors.go or its cause, so that callers can match it. Only the functions in bare may
// make an error from text alone.
func TestEveryErrorWrapsSomething(t *testing.T) {
	unused := maps.Clone(bare)
	var wrong []string
	fset := token.NewFileSet()
	for name, f := range parse(t, fset, sources(t)) {
		for _, decl := range f.Decls {
			where := ""
			switch d := decl.(type) {
			case *ast.FuncDecl:
				where = d.Name.Name
				if d.Recv != nil {
					where = "(" + strings.TrimPrefix(types.ExprString(d.Recv.List[0].Type), "*") + ")." + where
				}
			case *ast.GenDecl:
				// These are sentinels, or errors that never leave the package, as their comments say.
				if d.Tok == token.VAR && (name == "errors.go" || strings.HasPrefix(varName(d), "err")) {
					continue
				}
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || !makesBareError(call) {
					return true
				}
				if bare[where] == "" {
					wrong = append(wrong, fset.Position(call.Pos()).String()+" in "+where)
				}
				delete(unused, where)
				return true
			})
		}
	}
	slices.Sort(wrong)
	require.Empty(t, wrong)
	require.Empty(t, unused, "exceptions that are no longer needed")
}

func varName(d *ast.GenDecl) string {
	if v, ok := d.Specs[0].(*ast.ValueSpec); ok {
		return v.Names[0].Name
	}
	return ""
}

// makesBareError reports whether call is errors.New, or fmt.Errorf without %w.
func makesBareError(call *ast.CallExpr) bool {
	switch types.ExprString(call.Fun) {
	case "errors.New":
		return true
	case "fmt.Errorf":
		format, ok := call.Args[0].(*ast.BasicLit)
		return !ok || !strings.Contains(format.Value, "%w")
	}
	return false
}

// The distance of a segment from the end of the log must count bytes, not offsets: here one segment holds few large records,
// and the next ones hold many small ones.
func TestFarBehindCountsBytes(t *testing.T) {
	dir := t.TempDir()
	o := &Options{Flush: FlushNone, SegmentBytes: 64 << 10}
	l, err := Open(dir, o)
	require.NoError(t, err)
	for range 3 {
		_, err := l.Append(Record{Value: make([]byte, 40<<10)})
		require.NoError(t, err)
	}
	many := make([]Record, 1000)
	for range 20 {
		_, err := l.Append(many...)
		require.NoError(t, err)
	}
	check := func() {
		segs := l.view.Load().segs
		var total int64
		for _, s := range segs {
			size, err := l.size(s)
			require.NoError(t, err)
			total += size
		}
		var at int64
		for i, s := range segs {
			size, err := l.size(s)
			require.NoError(t, err)
			at += size
			if i+1 < len(segs) && s.written() {
				continue // the segment is rolled but not sealed yet
			}
			behind := total - at
			l.cachedEnd = behind
			require.False(t, l.farBehind(s), "segment %d", i)
			l.cachedEnd = behind - 1
			require.Equal(t, i+1 < len(segs), l.farBehind(s), "segment %d", i)
		}
	}
	check()
	require.NoError(t, l.Close())
	l, err = Open(dir, o)
	require.NoError(t, err)
	check()
	require.NoError(t, l.DeleteBefore(2))
	require.NoError(t, l.TruncateTo(15000))
	check()
	for range 20 {
		_, err := l.Append(many...)
		require.NoError(t, err)
	}
	check()
	require.NoError(t, l.Close())
}

// temporaryName must recognize the names of temporary index files and no others, and replaceFile must leave none behind.
func TestTemporaryName(t *testing.T) {
	for _, base := range []int64{0, 1, 1 << 62} {
		for _, suffix := range []string{indexSuffix, timeSuffix} {
			require.True(t, temporaryName(tmpPrefix+fileName(base, suffix)))
			require.False(t, temporaryName(fileName(base, suffix)))
		}
	}
	e := env{fs: osFS{}, dir: t.TempDir()}
	require.NoError(t, replaceFile(&e, e.path(7, indexSuffix), bytes.Repeat([]byte{1}, 8), true))
	names, err := e.fs.List(e.dir)
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Base(e.path(7, indexSuffix))}, names)
}
