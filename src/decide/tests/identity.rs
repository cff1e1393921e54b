//! Whose a tunnel is that the status names: AWS is asked before it is rotated, closed or untagged.

use super::ready::rotating;
use super::*;

impl Given {
    /// Nothing that this process has seen says whose `t1` is.
    fn unproven(self) -> Self {
        self.with(|s| s.memory.owned = vec![])
    }

    /// AWS was asked about `t1`, and has told.
    fn told(self, answer: Result<Identity, CallErrorKind>) -> Self {
        let step = Identify { tunnel: tunnel("t1"), opened_at: self.object.record.tunnel.as_ref().unwrap().opened_at };
        let answer = answer.map_err(|kind| CallError { kind, message: "AWS's words".into() });
        self.learn(&step, &Outcome::Identified(answer))
    }

    fn young(self) -> Self {
        self.with(|s| s.recorded_tunnel().opened_at = wall(WALL - 30))
    }

    fn retained(self) -> Self {
        self.with(|s| s.object.spec.deletion_policy = DeletionPolicy::Retain)
    }
}

fn own() -> Result<Identity, CallErrorKind> {
    Ok(Identity::Own(TunnelRef { arn: "arn:as AWS has it".into(), ..tunnel("t1") }))
}

fn of_another() -> Result<Identity, CallErrorKind> {
    Ok(Identity::Foreign)
}

fn unknown() -> Result<Identity, CallErrorKind> {
    Ok(Identity::NotFound)
}

fn as_aws_has_it(tunnel: &TunnelRef) -> bool {
    tunnel.arn == "arn:as AWS has it"
}

/// A rotation is claimed, of a tunnel that the status names.
fn to_be_rotated() -> Given {
    rotating(RotationStage::Claimed).unproven()
}

// A status is no proof.
table! {
    before_new_tokens_are_made_aws_is_asked_whose_the_tunnel_is: to_be_rotated()
        => Identify { tunnel, opened_at } if t1(tunnel) && *opened_at == wall(10_000),
    before_it_is_closed: deleted(ready()).unproven() => Identify { tunnel, .. } if t1(tunnel),
    before_it_is_closed_by_a_tunnel_that_was_never_ready: deleted(adopted(2)).unproven() => Identify { .. },
    before_it_is_untagged: deleted(ready()).unproven().retained() => Identify { tunnel, .. } if t1(tunnel),
    it_is_asked_before_a_turn_is_asked_for: to_be_rotated().with(|s| s.turn = Turn::None) => Identify { .. },
    before_it_is_closed_in_its_turn_as_thousands_may_be_deleted_after_a_restart: deleted(ready()).unproven()
        .with(|s| s.turn = Turn::Waiting) => Wait(w) if w.lane == Some(Lane::Close) && w.need.is_none(),
    and_before_it_is_untagged: deleted(ready()).unproven().retained().with(|s| s.turn = Turn::Waiting)
        => Wait(w) if w.lane == Some(Lane::Tag) && w.need.is_none(),
    a_ready_tunnel_that_needs_nothing_is_nobodys_question: ready().unproven() => Wait(_),
    nor_is_the_claim_of_a_rotation: ready().unproven().with(|s| s.secrets = vec![missing()])
        => Record(Change::Rotating { .. }),
    nor_one_that_has_ended: deleted(ready()).unproven().described(closed(12_000)) => RemoveFinalizer,
    what_a_search_has_found_needs_no_question: deleted(ready()).unproven()
        .searched(MONO, vec![found("t1", "theirs", 10_000)]) => Close { tunnel, .. } if t1(tunnel),
    but_not_by_a_search_from_before_this_process_led: deleted(ready()).unproven()
        .searched(MONO - 1, vec![found("t1", "theirs", 10_000)])
        .with(|s| s.standing = Standing::Leads { since: mono(MONO) }) => Identify { .. },
    what_a_search_has_found_of_another_tunnel_says_nothing: deleted(ready()).unproven()
        .searched(MONO, vec![found("t2", "theirs", 10_000)]) => Identify { tunnel, .. } if t1(tunnel),
    a_surplus_tunnel_was_found_by_its_tag: adopted(2).unproven().searched(MONO, vec![found("t2", "x", 10_001)])
        => Close { tunnel, .. } if *tunnel == super::tunnel("t2"),
    what_this_process_has_opened_is_its_own: deleted(claimed(0)).unproven().learn(&opens(), &opened())
        .with(|s| s.read_at = Some(MONO)) => Close { tunnel, .. } if t1(tunnel),
}

fn opens() -> Step {
    Open { attempt: attempt("own"), tags: Tags::new() }
}

fn opened() -> Outcome {
    Outcome::Opened { called: mono(MONO - 1), answer: Ok((tunnel("t1"), both())) }
}

// It is this Tunnel's.
table! {
    its_own_gets_new_tokens: to_be_rotated().told(own()) => Rotate { tunnel, .. } if as_aws_has_it(tunnel),
    its_own_is_closed: deleted(ready()).unproven().told(own()) => Close { tunnel, .. } if as_aws_has_it(tunnel),
    its_own_is_untagged_by_the_arn_that_aws_has: deleted(ready()).unproven().retained().told(own())
        => Untag { tunnel, .. } if as_aws_has_it(tunnel),
    an_old_claim_is_read_again_after_the_question: to_be_rotated().told(own()).with(|s| s.read_at = Some(MONO - 5))
        => Read,
}

// It is another's: nothing of it is touched.
table! {
    anothers_gets_no_new_tokens: to_be_rotated().told(of_another()).described(Life::Open { created_at: wall(10_000) })
        => Record(Change::Report(Report { reason: Reason::InvalidRequest, message }))
            if message.contains("t1") && message.contains("owner tag"),
    nor_is_aws_asked_again_at_once: to_be_rotated().told(of_another()).with(|s| {
        s.described = Some(Described { life: Life::Open { created_at: wall(10_000) }, asked: mono(MONO), details: None });
        s.memory.backoff.failure.as_mut().unwrap().told = true;
        s.object.record.reported = Some(Reason::InvalidRequest);
    }) => Wait(w) if w.need.is_none() && w.until.is_some_and(|until| until > mono(MONO)),
    nor_whether_it_is_open_where_that_is_not_known: to_be_rotated().told(of_another()) => Wait(w) if asks(w, "t1"),
    deleted_the_tunnel_goes_without_it: deleted(ready()).unproven().told(of_another()) => RemoveFinalizer,
    nor_is_its_tag_taken_off: deleted(ready()).unproven().retained().told(of_another()) => RemoveFinalizer,
    its_own_that_the_status_has_hidden_is_closed: deleted(hiding()) => Close { tunnel, .. }
        if *tunnel == super::tunnel("own"),
    then_it_goes: deleted(hiding()).with(|s| s.memory.ending.closed = vec![TunnelId("own".into())]) => RemoveFinalizer,
    retained_its_own_stays_open_too: deleted(hiding()).retained() => RemoveFinalizer,
    the_hidden_one_waits_for_its_turn: deleted(hiding()).with(|s| s.turn = Turn::None) => Queue(Lane::Close),
    without_anothers_in_the_way_nothing_is_hidden: deleted(ready())
        .with(|s| { s.memory.owned.push(tunnel("own")); s.memory.ending.closed = vec![TunnelId("t1".into())] })
        => RemoveFinalizer,
    never_ready_its_own_are_searched_for: deleted(adopted(2)).unproven().told(of_another())
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    and_closed: deleted(adopted(2)).unproven().told(of_another()).searched(MONO, vec![found("t2", "x", 11_000)])
        => Close { tunnel, .. } if *tunnel == super::tunnel("t2"),
}

/// The status names another's tunnel, and this process knows the Tunnel's own.
fn hiding() -> Given {
    ready().with(|s| {
        s.memory.owned = vec![tunnel("own")];
        s.memory.ending.foreign = vec![TunnelId("t1".into())];
    })
}

// AWS does not know it, or does not tell.
table! {
    unknown_and_old_it_is_gone: deleted(ready()).unproven().told(unknown()) => RemoveFinalizer,
    unknown_and_young_it_may_be_there_yet: deleted(ready()).unproven().young().told(unknown())
        => Record(Change::Report(Report { reason: Reason::AwsUnavailable, .. })),
    unknown_it_gets_no_new_tokens: to_be_rotated().told(unknown()).described(Life::Open { created_at: wall(10_000) })
        => Record(Change::Report(Report { reason: Reason::InvalidRequest, .. })),
    unknown_it_is_asked_whether_it_has_ended: to_be_rotated().told(unknown()) => Wait(w) if asks(w, "t1"),
    a_question_that_is_refused_is_reported: deleted(ready()).unproven().told(Err(CallErrorKind::AccessDenied))
        => Record(Change::Report(Report { reason: Reason::AccessDenied, message })) if message.contains("AWS's words"),
    one_that_is_throttled_too: to_be_rotated().told(Err(CallErrorKind::Throttled))
        => Record(Change::Report(Report { reason: Reason::AwsUnavailable, .. })),
    where_aws_is_away_for_good_the_tunnel_goes_when_it_ends: deleted(ready()).unproven()
        .told(Err(CallErrorKind::Doubt)).with(|s| s.recorded_tunnel().expires_at = wall(WALL)) => RemoveFinalizer,
}

#[test]
fn only_what_was_asked_for_and_carries_the_tag_is_its_own() {
    let asked = TunnelId("t1".into());
    let owner = || Some(found("t1", "x", 0).owner);
    let open = Life::Open { created_at: wall(0) };
    for (life, owner, described, is_own, expected) in [
        (open, owner(), Some(tunnel("t1")), true, Identity::Own(tunnel("t1"))),
        (open, owner(), Some(tunnel("t1")), false, Identity::Foreign),
        (open, owner(), Some(tunnel("t2")), true, Identity::Foreign),
        (open, None, Some(tunnel("t1")), true, Identity::Foreign),
        (Life::NotFound, None, None, true, Identity::NotFound),
    ] {
        let unknown = crate::tunnels::Description::unknown();
        let description = crate::tunnels::Description { life, owner, tunnel: described, ..unknown };
        assert_eq!(Identity::of(&asked, description, |_| is_own), expected);
    }
}
