//! What becomes of calls to AWS.

use crate::moves::{Next, told};
use crate::next::{Out, spend};
use crate::outcomes::answer;
use crate::rules::Rules;
use crate::world::*;

/// All of it.
pub fn calls(world: &World, rules: &Rules, faults: bool, out: &mut Out) {
    for (n, call) in world.calls.iter().enumerate() {
        let of = call.of;
        match (call.result, call.by) {
            (Some(result), Some(_)) => out.push(
                world,
                || format!("answered: {of:?}: {result:?}"),
                |w| {
                    w.calls.remove(n);
                    answer(w, call, Some(result), rules);
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
        let mut faulty = world.clone();
        if call.by.is_some() && spend(&mut faulty, |left| &mut left.aws) {
            out.push(
                &faulty,
                || format!("given up: {of:?}"),
                |w| {
                    answer(w, call, None, rules);
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
        | CallOf::Disown { tunnel }
        | CallOf::CloseInVain { tunnel } => tunnel,
    };
    let mut data = Data { tunnel: id, source: 0, destination: 0 };
    let mut result = None;
    match call.of {
        CallOf::Open { uid, attempt } => {
            if w.tunnels.iter().any(|t| t.open && !t.disowned && t.uid == uid) && !w.may_double {
                done.wrong = Some("OpenTunnel is carried out though the Tunnel has an open tunnel");
            }
            (data.source, data.destination) = (w.next_token(), w.next_token());
            w.last.tunnel = id;
            w.tunnels.push(Tunnel {
                id,
                uid,
                attempt,
                open: true,
                disowned: false,
                late: w.lifetime_over,
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
        CallOf::Close { tunnel } | CallOf::CloseInVain { tunnel } => {
            w.tunnel(tunnel).into_iter().for_each(|t| t.open = false);
        }
        CallOf::Disown { tunnel } => w.tunnel(tunnel).into_iter().for_each(|t| t.disowned = true),
    }
    w.calls[n].age = 0;
    w.calls[n].result = Some(result.unwrap_or(CallResult::Done(data)));
    out.add(done);
}
