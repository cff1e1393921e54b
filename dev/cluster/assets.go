package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// programs are the names of what a control plane needs. Built, they are one
// program (cmd/controlplane) that has four names.
var programs = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kubectl"}

// nodePrograms are what a cluster with a node needs besides. They are one
// program, too, another one: it has all of kubelet, which the first leaves out.
var nodePrograms = []string{"kubelet", "kube-proxy", "kube-scheduler"}

// needed are the programs of a control plane, or of a cluster with a node.
func needed(node bool) []string {
	if node {
		return append(slices.Clone(programs), nodePrograms...)
	}
	return programs
}

// source is what the programs are built from. It is part of this program, so
// that it can be called from anywhere and knows what a built program was made
// of.
//
//go:embed go.mod go.sum cmd kubernetes
var source embed.FS

func build(ctx context.Context, node bool) error {
	dir, err := ensurePrograms(ctx, needed(node))
	if err == nil {
		_, err = fmt.Println(dir)
	}
	return err
}

// ensurePrograms builds what neither KUBEBUILDER_ASSETS nor the cache holds and
// returns a directory with all the named programs.
func ensurePrograms(ctx context.Context, names []string) (string, error) {
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	missing := names
	if assets != "" {
		var err error
		if assets, err = filepath.Abs(assets); err != nil {
			return "", err
		}
		missing = lacking(assets, names)
		if len(missing) == 0 {
			return assets, nil
		}
	}
	root, err := cacheDir()
	if err != nil {
		return "", err
	}
	if err := chooseKubernetes(); err != nil {
		return "", err
	}
	key, err := cacheKey()
	if err != nil {
		return "", err
	}
	cache := filepath.Join(root, "cluster", key)
	built := filepath.Join(cache, "bin")
	if todo := lacking(built, missing); len(todo) > 0 {
		if assets != "" {
			say("KUBEBUILDER_ASSETS=%s lacks %s", assets, strings.Join(missing, ", "))
		}
		if err := buildLocked(ctx, cache, built, missing); err != nil {
			return "", err
		}
	}
	if len(missing) == len(names) {
		return built, nil
	}
	return linkView(cache, built, assets, names, missing)
}

// lacking returns those of the named programs that dir does not hold.
func lacking(dir string, names []string) []string {
	var out []string
	for _, name := range names {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			out = append(out, name)
		}
	}
	return out
}

// linkView makes a directory with a link to each program: some in assets, some
// in built.
func linkView(cache, built, assets string, names, missing []string) (string, error) {
	id := sha256.Sum256([]byte(assets + "\n" + strings.Join(names, "\n") + "\n\n" + strings.Join(missing, "\n")))
	view := filepath.Join(cache, fmt.Sprintf("assets-%x", id[:6]))
	if err := os.MkdirAll(view, 0o755); err != nil {
		return "", err
	}
	for _, name := range names {
		target, link := filepath.Join(assets, name), filepath.Join(view, name)
		if slices.Contains(missing, name) {
			target = filepath.Join(built, name)
		}
		if old, err := os.Readlink(link); err == nil && old == target {
			continue
		}
		temp := fmt.Sprintf("%s.%d", link, os.Getpid())
		if err := os.Symlink(target, temp); err != nil {
			return "", err
		}
		if err := os.Rename(temp, link); err != nil {
			return "", err
		}
	}
	return view, nil
}

// cacheDir is where the project keeps what it builds, outside the source tree.
func cacheDir() (string, error) {
	if dir := os.Getenv("OPENTUNNEL_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "opentunnel-operator"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for built programs (%w): set OPENTUNNEL_CACHE", err)
	}
	return filepath.Join(home, ".cache", "opentunnel-operator"), nil
}

// cacheKey names everything that a built program depends on.
func cacheKey() (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOOS, runtime.GOARCH, buildFlags(), lean)
	err := fs.WalkDir(source, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasPrefix(path, otherKubernetes) && !strings.HasPrefix(path, goMod) {
			return err
		}
		data, err := source.ReadFile(path)
		fmt.Fprintf(hash, "%s %d\n%s", path, len(data), data)
		return err
	})
	return fmt.Sprintf("%x", hash.Sum(nil)[:8]), err
}

// lockFile waits until no other process holds the lock. It is released when the
// file is closed, or its holder dies.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if first {
			say("another build is under way: waiting for it")
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
