// What a user names as the source of a run: a folder, a file or a git address; as the API has it.
//
// It must never leave a file out in silence that terraform would read, nor send one that holds a state.
package main

import (
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// The API has the same bounds.
	maxInlineBytes = 128 * 1024
	maxInlineFiles = 64
	// Of a folder that is looked through at all: nobody means his home.
	maxFilesSeen = 10_000
)

// isGit: no path on this machine.
func isGit(text string) bool {
	return strings.Contains(text, "://") || strings.HasPrefix(text, "git::") || strings.HasPrefix(text, "git@")
}

// gitSource reads an address as terraform's modules have it: https://host/repository.git//path?ref=v1.
func gitSource(text string) (map[string]any, error) {
	address, err := url.Parse(strings.TrimPrefix(text, "git::"))
	if err != nil || address.Scheme != "https" && address.Scheme != "http" {
		return nil, fmt.Errorf("%s: give an address that begins with https://; for a private repository, or ssh, write a TerraformTask with source.git.secretRef and use -f", text)
	}
	git := map[string]any{}
	query := address.Query()
	if ref := query.Get("ref"); ref != "" {
		git["ref"] = ref
	}
	query.Del("ref")
	if len(query) > 0 {
		return nil, fmt.Errorf("%s: the only parameter that a git address may have is ref", text)
	}
	repository, path, hasPath := strings.Cut(address.Path, "//")
	if path = strings.Trim(path, "/"); hasPath && path != "" {
		git["path"] = path
	}
	address.Path, address.RawPath, address.RawQuery = repository, "", ""
	git["url"] = address.String()
	return map[string]any{"git": git}, nil
}

// inlineSource reads the files of a folder, or one file.
func inlineSource(root string) (map[string]any, error) {
	paths, err := filesOf(root)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(paths)), isTerraform) {
		return nil, fmt.Errorf("%s has no .tf file: name the folder that you would run terraform in", root)
	}
	if err := areFew(root, paths); err != nil {
		return nil, err
	}
	files := map[string]any{}
	for name, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if !utf8.Valid(text) {
			return nil, fmt.Errorf("%s is no text, and an inline source holds nothing else: run it from a git repository", path)
		}
		files[name] = string(text)
	}
	return map[string]any{"inline": files}, nil
}

func isTerraform(name string) bool {
	isNested := strings.Contains(name, "/")
	return !isNested && (strings.HasSuffix(name, ".tf") || strings.HasSuffix(name, ".tofu") || strings.HasSuffix(name, ".tf.json"))
}

// filesOf is each file's path in the source, and where it is here.
func filesOf(root string) (map[string]string, error) {
	whole, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	if about, err := os.Stat(whole); err != nil {
		return nil, err
	} else if !about.IsDir() {
		return map[string]string{filepath.Base(root): whole}, nil
	}
	paths := map[string]string{}
	err = filepath.WalkDir(whole, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == whole {
			return err
		}
		if isLeftOut(entry.Name()) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.IsDir() {
			return nil
		}
		if err := isInside(whole, path); err != nil {
			return err
		}
		name, err := filepath.Rel(whole, path)
		if err != nil {
			return err
		}
		paths[filepath.ToSlash(name)] = path
		if len(paths) > maxFilesSeen {
			return fmt.Errorf("%s has more than %d files: %s", root, maxFilesSeen, otherWays)
		}
		return nil
	})
	return paths, err
}

// isLeftOut: what terraform itself, or a tool beside it, has made there. A state may hold every secret.
func isLeftOut(name string) bool {
	switch name {
	case ".terraform", ".git", ".hg", ".svn", ".terragrunt-cache", ".DS_Store", "crash.log":
		return true
	}
	return strings.HasSuffix(name, ".tfstate") || strings.Contains(name, ".tfstate.") || strings.HasSuffix(name, ".tfplan")
}

// isInside: a regular file, or a link to one in the same folder.
func isInside(root, path string) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	about, err := os.Stat(target)
	if err != nil {
		return err
	}
	below, err := filepath.Rel(root, target)
	if err != nil || !filepath.IsLocal(below) || !about.Mode().IsRegular() {
		return fmt.Errorf("%s is no file of %s itself: replace it by a copy, or run from a git repository", path, root)
	}
	return nil
}

const otherWays = "push them to a git repository and give its address, or put them into a ConfigMap and use --config-map"

func areFew(root string, paths map[string]string) error {
	var total int64
	sizes := map[string]int64{}
	for name, path := range paths {
		about, err := os.Stat(path)
		if err != nil {
			return err
		}
		sizes[name] = about.Size()
		total += about.Size()
	}
	if len(paths) <= maxInlineFiles && total <= maxInlineBytes {
		return nil
	}
	names := slices.Collect(maps.Keys(paths))
	slices.SortFunc(names, func(a, b string) int { return int(sizes[b] - sizes[a]) })
	var largest []string
	for _, name := range names[:min(3, len(names))] {
		largest = append(largest, fmt.Sprintf("%s (%d)", name, sizes[name]))
	}
	return fmt.Errorf("%s has %d files of %d bytes, and a task itself holds at most %d of %d: %s; the largest are %s",
		root, len(paths), total, maxInlineFiles, maxInlineBytes, otherWays, strings.Join(largest, ", "))
}
