//! What a process may do that does not lead, or that is about to stop.

use super::ready::{rotating, rotation};
use super::*;

impl Given {
    /// This process does not lead.
    fn standby(self) -> Self {
        self.with(|s| s.standing = Standing::Finishes)
    }

    /// It leads, but is about to stop.
    fn stopping(self) -> Self {
        self.with(|s| s.standing = Standing::Stopping { since: mono(0) })
    }
}

#[test]
fn a_replica_that_does_not_lead_starts_nothing() {
    let found = || vec![found("t1", "theirs", 11_000)];
    for (what, given) in [
        ("takes a ticket", created().with(|s| s.turn = Turn::None)),
        ("claims", created()),
        ("opens", claimed(0)),
        ("searches", claim_found()),
        ("adopts", claim_found().searched(MONO, found())),
        ("rotates what it has claimed", rotating(RotationStage::Claimed)),
        ("repeats a rotation", rotating(RotationStage::Doubt(mono(MONO - 30)))),
        ("restores a Secret", ready().with(|s| s.secrets = vec![missing()])),
        ("restores a finalizer", ready().with(|s| s.object.record.finalizer = false)),
        ("observes a new generation", ready().with(|s| s.object.generation = 2)),
        ("sleeps until it expires", ready()),
        ("closes", deleted(ready())),
        ("untags", deleted(ready()).with(|s| s.object.spec.deletion_policy = DeletionPolicy::Retain)),
        ("asks whose it is", deleted(ready()).with(|s| s.memory.owned = vec![])),
        ("takes the finalizer off", deleted(ready()).described(closed(12_000))),
        ("tells of the end", ready().described(closed(12_000)).with(|s| s.secrets = vec![missing()])),
        ("deletes a Secret", ready().described(closed(12_000))),
        ("tells of a conflict", created().with(|s| s.secrets = vec![foreign()])),
        ("tells of a failure", claimed(0).failing(Reason::AccessDenied, MONO + 5)),
    ] {
        let step = given.standby().decide();
        assert!(matches!(&step, Wait(w) if rests(w)), "{what}: {step:#?}");
    }
}

// It finishes what it has in hand.
table! {
    the_tokens_of_its_call_are_judged_on_a_fresh_read: claimed(0).opened(None).standby() => Read,
    they_come_into_the_secret: claimed(0).opened(Some(MONO)).standby()
        => WriteSecret { secret, generation: 1, .. } if secret.name == "sensor-tokens",
    then_the_status_says_so: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![holding(1)]).standby()
        => Record(Change::Opened { generation: 1, .. }),
    a_secret_in_the_way_is_replaced: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![immutable()]).standby()
        => DeleteSecret { .. },
    a_name_that_was_taken_keeps_the_tunnel: claimed(0).opened(Some(MONO)).standby()
        .with(|s| s.secrets = vec![foreign()]) => Record(Change::OpenedInVain { .. }),
    a_wiped_claim_is_written_again: claimed(0).opened(Some(MONO)).with(|s| s.object.record.claim = None).standby()
        => Claim { attempt: a, new: false } if *a == attempt("own"),
    new_tokens_come_into_the_secret_too: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).standby() => WriteSecret { generation: 2, .. },
    and_the_status: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| s.secrets = vec![holding(2)]).standby()
        => Record(Change::Rotated { .. }),
    those_that_somebody_has_superseded_are_dropped: adopted(3).answer(RotateAnswer(2), Some(MONO)).standby() => Forget,
    a_tunnel_that_the_leader_has_adopted_is_the_leaders: adopted(2).opened(Some(MONO)).standby() => Forget,
    one_that_was_superseded_is_closed: claim_found().opened(Some(MONO)).standby()
        => CloseSurplus { tunnel, attempt } if t1(tunnel) && attempt.0 == "own",
    one_of_a_tunnel_that_is_gone_is_closed: claimed(0).opened(None).with(|s| s.gone = true).standby()
        => CloseSurplus { tunnel, .. } if t1(tunnel),
    one_of_a_tunnel_that_is_being_deleted_is_closed_without_the_queue: deleted(claimed(0).opened(Some(MONO))).standby()
        => CloseSurplus { tunnel, attempt } if t1(tunnel) && attempt.0 == "own",
    whatever_holds_up_the_close: deleted(claimed(0).opened(Some(MONO))).standby()
        .failing(Reason::AwsUnavailable, MONO + 10).with(|s| s.turn = Turn::Waiting) => CloseSurplus { .. },
    unless_the_leader_has_adopted_it: deleted(adopted(2).opened(Some(MONO))).standby() => Forget,
    new_tokens_of_a_tunnel_that_is_being_deleted_are_dropped: deleted(rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO))).standby() => Forget,
}

/// A Rotate of this process ended late: it may have revoked the tokens that were made after it.
fn owing() -> Given {
    ready().with(|s| s.memory.rotating.late = Some(0)).standby()
}

// It claims the rotation that it owes, and leaves it to the leader to make it.
table! {
    a_rotation_that_it_owes_takes_a_ticket: owing().with(|s| s.turn = Turn::None) => Queue(Lane::Rotate),
    it_waits_for_its_turn: owing().with(|s| s.turn = Turn::Waiting) => Wait(w) if w.lane == Some(Lane::Rotate),
    it_is_claimed: owing() => Record(Change::Rotating { generation: 2, mode: ClientMode::All, .. }),
    where_a_secret_is_missing_the_api_server_is_asked_first: owing()
        .with(|s| { s.secrets = vec![missing()]; s.memory.backoff.trial = None }) => TryCreate { .. },
    then_the_leader_makes_it: owing().with(|s| {
        s.object.record.reported = Some(Reason::Rotating);
        s.memory.rotating.own =
            Some(rotation(1, ClientMode::All, false, RotationStage::Claimed));
        s.read_at = Some(MONO);
    }) => Wait(w) if rests(w),
    the_rest_of_a_ready_tunnel_is_the_leaders: owing().with(|s| s.object.record.finalizer = false)
        => Wait(w) if rests(w),
    its_end_too: owing().described(closed(12_000)) => Wait(w) if rests(w),
    of_a_tunnel_that_is_not_ready_it_owes_nothing_yet: adopted(3).with(|s| s.memory.rotating.late = Some(2)).standby()
        => Wait(w) if rests(w),
    of_one_that_is_being_deleted_it_owes_nothing: deleted(owing()) => Wait(w) if rests(w),
    of_a_generation_that_it_was_not_late_for_it_owes_nothing: owing().with(|s| s.memory.rotating.late = Some(1))
        => Wait(w) if rests(w),
}

// One that is about to stop starts nothing new, and finishes what it has begun.
table! {
    stopping_it_claims_nothing_new: created().stopping() => Wait(w) if rests(w),
    nor_a_rotation: ready().with(|s| s.secrets = vec![missing()]).stopping() => Wait(w) if rests(w),
    nor_a_repeated_one: rotating(RotationStage::Lost).stopping() => Wait(w) if rests(w),
    nor_does_it_adopt: claim_found().searched(MONO, vec![found("t1", "theirs", 11_000)]).stopping()
        => Wait(w) if rests(w),
    what_it_has_claimed_it_opens: claimed(0).stopping() => Open { .. },
    a_claim_of_its_own_that_was_not_answered_is_repeated: created()
        .with(|s| s.memory.opening.attempt = Some(attempt("own"))).stopping() => Claim { new: false, .. },
    what_it_has_claimed_it_rotates: rotating(RotationStage::Claimed).stopping() => Rotate { .. },
    tokens_in_hand_come_into_the_secret: claimed(0).opened(Some(MONO)).stopping() => WriteSecret { .. },
    and_into_the_status: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![holding(1)]).stopping()
        => Record(Change::Opened { .. }),
    what_is_deleted_is_closed: deleted(ready()).stopping() => Close { .. },
    the_end_is_told: ready().described(closed(12_000)).with(|s| s.secrets = vec![missing()]).stopping()
        => Record(Change::Ended { .. }),
}

// What was found before this process led may have been closed by another since.
table! {
    a_search_from_before_it_led_finds_nothing: claim_found().searched(MONO - 1, vec![found("t1", "theirs", 11_000)])
        .with(|s| s.standing = Standing::Leads { since: mono(MONO) }) => Wait(w)
        if w.need == Some(Need::Search(mono(MONO))),
    nor_does_it_prove_that_there_is_nothing: created()
        .with(|s| { s.memory.saw_creation = false; s.standing = Standing::Leads { since: mono(MONO) } })
        .searched(MONO - 1, vec![]) => Wait(w) if w.need == Some(Need::Search(mono(MONO - 1))),
    one_that_began_when_it_led_counts: claim_found().searched(MONO, vec![found("t1", "theirs", 11_000)])
        .with(|s| s.standing = Standing::Leads { since: mono(MONO) }) => Record(Change::Adopted { .. }),
}
