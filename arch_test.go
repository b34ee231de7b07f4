package seglog

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// layers assigns each file to a layer. A file may use declarations of its own layer and those below, never of a layer above. The
// file map in docs/design.md gives the purpose of each file.
var layers = [][]string{
	{ // 0: basic types, and the operating system behind an interface
		"doc.go", "record.go", "errors.go", "transfers.go", "bounds.go", "names.go",
		"file.go", "file_linux.go", "file_other.go", "open_unix.go", "open_windows.go",
		"mmap_linux.go", "mmap_unix.go",
	},
	{"batch.go", "record_reader.go", "producer.go", "codec.go", "options.go"},   // 1: one batch, and the options
	{"scan.go", "resync_offsets.go", "resync.go", "resync_pass.go", "index.go"}, // 2: many batches
	{ // 3: the files of a log, one by one
		"segment.go", "opensegments.go", "readcache.go", "window.go", "locate.go", "index_file.go", "index_check.go", "tail.go", "prepare.go", "gather.go", "manifest.go", "state.go", "statefile.go", "stats.go",
	},
	{ // 4: the log
		"log.go", "open.go", "read.go", "records.go", "time.go", "flush.go", "retention.go", "truncate.go", "cutfile.go", "writer.go", "roll.go", "keeper.go", "rest.go",
		"recover.go", "recover_table.go", "recover_cut.go",
		"recover_scan.go", "recover_act.go", "readonly.go", "readonly_view.go", "readonly_last.go", "receive.go", "directory.go", "behind.go", "transfer.go", "transfer_linux.go", "transfer_other.go",
		"snapshot.go", "inspect.go", "durable.go", "segmentinfo.go",
	},
	{ // 5: tools that inspect and repair a log from outside
		"salvage.go", "verify.go", "verify_segment.go", "verify_ledger.go",
		"repair.go", "repair_report.go", "repair_plan.go", "repair_apply.go", "json.go",
	},
}

// upward lists the uses that break the rule, each with the reason. The test also fails for an entry that is no longer needed.
var upward = map[[2]string]string{}

// cycle is a set of files of one layer in which each file uses each other file, directly or indirectly.
type cycle struct {
	files []string
	why   string
}

// cycles lists the permitted cycles. The list may only get shorter: the test fails for a cycle that is not listed, and for a
// listed file that is no longer in a cycle.
var cycles = []cycle{
	{[]string{"segment.go", "opensegments.go", "readcache.go", "window.go", "locate.go", "index_file.go", "index_check.go"},
		"opening a segment opens its indexes, which are checked and rebuilt by walks over the segment that may start at a batch in the read cache; and the set of open segments closes segments"},
	{[]string{"log.go", "read.go", "flush.go", "retention.go", "writer.go", "roll.go", "keeper.go", "rest.go", "readonly.go", "readonly_view.go", "readonly_last.go", "segmentinfo.go"},
		"Log holds its parts, whose methods are Log's"},
	{[]string{"transfer.go", "transfer_linux.go", "transfer_other.go"}, "the zero-copy path of a platform is a method of the transfer"},
}

// TestArchitecture checks the layering, the package comment, the sizes and the dependencies of the package.
func TestArchitecture(t *testing.T) {
	files := sources(t)
	uses := findAllUses(t, files)
	require.Empty(t, checkLayers(files, uses, layers, upward))
	require.Empty(t, checkCycles(uses, layers, cycles))
	require.Empty(t, checkPackageComments(t, files))
	all := internalSources(t)
	maps.Copy(all, files)
	require.Empty(t, checkSizes(t, all))
	mod, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	require.Empty(t, checkDependencies(t, all, string(mod)))
	require.Empty(t, checkSimulation(t, programs(t)))
}

// sources returns the text of the package's files, without the tests.
func sources(t *testing.T) map[string]string { return readSources(t, "*.go") }

// internalSources returns the text of the files of the packages in internal/, without the tests.
func internalSources(t *testing.T) map[string]string { return readSources(t, "internal/*/*.go") }

func readSources(t *testing.T, pattern string) map[string]string {
	names, err := filepath.Glob(pattern)
	require.NoError(t, err)
	files := make(map[string]string)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		files[name] = string(text)
	}
	return files
}

func parse(t *testing.T, fset *token.FileSet, files map[string]string) map[string]*ast.File {
	parsed := make(map[string]*ast.File)
	for name, text := range files {
		f, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		require.NoError(t, err)
		parsed[name] = f
	}
	return parsed
}

// use is the use in one file of a name that another file declares.
type use struct{ from, to, name string }

// findAllUses returns the uses in the files that are built on Linux, macOS or Windows.
func findAllUses(t *testing.T, files map[string]string) map[use]bool {
	uses := make(map[use]bool)
	for _, goos := range []string{"linux", "darwin", "windows"} {
		findUses(t, files, goos, uses)
	}
	return uses
}

// checkLayers reports the files without a layer, the uses of declarations of a higher layer, and the unneeded exceptions.
func checkLayers(files map[string]string, uses map[use]bool, layers [][]string, upward map[[2]string]string) (wrong []string) {
	layerOf := make(map[string]int)
	for i, names := range layers {
		for _, name := range names {
			layerOf[name] = i
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if _, ok := layerOf[name]; !ok {
			wrong = append(wrong, name+" has no layer")
		}
	}
	needed := make(map[[2]string]bool)
	for u := range uses {
		if layerOf[u.from] >= layerOf[u.to] {
			continue
		}
		edge := [2]string{u.from, u.to}
		needed[edge] = true
		if upward[edge] == "" {
			wrong = append(wrong, fmt.Sprintf("%s (layer %d) uses %s of %s (layer %d)", u.from, layerOf[u.from], u.name, u.to, layerOf[u.to]))
		}
	}
	for edge := range upward {
		if !needed[edge] {
			wrong = append(wrong, fmt.Sprintf("%s no longer uses %s: remove the exception", edge[0], edge[1]))
		}
	}
	slices.Sort(wrong)
	return wrong
}

// checkCycles reports cycles of files in a layer that are not listed, and listed files that are in no cycle.
func checkCycles(uses map[use]bool, layers [][]string, listed []cycle) (wrong []string) {
	inCycle := make(map[string]bool)
	for _, layer := range layers {
		reach := reachable(uses, layer)
		done := make(map[string]bool)
		for _, f := range layer {
			if done[f] || !reach[f][f] {
				continue
			}
			var found []string
			for _, g := range layer {
				if reach[f][g] && reach[g][f] {
					found, done[g], inCycle[g] = append(found, g), true, true
				}
			}
			if !slices.ContainsFunc(listed, func(c cycle) bool {
				return !slices.ContainsFunc(found, func(f string) bool { return !slices.Contains(c.files, f) })
			}) {
				wrong = append(wrong, fmt.Sprintf("%s use each other in a circle", strings.Join(found, ", ")))
			}
		}
	}
	for _, c := range listed {
		for _, f := range c.files {
			if !inCycle[f] {
				wrong = append(wrong, f+" is no longer in a cycle: remove it from the list")
			}
		}
	}
	return wrong
}

// reachable returns, for each file of a layer, the files of the layer that it uses, directly or through other files of the
// layer.
func reachable(uses map[use]bool, layer []string) map[string]map[string]bool {
	next := make(map[string][]string)
	for u := range uses {
		if u.from != u.to && slices.Contains(layer, u.from) && slices.Contains(layer, u.to) {
			next[u.from] = append(next[u.from], u.to)
		}
	}
	reach := make(map[string]map[string]bool)
	for _, f := range layer {
		seen := make(map[string]bool)
		for todo := []string{f}; len(todo) > 0; {
			at := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			for _, g := range next[at] {
				if !seen[g] {
					seen[g], todo = true, append(todo, g)
				}
			}
		}
		reach[f] = seen
	}
	return reach
}

// findUses adds the uses among the files that are built for goos: of package-level names, and of methods. It checks types
// without reading imports. Where that leaves the type of a selector's operand unknown, an unexported name that is no field and
// a method of only one type is taken for that method.
func findUses(t *testing.T, files map[string]string, goos string, uses map[use]bool) {
	fset := token.NewFileSet()
	ctx := build.Default
	ctx.GOOS, ctx.GOARCH, ctx.CgoEnabled = goos, "amd64", false
	ctx.OpenFile = func(p string) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(files[path.Base(p)])), nil
	}
	built := make(map[string]string)
	for name, text := range files {
		ok, err := ctx.MatchFile("", name)
		require.NoError(t, err)
		if ok {
			built[name] = text
		}
	}
	parsed := parse(t, fset, built)
	info := &types.Info{Uses: make(map[*ast.Ident]types.Object), Defs: make(map[*ast.Ident]types.Object)}
	conf := types.Config{Importer: noImports{}, Error: func(error) {}}
	pkg, _ := conf.Check("seglog", fset, slices.Collect(maps.Values(parsed)), info)

	add := func(id *ast.Ident, obj types.Object) {
		uses[use{fset.Position(id.Pos()).Filename, fset.Position(obj.Pos()).Filename, id.Name}] = true
	}
	for id, obj := range info.Uses {
		_, isFunc := obj.(*types.Func)
		if obj.Pkg() == pkg && (isFunc || obj.Parent() == pkg.Scope()) {
			add(id, obj)
		}
	}
	methods := make(map[string][]types.Object)
	for id, obj := range info.Defs {
		v, isVar := obj.(*types.Var)
		f, isFunc := obj.(*types.Func)
		if isFunc && f.Signature().Recv() != nil || isVar && v.IsField() {
			methods[id.Name] = append(methods[id.Name], obj)
		}
	}
	for _, f := range parsed {
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && info.Uses[s.Sel] == nil && !s.Sel.IsExported() {
				if m := methods[s.Sel.Name]; len(m) == 1 {
					if _, ok := m[0].(*types.Func); ok {
						add(s.Sel, m[0])
					}
				}
			}
			return true
		})
	}
}

type noImports struct{}

func (noImports) Import(string) (*types.Package, error) {
	return nil, errors.New("imports are not read")
}

// checkPackageComments checks that doc.go has the only package comment, and that no blank line hides one from godoc.
func checkPackageComments(t *testing.T, files map[string]string) (wrong []string) {
	parsed := parse(t, token.NewFileSet(), files)
	for _, name := range slices.Sorted(maps.Keys(parsed)) {
		f := parsed[name]
		if (f.Doc != nil) != (name == "doc.go") {
			wrong = append(wrong, fmt.Sprintf("%s has a package comment: %v", name, f.Doc != nil))
		}
		for _, c := range f.Comments {
			if c.End() < f.Package && c != f.Doc && !strings.HasPrefix(c.List[0].Text, "//go:build") {
				wrong = append(wrong, name+" has a detached comment before the package clause")
			}
		}
	}
	return wrong
}

// The limits keep a file short enough to read at one go, and a function to a screen or two.
const (
	maxFileLines = 500
	maxFuncLines = 80
)

// checkSizes reports the files and functions that are too long.
func checkSizes(t *testing.T, files map[string]string) (wrong []string) {
	fset := token.NewFileSet()
	parsed := parse(t, fset, files)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if n := strings.Count(files[name], "\n"); n > maxFileLines {
			wrong = append(wrong, fmt.Sprintf("%s has %d lines, at most %d are allowed", name, n, maxFileLines))
		}
		for _, decl := range parsed[name].Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := fset.Position(f.End()).Line - fset.Position(f.Pos()).Line + 1; n > maxFuncLines {
				wrong = append(wrong, fmt.Sprintf("%s of %s has %d lines, at most %d are allowed", f.Name.Name, name, n, maxFuncLines))
			}
		}
	}
	return wrong
}

// checkDependencies reports dependencies other than golang.org/x/sys and, for tests, testify.
func checkDependencies(t *testing.T, files map[string]string, mod string) (wrong []string) {
	for line := range strings.Lines(mod) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "v") || slices.Contains(fields, "indirect") {
			continue
		}
		if fields[0] != "golang.org/x/sys" && fields[0] != "github.com/stretchr/testify" {
			wrong = append(wrong, "go.mod requires "+fields[0])
		}
	}
	for name, f := range parse(t, token.NewFileSet(), files) {
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			require.NoError(t, err)
			own := strings.HasPrefix(p, "github.com/seglog/seglog/internal/")
			if first, _, _ := strings.Cut(p, "/"); strings.Contains(first, ".") && !own && !strings.HasPrefix(p, "golang.org/x/sys/") {
				wrong = append(wrong, name+" imports "+p)
			}
		}
	}
	return wrong
}

// programs returns the text of all files of the repository, without tests and the simulation.
func programs(t *testing.T) map[string]string {
	files := make(map[string]string)
	require.NoError(t, filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (filepath.ToSlash(name) == "internal/sim" || len(name) > 1 && strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go"):
			text, err := os.ReadFile(name)
			files[name] = string(text)
			return err
		}
		return nil
	}))
	return files
}

// checkSimulation reports the files that link the simulation into a program.
func checkSimulation(t *testing.T, files map[string]string) (wrong []string) {
	for name, text := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ImportsOnly)
		require.NoError(t, err)
		for _, spec := range f.Imports {
			if spec.Path.Value == `"github.com/seglog/seglog/internal/sim"` {
				wrong = append(wrong, name+" imports the simulation")
			}
		}
	}
	return wrong
}

// TestArchitectureChecks checks that each check finds the fault that it is for.
func TestArchitectureChecks(t *testing.T) {
	checkLayers := func(t *testing.T, files map[string]string, layers [][]string, upward map[[2]string]string) []string {
		return checkLayers(files, findAllUses(t, files), layers, upward)
	}
	house := [][]string{{"low.go", "low_linux.go"}, {"high.go"}}
	low := "package seglog\n\ntype low struct{}\n\nfunc (low) below() {}\n"
	high := "package seglog\n\ntype high struct{ low }\n\nfunc (h high) above() { h.below() }\n\nfunc tower() {}\n"
	files := func(name, text string) map[string]string {
		f := map[string]string{"low.go": low, "high.go": high}
		f[name] += text
		return f
	}
	require.Empty(t, checkLayers(t, files("low.go", ""), house, nil))
	for name, c := range map[string]struct{ file, text, want string }{
		"function":      {"low.go", "func f() { tower() }", "low.go (layer 0) uses tower of high.go (layer 1)"},
		"type":          {"low.go", "var x map[int]*high", "low.go (layer 0) uses high of high.go (layer 1)"},
		"method":        {"low.go", "func f(x interface{ get() high }) { x.get().above() }", "low.go (layer 0) uses above of high.go (layer 1)"},
		"open type":     {"low.go", "import \"sync/atomic\"\n\nvar p atomic.Value\n\nfunc f() { p.Load().above() }", "low.go (layer 0) uses above of high.go (layer 1)"},
		"other system":  {"low_linux.go", "package seglog\n\nfunc f() { tower() }", "low_linux.go (layer 0) uses tower of high.go (layer 1)"},
		"without layer": {"new.go", "package seglog", "new.go has no layer"},
	} {
		text := c.text
		if strings.HasPrefix(text, "import") {
			f := files("low.go", "")
			f["low.go"] = strings.Replace(low, "\n\n", "\n\n"+text+"\n\n", 1)
			require.Contains(t, checkLayers(t, f, house, nil), c.want, name)
			continue
		}
		require.Contains(t, checkLayers(t, files(c.file, text), house, nil), c.want, name)
	}
	// A local name that equals one of a higher layer is not a use of it.
	require.Empty(t, checkLayers(t, files("low.go", "func f() { tower := 1; _ = tower }"), house, nil))
	except := map[[2]string]string{{"low.go", "high.go"}: "for now"}
	require.Empty(t, checkLayers(t, files("low.go", "func f() { tower() }"), house, except))
	require.Equal(t, []string{"low.go no longer uses high.go: remove the exception"}, checkLayers(t, files("low.go", ""), house, except))

	around := map[use]bool{{"a.go", "b.go", "x"}: true, {"b.go", "c.go", "x"}: true, {"c.go", "a.go", "x"}: true, {"d.go", "a.go", "x"}: true}
	one := [][]string{{"a.go", "b.go", "c.go", "d.go"}}
	require.Equal(t, []string{"a.go, b.go, c.go use each other in a circle"}, checkCycles(around, one, nil))
	require.Empty(t, checkCycles(around, one, []cycle{{files: []string{"a.go", "b.go", "c.go"}}}))
	require.Len(t, checkCycles(around, one, []cycle{{files: []string{"a.go", "b.go"}}}), 1, "the list has only a part of the cycle")
	require.Equal(t, []string{"d.go is no longer in a cycle: remove it from the list"},
		checkCycles(around, one, []cycle{{files: []string{"a.go", "b.go", "c.go", "d.go"}}}))
	require.Empty(t, checkCycles(around, [][]string{{"a.go", "b.go", "d.go"}, {"c.go"}}, nil), "the cycle spans two layers")

	doc := "// Package seglog is one.\npackage seglog\n"
	require.Empty(t, checkPackageComments(t, map[string]string{"doc.go": doc, "x.go": "//go:build linux\n\npackage seglog\n"}))
	require.Len(t, checkPackageComments(t, map[string]string{"doc.go": doc, "x.go": doc}), 1, "a second package comment")
	require.Len(t, checkPackageComments(t, map[string]string{"doc.go": strings.Replace(doc, "\n", "\n\n", 1)}), 2, "a detached package comment")
	require.Len(t, checkPackageComments(t, map[string]string{"doc.go": doc, "x.go": "// What x is.\n\npackage seglog\n"}), 1)

	long := "package seglog\n\nfunc f() {" + strings.Repeat("\n", maxFuncLines-1) + "}\n"
	require.Empty(t, checkSizes(t, map[string]string{"x.go": long + strings.Repeat("\n", maxFileLines-maxFuncLines-2)}))
	require.Equal(t, []string{"x.go has 501 lines, at most 500 are allowed"}, checkSizes(t, map[string]string{"x.go": "package seglog\n" + strings.Repeat("\n", maxFileLines)}))
	require.Equal(t, []string{"f of x.go has 81 lines, at most 80 are allowed"}, checkSizes(t, map[string]string{"x.go": strings.Replace(long, "{", "{\n", 1)}))

	mod := "module m\n\ngo 1.24.0\n\nrequire (\n\tgolang.org/x/sys v0.38.0\n\tgithub.com/a/b v1.0.0 // indirect\n)\n"
	require.Empty(t, checkDependencies(t, nil, mod))
	require.Len(t, checkDependencies(t, nil, mod+"require github.com/a/c v1.0.0\n"), 1)
	require.Len(t, checkDependencies(t, map[string]string{"x.go": "package seglog\n\nimport _ \"github.com/stretchr/testify/require\"\n"}, mod), 1)
	require.Equal(t, []string{"x.go imports the simulation"}, checkSimulation(t, map[string]string{"x.go": "package x\n\nimport _ \"github.com/seglog/seglog/internal/sim\"\n"}))
}
