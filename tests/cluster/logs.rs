//! The log as JSON: its fields are those of docs/logs.md.

use crate::support::World;
use crate::support::control_plane::repository;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What stands in every line.
const FRAME: [&str; 6] = ["timestamp", "level", "message", "target", "span", "spans"];

/// The fields in the first column of a table of docs/logs.md.
fn documented(section: &str) -> BTreeSet<String> {
    let docs = fs::read_to_string(repository().join("docs/logs.md")).expect("docs/logs.md");
    let (_, section) = docs.split_once(&format!("\n## {section}\n")).expect("there is such a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    cells.flat_map(|cell| cell.split(", ").map(|field| field.trim_matches('`').to_owned())).collect()
}

/// Calls `found` with what stands in the parentheses of each line of the log that the code has, but for DEBUG and TRACE.
fn each_line_of(directory: &Path, found: &mut impl FnMut(&str)) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            each_line_of(&path, found);
            continue;
        }
        let code = fs::read_to_string(&path).expect("text");
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for name in ["tracing::info!(", "tracing::warn!(", "tracing::error!(", "tracing::info_span!("] {
            code.split(name).skip(1).for_each(&mut *found);
        }
    }
}

/// The fields of `rest`, which begins after the parenthesis of a line of the log.
fn fields(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    // A span's name comes first, a line's message after its fields.
    let rest = match rest.strip_prefix('"').and_then(|rest| rest.split_once("\", ")) {
        Some(("reconcile", rest)) => rest,
        _ => rest,
    };
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in rest.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            '"' if depth == 0 => break,
            _ => {}
        }
        parts.last_mut().expect("it has one").push(c);
    }
    let name =
        |part: &String| part.split('=').next().unwrap_or_default().trim_matches([' ', '\n', '%', '?']).to_owned();
    parts.iter().map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_field_of_the_code_is_in_the_docs_and_the_other_way_round() {
    for (section, directory) in [("The operator's fields", "src"), ("The proxy's fields", "crates/proxy/src")] {
        let mut used = BTreeSet::new();
        each_line_of(&repository().join(directory), &mut |rest| used.extend(fields(rest)));
        assert_eq!(used, documented(section), "{directory} and docs/logs.md");
    }
}

#[tokio::test]
async fn each_line_is_an_object_that_names_its_tunnel() {
    let world = World::new().await;
    let settings = world.settings().flag("--log-format", "json").flag("--log-filter", "info");
    let operator = world.spawn(&settings);
    world.apply("{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}").await;
    world.wait_ready("plain").await;
    let documented = documented("The operator's fields");
    let mut opened = 0;
    for line in operator.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line} is not JSON: {e}"));
        let fields = line.as_object().expect("an object");
        let is_known = |field: &str| FRAME.contains(&field) || documented.contains(field);
        for field in fields.keys() {
            assert!(is_known(field), "{field} is not in docs/logs.md: {line}");
        }
        for field in &FRAME[..4] {
            assert!(fields.contains_key(*field), "{field} lacks: {line}");
        }
        if line["message"] == "opened a tunnel" {
            opened += 1;
            assert!(line["tunnel_id"].is_string(), "{line}");
            let span = &line["span"];
            assert_eq!((&span["name"], &span["tunnel"]), (&"reconcile".into(), &"plain".into()), "{line}");
            assert_eq!(span["namespace"], *world.name, "{line}");
        }
    }
    assert_eq!(opened, 1, "{}", operator.log());
}
