//! How it ends.

use super::*;

// The end.
table! {
    closed_by_somebody_else_the_secrets_go_first: ready().described(closed(12_000))
        => DeleteSecret { name } if name == "sensor-tokens",
    then_it_has_ended: ready().described(closed(12_000)).with(|s| s.secrets = vec![missing()])
        => Record(Change::Ended { reason: Reason::Closed, closed_at, .. }) if *closed_at == wall(12_000),
    closed_at_the_end_of_its_lifetime_it_has_expired: ready().described(closed(10_000 + 43_150))
        .with(|s| s.secrets = vec![missing()]) => Record(Change::Ended { reason: Reason::Expired, .. }),
    a_secret_of_somebody_elses_is_never_deleted: ready().described(closed(12_000))
        .with(|s| s.secrets = vec![foreign()]) => Record(Change::Ended { .. }),
    not_found_counts_when_the_tunnel_is_older_than_the_grace: ready().described(Life::NotFound)
        .with(|s| s.secrets = vec![missing()]) => Record(Change::Ended { reason: Reason::Closed, .. }),
    told_of_a_young_tunnel_it_proves_nothing_later_either: ready().described(Life::NotFound).with(|s| {
        s.recorded_tunnel().opened_at = wall(WALL - 40);
        s.described = Some(Described { life: Life::NotFound, asked: mono(MONO - 35), details: None });
    }) => Wait(_),
    not_found_proves_nothing_where_the_account_is_not_known: ready().described(Life::NotFound)
        .with(|s| s.in_account = InAccount::Unknown) => Wait(_),
    not_found_of_a_young_tunnel_proves_nothing: ready().described(Life::NotFound)
        .with(|s| s.recorded_tunnel().opened_at = wall(WALL - 30)) => Wait(_),
    at_expires_at_aws_is_asked: expired() => Wait(w) if asks(w, "t1"),
    aws_says_that_it_is_open_still: expired().described(Life::Open { created_at: wall(10_000) })
        => Wait(w) if w.need.is_none(),
    where_aws_is_away_the_local_clock_ends_it_a_minute_later: expired().with(|s| {
        s.reads_fail = Some(CallError { kind: CallErrorKind::Doubt, message: "timeout".into() });
        s.recorded_tunnel().expires_at = wall(WALL - 60);
        s.secrets = vec![missing()];
    }) => Record(Change::Ended { reason: Reason::Expired, .. }),
    awss_time_of_opening_replaces_ours: ready().described(Life::Open { created_at: wall(10_061) })
        => Record(Change::OpenedAt(at)) if *at == wall(10_061),
    within_a_minute_it_does_not: ready().described(Life::Open { created_at: wall(10_060) }) => Wait(_),
    ended_it_rests: ended() => Wait(w) if waits_for(w, None, None, None),
    ended_a_secret_that_was_left_goes: ended().with(|s| s.secrets = vec![ours(1)])
        => DeleteSecret { name } if name == "sensor-tokens",
    ended_and_deleted_it_is_released_without_a_call: deleted(ended()) => RemoveFinalizer,

    a_secret_that_is_going_holds_up_no_end: ready().described(closed(12_000))
        .with(|s| s.secrets = vec![terminating()]) => Record(Change::Ended { .. }),
    a_tunnel_of_another_account_is_left_alone: ready().described(Life::NotFound).with(|s| s.in_account = InAccount::No)
        => Record(Change::Report(Report { reason: Reason::WrongAccount, .. })),
    deleted_it_is_held_until_it_ends_by_itself: deleted(ready()).with(|s| {
        s.in_account = InAccount::No;
        s.object.record.reported = Some(Reason::WrongAccount);
    }) => Wait(w) if w.until == Some(mono(MONO + 39_600)),
    then_it_is_released: deleted(expired()).with(|s| s.in_account = InAccount::No) => RemoveFinalizer,

    deletion_closes_the_tunnel: deleted(ready()) => Close { tunnel, .. } if t1(tunnel),
    deletion_waits_for_its_turn: deleted(ready()).with(|s| s.turn = Turn::Waiting)
        => Wait(w) if waits_for(w, Some(Lane::Close), None, Some(MONO + 5)),
    closed_the_finalizer_goes: deleted(ready()).with(|s| s.memory.ending.closed = vec![TunnelId("t1".into())])
        => RemoveFinalizer,
    already_closed_no_call_is_made: deleted(ready()).described(closed(12_000)) => RemoveFinalizer,
    unknown_to_aws_no_call_is_made: deleted(ready()).described(Life::NotFound) => RemoveFinalizer,
    retained_it_loses_its_owner_tag: deleted(ready()).with(|s| s.object.spec.deletion_policy = DeletionPolicy::Retain)
        => Untag { tunnel, .. } if t1(tunnel),
    never_ready_it_is_closed_all_the_same: deleted(adopted(2))
        .with(|s| s.object.spec.deletion_policy = DeletionPolicy::Retain)
        => Close { .. },
    never_ready_others_are_searched_for: deleted(adopted(2))
        .with(|s| s.memory.ending.closed = vec![TunnelId("t1".into())])
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    deleted_while_somebody_may_be_opening_it_searches: deleted(claim_found())
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    not_found_is_not_believed_before_the_grace: deleted(claim_found()).searched(MONO, vec![])
        => Wait(w) if w.until == Some(mono(MONO + 30)),
    not_found_after_the_grace_it_is_released: deleted(claim_found())
        .with(|s| s.memory.opening.claim = Some((attempt("theirs"), mono(MONO - 30)))).searched(MONO, vec![])
        => RemoveFinalizer,
    found_it_is_closed: deleted(claim_found()).searched(MONO, vec![found("t1", "theirs", 11_000)])
        => Close { tunnel, .. } if t1(tunnel),
    claimed_but_never_sent_it_is_released: deleted(claimed(0)) => RemoveFinalizer,
    where_aws_is_away_deletion_waits: deleted(ready()).failing(Reason::AwsUnavailable, MONO + 10)
        => Record(Change::Report(Report { reason: Reason::AwsUnavailable, .. })),
    but_not_longer_than_the_tunnel_lives: deleted(ready()).failing(Reason::AwsUnavailable, MONO + 10)
        .with(|s| s.recorded_tunnel().expires_at = wall(WALL)) => RemoveFinalizer,
    nor_longer_behind_others: deleted(expired()).with(|s| s.turn = Turn::Waiting) => RemoveFinalizer,
    the_wait_for_its_turn_ends_with_the_tunnel: deleted(ready()).with(|s| {
        s.turn = Turn::Waiting;
        s.memory.ending.down = Some(mono(1));
        s.object.record.reported = Some(Reason::Closing);
    }) => Wait(w) if waits_for(w, Some(Lane::Close), None, Some(MONO + 39_600)),
    in_the_queue_what_the_last_call_failed_with_stands: deleted(ready()).failing(Reason::AccessDenied, MONO).with(|s| {
        s.turn = Turn::Waiting;
        s.memory.ending.down = Some(mono(1));
        s.memory.backoff.failure.as_mut().unwrap().told = true;
        s.object.record.reported = Some(Reason::AccessDenied);
    }) => Wait(w) if waits_for(w, Some(Lane::Close), None, Some(MONO + 39_600)),
    nor_where_no_tunnel_is_known: deleted(claim_found())
        .with(|s| s.object.deleted_at = Some(wall(WALL - 43_200 - 20))) => RemoveFinalizer,
    a_close_that_is_refused_asks_whether_it_is_closed: deleted(ready()).failing(Reason::InvalidRequest, MONO + 10)
        => Wait(w) if asks(w, "t1"),
    deleted_without_a_finalizer_nothing_is_to_do: deleted(created()) => Wait(_),
}

pub(super) fn expired() -> Given {
    ready().with(|s| {
        s.recorded_tunnel().expires_at = wall(WALL);
        s.memory.ending.expired = Some(mono(MONO));
    })
}

fn ended() -> Given {
    ready().with(|s| {
        s.recorded_tunnel().state = TunnelState::Closed;
        s.object.record.reported = Some(Reason::Expired);
        s.object.record.secrets = None;
        s.secrets = vec![missing()];
    })
}
