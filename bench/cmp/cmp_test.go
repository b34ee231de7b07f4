package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const output = `goos: linux
BenchmarkAppend/size=128-2   	 1000	  120 ns/op	 1.2 MB/s	  0 B/op	  %0 allocs/op
BenchmarkRead-2              	 1000	  900 ns/op	  128 B/op	  1 allocs/op
BenchmarkNoMem-2             	 1000	  900 ns/op
PASS
`

func TestParseAllocs(t *testing.T) {
	out := strings.ReplaceAll(output, "%0", "0")
	require.Equal(t, map[string][]float64{"BenchmarkAppend/size=128-2": {0, 0}, "BenchmarkRead-2": {1, 1}}, parseAllocs(out+out))
}

func TestGrownNamesOnlyGrownBenchmarks(t *testing.T) {
	base := map[string][]float64{"A": {0, 0, 0}, "B": {2, 2, 2}, "Gone": {1}}
	require.NoError(t, grown(base, map[string][]float64{"A": {0, 1, 0}, "B": {1, 1, 1}, "New": {99}}))
	err := grown(base, map[string][]float64{"A": {1, 1, 0}, "B": {2, 2, 2}})
	require.ErrorContains(t, err, "A: 1 allocs/op, 0 at the base")
	require.NotContains(t, err.Error(), "B:")
	require.Error(t, grown(base, map[string][]float64{"New": {0}}), "a comparison of no benchmarks must fail")
}

// TestComparisonFailsOnGrowth runs a whole comparison on a small repository.
func TestComparisonFailsOnGrowth(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	dir := t.TempDir()
	git := func(args ...string) {
		out, err := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.org"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	write := func(name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	bench := func(allocs string) string {
		return "package p\n\nimport \"testing\"\n\nvar sink []byte\n\nfunc BenchmarkX(b *testing.B) {\n\tfor range b.N {\n\t\t" + allocs + "\n\t}\n}\n"
	}
	write("go.mod", "module p\n\ngo 1.24\n")
	write("p_test.go", bench("_ = sink"))
	git("init", "-q")
	git("add", ".")
	git("commit", "-q", "-m", "base")
	c := comparison{ref: "HEAD", bench: ".", time: "10x", count: 3, root: dir}
	var out strings.Builder
	require.NoError(t, c.run(&out))
	require.Contains(t, out.String(), "allocs/op")
	write("p_test.go", bench("sink = make([]byte, 100)"))
	require.ErrorContains(t, c.run(&out), "BenchmarkX")
}
