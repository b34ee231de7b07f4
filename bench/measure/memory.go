package measure

import "golang.org/x/sys/unix"

// TouchMemory has the machine give n bytes of memory and frees them, so that what follows is not the first to touch them.
// A virtual machine whose host takes free memory back (free page reporting) pays 8 us for each page of 4 KiB then, many
// times what is measured, and whoever writes the most bytes a second the most. It is a moment's help: free memory is
// taken back after some seconds.
func TouchMemory(n int64) error {
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	return unix.Munmap(b)
}
