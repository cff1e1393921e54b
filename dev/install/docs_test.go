package install

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const tableHead = "| value | default | |\n|---|---|---|\n"

func TestTheChartsPageHasAllValuesAndTheirDefaults(t *testing.T) {
	generated(t, "deploy/chart/README.md", func(page string) string {
		before, rest, found := strings.Cut(page, tableHead)
		if !found {
			t.Fatal("there is no table")
		}
		_, after, _ := strings.Cut(rest, "\n\n")
		return before + tableHead + strings.Join(table(t, values(t), ""), "\n") + "\n\n" + after
	})
}

func TestTheChartsCRDIsACopy(t *testing.T) {
	generated(t, "deploy/chart/files/tunnels.yaml", func(string) string { return read(t, "crds/tunnels.yaml") })
}

func TestTheChartsAlertsAreACopy(t *testing.T) {
	generated(t, "deploy/chart/files/prometheusrule.yaml", func(string) string { return read(t, "deploy/monitoring/prometheusrule.yaml") })
}

// generated compares a file with what it should be, or writes it where UPDATE_DOCS is set (`make docs`).
func generated(t *testing.T, path string, should func(string) string) {
	t.Helper()
	text := read(t, path)
	want := should(text)
	if text == want {
		return
	}
	if os.Getenv("UPDATE_DOCS") == "" {
		t.Fatalf("%s is old: make docs", path)
	}
	if err := os.WriteFile(filepath.Join(repository, path), []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// values is values.yaml, with its comments.
func values(t *testing.T) *yaml.Node {
	t.Helper()
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(read(t, "deploy/chart/values.yaml")), &document); err != nil {
		t.Fatal(err)
	}
	return document.Content[0]
}

// table has a row for each value that has a comment; what has none is a group.
func table(t *testing.T, node *yaml.Node, prefix string) []string {
	var rows []string
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.HeadComment == "" {
			if value.Kind != yaml.MappingNode || len(value.Content) == 0 {
				t.Errorf("%s%s has no comment in values.yaml", prefix, key.Value)
			}
			rows = append(rows, table(t, value, prefix+key.Value+".")...)
			continue
		}
		var standard any
		if err := value.Decode(&standard); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(standard)
		if err != nil {
			t.Fatal(err)
		}
		// The comment of the file comes before an empty line.
		paragraphs := strings.Split(key.HeadComment, "\n\n")
		words := strings.ReplaceAll(strings.TrimPrefix(paragraphs[len(paragraphs)-1], "# "), "\n# ", " ")
		cell := fmt.Sprintf("`%s`", text)
		if value.Kind != yaml.ScalarNode && len(value.Content) > 0 {
			cell = "see [values.yaml](values.yaml)"
		}
		rows = append(rows, fmt.Sprintf("| `%s%s` | %s | %s |", prefix, key.Value, cell, words))
	}
	return rows
}

func TestTheSchemaHasAllValuesAndNoOthers(t *testing.T) {
	var schema object
	if err := json.Unmarshal([]byte(read(t, "deploy/chart/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	// Helm sets it where the chart is another's dependency.
	delete(schema["properties"].(object), "global")
	same(t, strings.Join(properties(schema, ""), "\n"), strings.Join(keys(values(t), ""), "\n"))
}

// keys are the paths of all values; a map that a user fills is one value.
func keys(node *yaml.Node, prefix string) []string {
	var paths []string
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		path := prefix + key.Value
		if value.Kind == yaml.MappingNode && len(value.Content) > 0 && key.HeadComment == "" {
			paths = append(paths, keys(value, path+".")...)
		} else {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

func properties(schema any, prefix string) []string {
	var paths []string
	for name, property := range at(schema, "properties").(object) {
		if inner := at(property, "properties"); inner != nil {
			paths = append(paths, properties(property, prefix+name+".")...)
		} else {
			paths = append(paths, prefix+name)
		}
	}
	slices.Sort(paths)
	return paths
}
