//! What can happen next in a world.

mod secrets;

use crate::operator::{self, Specs, ask, names, with_kept};
use crate::outcomes::apply;
use crate::rules::Rules;
use crate::world::*;
use opentunnel_operator::clock::Mono;
use opentunnel_operator::controller::decision::{Change, Decision, Need};
use opentunnel_operator::controller::observe::{self, Memory, Trial};
use opentunnel_operator::controller::validate::Desired;
use opentunnel_operator::crd::Reason;
use opentunnel_operator::tunnels::Attempt;
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
}

/// A world after a move, what moved, and what is wrong with it.
pub struct Next {
    pub label: String,
    pub world: World,
    pub wrong: Option<&'static str>,
}

/// A step of a reconcile: whether a request to the API server was made, that can go wrong.
struct Step<'a> {
    world: World,
    i: usize,
    rules: &'a Rules,
    specs: Specs,
    fault: Option<Fault>,
    reconcile: Reconcile,
    memory: Memory,
    mem: Mem,
    wrote: bool,
    wrong: Option<&'static str>,
}

/// The reconcile has failed.
struct Failed;

/// A step of operator `i`, which may begin a reconcile. `None`: there is nothing that it could do.
/// Whether it made a request that can go wrong.
pub fn step(world: &World, i: usize, rules: &Rules, specs: Specs, fault: Option<Fault>) -> Option<(Next, bool)> {
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
    if std::mem::take(&mut mem.vanished) {
        mem.saw_creation = false;
    }
    let mut memory = mem.real();
    let desired = operator::desired(&reconcile.view, specs, rules.retain, operator::now(world));
    if !world.leads(i) {
        if !memory.in_hand(&desired) {
            return stand_by(world, i);
        }
        memory.failure = None;
    }
    memory.note(&desired, operator::now(world));
    if rules.no_late_rotation {
        memory.late_rotation = None;
    }
    let mut shown = reconcile.clone();
    if rules.old_claims && memory.answer.is_none() {
        shown.read = Some(0);
    }
    if rules.never_looks && shown.view.reported == Some(Reason::Open) {
        shown.secrets = Some(as_kept(&shown));
    }
    let (desired, mut decision) = ask(world, i, &shown, &memory, rules, specs);
    if !world.leads(i) {
        match memory.without_the_lead(&desired, decision) {
            Some(allowed) => decision = allowed,
            None => return stand_by(world, i),
        }
    }
    let mut step =
        Step { world: world.clone(), i, rules, specs, fault, reconcile, memory, mem, wrote: false, wrong: None };
    let label = told(|| format!("operator {i}: {}", in_short(&decision, fault)));
    let outcome = step.act(&desired, decision);
    let Step { mut world, reconcile, mut memory, mut mem, wrote, wrong, .. } = step;
    let ended = !matches!(outcome, Ok(false));
    if ended {
        memory.trouble = outcome.is_err().then(String::new);
    }
    if rules.no_late_rotation {
        memory.late_rotation = None;
    }
    mem.take(memory);
    let operator = &mut world.operators[i];
    operator.memory = Some(mem);
    operator.reconcile = (!ended).then_some(reconcile);
    if ended {
        put_back(operator);
    }
    Some((Next { label, world, wrong }, wrote))
}

/// Who does not lead begins nothing.
fn stand_by(world: &World, i: usize) -> Option<(Next, bool)> {
    let mut world = world.clone();
    world.operators[i].reconcile.take()?;
    put_back(&mut world.operators[i]);
    Some((Next { label: told(|| format!("operator {i}: does not lead, and waits")), world, wrong: None }, false))
}

/// The Secrets as they were recorded.
fn as_kept(reconcile: &Reconcile) -> [Option<Secret>; 3] {
    let mut secrets = [const { None }; 3];
    for (name, data) in reconcile.view.kept.iter().flatten() {
        let (owner, generation) = (Some(reconcile.view.uid), reconcile.view.generation);
        secrets[usize::from(*name)] = Some(Secret { version: 0, owner, generation, data: *data, sound: true });
    }
    secrets
}

/// A reconcile has ended: the Tunnel may be gone meanwhile, or another be there.
pub fn put_back(operator: &mut Operator) {
    let Some(memory) = &operator.memory else { return };
    if operator.watched.as_ref().is_some_and(|w| w.uid == memory.uid) {
        return;
    }
    if let Some(Answer { of: AnswerOf::Open(_), data, .. }) = &memory.answer {
        operator.in_vain.push((memory.uid, data.tunnel));
    }
    operator.memory = operator.watched.as_ref().map(|w| Mem::new(w.uid, operator.live));
    (operator.search, operator.searching, operator.heard) = (None, false, None);
}

fn in_short(decision: &Decision, fault: Option<Fault>) -> String {
    let text: String = format!("{decision:?}").chars().take(90).collect();
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

impl Step<'_> {
    /// Carries a decision out as `act` does. `true`: the reconcile has ended.
    fn act(&mut self, desired: &Desired, decision: Decision) -> Result<bool, Failed> {
        let uid = self.reconcile.view.uid;
        match decision {
            Decision::Wait(wait) => {
                self.world.operators[self.i].searching |= matches!(wait.need, Some(Need::Search(_)));
                return Ok(true);
            }
            Decision::Queue(_) => {}
            Decision::Read => {
                self.wrote = true;
                if self.fault.is_some() {
                    return Err(Failed);
                }
                self.read();
            }
            Decision::Claim(given) => {
                let new = given.is_none();
                let attempt = given.map_or_else(|| self.new_attempt(), |a| operator::number(&a.0));
                self.memory.claiming(Attempt(attempt.to_string()));
                if self.rules.no_claim {
                    self.reconcile.view.claim = Some((uid, attempt));
                    self.reconcile.read = Some(0);
                    self.memory.claimed(new);
                } else {
                    let finalizer = !self.rules.no_finalizer;
                    let overruled = self.reconcile.view.claim.is_some_and(|(of, a)| of == uid && a != attempt);
                    // Without a leader, who claimed before may live and be about to open.
                    self.world.may_double |= overruled && self.fits() && self.is_acted_on();
                    let claimed = self.patch(|o| {
                        o.finalizer |= finalizer;
                        o.claim = Some((uid, attempt));
                    })?;
                    if claimed {
                        self.memory.claimed(new);
                    }
                }
            }
            Decision::RestoreFinalizer => {
                self.patch(|o| o.finalizer = true)?;
            }
            Decision::Open => {
                let Some(attempt) = self.memory.attempt.as_ref().map(|a| operator::number(&a.0)) else {
                    return Ok(false);
                };
                self.memory.opening(now());
                self.call(CallOf::Open { uid, attempt });
            }
            Decision::Rotate { tunnel, mode, generation } => self.rotate(operator::number(&tunnel.0), mode, generation),
            Decision::Close { tunnel, .. } => self.call(CallOf::Close { tunnel: operator::number(&tunnel.id.0) }),
            Decision::Disown { tunnel, .. } => self.call(CallOf::Disown { tunnel: operator::number(&tunnel.id.0) }),
            Decision::WriteSecret { index, generation } => self.write_secret(index, generation)?,
            Decision::DeleteSecret { index } => self.delete_secret(index)?,
            Decision::TryCreate { index } => {
                self.wrote = true;
                if self.fault.is_some() {
                    return Err(Failed);
                }
                if self.world.secrets[self.name(index)].is_some() {
                    self.reconcile.secrets = None;
                } else {
                    self.memory.trial = Some(Trial { at: now(), refused: None });
                }
            }
            Decision::Reuse => {
                let data = Data { tunnel: self.reconcile.view.tunnel.unwrap_or_default(), source: 0, destination: 0 };
                let of = observe::AnswerOf::Secrets(desired.record.token_generation);
                let data = with_kept(data, &self.reconcile);
                self.memory.answered(Mem::answer(of, data, self.reconcile.view.opened_late));
            }
            Decision::Record(change) => self.record(desired, &change)?,
            Decision::Release => {
                self.patch(|o| o.finalizer = false)?;
                self.memory.answer = None;
            }
            Decision::Forget => self.memory.drop_answer(),
            Decision::Abandon(tunnel) => {
                self.world.operators[self.i].in_vain.push((uid, operator::number(&tunnel.id.0)));
                self.memory.answer = None;
            }
        }
        Ok(false)
    }

    fn new_attempt(&mut self) -> u8 {
        if self.rules.counted_attempts {
            return self.reconcile.view.claim.map_or(1, |(_, attempt)| attempt + 1);
        }
        self.world.last.attempt += 1;
        self.world.last.attempt
    }

    fn call(&mut self, of: CallOf) {
        self.world.calls.push(Call { by: Some(self.i as u8), of, age: 0, result: None });
    }

    fn rotate(&mut self, tunnel: u8, mode: opentunnel_operator::crd::ClientMode, generation: i64) {
        let others_live = self.memory.rotating(generation, mode, now());
        let generation = u8::try_from(generation).unwrap_or(u8::MAX);
        self.call(CallOf::Rotate { tunnel, mode, generation, others_live });
    }

    fn read(&mut self) {
        match self.world.current(self.reconcile.view.uid).cloned() {
            Some(object) => self.see(object),
            None => self.reconcile.gone = true,
        }
    }

    fn see(&mut self, object: Object) {
        self.mem.written = Some(object.clone());
        self.reconcile.view = object;
        self.reconcile.read = Some(0);
    }

    /// Whether the other operator acts on the claim that stands: it has read it a moment ago, or has called since the
    /// claim was searched for.
    fn is_acted_on(&self) -> bool {
        let other = &self.world.operators[1 - self.i];
        let Some((memory, (_, claim))) = other.memory.as_ref().zip(self.reconcile.view.claim) else { return false };
        let read = memory.attempt == Some(claim) && other.reconcile.as_ref().is_some_and(|r| r.read.is_some());
        let called = |c: &Call| matches!(c.of, CallOf::Open { attempt, .. } if attempt == claim);
        let answered = memory.answer.as_ref().is_some_and(|a| a.of == AnswerOf::Open(claim));
        let opened = self.world.tunnels.iter().any(|t| t.open && t.attempt == claim);
        self.world.leader.is_none() && (read || answered || opened || self.world.calls.iter().any(called))
    }

    /// Whether the Tunnel is as it was read.
    fn fits(&self) -> bool {
        let (uid, version) = (self.reconcile.view.uid, self.reconcile.view.version);
        self.world.current(uid).is_some_and(|o| o.version == version || self.rules.unconditioned)
    }

    /// A write of the Tunnel, conditioned by what was read.
    fn patch(&mut self, change: impl FnOnce(&mut Object)) -> Result<bool, Failed> {
        self.wrote = true;
        if self.fault == Some(Fault::Refused) {
            return Err(Failed);
        }
        if !self.fits() {
            self.read();
            return Ok(false);
        }
        let mut written = self.world.object.take().expect("it fits");
        change(&mut written);
        written.version = self.world.next_version();
        if !written.deleted || written.finalizer {
            self.world.object = Some(written.clone());
        }
        match self.fault {
            Some(Fault::Lost) => return Err(Failed),
            Some(_) => {
                self.read();
                return Ok(false);
            }
            None => self.see(written),
        }
        Ok(true)
    }

    fn name(&self, index: usize) -> usize {
        let secrets = self.reconcile.secrets.as_ref().expect("read before");
        usize::from(names(&self.reconcile.view, self.specs, secrets)[index])
    }

    fn record(&mut self, desired: &Desired, change: &Change) -> Result<(), Failed> {
        let kept = self.kept();
        let answer = self.mem.answer.clone();
        let late = |world: &World, id: u8| world.tunnels.iter().any(|t| t.id == id && t.late);
        let adopted_late = match change {
            Change::Adopted { found, .. } => late(&self.world, operator::number(&found.tunnel.id.0)),
            _ => false,
        };
        let apply = |o: &mut Object| apply(o, change, answer.as_ref(), kept, adopted_late);
        let recorded = if self.rules.no_rotation_claim && matches!(change, Change::Rotating { .. }) {
            let mut view = self.reconcile.view.clone();
            apply(&mut view);
            self.reconcile.view = view;
            self.reconcile.read = Some(0);
            true
        } else {
            self.patch(apply)?
        };
        if recorded {
            self.memory.recorded(change, &desired.record, desired.client_mode());
            if matches!(change, Change::Opened { .. } | Change::Rotated | Change::Arranged | Change::Ended { .. }) {
                let operator = &mut self.world.operators[self.i];
                (operator.search, operator.searching) = (None, false);
            }
        }
        Ok(())
    }

    /// The wanted Secrets, as they were read or written: their digests are recorded.
    fn kept(&self) -> Vec<(u8, Data)> {
        let secrets = self.reconcile.secrets.as_ref().expect("read before");
        let wanted = self.specs[usize::from(self.reconcile.view.spec)];
        let data = |(name, _): &(u8, _)| Some((*name, secrets[usize::from(*name)].as_ref()?.data));
        wanted.iter().filter_map(data).collect()
    }
}

pub fn now() -> Mono {
    operator::NOW
}
