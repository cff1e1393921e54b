//! How a [`Record`] stands in the Tunnel's status. Pure.

use crate::read::Object;
use crate::record::{Change, Record, floor};
use crate::step::Report;
use jiff::Timestamp;
use opentunnel_api::{Condition, ConditionType, Reason, Reopen, TunnelStatus};

/// The status of `object` after a change, which makes its record `after`.
pub fn render(object: &Object, change: &Change, after: &Record, now: Timestamp) -> TunnelStatus {
    let conditions = match (after.reported, message(object, change, after)) {
        (Some(reason), Some(message)) => conditions(object, &Report { reason, message }, now),
        _ => object.conditions.clone(),
    };
    TunnelStatus { conditions: Some(conditions), ..after.fields() }
}

/// What the main condition says, for people. `None`: what it said before, and of the same generation of the spec.
fn message(object: &Object, change: &Change, after: &Record) -> Option<String> {
    let id = after.tunnel.as_ref().map_or("", |t| t.reference.id.0.as_str());
    let is_open = || format!("tunnel {id} is open and its access tokens are in the Secrets");
    Some(match change {
        Change::Opened { .. } | Change::Rotated { .. } | Change::SecretsUpdated(_) => is_open(),
        Change::Adopted { .. } => format!("tunnel {id}, opened by an earlier attempt, is adopted: it gets new tokens"),
        Change::Rotating { .. } if after.reported != Some(Reason::Rotating) => return None,
        Change::Rotating { .. } => format!("tunnel {id} gets new tokens"),
        Change::Closing(Reason::Recreating) => format!(
            "the spec has changed: tunnel {id} is closed, then a new one is opened with description, destination and timeout as they are now"
        ),
        Change::Closing(_) => format!("spec.suspend is true: tunnel {id} is closed"),
        Change::Suspended => "spec.suspend is true: no tunnel is open; false opens a new one".into(),
        Change::Ended { reason, reopen, .. } => {
            let why = match reason {
                Reason::Expired => {
                    format!("the lifetime of tunnel {id} ran out ({} min)", object.spec.lifetime.as_mins())
                }
                Reason::Suspended => format!("spec.suspend is true: tunnel {id} is closed; false opens a new one"),
                Reason::Recreating => format!("tunnel {id} is closed, and a new one is opened with the changed spec"),
                _ => format!("tunnel {id} was closed by somebody else"),
            };
            let next = match reopen {
                None => String::new(),
                Some(Reopen { not_before: None, .. }) => ": another is opened".into(),
                Some(Reopen { count, not_before: Some(at) }) => {
                    format!(" before its lifetime was over ({count} in a row): another is opened at {at}")
                }
            };
            why + &next
        }
        Change::OpenedInVain { report, .. } => format!("tunnel {id} is open, but: {}", report.message),
        Change::OpenedAt(_) | Change::TagKeys(_) | Change::Connected(_) | Change::RotationRefused(_) => return None,
        Change::Report(report) if report.message.is_empty() => {
            main_message(&object.conditions).map_or_else(is_open, str::to_owned)
        }
        Change::Report(report) => report.message.clone(),
    })
}

/// The main condition: `Ready`, or `Ended` in its place.
pub fn main_condition(conditions: &[Condition]) -> Option<&Condition> {
    let of_type = |type_: ConditionType| conditions.iter().find(|c| c.type_ == type_.to_string());
    of_type(ConditionType::Ended).or_else(|| of_type(ConditionType::Ready))
}

/// What the main condition says.
pub fn main_message(conditions: &[Condition]) -> Option<&str> {
    main_condition(conditions).map(|c| c.message.as_str())
}

/// The conditions for a report: the main one first, `Reconciling` and `Stalled` only while True.
fn conditions(object: &Object, report: &Report, now: Timestamp) -> Vec<Condition> {
    let reason = report.reason;
    let main = if reason.is_end() { ConditionType::Ended } else { ConditionType::Ready };
    let holds = reason.is_end() || reason == Reason::Open;
    let mut wanted = vec![(main, if holds { "True" } else { "False" })];
    if !holds {
        let why = if reason.is_stalled() { ConditionType::Stalled } else { ConditionType::Reconciling };
        wanted.push((why, "True"));
    }
    let condition = |(type_, status): (ConditionType, &str)| {
        let type_ = type_.to_string();
        let same = object.conditions.iter().find(|c| c.type_ == type_ && c.status == status);
        Condition {
            type_,
            status: status.to_owned(),
            observed_generation: Some(object.generation),
            last_transition_time: same.map_or_else(|| floor(now), |c| c.last_transition_time),
            reason: reason.to_string(),
            message: report.message.clone(),
        }
    };
    wanted.into_iter().map(condition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::read;
    use crate::record::{Connections, Opening};
    use crate::secrets;
    use crate::tunnels::{Attempt, Found, Owner, Side, Token, Tokens, TunnelId, TunnelRef};
    use opentunnel_api::{ClientMode, Connection, ConnectionStatus, SecretStatus};
    use serde_json::{Value, json};

    const TOKEN: &str = "CANARYcanary0123456789";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn object() -> Object {
        let metadata = json!({
            "name": "sensor", "namespace": "edge", "uid": "u", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        });
        read(&serde_json::from_value(json!({"metadata": metadata, "spec": {}})).unwrap()).unwrap()
    }

    /// The object with a status, as the API server stores it.
    fn with_status(object: &Object, status: &TunnelStatus) -> Object {
        let metadata = json!({
            "name": "sensor", "namespace": "edge", "uid": "u", "generation": object.generation,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        });
        read(&serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap()).unwrap()
    }

    fn written(object: &Object, change: &Change, now: i64) -> TunnelStatus {
        let after = object.record.after(change, object.generation, object.spec.lifetime);
        render(object, change, &after, at(now))
    }

    fn tunnel() -> TunnelRef {
        TunnelRef { id: TunnelId("t".into()), arn: "arn:t".into() }
    }

    fn statuses() -> Vec<SecretStatus> {
        let side = || Some(Side { access_token: Token::new(TOKEN.into()), client_token: Token::new(TOKEN.into()) });
        let tokens = Tokens { source: side(), destination: side() };
        let data = secrets::data(ClientMode::All, &tokens, &tunnel().id, "us-east-1");
        vec![SecretStatus {
            name: "sensor-tokens".into(),
            sha256: secrets::sha256(&data),
            resource_version: Some("9".into()),
        }]
    }

    fn opening() -> Opening {
        let (tunnel, at, attempt) = (tunnel(), at(100), Attempt("a".into()));
        Opening { tunnel, at, attempt, opened_with: "with".into(), tag_keys: vec![], handled: None }
    }

    fn opened() -> Change {
        Change::Opened { opening: opening(), generation: 1, secrets: statuses() }
    }

    fn ended(reason: Reason) -> Change {
        Change::Ended { reason, closed_at: at(200), told: true, reopen: None }
    }

    /// It was closed by somebody else, and another one follows.
    fn reopening(not_before: Option<Timestamp>) -> Change {
        let (reason, reopen) = (Reason::Closed, Some(Reopen { count: 2, not_before }));
        Change::Ended { reason, closed_at: at(200), told: true, reopen }
    }

    fn in_vain() -> Change {
        let report = Report { reason: Reason::SecretConflict, message: "Secret sensor-tokens exists".into() };
        Change::OpenedInVain { opening: opening(), generation: 1, report }
    }

    fn report(reason: Reason) -> Change {
        Change::Report(Report { reason, message: "words".into() })
    }

    fn all_changes() -> Vec<Change> {
        let attempt = Attempt("a".into());
        let owner = Owner { cluster: "c".into(), namespace: "edge".into(), uid: "u".into(), attempt };
        let reports = Reason::ALL.into_iter().map(report);
        let connected = Some(Connection { status: ConnectionStatus::Connected, last_updated_at: Some(at(150)) });
        let others = [
            opened(),
            in_vain(),
            Change::Adopted {
                found: Found { tunnel: tunnel(), owner, created_at: at(90), opened_with: None },
                generation: 2,
                handled: None,
                connections: Connections::default(),
            },
            Change::Rotating { generation: 3, mode: ClientMode::All, redone: None },
            Change::Rotated { secrets: statuses(), handled: None },
            Change::SecretsUpdated(statuses()),
            ended(Reason::Expired),
            ended(Reason::Closed),
            Change::Closing(Reason::Recreating),
            Change::Closing(Reason::Suspended),
            Change::Suspended,
            Change::OpenedAt(at(170)),
            ended(Reason::Suspended),
            ended(Reason::Recreating),
            reopening(None),
            reopening(Some(at(260))),
            Change::TagKeys(vec!["a".into(), "b".into()]),
            Change::TagKeys(vec![]),
            Change::Connected(Connections { source: connected.clone(), destination: None }),
            Change::Connected(Connections { source: None, destination: connected }),
            Change::RotationRefused("2026".into()),
        ];
        reports.chain(others).collect()
    }

    /// The conditions in their order: type, status, reason.
    fn told(status: &TunnelStatus) -> Vec<(String, String, String)> {
        let conditions = status.conditions.iter().flatten();
        conditions.map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone())).collect()
    }

    #[test]
    fn the_main_condition_is_ready_or_ended_and_beside_it_stands_why_not() {
        for reason in Reason::ALL {
            let wanted: &[_] = match reason {
                Reason::Open => &[("Ready", "True")],
                Reason::Expired | Reason::Closed | Reason::Suspended => &[("Ended", "True")],
                Reason::AccessDenied
                | Reason::InvalidRequest
                | Reason::SecretConflict
                | Reason::SecretModified
                | Reason::WrongAccount => &[("Ready", "False"), ("Stalled", "True")],
                Reason::Opening
                | Reason::LimitExceeded
                | Reason::AwsUnavailable
                | Reason::Rotating
                | Reason::Recreating
                | Reason::Closing => &[("Ready", "False"), ("Reconciling", "True")],
            };
            let name = reason.to_string();
            let wanted: Vec<_> = wanted.iter().map(|(t, s)| ((*t).into(), (*s).into(), name.clone())).collect();
            assert_eq!(told(&written(&object(), &report(reason), 100)), wanted, "{reason}");
        }
    }

    #[test]
    fn ended_stands_in_place_of_ready() {
        let ready = with_status(&object(), &written(&object(), &opened(), 100));
        let ended = written(&ready, &ended(Reason::Closed), 210);
        assert_eq!(told(&ended), [("Ended".into(), "True".into(), "Closed".into())]);
        assert_eq!((ended.state, ended.closed_at), (Some(opentunnel_api::TunnelState::Closed), Some(at(200))));
        assert_eq!(ended.secrets, None);
        assert_eq!(ended.tunnel_id.as_deref(), Some("t"), "what it was stays");
    }

    #[test]
    fn the_time_of_a_transition_stays_while_the_status_of_the_condition_does() {
        let times = |status: &TunnelStatus| {
            status.conditions.iter().flatten().map(|c| c.last_transition_time).collect::<Vec<_>>()
        };
        let queued = written(&object(), &report(Reason::Opening), 100);
        assert_eq!(times(&queued), [at(100), at(100)]);
        let limited = written(&with_status(&object(), &queued), &report(Reason::LimitExceeded), 110);
        assert_eq!(times(&limited), [at(100), at(100)], "another reason is no transition");
        let stalled = written(&with_status(&object(), &limited), &report(Reason::AccessDenied), 120);
        assert_eq!(times(&stalled), [at(100), at(120)], "Ready is False as before; Stalled is new");
        let ready = written(&with_status(&object(), &stalled), &opened(), 130);
        assert_eq!(times(&ready), [at(130)]);
        let same = written(&with_status(&object(), &ready), &Change::SecretsUpdated(statuses()), 140);
        assert_eq!(times(&same), [at(130)]);
    }

    #[test]
    fn it_speaks_of_the_generation_of_the_spec_that_was_decided_on() {
        let status = written(&object(), &report(Reason::Opening), 100);
        assert_eq!(status.observed_generation, Some(3));
        let conditions = status.conditions.unwrap();
        assert!(conditions.iter().all(|c| c.observed_generation == Some(3)), "{conditions:?}");
    }

    #[test]
    fn what_people_read_names_the_tunnel_and_stays_where_nothing_new_is_to_say() {
        let message = |status: &TunnelStatus| status.conditions.as_ref().unwrap()[0].message.clone();
        let ready = with_status(&object(), &written(&object(), &opened(), 100));
        assert_eq!(main_message(&ready.conditions), Some("tunnel t is open and its access tokens are in the Secrets"));
        let observed = Change::Report(Report { reason: Reason::Open, message: String::new() });
        assert_eq!(message(&written(&ready, &observed, 110)), main_message(&ready.conditions).unwrap());
        assert_eq!(
            message(&written(&ready, &Change::OpenedAt(at(170)), 110)),
            main_message(&ready.conditions).unwrap()
        );
        assert_eq!(message(&written(&object(), &report(Reason::Opening), 100)), "words");
        let expired = ended(Reason::Expired);
        assert_eq!(message(&written(&ready, &expired, 200)), "the lifetime of tunnel t ran out (720 min)");
        let conflict = in_vain();
        assert!(message(&written(&object(), &conflict, 100)).contains("sensor-tokens"));
        // That AWS does not answer stands while the rotation is claimed again.
        let away = with_status(&object(), &written(&ready, &report(Reason::AwsUnavailable), 120));
        let again = written(&away, &Change::Rotating { generation: 3, mode: ClientMode::All, redone: None }, 130);
        assert_eq!((message(&again).as_str(), again.token_generation), ("words", Some(3)));
    }

    #[test]
    fn a_status_is_read_back_as_the_record_that_it_was_rendered_of() {
        for first in all_changes() {
            let stored = with_status(&object(), &written(&object(), &first, 100));
            for change in all_changes() {
                let after = stored.record.after(&change, stored.generation, stored.spec.lifetime);
                let status = render(&stored, &change, &after, at(300));
                assert_eq!(with_status(&stored, &status).record, after, "{first:?}, {change:?}");
            }
        }
    }

    #[test]
    fn a_merge_of_the_status_takes_out_what_is_not_set_and_has_no_token() {
        for change in all_changes() {
            let merge = json!(written(&object(), &change, 100));
            for field in
                ["tunnelId", "tunnelArn", "state", "openedAt", "expiresAt", "closedAt", "secrets", "tokenGeneration"]
            {
                assert!(merge.as_object().unwrap().contains_key(field), "{field} would stay: {merge}");
            }
            assert!(!merge.to_string().contains(TOKEN), "{change:?}");
        }
        let ready = with_status(&object(), &written(&object(), &opened(), 100));
        let merge = json!(written(&ready, &ended(Reason::Closed), 200));
        assert_eq!(merge["secrets"], Value::Null);
    }

    #[test]
    fn what_follows_an_end_is_told_with_it() {
        let ready = with_status(&object(), &written(&object(), &opened(), 100));
        let told = |change: &Change| {
            let status = written(&ready, change, 210);
            let main = status.conditions.unwrap().swap_remove(0);
            (main.type_, main.reason, main.message)
        };
        let expired = Change::Ended {
            reason: Reason::Expired,
            closed_at: at(200),
            told: true,
            reopen: Some(Reopen { count: 0, not_before: None }),
        };
        for (change, type_, reason, words) in [
            (ended(Reason::Closed), "Ended", "Closed", "tunnel t was closed by somebody else"),
            (
                ended(Reason::Suspended),
                "Ended",
                "Suspended",
                "spec.suspend is true: tunnel t is closed; false opens a new one",
            ),
            (ended(Reason::Recreating), "Ready", "Recreating", "a new one is opened with the changed spec"),
            (reopening(Some(at(260))), "Ready", "Opening", "(2 in a row): another is opened at 1970-01-01T00:04:20Z"),
            (expired, "Ready", "Opening", "the lifetime of tunnel t ran out (720 min): another is opened"),
            (Change::Closing(Reason::Suspended), "Ready", "Closing", "spec.suspend is true: tunnel t is closed"),
            (Change::Closing(Reason::Recreating), "Ready", "Recreating", "the spec has changed: tunnel t is closed"),
            (Change::Suspended, "Ended", "Suspended", "no tunnel is open"),
        ] {
            let (is_type, is_reason, message) = told(&change);
            assert_eq!((is_type.as_str(), is_reason.as_str()), (type_, reason), "{change:?}");
            assert!(message.contains(words), "{change:?}: {message}");
        }
        for change in [
            Change::TagKeys(vec!["a".into()]),
            Change::Connected(Connections::default()),
            Change::RotationRefused("x".into()),
        ] {
            assert_eq!(written(&ready, &change, 210).conditions.unwrap(), ready.conditions, "{change:?}");
        }
    }
}
