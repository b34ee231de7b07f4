//go:build !linux

package seglog

func (m *mapping) populate(pos, n int64) {}

func (m *mapping) unmapPages(pos, n int64) {}

func (m *mapping) load(pos, n int64) {}
