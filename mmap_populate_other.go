//go:build !linux

package seglog

// mapLimit returns the default of Linux, which does no harm where there is no limit.
func mapLimit() int64 { return 65530 }

func (m *mapping) populate(pos, n int64) {}

func (m *mapping) unmapPages(pos, n int64) {}

func (m *mapping) load(pos, n int64) {}
