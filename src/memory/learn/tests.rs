//! What is remembered of each step, for all that it can come to.

use super::*;
use crate::error::Error;
use crate::memory::{Backoff, Ending, Opening, Rotating};
use crate::read::{SecretSpec, read};
use crate::step::{Identity, Refusal, Report, Wait};
use crate::tunnels::{Attempt, Found, Owner, Side, Token, TunnelId};
use opentunnel_api::ClientMode;
use serde_json::json;

/// The process is 1000 s old; the Tunnel was created an hour before.
const MONO: u64 = 1000;
const LIMITS: Limits = Limits { aws_timeout: Duration::from_secs(20), recovery_grace: Duration::from_secs(30) };
const KINDS: [CallErrorKind; 7] = [
    CallErrorKind::LimitExceeded,
    CallErrorKind::Throttled,
    CallErrorKind::AccessDenied,
    CallErrorKind::InvalidRequest,
    CallErrorKind::NotFound,
    CallErrorKind::Unreachable,
    CallErrorKind::Doubt,
];

fn mono(second: u64) -> Mono {
    Mono(Duration::from_secs(second))
}

/// So many seconds before now.
fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(13_600 - seconds).unwrap()
}

fn object(reason: &str, deleted: bool) -> Object {
    let deleted = deleted.then_some("1970-01-01T03:46:40Z");
    let metadata = json!({
        "name": "sensor", "namespace": "edge", "uid": "u", "creationTimestamp": "1970-01-01T02:46:40Z",
        "deletionTimestamp": deleted,
    });
    let ready = json!({
        "type": "Ready", "status": "True", "reason": reason, "message": "m",
        "lastTransitionTime": "1970-01-01T03:00:00Z",
    });
    let status = json!({"tunnelId": "t", "state": "OPEN", "tokenGeneration": 4, "conditions": [ready]});
    read(&serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap()).unwrap()
}

/// What is remembered after a step of a Ready Tunnel.
fn learnt(before: Remembered, step: &Step, outcome: &Outcome) -> Remembered {
    learnt_of(&object("Open", false), before, step, outcome)
}

fn learnt_of(object: &Object, before: Remembered, step: &Step, outcome: &Outcome) -> Remembered {
    let mut memory = Memory::restore(before);
    memory.learn(step, outcome, object, &LIMITS, Now { wall: ago(0), mono: mono(MONO) });
    memory.into_inner()
}

fn attempt() -> Attempt {
    Attempt("own".into())
}

fn tunnel(id: &str) -> TunnelRef {
    TunnelRef { id: TunnelId(id.into()), arn: format!("arn:{id}") }
}

fn error(kind: CallErrorKind) -> CallError {
    CallError { kind, message: "AWS's words".into() }
}

fn timeout() -> Outcome {
    Outcome::Failed(Error::Timeout("write"))
}

fn written() -> Outcome {
    Outcome::Written(Box::new(object("Open", false)))
}

fn side(name: &str) -> Option<Side> {
    Some(Side { access_token: Token::new(name.into()), client_token: Token::new("client".into()) })
}

fn answer(of: AnswerOf) -> Option<Answer> {
    let tokens = Tokens { source: side("s"), destination: side("d") };
    Some(Answer { of, tunnel: tunnel("t"), tokens, at: mono(MONO - 1), wall: ago(1), written: vec![] })
}

fn failure() -> Option<Failure> {
    let message = "before".into();
    let (at, retry_at) = (mono(MONO - 1), mono(MONO));
    Some(Failure { reason: Reason::AwsUnavailable, message, at, retry_at, times: 1, told: true })
}

fn rotation(stage: RotationStage) -> Option<Rotation> {
    Some(Rotation { generation: 4, mode: ClientMode::Source, others_live: true, stage })
}

/// Something of everything.
fn full(answer: Option<Answer>) -> Remembered {
    Remembered {
        opening: Opening { claim: None, attempt: Some(attempt()), doubt: Some(mono(900)) },
        rotating: Rotating { unfinished: None, own: rotation(RotationStage::Doubt(mono(990))), late: Some(3) },
        backoff: Backoff { failure: failure(), trial: None },
        answer,
        ..Remembered::default()
    }
}

fn open() -> Step {
    Step::Open { attempt: attempt() }
}

fn opened(answer: Result<(TunnelRef, Tokens), CallErrorKind>) -> Outcome {
    Outcome::Opened { called: mono(995), answer: answer.map_err(error) }
}

fn rotate(others: Option<Tokens>) -> Step {
    Step::Rotate { tunnel: tunnel("t"), mode: ClientMode::Source, generation: 4, others }
}

fn rotated(called: Mono, answer: Result<Tokens, CallErrorKind>) -> Outcome {
    Outcome::Rotated { called, answer: answer.map_err(error) }
}

fn close(opened_at: Timestamp) -> Step {
    Step::Close { tunnel: tunnel("t"), opened_at }
}

fn untag(opened_at: Timestamp) -> Step {
    Step::Untag { tunnel: tunnel("t"), opened_at }
}

fn identify(opened_at: Timestamp) -> Step {
    Step::Identify { tunnel: tunnel("t"), opened_at }
}

fn parted(outcome: Result<(), CallErrorKind>) -> Outcome {
    Outcome::ClosedOrUntagged(outcome.map_err(error))
}

fn reason(memory: &Remembered) -> Option<Reason> {
    memory.backoff.failure.as_ref().map(|f| f.reason)
}

#[test]
fn a_claim_is_remembered_though_its_answer_was_lost() {
    let claim = |new| Step::Claim { attempt: attempt(), new };
    let before = || Remembered { opening: Opening { doubt: Some(mono(900)), ..Opening::default() }, ..full(None) };
    for (new, outcome, doubt) in [
        (true, written(), None),
        // Its own again: what became of the last call is not known yet.
        (false, written(), Some(mono(900))),
        (true, timeout(), Some(mono(900))),
        (true, Outcome::Conflict(None), Some(mono(900))),
        (false, timeout(), Some(mono(900))),
    ] {
        let memory = learnt(before(), &claim(new), &outcome);
        assert_eq!((memory.opening.attempt, memory.opening.doubt), (Some(attempt()), doubt), "{new} {outcome:?}");
    }
}

#[test]
fn a_definite_refusal_of_open_tunnel_leaves_the_claim_usable_and_a_lost_answer_leaves_doubt() {
    for kind in KINDS {
        let memory = learnt(full(None), &open(), &opened(Err(kind)));
        let doubt = (kind == CallErrorKind::Doubt).then_some(mono(995));
        assert_eq!((memory.opening.attempt, memory.opening.doubt), (Some(attempt()), doubt), "{kind:?}");
        assert!(memory.answer.is_none() && memory.owned.is_empty(), "{kind:?}");
    }
}

#[test]
fn what_open_tunnel_answers_is_in_hand_and_known_for_its_own() {
    let tokens = Tokens { source: side("s"), destination: side("d") };
    let memory = learnt(full(None), &open(), &opened(Ok((tunnel("t"), tokens))));
    let answer = memory.answer.unwrap();
    assert_eq!((answer.of, answer.tunnel, answer.at), (AnswerOf::Open(attempt()), tunnel("t"), mono(MONO)));
    assert_eq!((answer.wall, answer.written), (ago(0), vec![]));
    assert_eq!(memory.owned, [tunnel("t")]);
    assert_eq!(memory.opening.doubt, Some(mono(995)), "the tokens may be lost yet");
    assert_eq!(memory.backoff.failure, None);
}

#[test]
fn a_rotate_that_ended_later_than_the_grace_less_the_age_of_its_claim_is_late() {
    let called = |before: Duration| Mono(Duration::from_secs(MONO) - before);
    for (took, expected) in [(20_000, None), (25_000, None), (25_001, Some(4)), (600_000, Some(4))] {
        let called = called(Duration::from_millis(took));
        for answer in [Ok(Tokens::default()), Err(CallErrorKind::Doubt), Err(CallErrorKind::AccessDenied)] {
            let text = format!("{took} ms, {answer:?}");
            let memory = learnt(Remembered::default(), &rotate(None), &rotated(called, answer));
            assert_eq!(memory.rotating.late, expected, "{text}");
        }
    }
    let memory = learnt(full(None), &rotate(None), &rotated(called(Duration::ZERO), Ok(Tokens::default())));
    assert_eq!(memory.rotating.late, Some(3), "an earlier one stays late");
}

#[test]
fn a_rotate_that_may_have_been_carried_out_is_in_doubt_and_one_that_was_not_stays_claimed() {
    for kind in KINDS {
        let memory = learnt(full(None), &rotate(Some(Tokens::default())), &rotated(mono(999), Err(kind)));
        let stage = match kind {
            CallErrorKind::Doubt => RotationStage::Doubt(mono(999)),
            _ => RotationStage::Claimed,
        };
        assert_eq!(memory.rotating.own, rotation(stage), "{kind:?}");
        assert!(memory.answer.is_none(), "{kind:?}");
    }
    let memory = learnt(full(None), &rotate(None), &rotated(mono(999), Ok(Tokens::default())));
    let own = memory.rotating.own.unwrap();
    assert_eq!((own.stage, own.others_live), (RotationStage::Doubt(mono(999)), false));
}

#[test]
fn new_tokens_come_beside_the_live_ones_of_the_other_side() {
    let new = || Tokens { source: side("new"), destination: None };
    let others = Tokens { source: side("old"), destination: side("live") };
    let of = |others| learnt(full(None), &rotate(others), &rotated(mono(999), Ok(new()))).answer.unwrap();
    let access = |side: &Option<Side>| side.as_ref().map(|s| s.access_token.expose().to_owned());
    let beside = of(Some(others));
    assert_eq!((beside.of, beside.tunnel), (AnswerOf::Rotate(4), tunnel("t")));
    assert_eq!(access(&beside.tokens.source).as_deref(), Some("new"));
    assert_eq!(access(&beside.tokens.destination).as_deref(), Some("live"));
    assert_eq!(access(&of(None).tokens.destination), None, "nobody knows whether they are live");
}

#[test]
fn a_limit_is_the_pacers_business_and_no_failure() {
    for kind in [CallErrorKind::LimitExceeded, CallErrorKind::Throttled] {
        for (step, outcome) in [
            (open(), opened(Err(kind))),
            (rotate(None), rotated(mono(999), Err(kind))),
            (close(ago(3600)), parted(Err(kind))),
        ] {
            assert_eq!(learnt(full(None), &step, &outcome).backoff.failure, None, "{step:?} {kind:?}");
        }
        // These have no pacer.
        for (step, outcome) in
            [(untag(ago(3600)), parted(Err(kind))), (identify(ago(3600)), Outcome::Identified(Err(error(kind))))]
        {
            let memory = learnt(full(None), &step, &outcome);
            assert_eq!(reason(&memory), Some(Reason::AwsUnavailable), "{step:?} {kind:?}");
        }
    }
}

#[test]
fn a_failure_has_its_reason_and_the_operations_name() {
    for (kind, expected) in [
        (CallErrorKind::AccessDenied, Reason::AccessDenied),
        (CallErrorKind::InvalidRequest, Reason::InvalidRequest),
        (CallErrorKind::NotFound, Reason::InvalidRequest),
        (CallErrorKind::Unreachable, Reason::AwsUnavailable),
        (CallErrorKind::Doubt, Reason::AwsUnavailable),
    ] {
        let failure = learnt(Remembered::default(), &open(), &opened(Err(kind))).backoff.failure.unwrap();
        assert_eq!((failure.reason, failure.at, failure.told), (expected, mono(MONO), false), "{kind:?}");
        assert_eq!(failure.message, "OpenTunnel: AWS's words");
    }
}

#[test]
fn the_pause_doubles_up_to_its_limit_and_no_two_tunnels_come_again_together() {
    let pauses = |kind, uid: &str| {
        let of =
            Object { key: crate::read::Key { uid: uid.into(), ..object("Open", false).key }, ..object("Open", false) };
        let mut memory = Remembered::default();
        let mut pauses = Vec::new();
        for times in 1..=12 {
            memory = learnt_of(&of, memory, &open(), &opened(Err(kind)));
            let failure = memory.backoff.failure.as_ref().unwrap();
            assert_eq!(failure.times, times);
            pauses.push((failure.retry_at.0 - failure.at.0).as_secs_f64());
        }
        pauses
    };
    for (kind, first, limit) in [(CallErrorKind::Doubt, 1.0, 30.0), (CallErrorKind::AccessDenied, 5.0, 300.0)] {
        for (times, pause) in pauses(kind, "u").into_iter().enumerate() {
            let longest = f64::min(first * f64::from(1 << times), limit);
            assert!((0.75 * longest..=longest).contains(&pause), "{kind:?}, {times}: {pause} s");
        }
        assert_ne!(pauses(kind, "u"), pauses(kind, "v"));
    }
}

#[test]
fn what_is_told_stays_told_while_it_fails_in_the_same_way() {
    let told = |kind| learnt(full(None), &open(), &opened(Err(kind))).backoff.failure.unwrap().told;
    assert!(told(CallErrorKind::Doubt), "AwsUnavailable, as before");
    assert!(!told(CallErrorKind::AccessDenied));
}

#[test]
fn not_found_of_a_tunnel_younger_than_the_grace_is_doubt_and_of_an_older_one_its_end() {
    let not_found = || parted(Err(CallErrorKind::NotFound));
    let deleting = object("Open", true);
    for (age, is_closed) in [(0, false), (30, false), (31, true), (3600, true)] {
        for (step, outcome) in [
            (close(ago(age)), not_found()),
            (untag(ago(age)), not_found()),
            (identify(ago(age)), Outcome::Identified(Ok(Identity::NotFound))),
        ] {
            let memory = learnt_of(&deleting, Remembered::default(), &step, &outcome);
            let closed = if is_closed { vec![TunnelId("t".into())] } else { vec![] };
            assert_eq!(memory.ending.closed, closed, "{step:?}, {age} s old");
            assert_eq!(reason(&memory), (!is_closed).then_some(Reason::AwsUnavailable), "{step:?}, {age} s old");
        }
    }
}

#[test]
fn a_tunnel_that_was_closed_is_not_asked_for_again() {
    for (step, outcome) in [(close(ago(3600)), parted(Ok(()))), (untag(ago(3600)), parted(Ok(())))] {
        let memory = learnt(full(answer(AnswerOf::Open(attempt()))), &step, &outcome);
        assert_eq!(memory.ending.closed, [TunnelId("t".into())]);
        // What the own call opened is known: nothing else can have come of it.
        assert!(memory.answer.is_none() && memory.opening.doubt.is_none() && memory.backoff.failure.is_none());
    }
    let other = Step::Close { tunnel: tunnel("surplus"), opened_at: ago(3600) };
    let memory = learnt(full(answer(AnswerOf::Open(attempt()))), &other, &parted(Ok(())));
    assert!(memory.answer.is_some() && memory.opening.doubt.is_some());
    let memory = learnt(full(None), &close(ago(3600)), &parted(Err(CallErrorKind::Doubt)));
    assert_eq!((memory.ending.closed, memory.backoff.failure.map(|f| f.times)), (vec![], Some(2)));
}

#[test]
fn whose_a_tunnel_is_stays_known() {
    let own = || Outcome::Identified(Ok(Identity::Own(tunnel("t"))));
    let once = learnt(full(None), &identify(ago(0)), &own());
    assert_eq!(once.owned, [tunnel("t")]);
    assert_eq!(learnt(once, &identify(ago(0)), &own()).owned, [tunnel("t")]);
    let foreign = || Outcome::Identified(Ok(Identity::Foreign));
    let deleted = learnt_of(&object("Open", true), Remembered::default(), &identify(ago(0)), &foreign());
    assert_eq!((deleted.ending.foreign.len(), deleted.backoff.failure, deleted.owned), (1, None, vec![]));
    let wanted = learnt(Remembered::default(), &identify(ago(0)), &foreign());
    assert_eq!((reason(&wanted), wanted.ending.foreign), (Some(Reason::InvalidRequest), vec![]));
    let gone = learnt(Remembered::default(), &identify(ago(3600)), &Outcome::Identified(Ok(Identity::NotFound)));
    assert_eq!(
        (reason(&gone), gone.ending.closed),
        (Some(Reason::InvalidRequest), vec![]),
        "the poller tells of its end"
    );
}

#[test]
fn a_trial_and_the_secrets_that_were_written_are_remembered() {
    let spec = || SecretSpec { name: "a".into(), ..SecretSpec::default() };
    let refused = Some(Refusal::Told("quota".into()));
    let memory = learnt(full(None), &Step::TryCreate { secret: spec() }, &Outcome::Tried(refused.clone()));
    assert_eq!(memory.backoff.trial, Some(Trial { at: mono(MONO), refused }));
    let tokens = || Tokens { source: side("s"), destination: side("d") };
    let write = || Step::WriteSecret { secret: spec(), tunnel: TunnelId("t".into()), tokens: tokens(), generation: 4 };
    let written = |outcome| learnt(full(answer(AnswerOf::Rotate(4))), &write(), &outcome).answer.unwrap().written;
    assert_eq!(written(Outcome::SecretWritten(Some(Box::default()))), [spec()]);
    assert_eq!(written(Outcome::SecretConflict), []);
    assert_eq!(written(timeout()), []);
    let reuse = Step::Reuse { tunnel: tunnel("t"), tokens: tokens(), generation: 4 };
    assert_eq!(learnt(full(None), &reuse, &Outcome::Done).answer.unwrap().of, AnswerOf::Secrets(4));
}

#[test]
fn what_is_given_up_is_dropped() {
    let stage = |memory: &Remembered| memory.rotating.own.map(|r| r.stage);
    for (of, expected) in [
        (AnswerOf::Rotate(4), RotationStage::Lost),
        (AnswerOf::Rotate(3), RotationStage::Doubt(mono(990))),
        (AnswerOf::Open(attempt()), RotationStage::Doubt(mono(990))),
    ] {
        let memory = learnt(full(answer(of.clone())), &Step::Forget, &Outcome::Done);
        assert!(memory.answer.is_none());
        assert_eq!(stage(&memory), Some(expected), "{of:?}");
        assert_eq!(memory.opening.doubt, Some(mono(900)), "what became of the call has to be looked for");
    }
    let surplus = Step::CloseSurplus { tunnel: tunnel("t"), attempt: attempt() };
    assert!(learnt(full(answer(AnswerOf::Open(attempt()))), &surplus, &Outcome::Done).answer.is_none());
    for (outcome, has) in [(written(), false), (Outcome::Conflict(None), false), (timeout(), true)] {
        let memory = learnt(full(answer(AnswerOf::Open(attempt()))), &Step::RemoveFinalizer, &outcome);
        assert_eq!(memory.answer.is_some(), has, "{outcome:?}");
    }
}

fn found() -> Found {
    let owner = Owner { cluster: "c".into(), namespace: "edge".into(), uid: "u".into(), attempt: attempt() };
    Found { tunnel: tunnel("t"), owner, created_at: ago(60) }
}

/// What is remembered after a status write: of the opening, the answer, the failure, the rotation, a late one.
fn recorded(before: &str, change: Change) -> (bool, bool, bool, Option<Rotation>, Option<i64>) {
    let of = object(before, false);
    let memory = learnt_of(&of, full(answer(AnswerOf::Open(attempt()))), &Step::Record(change), &written());
    let opening = memory.opening.attempt.is_some() && memory.opening.doubt.is_some();
    assert_eq!(opening, memory.opening.attempt.is_some() || memory.opening.doubt.is_some());
    (opening, memory.answer.is_some(), memory.backoff.failure.is_some(), memory.rotating.own, memory.rotating.late)
}

#[test]
fn a_status_write_settles_what_it_tells() {
    let all = |generation, others_live, stage| Some(Rotation { generation, mode: ClientMode::All, others_live, stage });
    let before = rotation(RotationStage::Doubt(mono(990)));
    let conflict = Change::OpenedInConflict { tunnel: tunnel("t"), at: ago(0), generation: 5 };
    let open = Change::Opened { tunnel: tunnel("t"), at: ago(0), generation: 5, secrets: vec![] };
    let report = |reason| Change::Report(Report { reason, message: String::new() });
    let rotating = || Change::Rotating { generation: 5, mode: ClientMode::Source };
    let source = |others_live| {
        let (mode, stage) = (ClientMode::Source, RotationStage::Claimed);
        Some(Rotation { generation: 5, mode, others_live, stage })
    };
    let ended = Change::Ended { reason: Reason::Closed, closed_at: ago(0) };
    let lost = RotationStage::Lost;
    for (was, change, expected) in [
        ("Opening", open, (false, false, false, None, Some(3))),
        ("Opening", conflict, (false, false, true, all(5, false, lost), Some(3))),
        (
            "Opening",
            Change::Adopted { found: found(), generation: 6 },
            (false, true, true, all(6, false, RotationStage::Claimed), None),
        ),
        ("Rotating", Change::Rotated(vec![]), (false, false, false, None, Some(3))),
        ("Open", Change::SecretsUpdated(vec![]), (false, false, false, None, Some(3))),
        ("Open", ended, (false, false, false, None, Some(3))),
        // A late Rotate may have revoked the tokens of the other side too.
        ("Open", rotating(), (false, true, true, source(false), None)),
        ("Rotating", rotating(), (false, true, true, source(false), Some(3))),
        ("Open", Change::OpenedAt(ago(0)), (true, true, true, before, Some(3))),
        ("Open", report(Reason::Open), (true, true, true, before, Some(3))),
        ("Rotating", report(Reason::AwsUnavailable), (true, true, true, before, Some(3))),
        // It was Ready until this write: nobody's rotation has to be waited for.
        ("Open", report(Reason::SecretConflict), (true, true, true, all(4, false, lost), Some(3))),
    ] {
        let text = format!("{was}: {change:?}");
        assert_eq!(recorded(was, change), expected, "{text}");
    }
}

#[test]
fn a_rotation_that_is_claimed_on_a_ready_tunnel_leaves_the_other_side_live() {
    let claim = Step::Record(Change::Rotating { generation: 5, mode: ClientMode::Source });
    let others_live = |late| {
        let before = Remembered { rotating: Rotating { late, ..Rotating::default() }, ..Remembered::default() };
        let memory = learnt(before, &claim, &written());
        (memory.rotating.own.unwrap().others_live, memory.rotating.late)
    };
    assert_eq!(others_live(None), (true, None));
    assert_eq!(others_live(Some(3)), (false, None));
    assert_eq!(others_live(Some(4)), (true, None), "it was late for none that came after it");
}

#[test]
fn a_report_is_told_and_new_tokens_that_it_gives_up_come_by_another_rotation() {
    let report = |reason| Step::Record(Change::Report(Report { reason, message: String::new() }));
    let of = object("Rotating", false);
    let untold = || {
        let mut memory = full(answer(AnswerOf::Rotate(4)));
        memory.backoff.failure.as_mut().unwrap().told = false;
        memory
    };
    let memory = learnt_of(&of, untold(), &report(Reason::AwsUnavailable), &written());
    assert!(memory.backoff.failure.unwrap().told);
    let memory = learnt_of(&of, untold(), &report(Reason::SecretConflict), &written());
    assert!(!memory.backoff.failure.unwrap().told, "another reason tells nothing of it");
    assert!(memory.answer.is_none());
    assert_eq!(memory.rotating.own.unwrap().stage, RotationStage::Lost);
}

#[test]
fn nothing_is_learnt_of_a_write_that_was_not_made_nor_of_what_needs_no_memory() {
    let change = || Change::Ended { reason: Reason::Closed, closed_at: ago(0) };
    let before = || full(answer(AnswerOf::Rotate(4)));
    for (step, outcome) in [
        (Step::Record(change()), Outcome::Conflict(None)),
        (Step::Record(change()), timeout()),
        (Step::Read, Outcome::Read(None)),
        (Step::RestoreFinalizer, written()),
        (Step::Wait(Wait::default()), Outcome::Done),
        (Step::DeleteSecret { name: "a".into() }, Outcome::SecretWritten(None)),
    ] {
        let after = learnt(before(), &step, &outcome);
        assert_eq!(format!("{after:?}"), format!("{:?}", before()), "{step:?} {outcome:?}");
    }
    let memory = learnt(Remembered { ending: Ending::default(), ..full(None) }, &Step::Forget, &timeout());
    assert_eq!(format!("{memory:?}"), format!("{:?}", full(None)));
}
