package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const dirPattern = "opentunnel-cluster-"

// makeDir makes the directory of a control plane, open to its owner only.
func makeDir(dir string) (string, error) {
	if dir == "" {
		removeStale()
		return os.MkdirTemp("", dirPattern)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(entries) > 0 {
		return "", fmt.Errorf("--dir %s is not empty: it would be removed at the end", dir)
	}
	return dir, os.Chmod(dir, 0o700)
}

// holdDir marks a directory as used for as long as this process lives.
func holdDir(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return file, syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// removeStale removes what a killed (SIGKILL) predecessor could not: its
// directory. Young ones are left alone, they may be about to be marked.
func removeStale() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPattern+"*"))
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		if lock, err := holdDir(dir); err == nil {
			os.RemoveAll(dir)
			lock.Close()
		}
	}
}
