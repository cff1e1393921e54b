//! Goes through the worlds, breadth first, and says what must hold in them.

use super::*;
use std::collections::{HashSet, VecDeque};

/// When faults stop, one leads after that many ticks: a lease that nobody renews is seen, runs out, and is seen again.
const BOUND: usize = 8;

struct Explored {
    worlds: Vec<World>,
    depth: usize,
    /// There are no others.
    whole: bool,
    /// The moves to the first state in which two lead.
    broken: Option<Vec<Move>>,
}

/// One leads, the others stand by.
fn settled(processes: usize, without: Without) -> World {
    let mut world = World::new(processes, without);
    for i in [0, 0].into_iter().chain(1..processes) {
        for what in [Move::Step(i), Move::CarryOut(i), Move::Answer(i)] {
            world = world.after(what, without);
        }
    }
    assert_eq!(world.leaders(without), 1);
    world
}

fn explore(first: World, without: Without, max_depth: usize) -> Explored {
    let first = first.canonical(without);
    let mut seen = HashSet::from([first.clone()]);
    let mut worlds = vec![first];
    let mut from: Vec<Option<(usize, Move)>> = vec![None];
    let mut queue = VecDeque::from([(0, 0)]);
    let (mut depth, mut whole) = (0, true);
    while let Some((at, steps)) = queue.pop_front() {
        depth = steps;
        if worlds[at].leaders(without) > 1 {
            let path = std::iter::successors(from[at], |(before, _)| from[*before]);
            let mut broken: Vec<Move> = path.map(|(_, what)| what).collect();
            broken.reverse();
            return Explored { worlds, depth, whole: false, broken: Some(broken) };
        }
        if steps == max_depth {
            whole = false;
            continue;
        }
        for what in worlds[at].moves() {
            let next = worlds[at].after(what, without).canonical(without);
            if seen.insert(next.clone()) {
                queue.push_back((worlds.len(), steps + 1));
                worlds.push(next);
                from.push(Some((at, what)));
            }
        }
    }
    Explored { worlds, depth, whole, broken: None }
}

/// From every state (or one in so many) one leads after [`BOUND`] ticks, and goes on leading.
fn assert_live(explored: &Explored, one_in: usize) {
    for world in explored.worlds.iter().step_by(one_in) {
        let mut later = world.clone();
        for tick in 0..2 * BOUND {
            let leaders = later.leaders(Without::Nothing);
            assert!(tick < BOUND || leaders == 1, "{leaders} lead {tick} ticks after {world:#?}");
            later = later.goes_on_well();
        }
    }
}

/// Goes through what comes after each of these; returns how many states there were, and how deep.
fn holds(firsts: Vec<(World, usize)>, one_in: usize) -> (usize, usize) {
    let (mut states, mut depth) = (0, 0);
    for (first, max_depth) in firsts {
        let explored = explore(first, Without::Nothing, max_depth);
        assert!(explored.broken.is_none(), "two lead: {:?}", explored.broken);
        assert!(explored.whole || max_depth < usize::MAX);
        assert_live(&explored, one_in);
        states += explored.worlds.len();
        depth = depth.max(explored.depth);
    }
    (states, depth)
}

#[test]
fn never_do_two_lead_and_when_faults_stop_one_does() {
    let whole = Without::Nothing;
    let firsts =
        [(World::new(2, whole), 13), (settled(2, whole), 13), (World::new(3, whole), 8), (settled(3, whole), 8)];
    let (states, depth) = holds(firsts.into(), 8);
    println!("figure: leader election, exhaustive | {states} states, depth {depth}");
}

#[test]
#[ignore = "all there is of two candidates: some minutes, with --release"]
fn never_do_two_lead_whatever_happens() {
    let whole = Without::Nothing;
    let (states, depth) = holds(vec![(World::new(2, whole), usize::MAX)], 1);
    println!("figure: leader election, all states of 2 candidates | {states} states, depth {depth}");
    let (states, depth) = holds(vec![(World::new(3, whole), 13), (settled(3, whole), 13)], 4);
    println!("figure: leader election, 3 candidates | {states} states, depth {depth}");
}

#[test]
fn each_rule_is_needed() {
    let rules = [
        Without::Versions,
        Without::Start,
        Without::Clock,
        Without::OwnClock,
        Without::SeenAtTheEnd,
        Without::ShorterDeadline,
        Without::WaitAfterDeletion,
        Without::Death,
    ];
    for without in rules {
        let explored = explore(settled(2, without), without, 16);
        let broken = explored.broken.unwrap_or_else(|| panic!("{without:?}: nothing is broken by it"));
        println!("without {without:?} two lead after {} moves: {broken:?}", broken.len());
    }
    println!("figure: leader election, rules left out | {} of {} make two lead", rules.len(), rules.len());
}
