//! Every world that may follow a world.

use crate::calls::calls;
use crate::moves::{Fault, Next, step, told};
use crate::operator;
use crate::rules::Rules;
use crate::users::users;
use crate::world::*;
use opentunnel_operator::orphans::{self, By, Candidate, MIN_AGE, Scope, Shown};
use opentunnel_operator::surplus::{self, Verdict};
use std::time::Duration;

/// All that can happen, faults and users among it.
pub fn all(world: &World, rules: &Rules, specs: Specs) -> Vec<Next> {
    let mut out = Out::default();
    for i in 0..2 {
        if let Some((done, asked)) = step(world, i, rules, specs, None) {
            out.next.push(done);
            let mut faulty = world.clone();
            if asked.tagged && spend(&mut faulty, |left| &mut left.aws) {
                let given_up = step(&faulty, i, rules, specs, Some(Fault::Untagged));
                out.next.extend(given_up.map(|(next, _)| next));
            }
            let mut faulty = world.clone();
            if asked.wrote && spend(&mut faulty, |left| &mut left.api) {
                let faults = [Fault::Refused, Fault::Lost, Fault::Conflict];
                let step = |fault| step(&faulty, i, rules, specs, Some(fault)).map(|(next, _)| next);
                out.next.extend(faults.into_iter().filter_map(step));
            }
        }
        own(world, i, rules, specs, &mut out);
        faults(world, i, &mut out);
    }
    calls(world, rules, specs, true, &mut out);
    others(world, rules, specs, &mut out);
    time(world, &mut out);
    users(world, specs, &mut out);
    out.next
}

/// What goes on when nothing goes wrong any more: one thing after the other, until nothing changes.
pub fn calm(world: &World, rules: &Rules, specs: Specs) -> Option<Next> {
    let mut out = Out { next: Vec::new(), from: Some((world, !rules.counted_attempts)) };
    calls(world, rules, specs, false, &mut out);
    others(world, rules, specs, &mut out);
    (0..2).for_each(|i| own(world, i, rules, specs, &mut out));
    for i in 0..2 {
        if !out.is_full()
            && let Some(next) = reconcile(world, i, rules, specs)
        {
            out.add(next);
        }
    }
    // It passes when there is nothing else to do.
    time(world, &mut out);
    out.next.pop()
}

/// Steps of an operator until one has an effect, or its reconcile has ended: a read alone is none.
fn reconcile(world: &World, i: usize, rules: &Rules, specs: Specs) -> Option<Next> {
    let (mut next, _) = step(world, i, rules, specs, None)?;
    for _ in 0..4 {
        let w = &next.world;
        let effect = w.object != world.object || w.secrets != world.secrets || w.calls.len() != world.calls.len();
        if effect || w.operators[i].reconcile.is_none() {
            break;
        }
        let Some((following, _)) = step(w, i, rules, specs, None) else { break };
        let label = told(|| format!("{}; {}", next.label, following.label));
        next = Next { label, ..following };
    }
    Some(next)
}

/// Collects what may follow.
#[derive(Default)]
pub struct Out<'a> {
    next: Vec<Next>,
    /// The first will do that is not as this world is.
    from: Option<(&'a World, bool)>,
}

impl Out<'_> {
    /// Nothing goes wrong any more.
    pub fn is_calm(&self) -> bool {
        self.from.is_some()
    }

    pub fn is_full(&self) -> bool {
        self.from.is_some() && !self.next.is_empty()
    }

    pub fn push(&mut self, world: &World, label: impl FnOnce() -> String, change: impl FnOnce(&mut World)) {
        if self.is_full() {
            return;
        }
        let mut world = world.clone();
        change(&mut world);
        self.add(Next { label: told(label), world, wrong: None });
    }

    pub fn add(&mut self, next: Next) {
        let next = match self.from {
            Some((from, attempts)) => {
                let world = next.world.canonical(attempts);
                // Two forms that become each other differ in what things are called alone.
                if world == *from || world.clone().canonical(attempts) == *from {
                    return;
                }
                Next { world, ..next }
            }
            None => next,
        };
        self.next.push(next);
    }
}

/// Takes one fault out of the budget.
pub fn spend(world: &mut World, of: impl Fn(&mut Budget) -> &mut u8) -> bool {
    let left = &mut world.left;
    if left.all == 0 || *of(left) == 0 {
        return false;
    }
    left.all -= 1;
    *of(left) -= 1;
    true
}

/// Beside its reconciles: its watch, its poller, its closer, its end.
fn own(world: &World, i: usize, rules: &Rules, specs: Specs, out: &mut Out) {
    let operator = &world.operators[i];
    if operator.watched != world.object || operator.wiped || operator.relists {
        out.push(world, || format!("operator {i}: its watch shows the Tunnel as it is"), |w| deliver(w, i));
    }
    if world.leader == Some(None) {
        out.push(
            world,
            || format!("operator {i} leads"),
            |w| {
                (w.leader, w.leads_for) = (Some(Some(i as u8)), 0);
                let operator = &mut w.operators[i];
                (operator.search, operator.searching) = (None, false);
                (operator.describing, operator.described, operator.told_tag) = (None, None, None);
                operator.memory.iter_mut().for_each(|memory| memory.first_seen = memory.first_seen.max(1));
            },
        );
    }
    if operator.searching
        && world.leads(i)
        && !world.away
        && let Some(watched) = &operator.watched
    {
        let own = |t: &&Tunnel| t.open && !t.untagged && t.uid == watched.uid;
        let found: Vec<u8> = world.tunnels.iter().filter(own).map(|t| t.id).collect();
        out.push(
            world,
            || format!("operator {i}: its search finds {found:?}"),
            |w| {
                (w.operators[i].search, w.operators[i].searching) = (Some((0, found.clone())), false);
            },
        );
    }
    if let Some((id, late)) =
        operator.watched.as_ref().filter(|o| !o.closed).and_then(|o| Some((o.tunnel?, o.opened_late)))
    {
        let named = world.tunnels.iter().find(|t| t.id == id);
        let open = named.is_some_and(|t| t.open);
        let now = if open { Life::Open } else { Life::Closed };
        let expired = operator.memory.as_ref().and_then(|memory| memory.expired);
        let asks = |age: Age| open && expired.is_none_or(|since| age > since);
        let news = operator.described.is_none_or(|(told, life, age)| (told, life) != (id, now) || asks(age));
        if news && world.leads(i) && !world.away && (!open || (world.lifetime_over && !late)) {
            out.push(
                world,
                || format!("operator {i}: AWS tells that tunnel {id} is {now:?}"),
                |w| w.operators[i].described = Some((id, now, 0)),
            );
        }
    }
    // The slow refresh of what AWS tells of open tunnels.
    if let Some(watched) = operator.watched.as_ref().filter(|o| !o.closed)
        && let Some(t) = world.tunnels.iter().find(|t| Some(t.id) == watched.tunnel && t.open)
        && world.leads(i)
        && !world.away
    {
        let wanted = specs[usize::from(watched.spec)].tag;
        let others = t.tag == OTHERS_TAG && !watched.tag_key && wanted == 0;
        let told = operator.told_tag.is_some_and(|(id, tag, _)| (id, tag) == (t.id, t.tag));
        if t.tag != wanted && !others && !told {
            let (id, tag) = (t.id, t.tag);
            out.push(
                world,
                || format!("operator {i}: AWS tells that tunnel {id} has the tag {tag}"),
                |w| w.operators[i].told_tag = Some((id, tag, 0)),
            );
        }
    }
    if let Some(id) = operator.describing
        && world.leads(i)
        && !world.away
    {
        let open = world.tunnels.iter().any(|t| t.id == id && t.open);
        let life = if open { Life::Open } else { Life::Closed };
        out.push(
            world,
            || format!("operator {i}: AWS tells of the ended tunnel {id}: {life:?}"),
            |w| (w.operators[i].describing, w.operators[i].described) = (None, Some((id, life, 0))),
        );
    }
    let Some(&(uid, attempt, tunnel)) = operator.surplus.first() else { return };
    let claimant = world.current(uid).map(|o| operator::object(world, o, specs, rules).claimant());
    let id = operator::tunnel(tunnel).id;
    let verdict = match surplus::judge(&id, &operator::owner(uid, attempt), claimant.as_ref()) {
        _ if rules.closes_unread => Verdict::Close,
        verdict => verdict,
    };
    if verdict != Verdict::Wait {
        out.push(
            world,
            || format!("operator {i}: looks whether tunnel {tunnel} is surplus: {verdict:?}"),
            |w| {
                w.operators[i].surplus.remove(0);
                if verdict == Verdict::Close {
                    w.calls.push(in_background(tunnel));
                }
            },
        );
    }
}

fn in_background(tunnel: u8) -> Call {
    Call { by: None, of: CallOf::CloseSurplus { tunnel }, age: 0, called: 0, result: None }
}

/// Its end, and its watch's.
fn faults(world: &World, i: usize, out: &mut Out) {
    let mut faulty = world.clone();
    if spend(&mut faulty, |left| &mut left.crashes) {
        out.push(
            &faulty,
            || format!("operator {i} crashes, and another starts"),
            |w| {
                w.calls.iter_mut().filter(|c| c.by == Some(i as u8)).for_each(|c| c.by = None);
                if w.leader == Some(Some(i as u8)) {
                    w.leader = Some(None);
                }
                w.operators[i] = Operator {
                    watched: w.object.clone(),
                    memory: w.object.as_ref().map(|o| Mem::new(o.uid, false)),
                    ..Operator::default()
                };
            },
        );
    }
    let named = world.operators[i].watched.as_ref().filter(|o| !o.closed).and_then(|o| o.tunnel);
    let new = |id: &u8| world.tunnels.iter().any(|t| t.id == *id && t.open && t.age <= GRACE);
    let mut faulty = world.clone();
    if let Some(id) = named.filter(new)
        && world.leads(i)
        && !world.away
        && spend(&mut faulty, |left| &mut left.lag)
    {
        out.push(
            &faulty,
            || format!("operator {i}: AWS does not know tunnel {id} yet"),
            |w| w.operators[i].described = Some((id, Life::NotFound, 0)),
        );
    }
    let mut faulty = world.clone();
    if world.leader == Some(Some(i as u8)) && spend(&mut faulty, |left| &mut left.leads) {
        out.push(&faulty, || format!("operator {i} leads no more"), |w| w.leader = Some(None));
    }
    let mut faulty = world.clone();
    if !world.operators[i].relists && spend(&mut faulty, |left| &mut left.watch) {
        if !world.leads(i) && !world.operators[i].lags {
            out.push(&faulty, || format!("operator {i}: its watch lags behind"), |w| w.operators[i].lags = true);
        }
        out.push(&faulty, || format!("operator {i}: its watch is interrupted"), |w| w.operators[i].relists = true);
    }
}

/// A watch shows the object as it is, and that something vanished from it.
pub fn deliver(world: &mut World, i: usize) {
    let object = world.object.clone();
    let operator = &mut world.operators[i];
    operator.lags = false;
    let (relists, wiped) = (std::mem::take(&mut operator.relists), std::mem::take(&mut operator.wiped));
    if object.as_ref().map(|o| o.uid) != operator.watched.as_ref().map(|o| o.uid) {
        operator.live = !relists && !wiped;
    }
    operator.watched = object;
    if let Some(memory) = &mut operator.memory {
        memory.wiped |= relists || wiped;
        if operator.reconcile.is_some() {
            return;
        }
    } else {
        operator.memory = operator.watched.as_ref().map(|w| Mem::new(w.uid, operator.live));
    }
    crate::moves::put_back(operator);
}

/// What the sweep does about a tunnel.
fn sweep(world: &World, tunnel: &Tunnel, specs: Specs, rules: &Rules) -> orphans::Verdict {
    let candidate = Candidate {
        tunnel: operator::tunnel(tunnel.id),
        owner: opentunnel_operator::tunnels::Owner {
            namespace: "edge".into(),
            ..operator::owner(tunnel.uid, tunnel.attempt)
        },
        created_at: operator::opened_at(world, tunnel.id, tunnel.late),
        aws_time: operator::opened_at(world, tunnel.id, tunnel.late),
        seen: MIN_AGE,
    };
    let scope = Scope { cluster: String::new(), namespaces: Default::default(), grace: Duration::ZERO };
    let claimant = world.object.as_ref().map(|o| {
        let mut claimant = operator::object(world, o, specs, rules).claimant();
        claimant.key.namespace = "edge".into();
        claimant
    });
    let shown = Shown::of(&candidate, claimant);
    orphans::judge(&candidate, &scope, &shown, By::ApiServer)
}

/// The sweep of orphans, and the garbage collector.
fn others(world: &World, rules: &Rules, specs: Specs, out: &mut Out) {
    let closing = |t: &Tunnel| world.calls.iter().any(|c| c.of == CallOf::CloseSurplus { tunnel: t.id });
    let candidates =
        world.tunnels.iter().filter(|t| t.open && !t.untagged && t.uid != 0 && !rules.no_sweep && !closing(t));
    for tunnel in candidates {
        let id = tunnel.id;
        match sweep(world, tunnel, specs, rules) {
            orphans::Verdict::Close => {
                out.push(world, || format!("a sweep finds the orphan {id}"), |w| w.calls.push(in_background(id)));
            }
            orphans::Verdict::Search => {
                // The tunnel is five minutes old: whatever was under way when it was opened has ended.
                let rests = |o: &Operator| {
                    let idle = o.reconcile.is_none() && o.memory.as_ref().is_none_or(|m| m.answer.is_none());
                    idle && o.watched == world.object
                };
                let over = world.calls.iter().all(|c| c.by.is_none()) && world.operators.iter().all(rests);
                let found = |o: &Operator| o.search.as_ref().is_some_and(|(_, found)| found.contains(&id));
                let waits = |o: &Operator| over && !o.searching && !found(o);
                for i in (0..2).filter(|i| world.leads(*i) && waits(&world.operators[*i])) {
                    let searches = |w: &mut World| w.operators[i].searching = true;
                    out.push(world, || format!("a sweep has operator {i} search for tunnel {id}"), searches);
                }
            }
            _ => {}
        }
    }
    let live = world.object.as_ref().map(|o| o.uid);
    for name in 0..3 {
        let garbage = world.secrets[name].as_ref().is_some_and(|s| s.owner.is_some() && s.owner != live);
        if garbage {
            out.push(world, || "the garbage collector takes a Secret".into(), |w| w.secrets[name] = None);
        }
    }
}

/// Time passes while no call is under way for longer than one can be.
fn time(world: &World, out: &mut Out) {
    let mut faulty = world.clone();
    let overdue = |c: &&Call| c.result.is_none() && c.age >= CALL_LIVES;
    if !world.calls.iter().any(|c| overdue(&c)) {
        out.push(world, || "time passes".into(), World::tick);
        let mut after = world.clone();
        after.objects().for_each(|o| o.pause = false);
        if after != *world {
            out.push(&after, || "the pause before another opening is over".into(), |_| {});
        }
        let waits = |o: &Operator| o.memory.as_ref().is_some_and(|m| m.redone.is_some_and(|(_, _, over)| !over));
        let mut w = world.clone();
        // A policy that stays is quarrelled with now and then, for ever.
        let goes_on = world.policy == Policy::Off || spend(&mut w, |left| &mut left.pauses);
        if goes_on && (world.policy == Policy::Off || !out.is_calm()) && world.operators.iter().any(waits) {
            let over = |m: &mut Mem| m.redone.iter_mut().for_each(|(.., over)| *over = true);
            let all = |w: &mut World| w.operators.iter_mut().filter_map(|o| o.memory.as_mut()).for_each(over);
            out.push(&w, || "the pause before another rotation is over".into(), all);
        }
        if world.away {
            out.push(world, || "AWS can be asked again".into(), |w| w.away = false);
        }
    } else if world.calls.iter().filter(overdue).all(|c| matches!(c.of, CallOf::Open { .. }))
        && spend(&mut faulty, |left| &mut left.late)
    {
        out.push(&faulty, || "a call is under way for longer than the grace".into(), |w| (0..4).for_each(|_| w.tick()));
    }
}
