package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// store is what an archive has to be able to do. Object storage does it as it is: an object is there as a whole or not
// at all.
type store interface {
	put(name string, from io.Reader) error  // when it returns, the object is on stable storage
	get(name string) (io.ReadCloser, error) // fs.ErrNotExist if there is none
	remove(name string) error
}

// dirStore is a directory. What is being written lies in a directory below it, which is emptied at the start: a kill
// leaves no half object.
type dirStore struct{ dir, incoming string }

func openStore(dir string) (*dirStore, error) {
	s := &dirStore{dir, filepath.Join(dir, "incoming")}
	if err := os.RemoveAll(s.incoming); err != nil {
		return nil, err
	}
	return s, os.MkdirAll(s.incoming, 0o755)
}

func (s *dirStore) put(name string, from io.Reader) (err error) {
	path := filepath.Join(s.incoming, name)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(s.dir, name)); err != nil {
		return err
	}
	return syncDir(s.dir)
}

func (s *dirStore) get(name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(s.dir, name))
}

func (s *dirStore) remove(name string) error { return os.Remove(filepath.Join(s.dir, name)) }

// syncDir makes the names in a directory durable. Windows has no such call, and needs none.
func syncDir(dir string) error {
	if filepath.Separator == '\\' {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
