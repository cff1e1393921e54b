//! Of calls to AWS.

use super::*;

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
            (close(ago(3600)), ended(Err(kind))),
            (untag(ago(3600)), ended(Err(kind))),
        ] {
            assert_eq!(learnt(full(None), &step, &outcome).backoff.failure, None, "{step:?} {kind:?}");
        }
        // DescribeTunnel has no pacer.
        let (step, outcome) = (identify(ago(3600)), Outcome::Identified(Err(error(kind))));
        assert_eq!(reason(&learnt(full(None), &step, &outcome)), Some(Reason::AwsUnavailable), "{kind:?}");
    }
}

#[test]
fn a_failure_has_its_reason_and_the_operations_name() {
    for (kind, expected) in [
        (CallErrorKind::AccessDenied, Reason::AccessDenied),
        (CallErrorKind::NoCredentials, Reason::AccessDenied),
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
    for (kind, first, limit) in [
        (CallErrorKind::Doubt, 1.0, 30.0),
        (CallErrorKind::NoCredentials, 1.0, 30.0),
        (CallErrorKind::AccessDenied, 5.0, 300.0),
    ] {
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
    let not_found = || ended(Err(CallErrorKind::NotFound));
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
    for (step, outcome) in [(close(ago(3600)), ended(Ok(()))), (untag(ago(3600)), ended(Ok(())))] {
        let memory = learnt(full(answer(AnswerOf::Open(attempt()))), &step, &outcome);
        assert_eq!(memory.ending.closed, [TunnelId("t".into())]);
        // What the own call opened is known: nothing else can have come of it.
        assert!(memory.answer.is_none() && memory.opening.doubt.is_none() && memory.backoff.failure.is_none());
    }
    let other = Step::Close { tunnel: tunnel("surplus"), opened_at: ago(3600) };
    let memory = learnt(full(answer(AnswerOf::Open(attempt()))), &other, &ended(Ok(())));
    assert!(memory.answer.is_some() && memory.opening.doubt.is_some());
    let memory = learnt(full(None), &close(ago(3600)), &ended(Err(CallErrorKind::Doubt)));
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
