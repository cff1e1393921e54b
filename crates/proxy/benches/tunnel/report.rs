//! What was measured, as a table and as JSON.

use crate::path::Peer;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How a peer did in one measurement.
#[derive(Default)]
struct Cell {
    /// One for each turn; a figure may have several parts.
    turns: Vec<Vec<f64>>,
    /// It could not be measured.
    failed: Option<String>,
}

struct Row {
    measure: String,
    unit: &'static str,
    cells: BTreeMap<Peer, Cell>,
}

/// All figures, in the order in which they were first measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    fn row(&mut self, measure: &str, unit: &'static str) -> &mut Row {
        let place = self.rows.iter().position(|row| row.measure == measure).unwrap_or_else(|| {
            self.rows.push(Row { measure: measure.to_owned(), unit, cells: BTreeMap::new() });
            self.rows.len() - 1
        });
        &mut self.rows[place]
    }

    /// Takes down what one turn has given: the parts of a figure, or why there is none.
    pub fn take(&mut self, measure: &str, unit: &'static str, peer: Peer, outcome: Result<Vec<f64>, String>) {
        let cell = self.row(measure, unit).cells.entry(peer).or_default();
        match outcome {
            Ok(parts) => cell.turns.push(parts),
            Err(why) => {
                eprintln!("{}, {measure}: {why}", peer.name());
                cell.failed = Some(why);
            }
        }
    }

    /// Whether it is of no use to try again.
    pub fn has_failed(&self, measure: &str, peer: Peer) -> bool {
        let row = self.rows.iter().find(|row| row.measure == measure);
        row.and_then(|row| row.cells.get(&peer)).is_some_and(|cell| cell.failed.is_some())
    }

    /// A table in Markdown, with the median of the turns.
    pub fn table(&self) -> String {
        let mut peers: Vec<Peer> = self.rows.iter().flat_map(|row| row.cells.keys().copied()).collect();
        peers.sort();
        peers.dedup();
        let names = peers.iter().map(|peer| peer.name()).collect::<Vec<_>>().join(" | ");
        let mut table = format!("| | {names} | ours of the bound |\n|---|{}---|\n", "---|".repeat(peers.len()));
        for row in &self.rows {
            let cells: Vec<_> =
                peers.iter().map(|peer| row.cells.get(peer).map_or(String::new(), Cell::text)).collect();
            let share = row.share().map_or(String::new(), |share| format!("{:.0} %", share * 100.0));
            table.push_str(&format!("| {}, {} | {} | {share} |\n", row.measure, row.unit, cells.join(" | ")));
        }
        table
    }

    /// The same, with the figures of each turn.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = row.cells.iter().map(|(peer, cell)| {
                let figures = json!({ "median": cell.median(), "turns": cell.turns, "failed": cell.failed });
                (peer.name().to_owned(), figures)
            });
            json!({ "measure": row.measure, "unit": row.unit, "peers": cells.collect::<serde_json::Map<_, _>>() })
        });
        rows.collect()
    }
}

impl Row {
    /// Of throughput: the median of what each turn says. Figures of one turn were measured side by side.
    fn share(&self) -> Option<f64> {
        let (ours, bound) = (self.cells.get(&Peer::Ours)?, self.cells.get(&Peer::TlsRelay)?);
        let shares =
            ours.turns.iter().zip(&bound.turns).filter_map(|(ours, bound)| Some(ours.first()? / bound.first()?));
        (self.unit == "MiB/s").then(|| median(shares.collect()))
    }
}

impl Cell {
    /// Of each part.
    fn median(&self) -> Vec<f64> {
        let parts = self.turns.iter().map(Vec::len).min().unwrap_or(0);
        (0..parts).map(|part| median(self.turns.iter().map(|turn| turn[part]).collect())).collect()
    }

    fn text(&self) -> String {
        match &self.failed {
            Some(_) => "fails".to_owned(),
            None => self.median().iter().map(|part| digits(*part)).collect::<Vec<_>>().join(" / "),
        }
    }
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle one; of an even number the lower of the two. NaN: there is none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
