package main

import (
	"bufio"
	"bytes"
	_ "embed"
	"io"
	"os"
)

//go:embed main.go
var ownSource []byte

// openText opens a text that can be read twice: what comes by standard input goes to a file first.
func openText(file, tmp string) (interface {
	io.ReadSeeker
	io.Closer
}, error) {
	switch file {
	case "":
		return struct {
			io.ReadSeeker
			io.Closer
		}{bytes.NewReader(ownSource), io.NopCloser(nil)}, nil
	case "-":
		f, err := os.CreateTemp(tmp, "stdin")
		if err == nil {
			_, err = io.Copy(f, os.Stdin)
		}
		return f, err
	}
	return os.Open(file)
}

// linesOf scans the lines of a text from its beginning; what stands between line feeds stays as it is.
func linesOf(text io.ReadSeeker) (*bufio.Scanner, error) {
	_, err := text.Seek(0, io.SeekStart)
	s := bufio.NewScanner(text)
	s.Buffer(make([]byte, 256<<10), 8<<20)
	s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			return i + 1, data[:i], nil
		}
		if atEOF && len(data) > 0 {
			return len(data), data, nil
		}
		return 0, nil, nil
	})
	return s, err
}
