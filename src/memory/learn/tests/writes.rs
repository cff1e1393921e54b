//! Of writes of Secrets and of the status, and of what needs no effect.

use super::*;
use crate::record::{Connections, Opening};

#[test]
fn a_trial_and_the_secrets_that_were_written_are_remembered() {
    let spec = || SecretSpec { name: "a".into(), ..SecretSpec::default() };
    let refused = Some(Refusal::Told("quota".into()));
    let memory = learnt(full(None), &Step::TryCreate { secret: spec() }, &Outcome::Tried(refused.clone()));
    assert_eq!(memory.backoff.trial, Some(Trial { at: mono(MONO), refused: refused.clone(), refusals: 1 }));
    let once_more = |outcome| {
        let mut given = full(None);
        given.backoff.trial = Some(Trial { at: mono(1), refused: refused.clone(), refusals: 4 });
        learnt(given, &Step::TryCreate { secret: spec() }, &Outcome::Tried(outcome)).backoff.trial.unwrap().refusals
    };
    assert_eq!((once_more(refused.clone()), once_more(None)), (5, 0));
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
    let stage = |memory: &Remembered| memory.rotating.own.as_ref().map(|r| r.stage);
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
    Found { tunnel: tunnel("t"), owner, created_at: ago(60), opened_with: None }
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
    let all = |generation, others_live, stage| {
        Some(Rotation { generation, mode: ClientMode::All, others_live, stage, handles: None })
    };
    let before = rotation(RotationStage::Doubt(mono(990)));
    let opening = || Opening {
        tunnel: tunnel("t"),
        at: ago(0),
        attempt: attempt(),
        opened_with: String::new(),
        tag_keys: vec![],
        handled: None,
    };
    let in_conflict = Report { reason: Reason::SecretConflict, message: String::new() };
    let conflict = Change::OpenedInVain { opening: opening(), generation: 5, report: in_conflict };
    let open = Change::Opened { opening: opening(), generation: 5, secrets: vec![] };
    let report = |reason| Change::Report(Report { reason, message: String::new() });
    let rotating = || Change::Rotating { generation: 5, mode: ClientMode::Source, redone: None };
    let source = |others_live| {
        let (mode, stage) = (ClientMode::Source, RotationStage::Claimed);
        Some(Rotation { generation: 5, mode, others_live, stage, handles: None })
    };
    let ended = Change::Ended { reason: Reason::Closed, closed_at: ago(0), told: true, reopen: None };
    let lost = RotationStage::Lost;
    for (was, change, expected) in [
        ("Opening", open, (false, false, false, None, Some(3))),
        ("Opening", conflict, (false, false, true, all(5, false, lost), Some(3))),
        (
            "Opening",
            Change::Adopted { found: found(), generation: 6, handled: None, connections: Connections::default() },
            (false, true, true, all(6, false, RotationStage::Claimed), None),
        ),
        ("Rotating", Change::Rotated { secrets: vec![], handled: None }, (false, false, false, None, Some(3))),
        ("Open", Change::SecretsUpdated(vec![]), (false, false, false, None, Some(3))),
        ("Open", ended, (false, false, false, None, Some(3))),
        // A late Rotate may have revoked the tokens of the other side too.
        ("Open", rotating(), (false, true, true, source(false), None)),
        ("Rotating", rotating(), (false, true, true, source(false), Some(3))),
        ("Open", Change::OpenedAt(ago(0)), (true, true, true, before.clone(), Some(3))),
        ("Open", report(Reason::Open), (true, true, true, before.clone(), Some(3))),
        ("Rotating", report(Reason::AwsUnavailable), (true, true, true, before.clone(), Some(3))),
        // It was Ready until this write: nobody's rotation has to be waited for.
        ("Open", report(Reason::SecretConflict), (true, true, true, all(4, false, lost), Some(3))),
    ] {
        let text = format!("{was}: {change:?}");
        assert_eq!(recorded(was, change), expected, "{text}");
    }
}

#[test]
fn a_rotation_that_is_claimed_on_a_ready_tunnel_leaves_the_other_side_live() {
    let claim = Step::Record(Change::Rotating { generation: 5, mode: ClientMode::Source, redone: None });
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
    let change = || Change::Ended { reason: Reason::Closed, closed_at: ago(0), told: true, reopen: None };
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
