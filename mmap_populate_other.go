//go:build !linux

package seglog

import "github.com/seglog/seglog/internal/vfs"

// mapLimit returns the default of Linux, which does no harm where there is no limit.
func mapLimit() int64 { return 65530 }

func populate(m *vfs.Mapping, pos, n int64) {}

func unmapPages(m *vfs.Mapping, pos, n int64) {}

func loadPages(m *vfs.Mapping, pos, n int64) {}
