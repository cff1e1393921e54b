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
use opentunnel_api::ReopenPolicy;
use rules::Rules;
use search::{Scenario, search};
use std::time::Instant;
use world::{Budget, Spec, Specs};

const ONE: Specs = &[Spec::of(&[(0, All)])];
/// Two Secrets, one of which is exchanged for another, and then one that wants what the others hold.
const TWO: Specs = &[Spec::of(&[(0, Source), (1, Destination)]), Spec::of(&[(0, Source), (2, Destination)])];
const MORE: Specs = &[Spec::of(&[(0, Source)]), Spec::of(&[(0, All)])];
/// The user suspends it, and wants it back.
const SUSPENDED: Specs = &[ONE[0], Spec { suspend: true, ..ONE[0] }, ONE[0]];
/// Something that AWS cannot change on an open tunnel.
const CHANGED: Specs = &[ONE[0], Spec { request: 1, ..ONE[0] }];
/// A tag that gets another value, and then goes.
const TAGGED: Specs = &[Spec { tag: 1, ..ONE[0] }, Spec { tag: 2, ..ONE[0] }, ONE[0]];
/// A tag that comes, and then goes.
const TAGGED_LATER: Specs = &[ONE[0], TAGGED[0], ONE[0]];

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
        let processes = Budget { all: 2, crashes: 2, leads: 2, ..Budget::default() };
        run(&[
            scenario("two processes that die or lose the lead", ONE, processes, true),
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
    let max_states = if large() { 3_000_000 } else { 50_000 };
    run(&[Scenario { max_states, ..scenario("AWS lags behind, and another fault", ONE, budget, true) }]);
}

/// The user suspends the Tunnel at any moment, and wants it back at any moment after that.
fn suspended(s: Scenario) -> Scenario {
    Scenario { specs: SUSPENDED, budget: Budget { edits: 2, ..s.budget }, ..s }
}

/// `reopenPolicy: Always`, and somebody closes the tunnel, beside the other faults.
fn reopened(s: Scenario) -> Scenario {
    let rules = Rules { reopen: ReopenPolicy::Always, ..s.rules };
    Scenario { budget: Budget { all: s.budget.all + 1, third_party: 1, ..s.budget }, rules, ..s }
}

/// `updatePolicy: Recreate`, and the user changes what AWS cannot change on an open tunnel.
fn recreated(s: Scenario) -> Scenario {
    let rules = Rules { recreate: true, ..s.rules };
    Scenario { specs: CHANGED, budget: Budget { edits: 1, ..s.budget }, rules, ..s }
}

fn first(max_states: usize, s: Scenario) -> Scenario {
    Scenario { max_states, ..s }
}

/// All of it by `make model`, else the nearest.
fn nearest(s: Scenario) -> Scenario {
    if large() { s } else { first(30_000, s) }
}

fn ready(name: &'static str, n: u8, elects: bool) -> Scenario {
    Scenario { ready: true, ..scenario(name, ONE, any(n), elects) }
}

#[test]
fn a_suspended_tunnel_has_none_and_opens_another_later() {
    let states = if large() { 1_000_000 } else { 60_000 };
    run(&[
        suspended(scenario("suspended and resumed", ONE, any(0), true)),
        first(states, suspended(scenario("two at once, suspended and resumed", ONE, any(0), false))),
        first(states, suspended(ready("suspended and resumed when Ready, a fault of any kind", 1, true))),
        first(states, suspended(scenario("suspended and resumed, a fault of any kind", ONE, any(1), true))),
        first(states, suspended(ready("two at once, suspended and resumed when Ready, a fault of any kind", 1, false))),
    ]);
}

#[test]
fn a_closed_tunnel_is_followed_by_another() {
    let states = if large() { 1_000_000 } else { 60_000 };
    let expiry = |s: Scenario| Scenario { rules: Rules { reopen: ReopenPolicy::OnExpiry, ..s.rules }, ..s };
    let clock = Budget { all: 2, clock: 1, crashes: 1, leads: 1, api: 1, aws: 1, user: 1, ..Budget::default() };
    run(&[
        reopened(ready("closed and reopened", 0, true)),
        first(states, reopened(ready("two at once, closed and reopened", 0, false))),
        first(states, reopened(ready("closed and reopened when Ready, another fault", 1, true))),
        first(states, reopened(ready("two at once, closed and reopened when Ready, another fault", 1, false))),
        first(
            states,
            expiry(Scenario { budget: clock, ..ready("expired by the local clock alone, another fault", 0, true) }),
        ),
    ]);
}

#[test]
fn a_changed_tunnel_is_replaced_by_one_that_is_as_the_spec_says() {
    let states = if large() { 1_000_000 } else { 60_000 };
    run(&[
        recreated(scenario("recreated", ONE, any(0), true)),
        first(states, recreated(scenario("two at once, recreated", ONE, any(0), false))),
        first(states, recreated(ready("recreated when Ready, a fault of any kind", 1, true))),
        first(states, recreated(scenario("recreated, a fault of any kind", ONE, any(1), true))),
        first(states, recreated(ready("two at once, recreated when Ready, a fault of any kind", 1, false))),
    ]);
}

#[test]
fn tags_follow_the_spec() {
    let states = if large() { 1_000_000 } else { 30_000 };
    let tagged = |specs, drift, s: Scenario| {
        let budget = Budget { edits: 2, drift, all: s.budget.all + drift, ..s.budget };
        Scenario { specs, budget, ..s }
    };
    run(&[
        tagged(TAGGED, 0, scenario("tags change", ONE, any(0), true)),
        tagged(TAGGED_LATER, 1, ready("tags come and go when Ready, and others change them", 0, true)),
        first(states, tagged(TAGGED, 0, ready("tags change when Ready, a fault of any kind", 1, true))),
    ]);
}

#[test]
fn new_tokens_are_made_once_each_time_they_are_asked_for() {
    let states = if large() { 1_000_000 } else { 30_000 };
    let asked = |rotates, s: Scenario| Scenario {
        rules: Rules { rotates, ..s.rules },
        budget: Budget { rotations: 2, ..s.budget },
        ..s
    };
    run(&[
        asked(All, scenario("new tokens are asked for", ONE, any(0), true)),
        first(
            states,
            asked(Source, ready("tokens of the source are asked for when Ready, a fault of any kind", 1, true)),
        ),
        first(states, asked(All, scenario("new tokens are asked for, a fault of any kind", ONE, any(1), true))),
        first(states, asked(Source, ready("two at once, tokens of the source are asked for when Ready", 0, false))),
    ]);
}

#[test]
fn a_secret_that_nobody_controls_is_taken_over() {
    let states = if large() { 1_000_000 } else { 30_000 };
    let restored =
        |s: Scenario| Scenario { budget: Budget { leftovers: 1, user: 1, all: s.budget.all + 2, ..s.budget }, ..s };
    run(&[
        nearest(restored(scenario("a Secret without an owner", ONE, any(0), true))),
        restored(ready("a Secret without an owner when Ready", 0, true)),
        first(states, restored(ready("two at once, a Secret without an owner when Ready", 0, false))),
        first(states, restored(scenario("a Secret without an owner, a fault of any kind", ONE, any(1), true))),
    ]);
}

#[test]
fn what_does_not_stay_in_a_secret_is_not_written_for_ever() {
    let states = if large() { 1_000_000 } else { 30_000 };
    let changed = |policies, s: Scenario| Scenario {
        budget: Budget { policies, pauses: 1, all: s.budget.all + 1, ..s.budget },
        ..s
    };
    let damaged = Budget { all: 1, secrets: 1, ..Budget::default() };
    run(&[
        nearest(changed(2, scenario("a policy changes Secrets", ONE, any(0), true))),
        nearest(changed(2, Scenario { budget: damaged, ..ready("a policy changes Secrets when Ready", 0, true) })),
        first(states, changed(2, scenario("a policy changes Secrets, a fault of any kind", ONE, any(1), true))),
        first(states, changed(1, scenario("two at once, a policy changes Secrets", ONE, any(0), false))),
    ]);
}

/// A rule, where it is left out, and whether there is a sweep of orphans, which would clear up after it.
struct Mutation {
    rule: &'static str,
    scenario: Scenario,
}

/// The user suspends a Ready Tunnel, and wants it back if there are two edits.
fn suspends(s: &mut Scenario, edits: u8) {
    (s.specs, s.ready, s.budget.edits) = (SUSPENDED, true, edits);
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
        left_out(
            "another is opened without AWS's word that the one before is closed",
            |r| (r.no_word, r.reopen) = (true, ReopenPolicy::OnExpiry),
            |s| (s.ready, s.budget.clock) = (true, 1),
        ),
        left_out(
            "the claim is taken for that of the tunnel that has ended",
            |r| (r.settled, r.reopen) = (true, ReopenPolicy::Always),
            |s| (s.ready, s.budget.third_party, s.budget.crashes) = (true, 1, 1),
        ),
        left_out("a tunnel is closed while its Tunnel is Ready", |r| r.closes_ready = true, |s| suspends(s, 1)),
        left_out(
            "there is a way back from a close",
            |r| r.way_back = true,
            |s| {
                suspends(s, 2);
                (s.budget.aws, s.budget.crashes) = (1, 1);
            },
        ),
        left_out(
            "a tunnel is closed for suspend before it is named",
            |r| r.closes_unnamed = true,
            |s| {
                suspends(s, 2);
                (s.ready, s.budget.crashes) = (false, 1);
            },
        ),
        left_out(
            "a Tunnel is said to be suspended without a search",
            |r| r.no_search = true,
            |s| {
                suspends(s, 1);
                (s.ready, s.budget.crashes) = (false, 1);
            },
        ),
        left_out(
            "the present spec is recorded, not what a tunnel was opened with",
            |r| (r.forgets_request, r.recreate) = (true, true),
            |s| (s.specs, s.budget.edits) = (CHANGED, 1),
        ),
        left_out(
            "it is not recorded that a rotation that was asked for is made",
            |r| r.forgets_handled = true,
            |s| (s.ready, s.budget.rotations) = (true, 1),
        ),
        left_out(
            "a rotation counts for what was asked while it was under way",
            |r| r.handles_present = true,
            |s| (s.ready, s.budget.rotations) = (true, 2),
        ),
        left_out(
            "the key of a tag is not recorded before it is set",
            |r| r.no_union = true,
            |s| (s.specs, s.ready, s.budget.edits, s.budget.crashes) = (TAGGED_LATER, true, 2, 1),
        ),
        left_out(
            "nobody looks at the tags of a tunnel",
            |r| r.trusts_tags = true,
            |s| (s.specs, s.ready, s.budget.drift) = (TAGGED, true, 1),
        ),
        left_out(
            "a Secret that nobody controls is somebody else's",
            |r| r.leftover_is_foreign = true,
            |s| s.budget.leftovers = 1,
        ),
        left_out(
            "a Secret that nobody controls is taken for what it says",
            |r| r.believes_leftovers = true,
            |s| s.budget.leftovers = 1,
        ),
        left_out(
            "it is forgotten how often what was written did not stay",
            |r| r.no_redone = true,
            |s| s.budget.policies = 1,
        ),
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
