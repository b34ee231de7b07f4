package seglog

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// These tests compare statements in docs/ with the code. They run on Linux only, since some of the constants are in its files.

// declarations returns the names that the package and those in internal/ declare, each with the files that declare it:
// functions, types, constants and variables, and methods and fields as Type.name.
func declarations(t *testing.T) map[string][]string {
	files := sources(t)
	maps.Copy(files, internalSources(t))
	found := make(map[string][]string)
	for name, f := range parse(t, token.NewFileSet(), files) {
		for _, id := range declared(f) {
			found[id] = append(found[id], name)
		}
	}
	return found
}

func declared(f *ast.File) (names []string) {
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv != nil {
				name = typeName(d.Recv.List[0].Type) + "." + name
			}
			names = append(names, name)
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec:
					for _, id := range s.Names {
						names = append(names, id.Name)
					}
				case *ast.TypeSpec:
					names = append(names, s.Name.Name)
					for _, field := range fields(s) {
						names = append(names, s.Name.Name+"."+field.name)
					}
				}
			}
		}
	}
	return names
}

// field is a field of a struct, with the name of its type, or "" if the type has none.
type field struct{ name, typ string }

func fields(s *ast.TypeSpec) (all []field) {
	st, ok := s.Type.(*ast.StructType)
	if !ok {
		return nil
	}
	for _, f := range st.Fields.List {
		typ := typeName(f.Type)
		for _, id := range f.Names {
			all = append(all, field{id.Name, typ})
		}
		if len(f.Names) == 0 {
			all = append(all, field{typ[strings.LastIndex(typ, ".")+1:], typ})
		}
	}
	return all
}

func typeName(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.StarExpr:
		return typeName(x.X)
	case *ast.SelectorExpr:
		return typeName(x.X) + "." + x.Sel.Name
	}
	return ""
}

// page returns the text of a page of docs/, with a single space between words.
func page(t *testing.T, name string) string {
	b, err := os.ReadFile(filepath.Join("docs", name))
	require.NoError(t, err)
	return strings.Join(strings.Fields(string(b)), " ")
}

var (
	quoted     = regexp.MustCompile("`([^`\n]+)`")
	identifier = regexp.MustCompile(`^[A-Za-z]\w*(\.[A-Za-z]\w*)?$`)
	goFile     = regexp.MustCompile(`\b[a-z][\w/]*\.go\b`)
)

// The tour of the source in docs/afternoon.md must name declarations and files that exist.
func TestDocAfternoon(t *testing.T) {
	b, err := os.ReadFile("docs/afternoon.md")
	require.NoError(t, err)
	there := declarations(t)
	require.Empty(t, checkAfternoon(string(b), there))
	require.Equal(t, 10, strings.Count(string(b), "\nRead: "), "number of stops")

	// Check the check itself.
	require.Equal(t, []string{`Log.Append is not declared in "flush.go"`}, checkAfternoon("Read: `flush.go`: `Log.Append`, `Log.Sync`\n", there))
	require.Equal(t, []string{"Log.append is declared nowhere"}, checkAfternoon("The method `Log.append`.\n", there))
	require.Equal(t, []string{"floor.go does not exist"}, checkAfternoon("It is in floor.go.\n", there))
}

// checkAfternoon reports the names in a page that are declared nowhere or, in lines that begin with "Read: ", not in the file
// named before.
func checkAfternoon(page string, declared map[string][]string) (wrong []string) {
	for line := range strings.Lines(page) {
		stop, file := strings.HasPrefix(line, "Read: "), ""
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			name := m[1]
			switch in := declared[name]; {
			case strings.HasSuffix(name, ".go"):
				file = name
			case !identifier.MatchString(name): // a command
			case len(in) == 0 && !member(name, declared):
				wrong = append(wrong, name+" is declared nowhere")
			case stop && !slices.Contains(in, file):
				wrong = append(wrong, fmt.Sprintf("%s is not declared in %q", name, file))
			}
		}
		for _, name := range goFile.FindAllString(line, -1) {
			if _, err := os.Stat(name); err != nil {
				wrong = append(wrong, name+" does not exist")
			}
		}
	}
	return wrong
}

// member reports whether name is a method or field of some type, since a page may name one without its type.
func member(name string, declared map[string][]string) bool {
	for id := range declared {
		if _, last, ok := strings.Cut(id, "."); ok && last == name {
			return true
		}
	}
	return false
}

// The Go files named in the pages must exist.
func TestDocFiles(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	there := make(map[string]bool)
	for _, pattern := range []string{"*.go", "internal/*/*.go", "*/*_test.go", "torture/*/*.go"} {
		names, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, name := range names {
			there[name], there[filepath.Base(name)] = true, true
		}
	}
	for _, path := range pages {
		for _, name := range goFile.FindAllString(page(t, filepath.Base(path)), -1) {
			if name != "splice_linux.go" { // a file of Go itself
				require.True(t, there[name], "%s names %s", path, name)
			}
		}
	}
}

// The tests named in the pages must exist.
func TestDocTests(t *testing.T) {
	there := make(map[string]bool)
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, pattern := range []string{"*_test.go", "*/*_test.go", "*/*/*_test.go"} {
		names, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, name := range names {
			b, err := os.ReadFile(name)
			require.NoError(t, err)
			for _, m := range function.FindAllStringSubmatch(string(b), -1) {
				there[m[1]] = true
			}
		}
	}
	named := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	for _, name := range []string{"reliability.md", "design.md", "recovery.md", "performance.md", "format.md"} {
		for _, test := range named.FindAllString(page(t, name), -1) {
			require.True(t, there[test], "docs/%s names %s", name, test)
		}
	}
}

// isLock is the set of types that make a field a lock.
var isLock = map[string]bool{"sched.Mutex": true, "Mutex": true, "sync.Mutex": true, "sync.RWMutex": true, "commit.Group": true}

// The table of locks in docs/design.md must have each lock of the package and of internal/sched, and no other.
func TestDocLocks(t *testing.T) {
	b, err := os.ReadFile("docs/design.md")
	require.NoError(t, err)
	files := sources(t)
	maps.Copy(files, readSources(t, "internal/sched/*.go"))
	require.Empty(t, checkLocks(t, string(b), files))

	// Check the check itself.
	doc := "## Locks\n\n| lock | guards |\n|---|---|\n| `Log.mu` | the writer |\n"
	files = map[string]string{"log.go": "package seglog\n\ntype Log struct {\n\tmu Mutex\n}\n\ntype Mutex struct{ sync.Mutex }\n"}
	require.Empty(t, checkLocks(t, doc, files))
	files["other.go"] = "package seglog\n\ntype other struct {\n\ta int\n\tsync.RWMutex\n}\n"
	require.Equal(t, []string{"other.RWMutex is not in the table of locks"}, checkLocks(t, doc, files))
	delete(files, "log.go")
	delete(files, "other.go")
	require.Equal(t, []string{"Log.mu is in the table of locks and in no struct"}, checkLocks(t, doc, files))
}

func checkLocks(t *testing.T, design string, files map[string]string) (wrong []string) {
	_, section, ok := strings.Cut(design, "## Locks\n")
	require.True(t, ok)
	table, _, _ := strings.Cut(section, "\n\n| thing") // the table of owners follows
	named, there := make(map[string]bool), make(map[string]bool)
	for row := range strings.Lines(table) {
		if cells := strings.Split(row, "|"); len(cells) > 2 {
			for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
				named[m[1]] = true
			}
		}
	}
	for _, f := range parse(t, token.NewFileSet(), files) {
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.TypeSpec); ok && s.Name.Name != "Mutex" {
				for _, field := range fields(s) {
					if isLock[field.typ] {
						there[s.Name.Name+"."+field.name] = true
					}
				}
			}
			return true
		})
	}
	for name := range there {
		if !named[name] {
			wrong = append(wrong, name+" is not in the table of locks")
		}
	}
	for name := range named {
		if !there[name] {
			wrong = append(wrong, name+" is in the table of locks and in no struct")
		}
	}
	slices.Sort(wrong)
	return wrong
}

// size returns a number of bytes as the pages write it.
func size(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprint(n)
}

// count is a small number in words.
func count(n int) string {
	return [...]string{"no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen"}[n]
}

// The numbers in the pages must be the values of the constants in the code.
func TestDocConstants(t *testing.T) {
	for _, c := range []struct{ page, phrase string }{
		{"design.md", "one piece of " + size(syncPiece) + " of them (" + size(zeroPiece)},
		{"design.md", "At most " + count(maxUnsealed) + " segments wait for their seal"},
		{"design.md", "from " + size(mapIndexFrom) + " on"},
		{"design.md", "reads of " + size(scanChunk)},
		{"design.md", "from " + size(minSplice) + " on splice(2) through a pipe of " + size(pipeBytes)},
		{"design.md", "flushes of " + size(largeFlush) + " and more"},
		{"design.md", "From about " + size(largeBatch) + " a batch on pwrite"},
		{"performance.md", "for sections from " + size(minSplice) + " on"},
		{"performance.md", "pooled pipes of " + size(pipeBytes)},
		{"performance.md", "written from " + size(largePlaced) + " on rather than stored"},
		{"performance.md", "batches of " + size(largeBatch) + " and more by pwrite"},
		{"performance.md", "zeros from the first " + size(minReserve) + " on"},
		{"performance.md", "written out by pieces of " + size(syncPiece)},
		{"performance.md", "no zeros ahead of flushes of " + size(largeFlush) + " and more"},
		{"performance.md", fmt.Sprintf("and from %d to %s by MSG_MORE", minMore>>10, size(maxMore))},
		{"performance.md", "Stretches of less than " + size(stretch) + ","},
		{"performance.md", "default: 4,096 open"},
		{"recovery.md", fmt.Sprintf("at positions 0 and %d,", stateSlotGap)},
		{"recovery.md", fmt.Sprintf("found at position %d of the state file", restPos)},
		{"format.md", fmt.Sprintf("`Options.IndexBytes` (%d)", defaultIndexBytes)},
		{"format.md", fmt.Sprintf("batchLength is at least %d", headerLen-lengthOverhead)},
		{"format.md", "at most " + size(maxIndexBytes) + " and one entry"},
		{"format.md", "batches of up to " + size(maxAppend) + " together"},
		{"reliability.md", fmt.Sprintf("every operation fails once, at every point, in %d ways", len(injections))},
		{"reliability.md", "breaks the file system below the engine in " + count(len(plantedBugs)) + " known ways"},
		{"reliability.md", fmt.Sprintf("| %d of %d |", len(plantedBugs), len(plantedBugs))},
	} {
		require.True(t, strings.Contains(page(t, c.page), c.phrase), "docs/%s does not say %q", c.page, c.phrase)
	}
	require.Equal(t, 4096, defaultMaxOpenSegments, "docs/performance.md, row 15")
	require.Equal(t, time.Second, stateFlushInterval, "docs/design.md, docs/recovery.md: within a second")
}

// docs/format.md must name every file that the engine creates or looks for: the string constants of names.go, and the suffixes
// that other files declare.
func TestDocNames(t *testing.T) {
	format, seen := page(t, "format.md"), 0
	for file, f := range parse(t, token.NewFileSet(), sources(t)) {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			lit, ok := spec.Values[0].(*ast.BasicLit)
			if name := spec.Names[0].Name; ok && lit.Kind == token.STRING && (file == "names.go" || strings.HasSuffix(name, "Suffix")) {
				value, err := strconv.Unquote(lit.Value)
				require.NoError(t, err)
				require.True(t, strings.Contains(format, value), "docs/format.md does not name %q, which is %s of %s", value, name, file)
				seen++
			}
			return true
		})
	}
	require.Greater(t, seen, 12)
}

// The table of who touches which file name must have every name and suffix of the package.
func TestDocFileNames(t *testing.T) {
	page, err := os.ReadFile("docs/design.md")
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(page), "### Who touches which file name")
	require.True(t, ok)
	table, _, _ = strings.Cut(table, "\n#")
	for _, name := range []string{lockName, stateName, logSuffix, indexSuffix, timeSuffix, transactionSuffix, producerSuffix, swapSuffix, cleanedSuffix,
		nextName, rollName, cutName, stateTemp, repairTemp, tmpPrefix, repairPrefix} {
		require.Contains(t, table, "`"+name+"`")
	}
	src, err := os.ReadFile("names.go")
	require.NoError(t, err)
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ += "([^"]+)"`).FindAllStringSubmatch(string(src), -1) {
		require.Contains(t, table, "`"+m[1]+"`", "a name of names.go")
	}
}
