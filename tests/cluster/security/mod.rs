//! Attacks through the operator, each tried for real: docs/security.md lists them.

mod forged_status;
mod manifests;
mod scene;
mod secrets;
mod share;

use crate::support::control_plane::repository;
use std::fs;

/// The rows of docs/security.md's attacks: each names its test, which is where it says.
#[test]
fn each_attack_in_docs_security_has_its_test() {
    let docs = fs::read_to_string(repository().join("docs/security.md")).expect("docs/security.md");
    let (_, attacks) = docs.split_once("\n## Attacks\n").expect("the attacks");
    let attacks = attacks.split("\n## ").next().expect("a table");
    let rows: Vec<&str> = attacks.lines().filter(|l| l.starts_with("| ")).skip(1).collect();
    for row in &rows {
        let mut links = row.split("[`").skip(1).peekable();
        assert!(links.peek().is_some(), "no test: {row}");
        for link in links {
            let (name, rest) = link.split_once("`](../").expect("a link");
            let file = rest.split_once(')').expect("its end").0;
            let source = fs::read_to_string(repository().join(file)).expect("the file is there");
            assert!(source.contains(&format!("fn {name}(")), "{file} has no test {name}");
        }
    }
    println!("figure: confused deputy | {} attacks tried by tests, 0 succeed (or a test fails)", rows.len());
}
