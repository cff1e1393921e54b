//! A breadth-first search through all worlds, so that the first trace to a fault is a shortest one. (The library
//! for it, stateright, checks liveness along paths alone, which is unsound where they join or loop, as they do
//! here. What is needed besides is short.)

use crate::check;
use crate::moves::TELLS;
use crate::next::{all, calm};
use crate::rules::Rules;
use crate::world::{Budget, Specs, World};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

pub type Fingerprints = HashSet<u64, BuildHasherDefault<AsIs>>;

/// What is gone through.
#[derive(Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub specs: Specs,
    pub budget: Budget,
    /// Without: two operators work at once.
    pub elects: bool,
    /// It begins when the Tunnel is Ready, not when it was just created.
    pub ready: bool,
    pub rules: Rules,
    /// Stops there.
    pub max_states: usize,
}

#[derive(Debug)]
pub struct Found {
    pub states: usize,
    pub moves: usize,
    pub depth: usize,
    /// All was gone through.
    pub complete: bool,
    pub fault: Option<Counterexample>,
}

#[derive(Debug)]
pub struct Counterexample {
    pub wrong: String,
    pub trace: Vec<String>,
    /// How it goes on, without faults.
    pub then: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trace.iter().try_for_each(|line| writeln!(f, "    {line}"))?;
        self.then.iter().try_for_each(|line| writeln!(f, "  . {line}"))?;
        writeln!(f, "  => {}", self.wrong)
    }
}

pub fn fingerprint(world: &World) -> u64 {
    foldhash::quality::FixedState::default().hash_one(world)
}

/// Fingerprints are hashes already.
#[derive(Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are hashed")
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

type Parents = HashMap<u64, (u64, u16), BuildHasherDefault<AsIs>>;

pub fn search(s: &Scenario) -> Found {
    let attempts = !s.rules.counted_attempts;
    let mut start = World::new(Budget::default(), s.elects).canonical(attempts);
    while s.ready
        && let Some(next) = calm(&start, &s.rules, s.specs)
    {
        start = next.world;
    }
    start.left = s.budget;
    let root = fingerprint(&start);
    let mut parents = Parents::from_iter([(root, (root, 0))]);
    let mut well = Fingerprints::default();
    let (mut frontier, mut moves, mut depth) = (vec![start.clone()], 0, 0);
    while !frontier.is_empty() && parents.len() < s.max_states {
        let mut following = Vec::new();
        for world in &frontier {
            let parent = fingerprint(world);
            if let Err((wrong, then)) = check::end(world, &s.rules, s.specs, &mut well) {
                let fault = Counterexample { wrong, trace: trace(s, &parents, &start, parent), then };
                return Found { states: parents.len(), moves, depth, complete: false, fault: Some(fault) };
            }
            for (n, next) in (0..).zip(all(world, &s.rules, s.specs)) {
                moves += 1;
                if let Some(wrong) = next.wrong {
                    let mut trace = trace(s, &parents, &start, parent);
                    trace.push(format!("move {n} of it: {wrong}"));
                    let fault = Counterexample { wrong: wrong.into(), trace, then: Vec::new() };
                    return Found { states: parents.len(), moves, depth, complete: false, fault: Some(fault) };
                }
                let world = next.world.canonical(attempts);
                let print = fingerprint(&world);
                if let std::collections::hash_map::Entry::Vacant(entry) = parents.entry(print) {
                    entry.insert((parent, n));
                    following.push(world);
                }
            }
        }
        depth += 1;
        frontier = following;
    }
    Found { states: parents.len(), moves, depth, complete: frontier.is_empty(), fault: None }
}

/// The way from the start to a world.
fn trace(s: &Scenario, parents: &Parents, start: &World, mut to: u64) -> Vec<String> {
    let mut way = Vec::new();
    while let Some(&(parent, n)) = parents.get(&to).filter(|(parent, _)| *parent != to) {
        way.push(n);
        to = parent;
    }
    let mut world = start.clone();
    let mut labels = Vec::new();
    TELLS.set(true);
    for n in way.into_iter().rev() {
        let next = all(&world, &s.rules, s.specs).swap_remove(n.into());
        labels.push(next.label);
        world = next.world.canonical(!s.rules.counted_attempts);
    }
    TELLS.set(false);
    labels
}
