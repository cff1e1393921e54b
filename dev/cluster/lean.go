package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// What is not compiled, though Kubernetes' own mains import it: 250 of 2700
// packages. go takes other files in the place of these (-overlay), "" for none.
var lean = []struct{ module, files, instead string }{
	// Of all of kubelet the collector of dead Pods wants one line.
	{"k8s.io/kubernetes", "pkg/kubelet/eviction/*.go", ""},
	{"k8s.io/kubernetes", "pkg/kubelet/eviction/helpers.go", "cmd/lean/eviction.go"},
	// Helps tests, and has all of client-go's fakes come along.
	{"k8s.io/apiserver", "pkg/admission/plugin/policy/generic/policy_test_context.go", ""},
}

// makeLean prepares src for a build without what is not needed. go lets no file
// be replaced in its cache of modules, so the modules get another path to them.
func (p *progress) makeLean(ctx context.Context, src string) (flag string, err error) {
	links := map[string]string{}
	download, edit := []string{"mod", "download", "-json"}, []string{"mod", "edit"}
	for _, l := range lean {
		if links[l.module] == "" {
			links[l.module] = filepath.Join(src, "lean", filepath.Base(l.module))
			download = append(download, l.module)
			edit = append(edit, "-replace="+l.module+"=./lean/"+filepath.Base(l.module))
		}
	}
	var out bytes.Buffer
	if err := p.run(ctx, src, &out, download); err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(src, "lean"), 0o755); err != nil {
		return "", err
	}
	for decoder := json.NewDecoder(&out); ; {
		var module struct{ Path, Dir string }
		if err := decoder.Decode(&module); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", fmt.Errorf("go mod download -json: %w", err)
		}
		if err := os.Symlink(module.Dir, links[module.Path]); err != nil {
			return "", err
		}
	}
	if err := p.run(ctx, src, nil, edit); err != nil {
		return "", err
	}
	replace := map[string]string{}
	for _, l := range lean {
		paths, err := filepath.Glob(filepath.Join(links[l.module], l.files))
		if err != nil {
			return "", err
		}
		for _, path := range paths {
			if replace[path] = l.instead; l.instead != "" {
				replace[path] = filepath.Join(src, l.instead)
			}
		}
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(src, "lean.json")
	return "-overlay=" + overlay, os.WriteFile(overlay, data, 0o644)
}
