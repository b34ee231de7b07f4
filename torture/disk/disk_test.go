//go:build linux

package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The other tests rely on the simulated disk: in a power cut it must keep flushed writes and lose the others, and it must fail
// writes on demand. The last part shows that those tests have something to find: a program that rewrites the same bytes after
// an EIO of fsync loses them on ext4.
func TestDisk(t *testing.T) {
	for _, f := range FileSystems {
		t.Run(f.Name, func(t *testing.T) {
			m := newMachine(t, f)
			path := func(name string) string { return filepath.Join(m.mnt, name) }
			data := bytes.Repeat(mark, 3*blockSize/len(mark))
			write := func(name string) (*os.File, error) {
				file, err := os.Create(path(name))
				require.NoError(t, err)
				t.Cleanup(func() { file.Close() })
				_, err = file.Write(data)
				require.NoError(t, err)
				return file, file.Sync()
			}
			kept, err := write("kept")
			require.NoError(t, err)
			syncDir(t, m.mnt)
			require.NoError(t, kept.Close())

			m.disk.FailWrites(mark)
			naive, err := write("naive")
			m.disk.FailWrites(nil)
			require.ErrorIs(t, err, syscall.EIO)
			require.NotZero(t, m.disk.Failed())
			_, err = naive.WriteAt(data, 0)
			require.NoError(t, err)
			require.NoError(t, naive.Sync())
			syncDir(t, m.mnt)
			got, err := os.ReadFile(path("naive"))
			require.NoError(t, err)
			require.Equal(t, data, got, "before the power cut")
			require.NoError(t, naive.Close())
			require.NoError(t, os.WriteFile(path("lost"), data, 0o600))

			m.boot(t, m.disk.PowerCut(nil))
			got, err = os.ReadFile(path("kept"))
			require.NoError(t, err)
			require.Equal(t, data, got)
			got, _ = os.ReadFile(path("lost"))
			require.NotEqual(t, data, got, "unflushed data survived the power cut")
			got, _ = os.ReadFile(path("naive"))
			t.Logf("bytes rewritten in place after a failed fsync, and flushed, survived the power cut: %v", bytes.Equal(data, got))
		})
	}
}

func syncDir(t *testing.T, dir string) {
	d, err := os.Open(dir)
	require.NoError(t, err)
	require.NoError(t, d.Sync())
	require.NoError(t, d.Close())
}
