//! What each change makes of a record, and which tunnel follows.

use super::*;
use crate::tunnels::{Owner, TunnelId};

const LIFETIME: SignedDuration = SignedDuration::from_mins(60);

fn at(milli: i64) -> Timestamp {
    Timestamp::from_millisecond(milli).unwrap()
}

fn tunnel(id: &str) -> TunnelRef {
    TunnelRef { id: TunnelId(id.into()), arn: format!("arn:{id}") }
}

fn secrets(sha256: &str) -> Vec<SecretStatus> {
    vec![SecretStatus { name: "a".into(), sha256: sha256.into(), resource_version: Some("9".into()) }]
}

fn opened() -> Change {
    Change::Opened { opening: opening(at(1_500)), generation: 1, secrets: secrets("1") }
}

fn opening(at: Timestamp) -> Opening {
    let (tunnel, attempt) = (tunnel("t"), Attempt("own".into()));
    Opening { tunnel, at, attempt, opened_with: "with".into(), tag_keys: vec!["team".into()], handled: None }
}

fn rotated(sha256: &str) -> Change {
    Change::Rotated { secrets: secrets(sha256), handled: None }
}

fn adopted() -> Change {
    let attempt = Attempt("a".into());
    let owner = Owner { cluster: "c".into(), namespace: "edge".into(), uid: "u".into(), attempt };
    let found = Found { tunnel: tunnel("t"), owner, created_at: at(1_500), opened_with: None };
    Change::Adopted { found, generation: 2, handled: None, connections: Connections::default() }
}

fn rotating() -> Change {
    Change::Rotating { generation: 5, mode: ClientMode::All, redone: None }
}

fn ended() -> Change {
    Change::Ended { reason: Reason::Closed, closed_at: at(9_900), told: true, reopen: None }
}

fn report(reason: Reason) -> Change {
    Change::Report(Report { reason, message: "words".into() })
}

fn before() -> Record {
    Record { finalizer: true, claim: Some(Attempt("own".into())), ..Record::default() }
}

fn after(changes: &[Change]) -> Record {
    changes.iter().fold(before(), |record, change| record.after(change, 7, LIFETIME))
}

fn phase(record: &Record) -> &'static str {
    match record.phase() {
        Phase::None => "none",
        Phase::Open(_) => "open",
        Phase::Ready(_) => "ready",
        Phase::Ended(_) => "ended",
    }
}

#[test]
fn each_change_leads_to_its_phase() {
    let in_conflict = Report { reason: Reason::SecretConflict, message: String::new() };
    let conflict = Change::OpenedInVain { opening: opening(at(0)), generation: 1, report: in_conflict };
    for (changes, expected, reason, generation) in [
        (vec![], "none", None, 0),
        (vec![report(Reason::Opening)], "none", Some(Reason::Opening), 0),
        (vec![opened()], "ready", Some(Reason::Open), 1),
        (vec![conflict.clone()], "open", Some(Reason::SecretConflict), 1),
        (vec![conflict, rotating()], "open", Some(Reason::Rotating), 5),
        (vec![adopted()], "open", Some(Reason::Rotating), 2),
        (vec![adopted(), rotated("2")], "ready", Some(Reason::Open), 2),
        (vec![opened(), rotating()], "open", Some(Reason::Rotating), 5),
        (vec![opened(), rotating(), rotated("5")], "ready", Some(Reason::Open), 5),
        (vec![opened(), Change::SecretsUpdated(secrets("1"))], "ready", Some(Reason::Open), 1),
        (vec![opened(), report(Reason::SecretConflict)], "open", Some(Reason::SecretConflict), 1),
        (vec![opened(), report(Reason::Open)], "ready", Some(Reason::Open), 1),
        (vec![opened(), Change::OpenedAt(at(70_000))], "ready", Some(Reason::Open), 1),
        (vec![adopted(), Change::OpenedAt(at(70_000))], "open", Some(Reason::Rotating), 2),
        (vec![opened(), ended()], "ended", Some(Reason::Closed), 1),
        (vec![opened(), ended(), report(Reason::Closed)], "ended", Some(Reason::Closed), 1),
        // That AWS does not answer is told once, not with every rotation that is claimed again.
        (vec![adopted(), report(Reason::AwsUnavailable), rotating()], "open", Some(Reason::AwsUnavailable), 5),
    ] {
        let record = after(&changes);
        let is = (phase(&record), record.reported, record.token_generation);
        assert_eq!(is, (expected, reason, generation), "{changes:?}");
        assert_eq!((record.finalizer, record.claim), (before().finalizer, before().claim), "{changes:?}");
        assert_eq!(record.observed_generation, (!changes.is_empty()).then_some(7), "{changes:?}");
    }
}

#[test]
fn the_secrets_are_recorded_while_they_hold_its_tokens_and_when_new_ones_are_on_the_way() {
    let recorded = |changes: &[Change]| after(changes).secrets;
    assert_eq!(recorded(&[opened()]), Some(secrets("1")));
    assert_eq!(recorded(&[opened(), rotating()]), Some(secrets("1")), "an intact one shows which side is live");
    assert_eq!(recorded(&[opened(), rotating(), rotated("5")]), Some(secrets("5")));
    assert_eq!(recorded(&[opened(), Change::SecretsUpdated(secrets("x"))]), Some(secrets("x")));
    assert_eq!(recorded(&[opened(), ended()]), None);
    assert_eq!(recorded(&[adopted()]), None, "it was never Ready");
    assert_eq!(after(&[opened()]).sha256("a"), Some("1"));
    assert_eq!(after(&[opened()]).sha256("b"), None);
}

#[test]
fn times_are_whole_seconds_never_before_what_they_tell_of_and_the_end_never_before_awss() {
    let times = |changes: &[Change]| {
        let tunnel = after(changes).tunnel.unwrap();
        (tunnel.opened_at, tunnel.expires_at, tunnel.closed_at)
    };
    assert_eq!(times(&[opened()]), (at(1_000), at(3_602_000), None));
    assert_eq!(times(&[adopted()]), (at(1_000), at(3_602_000), None));
    assert_eq!(times(&[opened(), Change::OpenedAt(at(70_000))]), (at(70_000), at(3_670_000), None));
    assert_eq!(times(&[opened(), ended()]), (at(1_000), at(3_602_000), Some(at(9_000))));
    let late = Change::Opened { opening: opening(Timestamp::MAX), generation: 1, secrets: vec![] };
    assert!(after(&[late]).tunnel.is_some(), "no time is too late to be recorded");
}

#[test]
fn a_corrected_time_of_opening_does_not_say_that_an_edit_of_the_spec_was_carried_out() {
    let ready = after(&[opened()]);
    let edited = |change: &Change| ready.after(change, 8, LIFETIME).observed_generation;
    assert_eq!(edited(&Change::OpenedAt(at(70_000))), Some(7));
    assert_eq!(edited(&Change::SecretsUpdated(secrets("1"))), Some(8));
}

#[test]
fn a_change_of_a_tunnel_that_is_not_recorded_records_none() {
    for change in [ended(), Change::OpenedAt(at(1)), rotating()] {
        assert_eq!(phase(&after(&[change])), "none");
    }
}

fn closing(reason: Reason) -> Change {
    Change::Closing(reason)
}

fn ended_for(reason: Reason, reopen: Option<Reopen>) -> Change {
    Change::Ended { reason, closed_at: at(9_900), told: true, reopen }
}

fn pause(count: i32) -> Option<Reopen> {
    Some(Reopen { count, not_before: Some(at(60_000)) })
}

#[test]
fn the_way_down_and_up_again_leads_through_the_phases() {
    let (suspended, recreating) = (Reason::Suspended, Reason::Recreating);
    for (changes, expected, reason, end_reason) in [
        (vec![Change::Suspended], "none", suspended, None),
        (vec![opened(), closing(suspended)], "open", Reason::Closing, Some(suspended)),
        (vec![opened(), closing(recreating)], "open", recreating, Some(recreating)),
        (
            vec![opened(), closing(suspended), report(Reason::AccessDenied)],
            "open",
            Reason::AccessDenied,
            Some(suspended),
        ),
        (vec![opened(), closing(suspended), ended_for(suspended, None)], "ended", suspended, Some(suspended)),
        (vec![opened(), closing(recreating), ended_for(recreating, None)], "ended", recreating, Some(recreating)),
        (vec![opened(), ended(), Change::Suspended], "ended", suspended, Some(suspended)),
        (vec![opened(), ended_for(Reason::Closed, pause(1))], "ended", Reason::Opening, Some(Reason::Closed)),
        (vec![opened(), ended(), opened()], "ready", Reason::Open, None),
        (vec![opened(), ended(), adopted()], "open", Reason::Rotating, None),
        // That what is written does not stay is told once, not with every rotation that is claimed again.
        (vec![opened(), report(Reason::SecretModified), rotating()], "open", Reason::SecretModified, None),
    ] {
        let record = after(&changes);
        let of = record.tunnel.as_ref().and_then(|tunnel| tunnel.end_reason);
        assert_eq!((phase(&record), record.reported, of), (expected, Some(reason), end_reason), "{changes:?}");
    }
}

#[test]
fn what_is_known_of_one_tunnel_is_not_said_of_the_next() {
    let connected = || Some(Connection { status: ConnectionStatus::Connected, last_updated_at: Some(at(5_000)) });
    let seen = || Change::Connected(Connections { source: connected(), destination: None });
    let open = after(&[opened(), seen()]);
    let tunnel = open.tunnel.as_ref().unwrap();
    assert_eq!((tunnel.attempt.clone(), tunnel.opened_with.as_deref()), (Some(Attempt("own".into())), Some("with")));
    assert_eq!((open.tag_keys.len(), open.connections.source.clone()), (1, connected()));
    for end in [ended(), ended_for(Reason::Expired, None)] {
        let record = after(&[opened(), seen(), end]);
        assert_eq!((record.tag_keys.len(), record.secrets, record.connections), (0, None, Connections::default()));
    }
    let next = after(&[opened(), seen(), ended_for(Reason::Closed, pause(2)), adopted()]);
    assert_eq!((next.connections, next.tag_keys.len()), (Connections::default(), 0));
    assert_eq!(next.reopen, Some(Reopen { count: 2, not_before: None }), "it counts on");
    assert_eq!(next.tunnel.unwrap().attempt, Some(Attempt("a".into())));
    assert_eq!(after(&[opened(), ended_for(Reason::Closed, pause(2)), Change::Suspended]).reopen, None);
}

#[test]
fn a_rotation_that_was_asked_for_is_handled_when_its_tokens_are_there() {
    let handled = |changes: &[Change]| after(changes).handled_rotate_at;
    let asked = |value: &str| Change::Rotated { secrets: secrets("5"), handled: Some(value.into()) };
    assert_eq!(handled(&[opened(), rotating()]), None);
    assert_eq!(handled(&[opened(), rotating(), asked("x")]).as_deref(), Some("x"));
    assert_eq!(handled(&[opened(), asked("x"), rotated("6")]).as_deref(), Some("x"), "one that nobody asked for");
    assert_eq!(handled(&[opened(), Change::RotationRefused("y".into())]).as_deref(), Some("y"));
}

#[test]
fn what_says_nothing_of_an_edit_leaves_the_observed_generation() {
    let ready = after(&[opened()]);
    for change in [
        Change::TagKeys(vec!["a".into()]),
        Change::Connected(Connections::default()),
        Change::RotationRefused("x".into()),
        Change::OpenedAt(at(70_000)),
    ] {
        let record = ready.after(&change, 8, LIFETIME);
        assert_eq!((record.observed_generation, record.reported), (Some(7), Some(Reason::Open)), "{change:?}");
    }
    for change in [closing(Reason::Suspended), Change::Suspended, rotating(), ended()] {
        assert_eq!(ready.after(&change, 8, LIFETIME).observed_generation, Some(8), "{change:?}");
    }
}

#[test]
fn a_tunnel_that_somebody_keeps_closing_is_opened_again_after_1_2_4_to_30_minutes() {
    let closed = |before: Option<&Reopen>| reopen(ReopenPolicy::Always, Reason::Closed, before, at(0));
    let (mut before, mut minutes) = (None, Vec::new());
    for count in 1..=8 {
        let next = closed(before.as_ref()).unwrap();
        assert_eq!(next.count, count);
        minutes.push(next.not_before.unwrap().as_second() / 60);
        before = Some(Reopen { not_before: None, ..next });
    }
    assert_eq!(minutes, [1, 2, 4, 8, 16, 30, 30, 30]);
    let expired = reopen(ReopenPolicy::Always, Reason::Expired, before.as_ref(), at(0));
    assert_eq!(expired, Some(Reopen { count: 0, not_before: None }), "one that has lived its life begins anew");
    assert_eq!(closed(expired.as_ref()).unwrap().count, 1);
    for count in [i32::MIN, -1, i32::MAX] {
        let next = closed(Some(&Reopen { count, not_before: None })).unwrap();
        assert!((1..=1001).contains(&next.count) && next.not_before > Some(at(0)), "{count}: {next:?}");
    }
    let late = reopen(ReopenPolicy::Always, Reason::Closed, None, Timestamp::MAX);
    assert!(late.is_some(), "no time is too late");
    let not_before = reopen(ReopenPolicy::Always, Reason::Closed, None, at(1)).unwrap().not_before;
    assert_eq!(not_before, Some(at(61_000)), "whole seconds, and no pause is shorter");
}

#[test]
fn what_follows_an_end_is_as_the_policy_says() {
    use ReopenPolicy::{Always, Never, OnExpiry};
    for (policy, reason, follows) in [
        (Never, Reason::Expired, false),
        (Never, Reason::Closed, false),
        (OnExpiry, Reason::Expired, true),
        (OnExpiry, Reason::Closed, false),
        (Always, Reason::Expired, true),
        (Always, Reason::Closed, true),
        // These do not ask the policy.
        (Always, Reason::Suspended, false),
        (Always, Reason::Recreating, false),
    ] {
        assert_eq!(reopen(policy, reason, None, at(0)).is_some(), follows, "{policy:?}, {reason}");
    }
}

#[test]
fn connections_are_news_where_they_are_not_as_recorded() {
    use ConnectionStatus::{Connected, Disconnected};
    let side = |status, second: Option<i64>| {
        Some(Connection { status, last_updated_at: second.map(|second| at(1000 * second)) })
    };
    for (now, recorded, news) in [
        (None, None, false),
        (side(Connected, Some(5)), None, true),
        (side(Connected, Some(5)), side(Connected, Some(5)), false),
        (side(Connected, Some(6)), side(Connected, Some(5)), true),
        (side(Disconnected, Some(6)), side(Connected, Some(5)), true),
        (None, side(Connected, Some(5)), true),
        // As it was recorded when it was opened: AWS's time of it says nothing.
        (side(Disconnected, Some(5)), side(Disconnected, None), false),
        (side(Connected, Some(5)), side(Disconnected, None), true),
    ] {
        let of = |side: &Option<Connection>| {
            let (source, destination) = (side.clone(), None);
            (Connections { source, destination }, Connections { source: None, destination: side.clone() })
        };
        let ((source, destination), (source_before, destination_before)) = (of(&now), of(&recorded));
        assert_eq!(source.is_news(&source_before), news, "{now:?}, {recorded:?}");
        assert_eq!(destination.is_news(&destination_before), news, "{now:?}, {recorded:?}");
    }
}
