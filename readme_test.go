package seglog

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

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
