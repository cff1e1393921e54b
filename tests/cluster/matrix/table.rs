//! The matrix as a table for people.

use super::lives::Life;
use super::oracle::{Rule, Violation};
use crate::support::tap::{Fault, Step};
use std::collections::BTreeSet;
use std::fmt;

/// What came of a fault at a request.
#[derive(Clone)]
pub enum Cell {
    /// The request came: the rules that were broken. None: the promise held.
    Came(Vec<Violation>),
    /// The life ended well without it.
    DidNotCome,
}

/// A life: its requests in order, and for each what came of every fault.
pub struct Rows {
    /// The life.
    pub life: Life,
    /// Violations of the run without a fault.
    pub undisturbed: Vec<Violation>,
    /// The requests.
    pub rows: Vec<(Step, Vec<Cell>)>,
}

/// All of it.
pub struct Table {
    /// A column each.
    pub faults: Vec<Fault>,
    /// The lives.
    pub lives: Vec<Rows>,
}

impl Table {
    /// Every run that broke a rule, a line each.
    pub fn violations(&self) -> Vec<String> {
        let mut all = Vec::new();
        for Rows { life, undisturbed, rows } in &self.lives {
            all.extend(undisturbed.iter().map(|violation| format!("{life}, without a fault: {violation}")));
            for (step, cells) in rows {
                for (cell, fault) in cells.iter().zip(&self.faults) {
                    all.extend(
                        cell.violations().iter().map(|violation| format!("{life}, {fault} {step}: {violation}")),
                    );
                }
            }
        }
        all
    }

    /// The rules that are broken by a fault at a request.
    pub fn broken(&self, request: &str, fault: Fault) -> BTreeSet<Rule> {
        let column = self.faults.iter().position(|f| *f == fault).expect("a column");
        let rows = self.lives.iter().flat_map(|life| &life.rows).filter(|(step, _)| step.to_string() == request);
        rows.flat_map(|(_, cells)| cells[column].violations()).map(|violation| violation.rule).collect()
    }

    /// Requests times faults.
    pub fn runs(&self) -> usize {
        self.cells().count()
    }

    /// Those whose request came.
    pub fn came(&self) -> usize {
        self.cells().filter(|cell| matches!(cell, Cell::Came(_))).count()
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.lives.iter().flat_map(|life| &life.rows).flat_map(|(_, cells)| cells)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, k: &str, request: &str, cells: Vec<String>| {
            let cells: String = cells.iter().map(|cell| format!(" {cell:<14}")).collect();
            writeln!(f, "{}", format!("{k:>4}  {request:<34}{cells}").trim_end())
        };
        for Rows { life, undisturbed, rows } in &self.lives {
            writeln!(f, "\n{life} (without a fault: {})", said(undisturbed))?;
            line(f, "k", "", self.faults.iter().map(ToString::to_string).collect())?;
            for (k, (step, cells)) in rows.iter().enumerate() {
                line(f, &(k + 1).to_string(), &step.to_string(), cells.iter().map(ToString::to_string).collect())?;
            }
        }
        Ok(())
    }
}

impl Cell {
    fn violations(&self) -> &[Violation] {
        match self {
            Self::Came(violations) => violations,
            Self::DidNotCome => &[],
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Came(violations) => f.write_str(&said(violations)),
            Self::DidNotCome => f.write_str("-"),
        }
    }
}

fn said(violations: &[Violation]) -> String {
    if violations.is_empty() {
        return "ok".into();
    }
    let rules: BTreeSet<String> = violations.iter().map(|violation| violation.rule.to_string()).collect();
    format!("RED {}", rules.into_iter().collect::<Vec<_>>().join(" "))
}
