// Package examples holds the tests of properties that all examples share.
package examples

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// build builds the programs of this module, and returns their paths by name.
func build(t *testing.T) map[string]string {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command: ", err)
	}
	dir := t.TempDir()
	out, err := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "./...").CombinedOutput()
	require.NoError(t, err, "%s", out)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	programs := map[string]string{}
	for _, f := range files {
		programs[strings.TrimSuffix(f.Name(), ".exe")] = filepath.Join(dir, f.Name())
	}
	return programs
}

func status(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// TestCommandLines checks that every program explains itself with -h, and refuses arguments that it does not understand
// without output or files.
func TestCommandLines(t *testing.T) {
	if testing.Short() {
		t.Skip("builds every example")
	}
	programs := build(t)
	require.GreaterOrEqual(t, len(programs), 7)
	for name, path := range programs {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command(path, "-h").CombinedOutput()
			require.NoError(t, err)
			about, _, _ := strings.Cut(string(out), "\n")
			require.Regexp(t, "^"+name+" [a-z].*\\.$", about, "the first line must be a sentence")
			require.Contains(t, string(out), "go run ./examples/"+name)

			for _, args := range [][]string{{"mydir"}, {"-nonsense"}} {
				cmd := exec.Command(path, args...)
				cmd.Dir = t.TempDir()
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				require.Equal(t, 2, status(cmd.Run()), args)
				require.Empty(t, stdout.String(), args)
				require.Contains(t, stderr.String(), strings.TrimPrefix(args[0], "-"))
				left, err := os.ReadDir(cmd.Dir)
				require.NoError(t, err)
				require.Empty(t, left)
			}
		})
	}
}

// TestTable checks that the README lists every example and no other.
func TestTable(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	mains, err := filepath.Glob("*/main.go")
	require.NoError(t, err)
	for _, path := range mains {
		path = filepath.ToSlash(path)
		require.Contains(t, string(readme), "("+path+")")
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		name, _, _ := strings.Cut(path, "/")
		// The header must begin with the name of the example, and show how to run it.
		first, _, _ := strings.Cut(string(text), "\npackage ")
		require.True(t, strings.HasPrefix(strings.ToLower(first), "// "+name+" "), path)
		require.Contains(t, first, "go run", path)
	}
	require.Equal(t, len(mains), strings.Count(string(readme), "/main.go)"))
}
