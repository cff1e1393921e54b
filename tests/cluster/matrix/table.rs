//! The matrix as a table for people.

use super::oracle::{Rule, Violation};
use crate::support::tap::{Fault, Step};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// What came of a fault at a request.
#[derive(Clone)]
pub enum Cell {
    /// The request came: the rules that were broken. None: the promise held.
    Came(Vec<Violation>),
    /// The life ended well without it.
    DidNotCome,
    /// It cannot happen to this request.
    Cannot,
}

/// A life: its requests in order, and for each what came of every fault.
#[derive(Clone)]
pub struct Rows {
    /// The life.
    pub life: String,
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

    /// Requests times the faults that can happen to them.
    pub fn runs(&self) -> usize {
        self.cells().filter(|cell| !matches!(cell, Cell::Cannot)).count()
    }

    /// Its figures.
    pub fn figures(&self, took: Duration) -> String {
        let requests: usize = self.lives.iter().map(|life| life.rows.len()).sum();
        format!(
            "{} runs = {} lives, {requests} requests x {} faults; {} did not come; {} broken; {:.0} s",
            self.came(),
            self.lives.len(),
            self.faults.len(),
            self.runs() - self.came(),
            self.violations().len(),
            took.as_secs_f64(),
        )
    }

    /// Those whose request did not come, but for DescribeTunnel: the rolling refresh calls it too, now and then,
    /// also when the life was listed.
    pub fn missed(&self) -> usize {
        let rows = self.lives.iter().flat_map(|life| &life.rows);
        let due = rows.filter(|(step, _)| step.request != "AWS DescribeTunnel");
        due.flat_map(|(_, cells)| cells).filter(|cell| matches!(cell, Cell::DidNotCome)).count()
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
            let widths = self.faults.iter().map(|fault| fault.to_string().len().max(5));
            let cells: String = cells.iter().zip(widths).map(|(cell, width)| format!("  {cell:<width$}")).collect();
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
            Self::DidNotCome | Self::Cannot => &[],
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Came(violations) => f.write_str(&said(violations)),
            Self::DidNotCome => f.write_str("-"),
            Self::Cannot => Ok(()),
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
