//! The metrics and docs/metrics.md say the same.

use super::*;
use opentunnel_api::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Names or words in backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The table of docs/metrics.md under a heading: its rows, as cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    let (_, section) = docs.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.skip(1).map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What is exposed: each metric's type, and the values of each of its labels.
#[derive(Default, Debug, PartialEq)]
struct Family {
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

fn exposed(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let (of, kind) = described.split_once(' ').unwrap();
            name = of;
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if !line.starts_with('#') {
            assert!(line.starts_with(name), "{line:?} is not of {name}");
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
            for label in labels.split(',').filter(|label| !label.is_empty() && !label.starts_with("le=")) {
                let (label, value) = label.split_once('=').unwrap();
                let values = families.get_mut(name).unwrap().labels.entry(label.to_owned()).or_default();
                values.insert(value.trim_matches('"').to_owned());
            }
        }
    }
    families
}

/// With a Tunnel of every reason, and some that stand nowhere.
fn live() -> Metrics {
    let metrics = Metrics::new();
    metrics.go_live(|| {
        let mut tunnels = ByReason::default();
        Reason::ALL.into_iter().for_each(|reason| tunnels.add(Some(&reason.to_string())));
        tunnels.add(None);
        (0..100).for_each(|n| tunnels.add(Some(&format!("reason-{n}"))));
        let queue = |operation| Queue { operation, rate: 1.0, depth: 7, shut: Some(CallErrorKind::Throttled) };
        Snapshot { tunnels, sources: 1, destinations: 2, queues: PACED.map(queue), leads: true }
    });
    metrics
}

#[test]
fn every_metric_is_in_the_docs_and_the_other_way_round() {
    let told = exposed(&live().render().unwrap());
    let told: BTreeMap<_, _> = told
        .into_iter()
        .map(|(name, family)| (name, (family.kind, family.labels.into_keys().collect::<BTreeSet<_>>())))
        .collect();
    let written = table("What there is").into_iter();
    let written: BTreeMap<_, _> =
        written.map(|row| (row[0].trim_matches('`').to_owned(), (row[1].clone(), quoted(&row[2])))).collect();
    assert_eq!(told, written);
}

#[test]
fn a_label_has_the_values_that_the_docs_list_and_no_others() {
    let mut written = BTreeMap::new();
    for row in table("Labels") {
        let values = match quoted(&row[0]).contains("version") {
            true => BTreeSet::from([env!("CARGO_PKG_VERSION").to_owned()]),
            false => quoted(&row[2]),
        };
        for metric in quoted(&row[1]) {
            written.insert((metric, row[0].trim_matches('`').to_owned()), values.clone());
        }
    }
    let mut told = BTreeMap::new();
    for (name, family) in exposed(&live().render().unwrap()) {
        told.extend(family.labels.into_iter().map(|(label, values)| ((name.clone(), label), values)));
    }
    assert_eq!(told, written);
}

#[test]
fn all_series_are_there_from_the_start_and_nothing_adds_one() {
    let metrics = live();
    let series = |text: String| -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let before = series(metrics.render().unwrap());
    for operation in Operation::ALL {
        for outcome in OUTCOMES {
            let error = |kind| CallError { kind, message: "words of AWS's".into() };
            metrics.called(operation, Duration::from_secs(1), &outcome.map_or(Ok(()), |kind| Err(error(kind))));
        }
    }
    for error in ReconcileError::ALL {
        metrics.reconciled(Duration::from_millis(1), Some(error));
    }
    metrics.adopted();
    let after = metrics.render().unwrap();
    for line in ["opentunnel_tunnels_opened_total 1", "opentunnel_tunnels_closed_total 1"] {
        assert!(after.lines().any(|l| l == line), "no {line} in {after}");
    }
    assert_eq!(before, series(after));
    println!("{} series", before.len());
}

#[test]
fn what_is_not_known_yet_is_not_told() {
    let told = exposed(&Metrics::new().render().unwrap());
    assert!(!told.contains_key("opentunnel_tunnels") && !told.contains_key("opentunnel_queue_depth"));
    assert!(told.contains_key("opentunnel_aws_calls_total"));
}
