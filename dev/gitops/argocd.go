package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	lua "github.com/yuin/gopher-lua"
	luajson "layeh.com/gopher-json"
)

// Health is what a health.lua returns.
type Health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

// Action is a button, as a discovery.lua returns it.
type Action struct {
	Name        string `json:"name"`
	Disabled    bool   `json:"disabled,omitempty"`
	IconClass   string `json:"iconClass,omitempty"`
	DisplayName string `json:"displayName,omitempty"`
}

// Rules are Argo CD's rules for one kind: a folder of its resource_customizations. They are run as Argo CD runs them
// (util/lua/lua.go there): the same Lua, with the libraries that every script has, and no others.
type Rules string

// Health is what Argo CD shows of an object.
func (r Rules) Health(object map[string]any) (Health, error) {
	var health Health
	err := r.run("health.lua", object, &health)
	return health, err
}

// Actions are the buttons of an object, by name.
func (r Rules) Actions(object map[string]any) (map[string]Action, error) {
	actions := map[string]Action{}
	err := r.run("actions/discovery.lua", object, &actions)
	for name, action := range actions {
		action.Name = name
		actions[name] = action
	}
	return actions, err
}

// Act is the object after an action.
func (r Rules) Act(action string, object map[string]any) (map[string]any, error) {
	var after map[string]any
	if err := r.run(filepath.Join("actions", action, "action.lua"), object, &after); err != nil {
		return nil, err
	}
	return keepEmptyMaps(after, object).(map[string]any), nil
}

// argocd prints the patch that Argo CD sends when the button is pressed: a JSON merge patch.
func argocd(rules Rules, action string) error {
	before, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var object map[string]any
	if err := json.Unmarshal(before, &object); err != nil {
		return err
	}
	actions, err := rules.Actions(object)
	if err != nil {
		return err
	}
	if button, ok := actions[action]; !ok || button.Disabled {
		return fmt.Errorf("%s cannot be pressed: %v", action, actions)
	}
	changed, err := rules.Act(action, object)
	if err != nil {
		return err
	}
	after, err := json.Marshal(changed)
	if err != nil {
		return err
	}
	patch, err := jsonpatch.CreateMergePatch(before, after)
	if err != nil {
		return err
	}
	fmt.Println(string(patch))
	return nil
}

func (r Rules) run(file string, object map[string]any, result any) error {
	script, err := os.ReadFile(filepath.Join(string(r), file))
	if err != nil {
		return err
	}
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		state.Push(state.NewFunction(open))
		state.Push(lua.LString(name))
		if err := state.PCall(1, 0, nil); err != nil {
			return err
		}
	}
	state.PreloadModule(lua.OsLibName, safeOs)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", luajson.DecodeValue(state, object))
	if err := state.DoString(string(script)); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return fmt.Errorf("%s: %w", file, errors.New("it returns no table"))
	}
	text, err := luajson.Encode(table)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return json.Unmarshal(text, result)
}

// safeOs is what Argo CD leaves of the library `os`, by require alone.
func safeOs(state *lua.LState) int {
	state.Push(state.NewFunction(lua.OpenOs))
	state.Call(0, 1)
	all := state.Get(-1).(*lua.LTable)
	state.Pop(1)
	safe := state.NewTable()
	for _, name := range []string{"time", "date"} {
		safe.RawSetString(name, all.RawGetString(name))
	}
	state.SetGlobal(lua.OsLibName, lua.LNil)
	state.Push(safe)
	return 1
}

// keepEmptyMaps puts right what Lua cannot tell apart: an empty map comes back as an empty list.
func keepEmptyMaps(after, before any) any {
	switch after := after.(type) {
	case map[string]any:
		before, _ := before.(map[string]any)
		for key, value := range after {
			after[key] = keepEmptyMaps(value, before[key])
		}
	case []any:
		if before, ok := before.(map[string]any); ok && len(after) == 0 {
			return before
		}
		before, _ := before.([]any)
		for i := range min(len(after), len(before)) {
			after[i] = keepEmptyMaps(after[i], before[i])
		}
	}
	return after
}
