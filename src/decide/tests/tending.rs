//! What an open tunnel needs beside its tokens, rotation on demand, and Secrets that others write or have left.

use super::ready::{rotating, rotation};
use super::*;
use crate::memory::redone::{Damage, Redone};
use crate::read::RotateRequest;
use crate::record::Connections;
use crate::tunnels::Details;
use ClientMode::{All, Destination, Source};
use opentunnel_api::{Connection, ConnectionStatus, GENERATION_TAG};
use std::sync::Arc;

fn tags(pairs: &[(&str, &str)]) -> Tags {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn side_is(status: ConnectionStatus, at: Option<i64>) -> Option<Connection> {
    Some(Connection { status, last_updated_at: at.map(wall) })
}

fn connected(at: i64) -> Option<Connection> {
    side_is(ConnectionStatus::Connected, Some(at))
}

fn disconnected(at: i64) -> Option<Connection> {
    side_is(ConnectionStatus::Disconnected, Some(at))
}

impl Given {
    /// The one thing to do next; what is remembered stays.
    fn next(&mut self) -> Step {
        let (view, facts) = (self.view(), self.facts());
        let memory = Memory::restore(std::mem::take(&mut self.memory));
        let step = decide(&view, &facts, &memory, self.standing, &LIMITS, now());
        self.memory = memory.into_inner();
        step
    }

    /// The status was written.
    pub(super) fn wrote(self, change: Change) -> Self {
        let (generation, lifetime) = (self.object.generation, self.object.spec.lifetime);
        let after = self.object.record.after(&change, generation, lifetime);
        let written = Outcome::Written(Box::new(self.object.clone()));
        self.learn(&Record(change), &written).with(|s| s.object.record = after)
    }

    /// AWS has told so much of `t1`, which is open.
    fn shown(self, details: Details, asked: u64) -> Self {
        self.with(|s| {
            let created_at = s.recorded_tunnel().opened_at;
            let details = Some((Arc::new(details), mono(asked)));
            s.described = Some(Described { life: Life::Open { created_at }, asked: mono(MONO), details });
        })
    }

    /// The tags that AWS has.
    fn has_tags(self, of: &[(&str, &str)], asked: u64) -> Self {
        self.shown(Details { tags: tags(of), ..Details::default() }, asked)
    }

    /// The tags that its tunnel is to have.
    fn wants(self, of: &[(&str, &str)]) -> Self {
        self.with(|s| s.tags = tags(of))
    }

    /// The keys of tags that the status names.
    fn with_keys(self, of: &[&str]) -> Self {
        self.with(|s| s.object.record.tag_keys = keys(of))
    }

    /// The tags that this process has set, and when.
    fn has_set(self, of: &[(&str, &str)], at: u64) -> Self {
        let known = of.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())));
        self.with(|s| s.memory.tending.tags = Some((known.collect(), mono(at))))
    }

    fn has_taken_off(self, key: &str) -> Self {
        self.with(|s| drop(s.memory.tending.tags.as_mut().unwrap().0.insert(key.into(), None)))
    }

    /// A spec that is not carried out yet.
    fn edited(self) -> Self {
        self.with(|s| s.object.generation = 2)
    }

    fn failed_to_tag(self, retry: u64) -> Self {
        self.with(|s| s.memory.tending.tags_failed = Some((1, mono(retry))))
    }

    /// Its annotations ask for a rotation.
    pub(super) fn asked(self, value: &str, mode: Option<ClientMode>) -> Self {
        self.with(|s| s.object.rotate = Some(RotateRequest { value: value.into(), mode }))
    }

    fn handled(self, value: &str) -> Self {
        self.with(|s| s.object.record.handled_rotate_at = Some(value.into()))
    }

    /// So many rotations in a row have repaired this damage; the last was claimed so long ago.
    fn redone(self, damage: Option<Damage>, times: u32, before: u64) -> Self {
        self.with(|s| s.memory.rotating.redone = Some(Redone { damage, times, last: mono(MONO - before) }))
    }

    fn tried(self, trial: Option<Trial>) -> Self {
        self.with(|s| s.memory.backoff.trial = trial)
    }
}

fn wanted_tags() -> Given {
    ready().wants(&[("team", "edge")]).with_keys(&["team"])
}

// Tags follow the spec.
table! {
    what_the_status_names_and_nobody_has_looked_at_is_left: wanted_tags() => Wait(_),
    a_tag_that_aws_has_is_left: wanted_tags().has_tags(&[("team", "edge")], MONO) => Wait(_),
    tags_of_others_are_left: wanted_tags().has_tags(&[("team", "edge"), ("theirs", "x")], MONO) => Wait(_),
    one_that_was_taken_off_is_set_again: wanted_tags().has_tags(&[("theirs", "x")], MONO)
        => Tag { tunnel, tags: set, told: false } if t1(tunnel) && *set == tags(&[("team", "edge")]),
    one_that_was_changed_too: wanted_tags().has_tags(&[("team", "core")], MONO)
        => Tag { tags: set, .. } if *set == tags(&[("team", "edge")]),
    only_what_is_missing_is_set: wanted_tags().wants(&[("a", "1"), ("team", "edge")]).with_keys(&["a", "team"])
        .has_tags(&[("a", "1")], MONO) => Tag { tags: set, .. } if *set == tags(&[("team", "edge")]),
    what_this_process_has_set_since_counts: wanted_tags().has_tags(&[], MONO - 10).has_set(&[("team", "edge")], MONO - 5)
        => Wait(_),
    what_aws_has_told_since_counts_more: wanted_tags().has_tags(&[], MONO - 5).has_set(&[("team", "edge")], MONO - 10)
        => Tag { .. },
    whose_the_tunnel_is_is_asked_first_here_too: wanted_tags().has_tags(&[], MONO).with(|s| s.memory.owned = vec![])
        => Identify { tunnel, .. } if t1(tunnel),

    the_keys_are_recorded_before_the_call: ready().edited().wants(&[("new", "1")]).with_keys(&["old"])
        .has_set(&[("old", "1")], MONO - 5) => Record(Change::TagKeys(of)) if *of == keys(&["new", "old"]),
    recorded_the_call_is_made: ready().edited().wants(&[("new", "1")]).with_keys(&["new", "old"])
        .has_set(&[("old", "1"), ("new", "1")], MONO - 5)
        => TakeTagsOff { tunnel, keys: off, told: false } if t1(tunnel) && *off == keys(&["old"]),
    the_keys_are_those_of_the_spec_in_the_end: ready().edited().wants(&[("new", "1")]).with_keys(&["new", "old"])
        .has_set(&[("new", "1")], MONO - 5).has_taken_off("old") => Record(Change::TagKeys(of)) if *of == keys(&["new"]),
    of_what_nobody_knows_that_it_is_gone_is_taken_off: ready().edited().wants(&[("new", "1")]).with_keys(&["new", "old"])
        .has_set(&[("new", "1")], MONO - 5) => TakeTagsOff { keys: off, .. } if *off == keys(&["old"]),
    what_is_to_go_goes_first: ready().edited().wants(&[("new", "1")]).with_keys(&["new", "old"])
        .has_tags(&[("old", "1")], MONO) => TakeTagsOff { keys: off, .. } if *off == keys(&["old"]),
    then_the_spec_is_carried_out: ready().edited().wants(&[("new", "1")]).with_keys(&["new"])
        .has_set(&[("new", "1")], MONO - 5) => Record(Change::Report(Report { reason: Reason::Open, .. })),
    a_new_value_of_a_key_needs_no_record: ready().edited().wants(&[("team", "core")]).with_keys(&["team"])
        .has_set(&[("team", "edge")], MONO - 5) => Tag { tags: set, .. } if *set == tags(&[("team", "core")]),
    where_nobody_knows_what_aws_has_all_are_set: ready().edited().wants(&[("team", "edge")]).with_keys(&["team"])
        => Tag { tags: set, .. } if *set == tags(&[("team", "edge")]),
    the_generation_tag_is_none_of_the_users: ready().has_tags(&[(GENERATION_TAG, "1")], MONO) => Wait(_),

    after_a_failure_it_waits_and_stays_ready: wanted_tags().has_tags(&[], MONO).failed_to_tag(MONO + 5)
        => Wait(w) if w.until == Some(mono(MONO + 5)),
    that_the_spec_is_carried_out_is_not_said: wanted_tags().edited().failed_to_tag(MONO + 5) => Wait(_),
    then_it_is_tried_again_without_a_word: wanted_tags().has_tags(&[], MONO).failed_to_tag(MONO) => Tag { told: true, .. },
    each_waits_for_its_turn: wanted_tags().has_tags(&[], MONO).with(|s| s.turn = Turn::None) => Queue(Lane::Tag),
    in_the_queue_nobody_is_asked_whose_the_tunnel_is: wanted_tags().has_tags(&[], MONO)
        .with(|s| (s.turn, s.memory.owned) = (Turn::Waiting, vec![])) => Wait(w) if w.lane == Some(Lane::Tag),
    nor_is_it_said_that_the_spec_is_carried_out: wanted_tags().edited().with(|s| s.turn = Turn::Waiting) => Wait(_),
    a_tunnel_that_is_not_ready_has_no_time_for_it: rotating(RotationStage::Claimed).wants(&[("team", "edge")]).edited()
        => Rotate { .. },
}

/// Carries out all that follows, while it is about tags: the calls and the keys that were recorded, and what AWS has in
/// the end.
fn tagging(mut given: Given, mut aws: Tags) -> (Vec<String>, Tags) {
    let mut done = Vec::new();
    loop {
        assert!(done.len() < 10, "it does not end: {done:?}");
        let step = given.next();
        given = match &step {
            Record(Change::TagKeys(keys)) => {
                done.push(format!("keys {}", keys.join(" ")));
                given.wrote(Change::TagKeys(keys.clone()))
            }
            Tag { tags, .. } => {
                let keys: Vec<_> = tags.keys().cloned().collect();
                done.push(format!("set {}", keys.join(" ")));
                aws.extend(tags.clone());
                given.learn(&step, &Outcome::Tagged(Ok(())))
            }
            TakeTagsOff { keys, .. } => {
                done.push(format!("off {}", keys.join(" ")));
                aws.retain(|key, _| !keys.contains(key));
                given.learn(&step, &Outcome::Tagged(Ok(())))
            }
            _ => return (done, aws),
        };
    }
}

#[test]
fn an_edit_of_the_tags_is_carried_out_whatever_this_process_knows_of_them() {
    let before = [("gone", "1"), ("kept", "1"), ("changed", "1")];
    let after = [("changed", "2"), ("kept", "1"), ("new", "1")];
    let given = || ready().edited().wants(&after).with_keys(&["changed", "gone", "kept"]);
    for (what, given) in [
        ("it has set them itself", given().has_set(&before, MONO - 50)),
        ("AWS has told", given().has_tags(&before, MONO - 50)),
        ("AWS has told, after it had set some", given().has_tags(&before, MONO - 50).has_set(&before[1..], MONO - 60)),
        ("it has set them, after AWS had told", given().has_tags(&before[1..], MONO - 60).has_set(&before, MONO - 50)),
        ("it knows nothing", given()),
    ] {
        let mut aws = tags(&before);
        aws.insert("theirs".into(), "x".into());
        let (done, aws) = tagging(given, aws);
        let mut expected = tags(&after);
        expected.insert("theirs".into(), "x".into());
        assert_eq!(aws, expected, "{what}: {done:?}");
        assert_eq!(done.first().map(String::as_str), Some("keys changed gone kept new"), "{what}: {done:?}");
        assert_eq!(done.last().map(String::as_str), Some("keys changed kept new"), "{what}: {done:?}");
        assert!(done.len() <= 5, "{what}: {done:?}");
    }
}

#[test]
fn tags_that_wait_for_their_turn_are_set_though_another_write_says_that_the_spec_is_carried_out() {
    let (before, after) = ([("gone", "1"), ("kept", "1")], [("kept", "1"), ("new", "1")]);
    let waits =
        ready().edited().wants(&after).with_keys(&["gone", "kept", "new"]).learn(&Queue(Lane::Tag), &Outcome::Done);
    let observed = waits.with(|s| s.object.record.observed_generation = Some(s.object.generation));
    let (done, aws) = tagging(observed, tags(&before));
    assert_eq!(aws, tags(&after), "{done:?}");
}

#[test]
fn a_call_that_aws_throttles_keeps_its_place_in_the_queue() {
    let mut given = wanted_tags().has_tags(&[], MONO);
    let throttled = Err(CallError { kind: CallErrorKind::Throttled, message: "slower".into() });
    let step = given.next();
    given = given.learn(&step, &Outcome::Tagged(throttled)).with(|s| s.turn = Turn::Waiting);
    assert!(matches!(given.next(), Wait(w) if w.lane == Some(Lane::Tag)));
}

#[test]
fn a_call_that_fails_is_told_once_and_its_pause_doubles_up_to_5_minutes() {
    let mut given = wanted_tags().has_tags(&[], MONO);
    let (mut told, mut pauses) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        given.memory.tending.tags_failed.iter_mut().for_each(|(_, at)| *at = mono(MONO));
        let step = given.next();
        let Tag { told: is, .. } = &step else { panic!("no Tag: {step:?}") };
        told.push(*is);
        let error = CallError { kind: CallErrorKind::AccessDenied, message: "no".into() };
        given = given.learn(&step, &Outcome::Tagged(Err(error)));
        pauses.push((given.memory.tending.tags_failed.unwrap().1.0 - mono(MONO).0).as_secs_f64());
    }
    assert_eq!(told, [false, true, true, true, true, true, true, true]);
    for (pause, longest) in pauses.iter().zip([5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]) {
        assert!((0.75 * longest..=longest).contains(pause), "{pauses:?}");
    }
    assert!(given.memory.backoff.failure.is_none(), "nothing else waits for it");
}

/// AWS has told of both sides.
fn told_of(source: Option<Connection>, destination: Option<Connection>) -> Given {
    ready().shown(Details { source, destination, ..Details::default() }, MONO)
}

fn recorded_as(given: Given, source: Option<Connection>, destination: Option<Connection>) -> Given {
    given.with(|s| s.object.record.connections = Connections { source, destination })
}

fn written_before(given: Given, seconds: u64) -> Given {
    given.with(|s| s.memory.tending.connections = Some(mono(MONO - seconds)))
}

// Who is connected is shown.
table! {
    a_side_that_connects_is_shown: told_of(connected(13_000), disconnected(10_000))
        => Record(Change::Connected(now)) if now.source == connected(13_000) && now.destination == disconnected(10_000),
    what_is_shown_is_not_written_again: recorded_as(told_of(connected(13_000), disconnected(10_000)),
        connected(13_000), disconnected(10_000)) => Wait(_),
    another_time_is_news: recorded_as(told_of(connected(13_500), None), connected(13_000), None)
        => Record(Change::Connected(_)),
    but_not_of_a_side_that_was_never_connected: recorded_as(told_of(disconnected(10_001), disconnected(10_001)),
        side_is(ConnectionStatus::Disconnected, None), side_is(ConnectionStatus::Disconnected, None)) => Wait(_),
    within_30_s_of_the_last_write_it_waits: written_before(told_of(connected(13_590), None), 10)
        => Wait(w) if w.until == Some(mono(MONO + 20)),
    then_it_is_written: written_before(told_of(connected(13_590), None), 30) => Record(Change::Connected(_)),
    where_aws_has_not_told_nothing_is_written: recorded_as(ready(), connected(13_000), None) => Wait(_),
    also_while_tags_wait_for_their_turn: told_of(connected(13_000), None).wants(&[("team", "edge")]).with_keys(&["team"])
        .edited().with(|s| s.turn = Turn::Waiting) => Record(Change::Connected(_)),
    tags_come_first: told_of(connected(13_000), None).wants(&[("team", "edge")]).with_keys(&["team"]) => Tag { .. },
}

#[test]
fn connections_are_written_at_most_once_in_30_s() {
    let mut given = told_of(connected(13_000), None);
    let Record(change) = given.next() else { panic!("they are news") };
    given = given.wrote(change).shown(Details { source: disconnected(13_599), ..Details::default() }, MONO);
    assert!(matches!(given.next(), Wait(w) if w.until == Some(mono(MONO + 30))));
    given.memory.tending.connections = Some(mono(MONO - 30));
    assert!(matches!(given.next(), Record(Change::Connected(now)) if now.source == disconnected(13_599)));
}

/// Opened so many seconds ago; AWS says that its destination is not connected.
fn unconnected(age: i64) -> Given {
    ready()
        .with(|s| s.recorded_tunnel().opened_at = wall(WALL - age))
        .with(|s| {
            let destination = disconnected(WALL - age);
            s.object.record.connections.destination = destination;
        })
        .shown(Details { destination: disconnected(WALL - age), ..Details::default() }, MONO)
}

// A device that does not come is told of.
table! {
    after_2_min_it_is_told: unconnected(120) => TellUnconnected,
    before_that_it_is_waited_for: unconnected(119) => Wait(w) if w.until == Some(mono(MONO + 1)),
    long_after_it_it_is_old_news: unconnected(240) => Wait(_),
    it_is_told_once: unconnected(120).with(|s| s.memory.tending.told_unconnected = true) => Wait(_),
    where_aws_has_not_told_nobody_knows: unconnected(120).described(Life::Open { created_at: wall(WALL - 120) })
        => Wait(_),
    one_that_is_connected_is_not_told_of: recorded_as(unconnected(120), None, connected(WALL - 60))
        .shown(Details { destination: connected(WALL - 60), ..Details::default() }, MONO) => Wait(_),
    nor_one_that_was: recorded_as(unconnected(120), None, disconnected(WALL - 60))
        .shown(Details { destination: disconnected(WALL - 60), ..Details::default() }, MONO) => Wait(_),
    nor_one_of_a_tunnel_that_is_not_ready: unconnected(120).with(|s| s.object.record.reported = Some(Reason::Rotating))
        => Wait(w) if matches!(w.need, Some(Need::Search(_))),
}

#[test]
fn that_it_was_told_is_remembered_until_the_next_tunnel() {
    let told = unconnected(120).learn(&TellUnconnected, &Outcome::Done);
    assert!(told.memory.tending.told_unconnected);
    let ended = Change::Ended { reason: Reason::Closed, closed_at: wall(WALL), told: true, reopen: None };
    assert!(!told.wrote(ended).memory.tending.told_unconnected);
}

// Rotation on demand, by annotation.
table! {
    a_rotation_that_is_asked_for_is_claimed: ready().asked("1", Some(All))
        => Record(Change::Rotating { generation: 2, mode: All, redone: None }),
    each_value_is_carried_out_once: ready().asked("1", Some(All)).handled("1") => Wait(_),
    another_value_is_another_rotation: ready().asked("2", Some(All)).handled("1") => Record(Change::Rotating { .. }),
    of_one_side: ready().asked("1", Some(Source)) => Record(Change::Rotating { mode: Source, .. }),
    also_of_one_that_no_secret_holds: ready().with(|s| {
        s.object.spec.secrets[0].mode = Source;
        s.secrets = vec![intact(1, Source)];
    }).asked("1", Some(Destination)) => Record(Change::Rotating { mode: Destination, .. }),
    what_a_secret_needs_comes_with_it: ready().with(|s| {
        s.object.spec.secrets[0].mode = Source;
        s.secrets = vec![missing()];
    }).asked("1", Some(Destination)) => Record(Change::Rotating { mode: All, .. }),
    it_takes_a_ticket: ready().asked("1", Some(All)).with(|s| s.turn = Turn::None) => Queue(Lane::Rotate),
    a_side_that_there_is_not_is_refused: ready().asked("1", None)
        => Record(Change::RotationRefused(value)) if value == "1",
    that_is_told_once: ready().asked("1", None).handled("1") => Wait(_),
    a_refused_one_keeps_nothing_from_coming_back: ready().asked("1", None).handled("1")
        .with(|s| s.secrets = vec![missing()]) => Record(Change::Rotating { mode: All, .. }),
    one_of_a_tunnel_that_is_not_ready_comes_with_the_next: rotating(RotationStage::Lost).asked("1", Some(Source))
        => Record(Change::Rotating { generation: 3, mode: All, .. }),
    new_tokens_are_new_enough: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![holding(1)]).asked("1", Some(All))
        => Record(Change::Opened { opening, .. }) if opening.handled.as_deref() == Some("1"),
    so_are_those_of_an_adopted_tunnel: claim_found().asked("1", Some(Source))
        .searched(MONO, vec![found("t1", "theirs", 11_000)])
        => Record(Change::Adopted { handled, .. }) if handled.as_deref() == Some("1"),
    about_to_stop_it_is_not_begun: ready().asked("1", Some(All))
        .with(|s| s.standing = Standing::Stopping { since: mono(0) }) => Wait(w) if rests(w),
    after_a_failure_it_waits: ready().asked("1", Some(All)).failing(Reason::AccessDenied, MONO + 5)
        => Record(Change::Report(Report { reason: Reason::AccessDenied, .. })),
    deleted_nobody_wants_it: deleted(ready().asked("1", Some(All))) => Close { .. },
}

#[test]
fn the_value_that_asked_is_handled_when_the_new_tokens_are_in_the_secrets() {
    let mut given = ready().asked("1", Some(Source)).with(|s| s.read_at = Some(MONO));
    let Record(claim) = given.next() else { panic!("it is claimed") };
    given = given.wrote(claim);
    assert_eq!(given.object.record.handled_rotate_at, None);
    // It is edited while the rotation is under way: that is another one.
    given = given.asked("2", Some(Source)).answer(RotateAnswer(2), Some(MONO)).with(|s| s.secrets = vec![holding(2)]);
    let Record(rotated) = given.next() else { panic!("it is recorded") };
    given = given.wrote(rotated);
    assert_eq!(given.object.record.handled_rotate_at.as_deref(), Some("1"));
    assert!(matches!(given.next(), Record(Change::Rotating { generation: 3, mode: Source, .. })));
}

#[test]
fn the_live_tokens_of_the_other_side_are_kept() {
    let mut given = ready().asked("1", Some(Source)).with(|s| s.read_at = Some(MONO));
    let Record(claim) = given.next() else { panic!("it is claimed") };
    given = given.wrote(claim).with(|s| s.memory.rotating.marked = Some(2));
    assert!(matches!(given.next(), Rotate { mode: Source, others: Some(others), .. } if others.have(Destination)));
}

/// AWS has this value of the generation tag.
fn marked(value: &str) -> Given {
    ready().has_tags(&[(GENERATION_TAG, value)], MONO)
}

// The generation is marked on the tunnel before each Rotate.
table! {
    before_a_rotate_the_generation_is_marked: rotating(RotationStage::Claimed).with(|s| s.memory.rotating.marked = None)
        => Mark { tunnel, generation: 2 } if t1(tunnel),
    an_older_mark_is_none: rotating(RotationStage::Claimed).with(|s| s.memory.rotating.marked = Some(1))
        => Mark { generation: 2, .. },
    not_before_its_turn: rotating(RotationStage::Claimed)
        .with(|s| { s.memory.rotating.marked = None; s.turn = Turn::None }) => Queue(Lane::Rotate),
    one_that_fails_holds_up_the_rotate: rotating(RotationStage::Claimed).with(|s| s.memory.rotating.marked = None)
        .failing(Reason::AccessDenied, MONO + 5) => Record(Change::Report(Report { reason: Reason::AccessDenied, .. })),
    a_mark_of_what_the_status_has_is_as_it_should_be: marked("1") => Wait(_),
    a_mark_above_it_tells_of_a_rotation_that_is_forgotten: marked("5")
        => Record(Change::Rotating { generation: 6, mode: All, redone: None }),
    one_below_it_tells_nothing: marked("0") => Wait(_),
    what_is_no_number_tells_nothing: marked("x") => Wait(_),
    nor_what_nobody_can_have_counted_to: marked("9223372036854775807") => Wait(_),
    other_sides_are_revoked_too: marked("5").with(|s| {
        s.object.spec.secrets[0].mode = Source;
        s.secrets = vec![intact(1, Source)];
    }) => Record(Change::Rotating { mode: Source, .. }),
    not_ready_the_next_one_goes_above_it: rotating(RotationStage::Lost).has_tags(&[(GENERATION_TAG, "7")], MONO)
        => Record(Change::Rotating { generation: 8, .. }),
}

#[test]
fn a_mark_is_remembered_where_it_was_made() {
    let given = || rotating(RotationStage::Claimed).with(|s| s.memory.rotating.marked = None);
    let mark = || Mark { tunnel: tunnel("t1"), generation: 2 };
    assert!(matches!(given().learn(&mark(), &Outcome::Tagged(Ok(()))).next(), Rotate { generation: 2, .. }));
    let error = CallError { kind: CallErrorKind::AccessDenied, message: "no".into() };
    let failed = given().learn(&mark(), &Outcome::Tagged(Err(error)));
    assert_eq!(failed.memory.rotating.marked, None);
    let failure = failed.memory.backoff.failure.unwrap();
    assert_eq!((failure.reason, failure.message.as_str()), (Reason::AccessDenied, "TagResource: no"));
}

/// Somebody has edited its Secret.
fn spoilt() -> Given {
    ready().with(|s| s.secrets = vec![but(ours(1), |s| s.editors = Some("gitops (data.region)".into()))])
}

/// Another process has told that what is written into a Secret does not stay; this one sees it for so many seconds.
fn modified_before(seconds: u64) -> Given {
    let seen = MONO - seconds;
    let given = rotating(RotationStage::Lost).searched(seen + 1, vec![]).redone(None, 3, seconds);
    given.with(|s| {
        (s.memory.rotating.own, s.memory.rotating.unfinished) = (None, Some((2, mono(seen))));
        (s.secrets, s.object.record.reported) = (vec![ours(1)], Some(Reason::SecretModified));
    })
}

/// What was written into the Secret with the answer in hand has not stayed.
fn written_and_spoilt(given: Given, generation: i64) -> Given {
    given.with(|s| {
        s.memory.answer.as_mut().unwrap().written = s.object.spec.secrets.clone();
        s.secrets = vec![ours(generation)];
    })
}

// What is written into a Secret does not stay.
table! {
    each_repair_is_counted: spoilt() => Record(Change::Rotating { redone: Some(Damage::Edited), .. }),
    three_in_a_row_are_made_at_once: spoilt().redone(Some(Damage::Edited), 2, 1) => Record(Change::Rotating { .. }),
    then_it_is_told_who_edits_it: spoilt().redone(Some(Damage::Edited), 3, 1)
        => Record(Change::Report(Report { reason: Reason::SecretModified, message }))
            if message.contains("sensor-tokens") && message.contains("gitops (data.region)"),
    where_nobody_else_has_written_it_is_a_webhook: ready().with(|s| s.secrets = vec![ours(1)])
        .redone(Some(Damage::Edited), 3, 1)
        => Record(Change::Report(Report { reason: Reason::SecretModified, message })) if message.contains("webhook"),
    one_that_is_deleted_again_and_again_is_told_after_ten: ready().with(|s| s.secrets = vec![missing()])
        .redone(Some(Damage::Missing), 10, 1)
        => Record(Change::Report(Report { reason: Reason::SecretModified, message })) if message.contains("deleted"),
    nine_are_made_at_once: ready().with(|s| s.secrets = vec![missing()]).redone(Some(Damage::Missing), 9, 1)
        => Record(Change::Rotating { redone: Some(Damage::Missing), .. }),
    another_damage_is_another_matter: ready().with(|s| s.secrets = vec![but(ours(1), |s| s.sound = false)])
        .redone(Some(Damage::Edited), 3, 1) => Record(Change::Rotating { redone: Some(Damage::Unusable), .. }),
    told_the_pause_is_waited_for: rotating(RotationStage::Lost).with(|s| {
        s.secrets = vec![ours(1)];
        s.object.record.reported = Some(Reason::SecretModified);
    }).redone(Some(Damage::Edited), 3, 1) => Wait(w) if w.until == Some(mono(MONO + 59)),
    after_it_they_are_made_anew: rotating(RotationStage::Lost).with(|s| {
        s.secrets = vec![ours(1)];
        s.object.record.reported = Some(Reason::SecretModified);
    }).redone(Some(Damage::Edited), 3, 60) => Record(Change::Rotating { redone: Some(Damage::Edited), .. }),
    after_a_restart_the_pause_is_waited_for_too: modified_before(10) => Wait(w) if w.until == Some(mono(MONO + 50)),
    after_it_they_are_made_anew_by_another_process: modified_before(61)
        => Record(Change::Rotating { redone: Some(Damage::Edited), .. }),
    a_late_rotate_waits_for_no_pause: spoilt().redone(Some(Damage::Edited), 3, 1)
        .with(|s| s.memory.rotating.late = Some(0)) => Record(Change::Rotating { redone: None, .. }),
    tokens_of_an_opening_that_do_not_stay_come_by_rotation: written_and_spoilt(claimed(0).opened(Some(MONO)), 1)
        => Record(Change::OpenedInVain { generation: 1, report: Report { reason: Reason::Rotating, .. }, .. }),
    new_ones_that_do_not_stay_are_given_up: written_and_spoilt(
        rotating(RotationStage::Doubt(mono(MONO - 2))).answer(RotateAnswer(2), Some(MONO)), 2) => Forget,
    live_ones_that_do_not_stay_are_told_of: written_and_spoilt(
        ready().edited().answer(AnswerOf::Secrets(1), Some(MONO)), 1)
        => Record(Change::Report(Report { reason: Reason::SecretModified, .. })),
    what_an_adopter_has_written_over_them_is_no_damage: written_and_spoilt(claimed(0).opened(Some(MONO)), 2) => Forget,
}

#[test]
fn repairs_in_a_row_are_counted_over_a_restart_too() {
    let mut given = spoilt();
    for times in 1..=3 {
        let Record(claim) = given.next() else { panic!("it is repaired at once") };
        given = given.wrote(claim);
        assert_eq!(given.memory.rotating.redone.unwrap().times, times);
        let (generation, mode) = (given.object.record.token_generation, Some(All));
        let rotated = Change::Rotated { secrets: vec![recorded("sensor-tokens")], handled: None };
        given = given.wrote(rotated).with(|s| s.secrets = vec![but(ours(generation), |s| s.mode = mode)]);
    }
    let Record(report @ Change::Report(_)) = given.next() else { panic!("it is told") };
    given = given.wrote(report);
    assert!(matches!(given.next(), Wait(w) if w.until == Some(mono(MONO + 60))));
    // Another process goes on from here.
    let (view, mut memory) = (given.view(), Memory::new(false, mono(MONO)));
    memory.see(&view, given.standing, now());
    let redone = memory.into_inner().rotating.redone.unwrap();
    assert_eq!(redone.next_at(Damage::Edited, mono(MONO)), Some(mono(MONO + 60)));
}

/// It was a token Secret; nobody controls it.
fn leftover() -> Option<FoundSecret> {
    but(ours(0), |s| (s.controller, s.leftover, s.holder) = (None, true, "controlled by nobody".into()))
}

/// An earlier Tunnel of the same name controls it.
fn predecessors() -> Option<FoundSecret> {
    but(ours(4), |s| {
        (s.controller, s.predecessor) = (Some("earlier".into()), true);
        s.holder = "controlled by Tunnel sensor".into();
    })
}

/// A tunnel is wanted since so many seconds, and the Secret is the predecessor's.
fn after_a_predecessor(seconds: u64) -> Given {
    created().with(|s| {
        s.secrets = vec![predecessors()];
        s.memory.opening.since = Some(mono(MONO - seconds));
    })
}

// What an earlier Tunnel has left.
table! {
    a_leftover_is_in_nobodys_way: created().with(|s| s.secrets = vec![leftover()]) => Claim { new: true, .. },
    it_is_written_over: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![leftover()])
        => WriteSecret { secret, generation: 1, .. } if secret.name == "sensor-tokens",
    though_it_seems_to_hold_the_tokens: claimed(0).opened(Some(MONO))
        .with(|s| s.secrets = vec![but(leftover(), |s| s.sha256 = OF_ANSWER.into())]) => WriteSecret { .. },
    an_immutable_one_is_replaced: claimed(0).opened(Some(MONO))
        .with(|s| s.secrets = vec![but(leftover(), |s| s.sound = false)]) => DeleteSecret { .. },
    one_that_is_as_recorded_is_taken_back_by_rotation: ready()
        .with(|s| s.secrets = vec![but(leftover(), |s| s.sha256 = RECORDED.into())])
        => Record(Change::Rotating { redone: Some(Damage::Unmarked), .. }),
    suspended_it_goes: created().with(|s| { s.secrets = vec![leftover()]; s.object.spec.suspend = true })
        => DeleteSecret { .. },
    a_secret_without_the_marks_of_one_is_somebodys: created()
        .with(|s| s.secrets = vec![but(leftover(), |s| s.leftover = false)])
        => Record(Change::Report(Report { reason: Reason::SecretConflict, message })) if message.contains("nobody"),

    a_predecessors_is_waited_for: after_a_predecessor(1)
        => Wait(w) if w.until == Some(mono(MONO + 4)) && w.names == ["sensor-tokens"] && w.lane.is_none(),
    after_5_s_it_is_told: after_a_predecessor(5)
        => Record(Change::Report(Report { reason: Reason::Opening, message })) if message.contains("sensor-tokens"),
    it_is_looked_at_again: after_a_predecessor(5).with(|s| {
        s.object.record.reported = Some(Reason::Opening);
        s.object.record.observed_generation = Some(1);
    }) => Wait(w) if w.until == Some(mono(MONO + 2)) && w.names == ["sensor-tokens"],
    gone_the_tunnel_is_claimed: after_a_predecessor(5).with(|s| s.secrets = vec![missing()]) => Claim { new: true, .. },
    up_to_60_s: after_a_predecessor(59).with(|s| {
        s.object.record.reported = Some(Reason::Opening);
        s.object.record.observed_generation = Some(1);
    }) => Wait(_),
    then_it_is_a_conflict: after_a_predecessor(60)
        => Record(Change::Report(Report { reason: Reason::SecretConflict, message }))
            if message.contains("controlled by Tunnel sensor"),
    what_an_earlier_attempt_may_have_opened_does_not_wait: after_a_predecessor(1)
        .with(|s| s.memory.saw_creation = false) => Wait(w) if matches!(w.need, Some(Need::Search(_))),
    tokens_in_hand_wait_until_it_is_gone: claimed(0).opened(Some(MONO)).with(|s| {
        s.secrets = vec![predecessors()];
        s.memory.opening.since = Some(mono(MONO - 1));
    }) => Wait(w) if w.names == ["sensor-tokens"],
    on_an_open_tunnel_it_is_a_conflict_at_once: ready().with(|s| s.secrets = vec![predecessors()])
        => Record(Change::Report(Report { reason: Reason::SecretConflict, .. })),
}

/// Nobody knows whether the API server takes token Secrets in its namespace.
fn untried() -> Given {
    created().with(|s| s.takes_secrets = false)
}

fn refused(before: u64) -> Option<Trial> {
    trial(MONO - before, Some(Refusal::Told("quota".into())))
}

/// So many times in a row, the last time so many seconds before.
fn again(refusals: u32, before: u64) -> Option<Trial> {
    refused(before).map(|trial| Trial { refusals, ..trial })
}

// What the API server would refuse is found out before a tunnel is paid for.
table! {
    the_secret_is_tried_before_the_claim: untried() => TryCreate { secret } if secret.name == "sensor-tokens",
    before_a_ticket_is_taken: untried().with(|s| s.turn = Turn::None) => TryCreate { .. },
    the_one_that_is_missing_is_tried: untried().with(|s| {
        s.object.spec.secrets.push(wanted("b", Source));
        s.secrets = vec![ours(0), missing()];
    }) => TryCreate { secret } if secret.name == "b",
    taken_the_tunnel_is_claimed: untried().tried(trial(MONO - 4, None)) => Claim { new: true, .. },
    an_old_answer_counts_no_more: untried().tried(trial(MONO - 5, None)) => TryCreate { .. },
    where_it_took_another_ones_no_trial_is_made: created() => Claim { new: true, .. },
    where_all_are_there_neither: untried().with(|s| s.secrets = vec![ours(0)]) => Claim { new: true, .. },
    refused_nothing_is_opened_and_it_is_told: untried().tried(refused(1))
        => Record(Change::Report(Report { reason: Reason::Opening, message }))
            if message.contains("quota") && message.contains("no tunnel is opened"),
    it_is_told_that_once: untried().tried(refused(1)).with(|s| {
        s.object.record.reported = Some(Reason::Opening);
        s.object.record.observed_generation = Some(1);
    }) => Wait(w) if w.until == Some(mono(MONO + 29)),
    after_30_s_it_is_tried_again: untried().tried(refused(30)) => TryCreate { .. },
    sooner_when_it_was_refused_less_often: untried().tried(again(3, 4)) => TryCreate { .. },
    after_the_third_time_in_4_s: untried().tried(again(3, 3)).with(|s| {
        s.object.record.reported = Some(Reason::Opening);
        s.object.record.observed_generation = Some(1);
    }) => Wait(w) if w.until == Some(mono(MONO + 1)),
    in_a_namespace_that_ends_nothing_is_opened_and_nothing_said: untried().tried(ends(MONO))
        => Wait(w) if waits_for(w, None, None, Some(MONO + 30)),
    the_next_tunnel_is_tried_too: untried().with(|s| s.object.record = Record {
        observed_generation: Some(1),
        ..ready().wrote(Change::Ended { reason: Reason::Suspended, closed_at: wall(WALL), told: true, reopen: None })
            .object.record
    }).with(|s| s.memory.ending.closed = vec![TunnelId("t1".into())]) => TryCreate { .. },
    a_claim_of_its_own_is_not_acted_on_before: claimed(0).with(|s| s.takes_secrets = false) => TryCreate { .. },
}

#[test]
fn the_trial_of_an_opening_is_forgotten_when_the_tunnel_is_open() {
    let mut given = claimed(0).opened(Some(MONO)).tried(trial(MONO - 4, None)).with(|s| s.secrets = vec![holding(1)]);
    let Record(opened) = given.next() else { panic!("it is opened") };
    given = given.wrote(opened).with(|s| s.secrets = vec![missing()]);
    assert!(matches!(given.next(), TryCreate { .. }), "it is tried before what works is revoked");
}

#[test]
fn a_tunnel_that_was_opened_has_the_tags_and_the_mark_that_it_was_opened_with() {
    let wanted = tags(&[("team", "edge")]);
    let open = Open { attempt: attempt("own"), tags: wanted.clone() };
    let answer = Outcome::Opened { called: mono(MONO - 1), answer: Ok((tunnel("t1"), both())) };
    let mut given = claimed(0).wants(&[("team", "edge")]).learn(&open, &answer);
    given = given.with(|s| {
        s.secrets = vec![holding(1)];
        s.read_at = Some(MONO)
    });
    let Record(Change::Opened { opening, generation, .. }) = given.next() else { panic!("it is opened") };
    assert_eq!(
        (opening.tag_keys.clone(), opening.opened_with.clone()),
        (keys(&["team"]), given.object.spec.request.digest())
    );
    let secrets = vec![recorded("sensor-tokens")];
    given = given.wrote(Change::Opened { opening, generation, secrets }).with(|s| s.secrets = vec![intact(1, All)]);
    assert_eq!(given.memory.rotating.marked, Some(1));
    let known = wanted.into_iter().map(|(key, value)| (key, Some(value))).collect();
    assert_eq!(given.memory.tending.tags.as_ref().map(|(tags, _)| tags), Some(&known));
    assert!(matches!(given.next(), Wait(_)), "nothing is left to do");
}

#[test]
fn a_rotation_of_this_process_is_what_it_has_claimed() {
    let given = ready().asked("1", Some(Source)).wrote(Change::Rotating { generation: 2, mode: Source, redone: None });
    let expected = Rotation { handles: Some("1".into()), ..rotation(2, Source, true, RotationStage::Claimed) };
    assert_eq!(given.memory.rotating.own, Some(expected));
}
