//! The Kubernetes Event that tells of a step: one per transition and none per retry. Pure.

use crate::decide::was_connected;
use crate::read::{Goal, Object};
use crate::record::{Change, Connections};
use crate::status::main_message;
use crate::step::{Identity, Outcome, Step};
use opentunnel_api::{Connection, ConnectionStatus, ROTATE_AT_ANNOTATION, ROTATE_CLIENT_MODE_ANNOTATION, Reason};

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
            if let Change::Connected(now) = change {
                return connected(object, now);
            }
            if let Change::RotationRefused(value) = change {
                let words = format!(
                    "{ROTATE_AT_ANNOTATION} {value:?} is not carried out: {ROTATE_CLIENT_MODE_ANNOTATION} has to be SOURCE, DESTINATION or ALL; correct it and give a new value"
                );
                return notice(true, "RotationRefused", words);
            }
            let (warning, reason) = of_change(change)?;
            let message = main_message(&written.conditions).unwrap_or_default();
            Some(Notice { warning, reason, message: message.to_owned() })
        }
        (Step::TellRival(rival), _) => {
            let thing = object.spec.request.destination.as_ref().and_then(|d| d.thing_name.as_deref());
            let words = format!(
                "Tunnel {rival} has an open tunnel for thing {} already: an agent that serves one tunnel follows the newest, so the older one may lose its device",
                thing.unwrap_or_default()
            );
            notice(true, "ThingHasTunnel", words)
        }
        (Step::TellUnconnected, _) => {
            let thing = object.spec.request.destination.as_ref().and_then(|d| d.thing_name.as_deref());
            let device = thing.unwrap_or("the device");
            let words = format!(
                "the destination has not connected within 2 min: is {device} online; does its agent listen to $aws/things/{}/tunnels/notify; AWS's device agents take one service, called SSH or VNC. The annotation {ROTATE_AT_ANNOTATION} (with {ROTATE_CLIENT_MODE_ANNOTATION}: DESTINATION) sends it a new token",
                thing.unwrap_or("<thing>")
            );
            notice(true, "DestinationNotConnected", words)
        }
        // It keeps its place in the queue.
        (Step::Tag { .. } | Step::TakeTagsOff { .. }, Outcome::Tagged(Err(error))) if error.is_limit() => None,
        (Step::Tag { tags, told: false, .. }, Outcome::Tagged(Err(error))) => {
            let keys: Vec<_> = tags.keys().map(String::as_str).collect();
            notice(
                true,
                "TagsNotSet",
                format!("AWS does not set the tags {}: {error}; it is tried again", keys.join(", ")),
            )
        }
        (Step::TakeTagsOff { keys, told: false, .. }, Outcome::Tagged(Err(error))) => notice(
            true,
            "TagsNotSet",
            format!("AWS does not take the tags {} off: {error}; it is tried again", keys.join(", ")),
        ),
        // On the way down the end is told when it is recorded.
        (Step::Close { .. }, Outcome::ClosedOrUntagged(Ok(()))) if object.deleted_at.is_none() => None,
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
        Change::Rotated { .. } => (false, "TokensRotated".to_owned()),
        Change::SecretsUpdated(_) => (false, "SecretsUpdated".to_owned()),
        Change::OpenedInVain { report, .. } => (true, report.reason.to_string()),
        Change::Ended { reason, .. } | Change::Closing(reason) if *reason == Reason::Recreating => match change {
            Change::Closing(_) => (false, reason.to_string()),
            _ => (false, "Closed".into()),
        },
        Change::Ended { reason, .. } => (false, reason.to_string()),
        Change::Suspended => (false, Reason::Suspended.to_string()),
        Change::Report(report) => match report.reason {
            Reason::LimitExceeded | Reason::AwsUnavailable => (true, report.reason.to_string()),
            reason if reason.is_stalled() => (true, reason.to_string()),
            _ => return None,
        },
        Change::Rotating { .. } | Change::OpenedAt(_) | Change::Closing(_) | Change::TagKeys(_) => return None,
        Change::Connected(_) | Change::RotationRefused(_) => return None,
    })
}

/// A side has connected for the first time.
fn connected(object: &Object, now: &Connections) -> Option<Notice> {
    let tunnel = object.record.tunnel.as_ref()?;
    let before = &object.record.connections;
    let first = |before: &Option<Connection>, now: &Option<Connection>| {
        let is = now.as_ref().is_some_and(|c| c.status == ConnectionStatus::Connected);
        is && !before.as_ref().is_some_and(was_connected(tunnel))
    };
    let side = match (first(&before.source, &now.source), first(&before.destination, &now.destination)) {
        (true, true) => "both sides are connected",
        (true, false) => "the source is connected",
        (false, true) => "the destination is connected",
        (false, false) => return None,
    };
    Some(Notice {
        warning: false,
        reason: "Connected".into(),
        message: format!("{side}, for the first time (tunnel {})", tunnel.reference.id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::read;
    use crate::record::{Change, Opening};
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
        let found = Found { tunnel: tunnel(), owner, created_at: at(), opened_with: None };
        let opening = Opening {
            tunnel: tunnel(),
            at: at(),
            attempt: Attempt("a".into()),
            opened_with: String::new(),
            tag_keys: vec![],
            handled: None,
        };
        let ended = |reason| Change::Ended { reason, closed_at: at(), told: true, reopen: None };
        let in_conflict = Report { reason: Reason::SecretConflict, message: String::new() };
        let secrets = Vec::new();
        for (change, expected) in [
            (Change::Opened { opening: opening.clone(), generation: 1, secrets }, Some((false, "Opened"))),
            (Change::OpenedInVain { opening, generation: 1, report: in_conflict }, Some((true, "SecretConflict"))),
            (
                Change::Adopted { found, generation: 2, handled: None, connections: Connections::default() },
                Some((false, "Adopted")),
            ),
            (Change::Rotating { generation: 2, mode: ClientMode::All, redone: None }, None),
            (Change::Rotated { secrets: vec![], handled: None }, Some((false, "TokensRotated"))),
            (Change::SecretsUpdated(vec![]), Some((false, "SecretsUpdated"))),
            (ended(Reason::Expired), Some((false, "Expired"))),
            (ended(Reason::Closed), Some((false, "Closed"))),
            (ended(Reason::Suspended), Some((false, "Suspended"))),
            (ended(Reason::Recreating), Some((false, "Closed"))),
            (Change::Closing(Reason::Recreating), Some((false, "Recreating"))),
            (Change::Closing(Reason::Suspended), None),
            (Change::Suspended, Some((false, "Suspended"))),
            (Change::TagKeys(vec![]), None),
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
            (report(Reason::SecretModified), Some((true, "SecretModified"))),
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

    #[test]
    fn a_side_that_connects_for_the_first_time_is_told_of_and_no_later_one() {
        use ConnectionStatus::{Connected, Disconnected};
        let side = |status, second: Option<i64>| {
            let last_updated_at = second.map(|second| Timestamp::from_second(second).unwrap());
            Some(Connection { status, last_updated_at })
        };
        let opened = side(Disconnected, Some(1));
        for (source, destination, before, words) in [
            (side(Connected, Some(60)), opened.clone(), None, Some("the source is connected")),
            (opened.clone(), side(Connected, Some(60)), None, Some("the destination is connected")),
            (side(Connected, Some(60)), side(Connected, Some(60)), None, Some("both sides are connected")),
            (opened.clone(), opened.clone(), None, None),
            (side(Disconnected, Some(90)), opened.clone(), side(Connected, Some(60)), None),
            (side(Connected, Some(90)), opened.clone(), side(Disconnected, Some(60)), None),
            (side(Connected, Some(90)), opened.clone(), side(Connected, Some(60)), None),
            (side(Connected, Some(90)), opened.clone(), side(Disconnected, None), Some("the source is connected")),
            // It was connected and gone before anybody looked.
            (side(Connected, Some(90)), opened.clone(), opened.clone(), Some("the source is connected")),
        ] {
            let mut of = object(false, json!({"tunnelId": "t", "openedAt": "1970-01-01T00:00:00Z"}));
            of.record.connections.source = before.clone();
            let step = Step::Record(Change::Connected(Connections { source: source.clone(), destination }));
            let notice = after(&step, &Outcome::Written(Box::new(of.clone())), &of);
            let case = format!("{before:?}, then {source:?}");
            assert_eq!(notice.is_some(), words.is_some(), "{case}");
            if let (Some(notice), Some(words)) = (notice, words) {
                assert_eq!((notice.warning, notice.reason.as_str()), (false, "Connected"), "{case}");
                assert!(notice.message.starts_with(words), "{case}: {}", notice.message);
            }
            assert_eq!(after(&step, &Outcome::Conflict(None), &of), None, "{case}");
        }
    }

    #[test]
    fn what_needs_a_look_beside_the_status_is_a_warning() {
        let tags = || crate::tunnels::Tags::from([("team".into(), "edge".into())]);
        let tag = |told| Step::Tag { tunnel: tunnel(), tags: tags(), told };
        let off = |told| Step::TakeTagsOff { tunnel: tunnel(), keys: vec!["old".into()], told };
        let failed = || Outcome::Tagged(Err(refused()));
        let refusal = Change::RotationRefused("2026".into());
        for (step, outcome, expected) in [
            (tag(false), failed(), Some("TagsNotSet")),
            (off(false), failed(), Some("TagsNotSet")),
            (tag(true), failed(), None),
            (off(true), failed(), None),
            (tag(false), Outcome::Tagged(Ok(())), None),
            (off(false), Outcome::Tagged(Ok(())), None),
            (Step::Mark { tunnel: tunnel(), generation: 2 }, failed(), None),
            (Step::TellUnconnected, Outcome::Done, Some("DestinationNotConnected")),
            (Step::Record(refusal.clone()), write(&refusal), Some("RotationRefused")),
            (Step::Record(refusal.clone()), Outcome::Conflict(None), None),
        ] {
            let expected = expected.map(|reason| (true, reason.to_owned()));
            assert_eq!(told(&step, &outcome, false), expected, "{step:?}, {outcome:?}");
        }
        let message =
            |step: &Step, outcome: &Outcome| after(step, outcome, &object(false, json!(null))).unwrap().message;
        assert!(message(&tag(false), &failed()).contains("team"));
        assert!(message(&off(false), &failed()).contains("old"));
        assert!(message(&Step::TellUnconnected, &Outcome::Done).contains("<thing>"));
        let refused = message(&Step::Record(refusal.clone()), &write(&refusal));
        assert!(refused.contains("2026") && refused.contains("SOURCE, DESTINATION or ALL"), "{refused}");
    }

    #[test]
    fn a_close_on_the_way_down_is_told_when_its_end_is_recorded() {
        let close = Step::Close { tunnel: tunnel(), opened_at: at() };
        assert_eq!(told(&close, &Outcome::ClosedOrUntagged(Ok(())), false), None);
    }
}
