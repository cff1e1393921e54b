//! What comes of a status write, and of a call to AWS.

use crate::moves::now;
use crate::operator::{self, with_kept};
use crate::rules::Rules;
use crate::world::*;
use opentunnel_operator::controller::decide::failure_reason;
use opentunnel_operator::controller::decision::Change;
use opentunnel_operator::controller::observe::{self, Failure};
use opentunnel_operator::crd::Reason;
use opentunnel_operator::tunnels::{Attempt, CallErrorKind, TunnelId};

/// What a status write makes of the object, as `status::after` does.
pub fn apply(o: &mut Object, change: &Change, answer: Option<&Answer>, kept: Vec<(u8, Data)>, adopted_late: bool) {
    let small = |generation: &i64| u8::try_from(*generation).unwrap_or(u8::MAX);
    o.observed = Some(o.spec);
    match change {
        Change::Opened { generation } | Change::Kept { generation } => {
            let (tunnel, late) = answer.map(|a| (a.data.tunnel, a.late)).expect("an answer");
            (o.tunnel, o.opened_late, o.generation) = (Some(tunnel), late, small(generation));
        }
        Change::Adopted { found, generation } => {
            o.tunnel = Some(operator::number(&found.tunnel.id.0));
            (o.opened_late, o.generation) = (adopted_late, small(generation));
        }
        Change::Rotating { generation, .. } => o.generation = small(generation),
        Change::Ended { .. } => (o.closed, o.kept) = (true, None),
        Change::OpenedAt(_) => unreachable!("no clocks differ here"),
        Change::Rotated | Change::Arranged | Change::Report(_) => {}
    }
    if matches!(change, Change::Opened { .. } | Change::Rotated | Change::Arranged) {
        o.kept = Some(kept);
    }
    match change {
        Change::Opened { .. } | Change::Rotated | Change::Arranged => o.reported = Some(Reason::Open),
        Change::Adopted { .. } => o.reported = Some(Reason::Rotating),
        Change::Rotating { .. } if o.reported == Some(Reason::AwsUnavailable) => {}
        Change::Rotating { .. } => o.reported = Some(Reason::Rotating),
        Change::Ended { reason, .. } => o.reported = Some(*reason),
        Change::Kept { .. } => o.reported = Some(Reason::SecretConflict),
        Change::Report(report) => o.reported = Some(report.reason),
        Change::OpenedAt(_) => {}
    }
}

/// What comes of a call for the one who waits for it. `None`: it was given up.
pub fn answer(world: &mut World, call: &Call, result: Option<CallResult>, rules: &Rules) {
    let Some(i) = call.by.map(usize::from) else { return };
    let operator = &mut world.operators[i];
    let (Some(mem), Some(reconcile)) = (&mut operator.memory, &mut operator.reconcile) else { return };
    let mut memory = mem.real();
    let kind = match result {
        Some(CallResult::Done(_)) => None,
        Some(CallResult::Refused(Refused::LimitExceeded)) => Some(CallErrorKind::LimitExceeded),
        Some(CallResult::Refused(Refused::AccessDenied)) => Some(CallErrorKind::AccessDenied),
        Some(CallResult::Refused(Refused::InvalidRequest)) => Some(CallErrorKind::InvalidRequest),
        None => Some(CallErrorKind::Doubt),
    };
    let data = match result {
        Some(CallResult::Done(data)) => data,
        _ => Data { tunnel: 0, source: 0, destination: 0 },
    };
    match (call.of, kind) {
        (CallOf::Open { attempt, .. }, None) => {
            let late = world.tunnels.iter().any(|t| t.id == data.tunnel && t.late);
            memory.answered(Mem::answer(observe::AnswerOf::Open(Attempt(attempt.to_string())), data, late));
        }
        (CallOf::Open { .. }, Some(kind)) => {
            memory.open_failed(if rules.no_doubt { CallErrorKind::Unreachable } else { kind });
        }
        (CallOf::Rotate { generation, others_live, .. }, kind) => {
            memory.rotate_ended(kind, &operator::limits(rules), now());
            if kind.is_none() {
                let data = if others_live { with_kept(data, reconcile) } else { data };
                let of = observe::AnswerOf::Rotate(generation.into());
                memory.answered(Mem::answer(of, data, reconcile.view.opened_late));
            }
        }
        (CallOf::Close { tunnel } | CallOf::Disown { tunnel }, None) => {
            memory.parted(&TunnelId(tunnel.to_string()));
        }
        _ => {}
    }
    match kind {
        None => {}
        Some(CallErrorKind::LimitExceeded) => memory.failure = None,
        Some(kind) => {
            let reason = failure_reason(kind);
            let told = memory.failure.as_ref().is_some_and(|f| f.told && f.reason == reason);
            memory.failure =
                Some(Failure { reason, message: String::new(), at: now(), retry_at: now(), times: 1, told });
        }
    }
    mem.take(memory);
    // What was read before an answer came is older than it, though it is of the same tick.
    if kind.is_none() {
        operator.reconcile.iter_mut().for_each(|r| r.read = None);
    }
}
