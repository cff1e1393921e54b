//! The Kubernetes Event that tells of a step: one per transition and none per retry. Pure.

use crate::read::{Goal, Object};
use crate::record::Change;
use crate::status::main_message;
use crate::step::{Identity, Outcome, Step};
use opentunnel_api::Reason;

/// An Event of a Tunnel.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// Its type is Warning, not Normal: something needs a look.
    pub warning: bool,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What is told of a step. `object`: the Tunnel as it was decided on.
pub fn after(step: &Step, outcome: &Outcome, object: &Object) -> Option<Notice> {
    let notice = |warning, reason: &str, message| Some(Notice { warning, reason: reason.into(), message });
    match (step, outcome) {
        (Step::Record(change), Outcome::Written(written)) => {
            let (warning, reason) = of_change(change)?;
            let message = main_message(&written.conditions).unwrap_or_default();
            Some(Notice { warning, reason, message: message.to_owned() })
        }
        (Step::Close { tunnel, .. }, Outcome::ClosedOrUntagged(Ok(()))) => {
            notice(false, "Closed", format!("tunnel {} is closed", tunnel.id))
        }
        (Step::Untag { tunnel, .. }, Outcome::ClosedOrUntagged(Ok(()))) => {
            notice(false, "Retained", format!("tunnel {} stays open, without an owner tag", tunnel.id))
        }
        (Step::Identify { tunnel, .. }, Outcome::Identified(Ok(Identity::Foreign))) if object.goal() != Goal::Open => {
            let id = &tunnel.id;
            let words = "which the status names, is not this Tunnel's by its owner tag: it is left alone";
            notice(true, "NotOwned", format!("tunnel {id}, {words}"))
        }
        _ => None,
    }
}

fn of_change(change: &Change) -> Option<(bool, String)> {
    Some(match change {
        Change::Opened { .. } => (false, "Opened".to_owned()),
        Change::Adopted { .. } => (false, "Adopted".to_owned()),
        Change::Rotated(_) => (false, "TokensRotated".to_owned()),
        Change::SecretsUpdated(_) => (false, "SecretsUpdated".to_owned()),
        Change::OpenedInConflict { .. } => (true, Reason::SecretConflict.to_string()),
        Change::Ended { reason, .. } => (false, reason.to_string()),
        Change::Report(report) => match report.reason {
            Reason::LimitExceeded | Reason::AwsUnavailable => (true, report.reason.to_string()),
            reason if reason.is_stalled() => (true, reason.to_string()),
            _ => return None,
        },
        Change::Rotating { .. } | Change::OpenedAt(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::read;
    use crate::record::Change;
    use crate::status::render;
    use crate::step::{Report, Wait};
    use crate::tunnels::{Attempt, CallError, CallErrorKind, Found, Owner, TunnelId, TunnelRef};
    use jiff::Timestamp;
    use opentunnel_api::ClientMode;
    use serde_json::json;

    fn object(deleted: bool, status: serde_json::Value) -> Object {
        let deleted = deleted.then_some("2026-01-01T01:00:00Z");
        let metadata = json!({
            "name": "sensor", "namespace": "edge", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": deleted,
        });
        let tunnel = json!({"metadata": metadata, "spec": {}, "status": status});
        read(&serde_json::from_value(tunnel).unwrap()).unwrap()
    }

    fn tunnel() -> TunnelRef {
        TunnelRef { id: TunnelId("t".into()), arn: "arn:t".into() }
    }

    fn at() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn refused() -> CallError {
        CallError { kind: CallErrorKind::AccessDenied, message: "no".into() }
    }

    /// The Tunnel after a status write.
    fn write(change: &Change) -> Outcome {
        let before = object(false, json!(null));
        let after = before.record.after(change, 1, before.spec.lifetime);
        Outcome::Written(Box::new(object(false, json!(render(&before, change, &after, at())))))
    }

    fn told(step: &Step, outcome: &Outcome, deleted: bool) -> Option<(bool, String)> {
        after(step, outcome, &object(deleted, json!(null))).map(|notice| (notice.warning, notice.reason))
    }

    fn report(reason: Reason) -> Change {
        Change::Report(Report { reason, message: "words".into() })
    }

    #[test]
    fn each_transition_is_told_once_by_its_reason() {
        let attempt = Attempt("a".into());
        let owner = Owner { cluster: "c".into(), namespace: "edge".into(), uid: "u".into(), attempt };
        let found = Found { tunnel: tunnel(), owner, created_at: at() };
        let (tunnel, secrets) = (tunnel(), Vec::new());
        for (change, expected) in [
            (Change::Opened { tunnel: tunnel.clone(), at: at(), generation: 1, secrets }, Some((false, "Opened"))),
            (Change::OpenedInConflict { tunnel, at: at(), generation: 1 }, Some((true, "SecretConflict"))),
            (Change::Adopted { found, generation: 2 }, Some((false, "Adopted"))),
            (Change::Rotating { generation: 2, mode: ClientMode::All }, None),
            (Change::Rotated(vec![]), Some((false, "TokensRotated"))),
            (Change::SecretsUpdated(vec![]), Some((false, "SecretsUpdated"))),
            (Change::Ended { reason: Reason::Expired, closed_at: at() }, Some((false, "Expired"))),
            (Change::Ended { reason: Reason::Closed, closed_at: at() }, Some((false, "Closed"))),
            (Change::OpenedAt(at()), None),
            (report(Reason::Open), None),
            (report(Reason::Opening), None),
            (report(Reason::Rotating), None),
            (report(Reason::Closing), None),
            (report(Reason::LimitExceeded), Some((true, "LimitExceeded"))),
            (report(Reason::AwsUnavailable), Some((true, "AwsUnavailable"))),
            (report(Reason::AccessDenied), Some((true, "AccessDenied"))),
            (report(Reason::InvalidRequest), Some((true, "InvalidRequest"))),
            (report(Reason::SecretConflict), Some((true, "SecretConflict"))),
            (report(Reason::WrongAccount), Some((true, "WrongAccount"))),
        ] {
            let step = Step::Record(change.clone());
            let expected = expected.map(|(warning, reason)| (warning, reason.to_owned()));
            assert_eq!(told(&step, &write(&change), false), expected, "{change:?}");
            // A write that was not made is told by whoever makes it.
            for outcome in [Outcome::Conflict(None), Outcome::Failed(crate::error::Error::Timeout("write"))] {
                assert_eq!(told(&step, &outcome, false), None, "{change:?}");
            }
        }
    }

    #[test]
    fn it_says_what_the_condition_says() {
        let change = report(Reason::AccessDenied);
        let outcome = write(&change);
        let notice = after(&Step::Record(change), &outcome, &object(false, json!(null)));
        assert_eq!(notice.unwrap().message, "words");
    }

    #[test]
    fn the_end_of_a_tunnel_is_told_when_it_is_done_and_no_failure_is() {
        let (tunnel, opened_at) = (tunnel(), at());
        let close = Step::Close { tunnel: tunnel.clone(), opened_at };
        let untag = Step::Untag { tunnel: tunnel.clone(), opened_at };
        assert_eq!(told(&close, &Outcome::ClosedOrUntagged(Ok(())), true), Some((false, "Closed".into())));
        assert_eq!(told(&untag, &Outcome::ClosedOrUntagged(Ok(())), true), Some((false, "Retained".into())));
        for step in [close, untag] {
            assert_eq!(told(&step, &Outcome::ClosedOrUntagged(Err(refused())), true), None);
        }
        let identify = Step::Identify { tunnel, opened_at };
        let identified = |identity| Outcome::Identified(Ok(identity));
        assert_eq!(told(&identify, &identified(Identity::Foreign), true), Some((true, "NotOwned".into())));
        // Before its deletion the status says so.
        assert_eq!(told(&identify, &identified(Identity::Foreign), false), None);
        for outcome in [identified(Identity::NotFound), Outcome::Identified(Err(refused()))] {
            assert_eq!(told(&identify, &outcome, true), None);
        }
    }

    #[test]
    fn nothing_is_told_of_the_steps_between() {
        for step in
            [Step::Wait(Wait::default()), Step::Read, Step::RestoreFinalizer, Step::RemoveFinalizer, Step::Forget]
        {
            for outcome in [Outcome::Done, Outcome::Written(Box::new(object(false, json!(null))))] {
                assert_eq!(told(&step, &outcome, false), None, "{step:?}");
            }
        }
    }
}
