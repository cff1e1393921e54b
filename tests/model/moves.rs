//! One step of an operator: the product's own `see`, `decide` and `learn`, around an effect on this world.

pub mod effects;
mod secrets;

use crate::operator;
use crate::rules::Rules;
use crate::world::*;
use opentunnel_api::Reason;
use opentunnel_operator::decide::decide;
use opentunnel_operator::error::Error;
use opentunnel_operator::facts::Standing;
use opentunnel_operator::memory::Memory;
use opentunnel_operator::step::{Outcome, Step};
use opentunnel_operator::tunnels::TunnelRef;
use std::cell::Cell;

/// How a request to the API server goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not carried out.
    Refused,
    /// Carried out, and the answer is lost.
    Lost,
    /// Carried out, and answered by a conflict, as a repeated request is.
    Conflict,
    /// Not a request to the API server: AWS does not say whether it has written a tag.
    Untagged,
}

/// A world after a move, what moved, and what is wrong with it.
pub struct Next {
    pub label: String,
    pub world: World,
    pub wrong: Option<&'static str>,
}

/// What a step has asked for that can go wrong.
pub struct Asked {
    /// A request to the API server.
    pub wrote: bool,
    /// A tag.
    pub tagged: bool,
}

/// The effect of a step.
struct Effect<'a> {
    world: World,
    i: usize,
    rules: &'a Rules,
    fault: Option<Fault>,
    reconcile: Reconcile,
    written: Option<Object>,
    /// A request was made that can go wrong.
    wrote: bool,
    wrong: Option<&'static str>,
}

/// A step of operator `i`, which may begin a reconcile. `None`: there is nothing that it could do.
/// What it has asked for.
pub fn step(world: &World, i: usize, rules: &Rules, specs: Specs, fault: Option<Fault>) -> Option<(Next, Asked)> {
    let operator = &world.operators[i];
    if world.calls.iter().any(|c| c.by == Some(i as u8)) {
        return None;
    }
    let mut mem = operator.memory.clone()?;
    let mut reconcile = match &operator.reconcile {
        Some(reconcile) => reconcile.clone(),
        None => {
            let watched = operator.watched.as_ref()?;
            let written = mem.written.take().filter(|w| w.version > watched.version || (w.deleted && !w.finalizer));
            mem.written.clone_from(&written);
            Reconcile { view: written.unwrap_or_else(|| watched.clone()), read: None, gone: false, secrets: None }
        }
    };
    if reconcile.secrets.is_none() {
        reconcile.secrets = Some(world.secrets.clone());
    }
    let wiped = std::mem::take(&mut mem.wiped);
    let (standing, now, limits) = (world.standing(i), operator::now(world.lifetime_over), operator::limits(rules));
    let mut memory = mem.real(world);
    memory.see(&operator::view(world, &reconcile, wiped, specs, rules), standing, now);
    let mut memory = without(memory, &reconcile, rules);
    let shown = shown(&reconcile, &memory, rules);
    let view = operator::view(world, &shown, wiped, specs, rules);
    let facts = operator::facts(world, i, &shown, &view, &memory, rules);
    let mut step = decide(&view, &facts, &memory, standing, &limits, now);
    let tagged = matches!(step, Step::Mark { .. });
    if tagged && fault != Some(Fault::Untagged) {
        // Nobody else sees the tag, so what follows comes at once.
        memory.learn(&step, &Outcome::Tagged(Ok(())), &view.object, &limits, now);
        step = decide(&view, &facts, &memory, standing, &limits, now);
        assert!(!matches!(step, Step::Mark { .. }), "a tunnel is tagged again and again");
    }
    if standing == Standing::Finishes && operator.reconcile.is_none() && matches!(step, Step::Wait(_)) {
        return None;
    }
    let label = told(|| format!("operator {i}: {}", in_short(&step, fault)));
    let (world, written) = (world.clone(), None);
    let mut effect = Effect { world, i, rules, fault, reconcile, written, wrote: false, wrong: None };
    let outcome = effect.act(&step, &view);
    let Effect { mut world, mut reconcile, written, wrote, wrong, .. } = effect;
    if let Some(outcome) = &outcome {
        memory.learn(&step, outcome, &view.object, &limits, now);
        let outdated = outcome.outdates();
        if outdated.secrets {
            reconcile.secrets = None;
        }
        if outdated.tunnel {
            reconcile.read = None;
        }
    }
    let memory = without(memory, &reconcile, rules);
    mem.take(memory, world.policy);
    let failed = matches!(outcome, Some(Outcome::Failed(_)));
    let ended = failed || matches!(step, Step::Wait(_));
    if ended {
        mem.trouble = failed;
    }
    if written.is_some() {
        mem.written = written;
    }
    let operator = &mut world.operators[i];
    operator.memory = Some(mem);
    operator.reconcile = (!ended).then_some(reconcile);
    if ended {
        put_back(operator);
    }
    Some((Next { label, world, wrong }, Asked { wrote, tagged }))
}

/// What the product remembers, where a rule is left out.
fn without(memory: Memory, reconcile: &Reconcile, rules: &Rules) -> Memory {
    if !rules.forgets() {
        return memory;
    }
    let mut content = memory.into_inner();
    if rules.no_late_rotation {
        content.rotating.late = None;
    }
    if rules.no_redone {
        content.rotating.redone = None;
    }
    if rules.no_identity {
        let known = |t: &TunnelRef, content: &opentunnel_operator::memory::Remembered| content.owned.contains(t);
        let named = reconcile.view.tunnel.map(operator::tunnel).filter(|t| !known(t, &content));
        content.owned.extend(named);
    }
    if rules.settled && reconcile.view.closed {
        content.opening.claim = None;
    }
    if rules.no_word && reconcile.view.closed {
        let id = reconcile.view.tunnel.map(|n| operator::tunnel(n).id);
        content.ending.closed.extend(id);
    }
    Memory::restore(content)
}

/// What the decision is told that was read, where a rule is left out.
fn shown(reconcile: &Reconcile, memory: &Memory, rules: &Rules) -> Reconcile {
    let mut shown = reconcile.clone();
    if rules.old_claims && memory.answer.is_none() {
        shown.read = Some(0);
    }
    if rules.never_looks && shown.view.reported == Some(Reason::Open) {
        let mut secrets = [const { None }; 3];
        for (name, data) in shown.view.kept.iter().flatten() {
            let (owner, generation) = (Some(shown.view.uid), shown.view.generation);
            secrets[usize::from(*name)] =
                Some(Secret { version: 0, owner, leftover: false, generation, data: *data, sound: true });
        }
        shown.secrets = Some(secrets);
    }
    shown
}

/// A reconcile has ended: the Tunnel may be gone meanwhile, or another be there.
pub fn put_back(operator: &mut Operator) {
    let Some(memory) = &operator.memory else { return };
    if operator.watched.as_ref().is_some_and(|w| w.uid == memory.uid) {
        return;
    }
    if let Some(Answer { of: AnswerOf::Open(attempt), data, .. }) = &memory.answer {
        operator.surplus.push((memory.uid, *attempt, data.tunnel));
    }
    operator.memory = operator.watched.as_ref().map(|w| Mem::new(w.uid, operator.live));
    (operator.search, operator.searching) = (None, false);
    (operator.describing, operator.described, operator.told_tag) = (None, None, None);
}

/// A call of operator `i` has ended, with this outcome.
pub fn learn(world: &mut World, i: usize, step: &Step, outcome: &Outcome, late: bool, rules: &Rules, specs: Specs) {
    let operator = &world.operators[i];
    let (Some(mem), Some(reconcile)) = (&operator.memory, &operator.reconcile) else { return };
    let (mut memory, view) = (mem.real(world), operator::view(world, reconcile, false, specs, rules));
    memory.learn(step, outcome, &view.object, &operator::limits(rules), operator::now(late));
    let memory = without(memory, reconcile, rules);
    let policy = world.policy;
    world.operators[i].memory.as_mut().expect("it is there").take(memory, policy);
}

fn in_short(step: &Step, fault: Option<Fault>) -> String {
    let text: String = format!("{step:?}").chars().take(90).collect();
    fault.map_or(text.clone(), |fault| format!("{text} ({fault:?})"))
}

thread_local! {
    /// Words cost more than all else, and only a trace needs them.
    pub static TELLS: Cell<bool> = const { Cell::new(false) };
}

/// A label, where it is wanted.
pub fn told(label: impl FnOnce() -> String) -> String {
    if TELLS.get() { label() } else { String::new() }
}

/// A request to the API server that was not carried out, or whose answer was lost.
fn failed() -> Outcome {
    Outcome::Failed(Error::Timeout("do it"))
}
