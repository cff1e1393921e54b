//! What becomes of calls to AWS.

use crate::moves::effects::step_of;
use crate::moves::{Next, learn, told};
use crate::next::{Out, spend};
use crate::operator;
use crate::rules::Rules;
use crate::world::*;
use opentunnel_api::Reason;
use opentunnel_operator::step::{Outcome, Step};
use opentunnel_operator::tunnels::{CallError, CallErrorKind};

/// All of it.
pub fn calls(world: &World, rules: &Rules, specs: Specs, faults: bool, out: &mut Out) {
    for (n, call) in world.calls.iter().enumerate() {
        let of = call.of;
        match (call.result, call.by) {
            (Some(result), Some(_)) => out.push(
                world,
                || format!("answered: {of:?}: {result:?}"),
                |w| {
                    w.calls.remove(n);
                    answer(w, call, Some(result), rules, specs);
                },
            ),
            (Some(_), None) => out.push(
                world,
                || "an answer that nobody waits for".into(),
                |w| {
                    w.calls.remove(n);
                },
            ),
            (None, _) => commit(world, n, out),
        }
        if !faults {
            continue;
        }
        if call.by.is_none() && call.result.is_none() {
            out.push(
                world,
                || format!("never arrives: {of:?}"),
                |w| {
                    w.calls.remove(n);
                },
            );
        }
        let mut lagging = world.clone();
        if let CallOf::Close { tunnel } = of
            && call.result.is_none()
            && world.tunnels.iter().any(|t| t.id == tunnel && t.open && t.age <= GRACE)
            && spend(&mut lagging, |left| &mut left.lag)
        {
            let result = Some(CallResult::Refused(Refused::NotFound));
            out.push(&lagging, || format!("AWS does not know tunnel {tunnel} yet"), |w| w.calls[n].result = result);
        }
        let mut faulty = world.clone();
        if call.by.is_some() && spend(&mut faulty, |left| &mut left.aws) {
            out.push(
                &faulty,
                || format!("given up: {of:?}"),
                |w| {
                    answer(w, call, None, rules, specs);
                    w.calls[n].by = None;
                },
            );
            let refusals: &[Refused] = match (call.result, of) {
                (None, CallOf::Open { .. }) => &[Refused::LimitExceeded, Refused::AccessDenied],
                (None, CallOf::Rotate { .. } | CallOf::Close { .. }) => &[Refused::LimitExceeded],
                _ => &[],
            };
            for refused in refusals {
                out.push(
                    &faulty,
                    || format!("refused: {of:?}: {refused:?}"),
                    |w| {
                        w.calls[n].result = Some(CallResult::Refused(*refused));
                    },
                );
            }
        }
    }
}

/// AWS carries a call out.
fn commit(world: &World, n: usize, out: &mut Out) {
    if out.is_full() {
        return;
    }
    let call = &world.calls[n];
    let late = call.age > CALL_LIVES;
    let label = told(|| format!("AWS does: {:?}{}", call.of, if late { ", after the grace" } else { "" }));
    let mut done = Next { label, world: world.clone(), wrong: None };
    let w = &mut done.world;
    w.may_double |= late;
    let id = match call.of {
        CallOf::Open { .. } => w.last.tunnel + 1,
        CallOf::Rotate { tunnel, .. }
        | CallOf::Close { tunnel }
        | CallOf::Untag { tunnel }
        | CallOf::CloseSurplus { tunnel } => tunnel,
    };
    if !matches!(call.of, CallOf::Open { .. }) && w.tunnels.iter().any(|t| t.id == id && t.uid == 0) {
        done.wrong = Some("somebody else's tunnel is rotated, closed or untagged");
    }
    let ready = |o: &Object| o.tunnel == Some(id) && o.reported == Some(Reason::Open) && !o.deleted;
    let open = w.tunnels.iter().any(|t| t.id == id && t.open);
    if matches!(call.of, CallOf::Close { .. }) && open && w.object.as_ref().is_some_and(ready) {
        done.wrong = Some("a tunnel is closed whose Tunnel is Ready");
    }
    let mut data = Data { tunnel: id, source: 0, destination: 0 };
    let mut result = None;
    match call.of {
        CallOf::Open { uid, attempt, request, tag } => {
            if w.tunnels.iter().any(|t| t.open && !t.untagged && t.uid == uid) && !w.may_double {
                done.wrong = Some("OpenTunnel is carried out though the Tunnel has an open tunnel");
            }
            (data.source, data.destination) = (w.next_token(), w.next_token());
            w.last.tunnel = id;
            w.tunnels.push(Tunnel {
                id,
                uid,
                attempt,
                open: true,
                untagged: false,
                late: w.lifetime_over,
                request,
                tag,
                age: 0,
                source: data.source,
                destination: data.destination,
            });
        }
        CallOf::Rotate { tunnel, mode, .. } => {
            let source = if mode.has_source() { w.next_token() } else { 0 };
            let destination = if mode.has_destination() { w.next_token() } else { 0 };
            match w.tunnel(tunnel).filter(|t| t.open) {
                Some(tunnel) => {
                    (data.source, data.destination) = (source, destination);
                    if mode.has_source() {
                        tunnel.source = source;
                    }
                    if mode.has_destination() {
                        tunnel.destination = destination;
                    }
                }
                None => result = Some(CallResult::Refused(Refused::InvalidRequest)),
            }
        }
        CallOf::Close { tunnel } | CallOf::CloseSurplus { tunnel } => {
            w.tunnel(tunnel).into_iter().for_each(|t| t.open = false);
        }
        CallOf::Untag { tunnel } => w.tunnel(tunnel).into_iter().for_each(|t| t.untagged = true),
    }
    w.calls[n].age = 0;
    w.calls[n].result = Some(result.unwrap_or(CallResult::Done(data)));
    out.add(done);
}

/// What comes of a call for the one who waits for it. `None`: it was given up.
fn answer(world: &mut World, call: &Call, result: Option<CallResult>, rules: &Rules, specs: Specs) {
    let Some(i) = call.by.map(usize::from) else { return };
    let failure = match result {
        Some(CallResult::Done(_)) => None,
        Some(CallResult::Refused(Refused::LimitExceeded)) => Some(CallErrorKind::LimitExceeded),
        Some(CallResult::Refused(Refused::AccessDenied)) => Some(CallErrorKind::AccessDenied),
        Some(CallResult::Refused(Refused::InvalidRequest)) => Some(CallErrorKind::InvalidRequest),
        Some(CallResult::Refused(Refused::NotFound)) => Some(CallErrorKind::NotFound),
        None if rules.no_doubt && matches!(call.of, CallOf::Open { .. }) => Some(CallErrorKind::Unreachable),
        None => Some(CallErrorKind::Doubt),
    };
    let data = match result {
        Some(CallResult::Done(data)) => data,
        _ => Data { tunnel: 0, source: 0, destination: 0 },
    };
    let outcome = |error: Option<CallErrorKind>| match error {
        None => Ok(()),
        Some(kind) => Err(CallError { kind, message: String::new() }),
    };
    let late = world.tunnels.iter().any(|t| t.id == data.tunnel && t.late);
    let Some(step) = step_of(world, call.of, late) else { return };
    let (answer, called) = (outcome(failure), operator::at(call.called));
    let outcome = match step {
        Step::Open { .. } => {
            let opened = || (operator::tunnel(data.tunnel), operator::tokens(data));
            Outcome::Opened { called, answer: answer.map(|()| opened()) }
        }
        Step::Rotate { .. } => Outcome::Rotated { called, answer: answer.map(|()| operator::tokens(data)) },
        _ => Outcome::ClosedOrUntagged(answer),
    };
    // What is opened is opened in the moment of the answer.
    let late = if matches!(step, Step::Open { .. }) { late } else { world.lifetime_over };
    learn(world, i, &step, &outcome, late, rules, specs);
    // What was read before an answer came is older than it, though it is of the same tick.
    if failure.is_none() {
        world.operators[i].reconcile.iter_mut().for_each(|r| r.read = None);
    }
}
