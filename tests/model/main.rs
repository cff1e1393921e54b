//! Model checking of the product's own `decide`: see docs/testing.md.

mod calls;
mod canonical;
mod check;
mod moves;
mod next;
mod operator;
mod rules;
mod search;
mod users;
mod world;

use opentunnel_api::ClientMode::{All, Destination, Source};
use operator::Specs;
use rules::Rules;
use search::{Scenario, search};
use std::time::Instant;
use world::Budget;

const ONE: Specs = &[&[(0, All)]];
/// Two Secrets, one of which is exchanged for another, and then one that wants what the others hold.
const TWO: Specs = &[&[(0, Source), (1, Destination)], &[(0, Source), (2, Destination)]];
const MORE: Specs = &[&[(0, Source)], &[(0, All)]];

/// Each kind of fault `n` times, and no more than `n` in all.
fn any(n: u8) -> Budget {
    Budget {
        all: n,
        crashes: n,
        leads: n,
        api: n,
        aws: n,
        late: n,
        watch: n,
        user: n,
        secrets: n,
        third_party: n,
        ..Budget::default()
    }
}

fn scenario(name: &'static str, specs: Specs, budget: Budget, elects: bool) -> Scenario {
    Scenario { name, specs, budget, elects, ready: false, rules: Rules::default(), max_states: usize::MAX }
}

/// Runs scenarios, prints a line for each, and fails at the first fault.
fn run(scenarios: &[Scenario]) {
    for s in scenarios {
        let begun = Instant::now();
        let found = search(s);
        let (all, seconds) = (if found.complete { "all" } else { "the first" }, begun.elapsed().as_secs());
        println!(
            "figure: model, {} | {all} {} states, {} moves, depth {}, {seconds} s",
            s.name, found.states, found.moves, found.depth
        );
        if let Some(fault) = found.fault {
            panic!("{}:\n{fault}", s.name);
        }
    }
}

/// `make model` goes further.
fn large() -> bool {
    std::env::var_os("MODEL_LARGE").is_some()
}

#[test]
fn with_a_leader_nothing_is_lost_or_doubled() {
    run(&[scenario("a fault of any kind", ONE, any(1), true)]);
    if large() {
        let ready = |name, budget| Scenario { ready: true, ..scenario(name, ONE, budget, true) };
        run(&[
            ready("when Ready, two faults of any kind", any(2)),
            // There are many more: the nearest are gone through.
            Scenario { max_states: 3_000_000, ..scenario("two faults of any kind", ONE, any(2), true) },
        ]);
    }
}

#[test]
fn with_two_secrets_nothing_is_lost_or_doubled() {
    let ready = |name, specs, budget| Scenario { ready: true, ..scenario(name, specs, budget, true) };
    run(&[
        ready("two Secrets, exchanged when Ready", TWO, any(1)),
        ready("a Secret that wants one side more", MORE, any(1)),
    ]);
    if large() {
        run(&[
            scenario("two Secrets, from the beginning", TWO, any(1), true),
            ready("two Secrets when Ready, two faults", TWO, any(2)),
            ready("a Secret that wants one side more, two faults", MORE, any(2)),
        ]);
    }
}

#[test]
fn without_a_leader_two_operators_end_well() {
    // There are far more, of any two moments of any two processes: the nearest are gone through.
    let max_states = if large() { 2_000_000 } else { 100_000 };
    let first = |s: Scenario| Scenario { max_states, ..s };
    run(&[
        first(Scenario { ready: true, ..scenario("two at once when Ready, a fault of any kind", ONE, any(1), false) }),
        first(scenario("two at once from the beginning, a fault of any kind", ONE, any(1), false)),
        first(Scenario {
            ready: true,
            ..scenario("two at once when Ready, two Secrets, exchanged", TWO, any(1), false)
        }),
        first(Scenario { ready: true, ..scenario("two at once when Ready, one side more", MORE, any(1), false) }),
    ]);
}

#[test]
fn a_retained_tunnel_stays_open_and_its_owner_tag_goes() {
    let rules = Rules { retain: true, ..Rules::default() };
    run(&[Scenario { ready: true, rules, ..scenario("deletionPolicy: Retain", ONE, any(1), true) }]);
}

#[test]
fn a_status_that_names_somebody_elses_tunnel_does_it_no_harm() {
    let budget = Budget { all: 2, forge: 1, crashes: 1, leads: 1, user: 1, secrets: 1, ..Budget::default() };
    let max_states = if large() { 1_000_000 } else { 20_000 };
    run(&[
        Scenario { max_states, ..scenario("a forged status, and another fault", ONE, budget, true) },
        Scenario {
            ready: true,
            max_states,
            ..scenario("a forged status when Ready, and another fault", ONE, budget, true)
        },
    ]);
}

#[test]
fn a_tunnel_that_aws_does_not_know_yet_is_not_taken_for_ended() {
    let budget = Budget { all: 2, lag: 1, crashes: 1, leads: 1, user: 1, aws: 1, ..Budget::default() };
    let max_states = if large() { usize::MAX } else { 50_000 };
    run(&[Scenario { max_states, ..scenario("AWS lags behind, and another fault", ONE, budget, true) }]);
}

/// The second opening of a Tunnel (reopenPolicy, Recreate, suspend: false), with a fault of any kind. The scenario is
/// there before the code: it shows what is missing. When the code can do it, this is run like the others.
#[test]
fn a_second_opening_is_what_the_code_cannot_do_yet() {
    let rules = Rules { reopens: true, ..Rules::default() };
    let budget = Budget { all: 2, ..any(1) };
    let found = search(&Scenario { ready: true, rules, ..scenario("a second opening", ONE, budget, true) });
    let wrong = found.fault.map(|fault| fault.wrong).unwrap_or_default();
    assert!(wrong.starts_with("it has ended, though another is wanted"), "{wrong}");
}

/// A rule, where it is left out, and whether there is a sweep of orphans, which would clear up after it.
struct Mutation {
    rule: &'static str,
    scenario: Scenario,
}

fn left_out(rule: &'static str, leave_out: fn(&mut Rules), change: fn(&mut Scenario)) -> Mutation {
    let budget = Budget { all: 2, ..Budget::default() };
    let mut scenario = Scenario { max_states: 300_000, ..scenario(rule, ONE, budget, true) };
    change(&mut scenario);
    leave_out(&mut scenario.rules);
    Mutation { rule, scenario }
}

#[test]
fn each_rule_that_is_left_out_is_missed() {
    let alone = |s: &mut Scenario| s.elects = false;
    let mutations = [
        left_out("the claim is not written before the call", |r| r.no_claim = true, |s| s.budget.crashes = 1),
        left_out("writes are not conditioned by resourceVersion", |r| r.unconditioned = true, |s| s.budget.secrets = 1),
        left_out("nothing is searched for before a claim", |r| r.no_search = true, |s| s.budget.crashes = 1),
        left_out("the recovery grace is zero", |r| r.no_grace = true, |s| s.budget.crashes = 1),
        left_out("a lost answer is taken for a refusal", |r| r.no_doubt = true, |s| s.budget.aws = 1),
        left_out("the attempt is a counter", |r| r.counted_attempts = true, |s| (s.elects, s.budget.api) = (false, 1)),
        left_out("a claim is acted on however old it is", |r| r.old_claims = true, alone),
        left_out(
            "a rotation is not claimed",
            |r| r.no_rotation_claim = true,
            |s| (s.elects, s.budget.secrets) = (false, 1),
        ),
        left_out(
            "that a Rotate may have come late is forgotten",
            |r| r.no_late_rotation = true,
            |s| (s.elects, s.ready, s.budget.secrets) = (false, true, 1),
        ),
        left_out(
            "the claim has no finalizer",
            |r| (r.no_finalizer, r.no_sweep) = (true, true),
            |s| (s.budget.crashes, s.budget.user) = (1, 1),
        ),
        left_out(
            "a status is taken for a proof of whose a tunnel is",
            |r| r.no_identity = true,
            |s| (s.ready, s.budget.forge, s.budget.user) = (true, 1, 1),
        ),
        left_out(
            "not-found is believed of a tunnel that was just opened",
            |r| r.no_not_found_grace = true,
            |s| s.budget.lag = 1,
        ),
        left_out(
            "a surplus tunnel is closed unread",
            |r| r.closes_unread = true,
            |s| (s.elects, s.budget.user) = (false, 1),
        ),
        left_out("there is no sweep of orphans", |r| r.no_sweep = true, |s| (s.budget.crashes, s.budget.user) = (1, 1)),
        left_out(
            "somebody else's Secret is taken for one's own",
            |r| r.foreign_is_ours = true,
            |s| s.budget.secrets = 1,
        ),
        left_out(
            "the Secrets of a tunnel that has ended stay",
            |r| r.keeps_secrets = true,
            |s| s.budget.third_party = 1,
        ),
        left_out("nobody looks at the Secrets of a Ready Tunnel", |r| r.never_looks = true, |s| s.budget.secrets = 1),
    ];
    let mut missed = Vec::new();
    for Mutation { rule, scenario } in mutations {
        let found = search(&scenario);
        let Some(fault) = found.fault else {
            missed.push(format!("{rule}: nothing is wrong in {} states, depth {}", found.states, found.depth));
            continue;
        };
        if std::env::var_os("MODEL_TRACE").is_some_and(|wanted| *rule == *wanted) {
            println!("{fault}");
        }
        let wrong = fault.wrong.split(':').next().unwrap_or_default();
        println!("figure: rule left out: {rule} | {wrong}: {} moves, {} states", fault.trace.len(), found.states);
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
