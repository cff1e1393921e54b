//! The way to an open tunnel.

use super::*;

// Opening.
table! {
    a_new_tunnel_takes_a_ticket: created().with(|s| s.turn = Turn::None) => Queue(Lane::Open),
    it_waits_for_its_turn_without_a_write: created().with(|s| s.turn = Turn::Waiting)
        => Wait(w) if waits_for(w, Some(Lane::Open), None, Some(MONO + 4)),
    after_5_s_in_the_queue_it_says_so: created().with(|s| { s.turn = Turn::Waiting; s.memory.first_seen = mono(MONO - 5) })
        => Record(Change::Report(Report { reason: Reason::Opening, .. })),
    it_says_so_once: created().with(|s| {
        s.turn = Turn::Waiting;
        s.memory.first_seen = mono(MONO - 5);
        s.object.record.reported = Some(Reason::Opening);
        s.object.record.observed_generation = Some(1);
    }) => Wait(w) if waits_for(w, Some(Lane::Open), None, None),
    a_shut_gate_is_reported_in_awss_words: limited(None)
        => Record(Change::Report(Report { reason: Reason::LimitExceeded, message })) if message.contains("AWS's words"),
    a_shut_gate_replaces_opening: limited(Some(Reason::Opening))
        => Record(Change::Report(Report { reason: Reason::LimitExceeded, .. })),
    a_retry_behind_a_shut_gate_costs_no_write: limited(Some(Reason::LimitExceeded)) => Wait(_),
    a_gate_that_opens_again_costs_no_write: limited(Some(Reason::LimitExceeded)).with(|s| s.gate = None) => Wait(_),
    nothing_is_opened_before_the_claim: created() => Claim { new: true, .. },
    a_claim_whose_write_was_not_answered_is_repeated_with_the_same_attempt:
        created().with(|s| s.memory.opening.attempt = Some(attempt("own")))
        => Claim { attempt: a, new: false } if *a == attempt("own"),
    a_fresh_claim_is_acted_on: claimed(4) => Open { .. },
    a_claim_older_than_5_s_is_read_again: claimed(5) => Read,
    a_claim_that_only_the_watch_shows_is_read_again: claimed(0).with(|s| s.read_at = None) => Read,
    after_a_definite_refusal_the_same_claim_serves: claimed(0).failing(Reason::AccessDenied, MONO) => Open { .. },
    a_refusal_is_reported: claimed(0).failing(Reason::AccessDenied, MONO + 5)
        => Record(Change::Report(Report { reason: Reason::AccessDenied, message })) if message == "words",
    a_reported_refusal_waits: claimed(0).failing(Reason::AccessDenied, MONO + 5).with(|s| {
        s.object.record.reported = Some(Reason::AccessDenied);
        s.object.record.observed_generation = Some(1);
    }) => Wait(w) if waits_for(w, None, None, Some(MONO + 5)),
    a_retry_after_a_refusal_costs_no_write: created().failing(Reason::AccessDenied, MONO).with(|s| {
        s.turn = Turn::Waiting;
        s.memory.first_seen = mono(1);
        s.object.record.reported = Some(Reason::AccessDenied);
    }) => Wait(w) if w.lane == Some(Lane::Open),
    nor_does_it_behind_a_shut_gate: limited(Some(Reason::InvalidRequest)).failing(Reason::InvalidRequest, MONO)
        => Wait(w) if w.lane == Some(Lane::Open),
    a_secret_of_somebody_elses_is_noticed_before_open_tunnel: created().with(|s| s.secrets = vec![foreign()])
        => Record(Change::Report(Report { reason: Reason::SecretConflict, message })) if message.contains("sensor-tokens"),
    it_is_looked_at_again_within_5_s: created().with(|s| {
        s.secrets = vec![foreign()];
        s.object.record.reported = Some(Reason::SecretConflict);
        s.object.record.observed_generation = Some(1);
    }) => Wait(w) if w.until == Some(mono(MONO + 5)) && w.names == ["sensor-tokens"],
    what_an_earlier_call_may_have_opened_does_not_wait_for_the_name: in_conflict_after_a_lost_answer()
        => Wait(w) if matches!(w.need, Some(Need::Search(_))),
    it_is_adopted_though_its_tokens_have_no_place_yet: in_conflict_after_a_lost_answer()
        .searched(MONO, vec![found("t-1", "own", 0)]) => Record(Change::Adopted { .. }),
}

/// The answer of OpenTunnel was lost; then somebody took the Secret's name.
fn in_conflict_after_a_lost_answer() -> Given {
    claimed(0).with(|s| {
        s.memory.opening.doubt = Some(mono(MONO - 1));
        s.secrets = vec![foreign()];
        s.object.record.reported = Some(Reason::SecretConflict);
        s.object.record.observed_generation = Some(1);
    })
}

fn limited(reported: Option<Reason>) -> Given {
    created().with(|s| {
        s.turn = Turn::Waiting;
        s.memory.first_seen = mono(MONO - 6);
        s.object.record.reported = reported;
        s.object.record.observed_generation = Some(1);
        s.gate =
            Some(Gate { cause: CallErrorKind::LimitExceeded, message: "AWS's words".into(), since: wall(WALL - 60) });
    })
}

// Who may have opened already? Crashes, lost answers, rivals, wiped claims.
table! {
    a_tunnel_seen_at_start_is_searched_for_first: created().with(|s| s.memory.saw_creation = false)
        => Wait(w) if waits_for(w, None, Some(Need::Search(mono(MONO - 1))), Some(MONO + 4)),
    with_no_claim_not_found_is_believed_at_once:
        created().with(|s| s.memory.saw_creation = false).searched(MONO - 1, vec![]) => Claim { new: true, .. },
    a_search_that_began_earlier_proves_nothing:
        created().with(|s| s.memory.saw_creation = false).searched(MONO - 2, vec![]) => Wait(w) if w.need.is_some(),
    a_claim_of_a_predecessor_is_searched_for_at_once: claim_found()
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    its_not_found_is_not_believed_before_the_grace_is_over: claim_found().searched(MONO, vec![])
        => Wait(w) if waits_for(w, None, None, Some(MONO + 30)),
    when_the_grace_is_over_it_is_searched_for_again: claim_found()
        .with(|s| s.memory.opening.claim = Some((attempt("theirs"), mono(MONO - 30)))).searched(MONO - 30, vec![])
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    not_found_after_the_grace_a_new_attempt_is_claimed: claim_found()
        .with(|s| s.memory.opening.claim = Some((attempt("theirs"), mono(MONO - 30)))).searched(MONO, vec![])
        => Claim { new: true, .. },
    found_by_the_first_search_it_is_adopted_two_generations_up: claim_found()
        .searched(MONO, vec![found("t1", "theirs", 11_000)])
        => Record(Change::Adopted { found, generation: 2, .. }) if t1(&found.tunnel),
    an_answer_that_was_lost_is_searched_for: claimed(0).with(|s| s.memory.opening.doubt = Some(mono(MONO)))
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    a_lost_answers_grace_counts_from_the_call: claimed(0)
        .with(|s| {
            s.memory.opening.claim = Some((attempt("own"), mono(1)));
            s.memory.opening.doubt = Some(mono(MONO));
        })
        .searched(MONO, vec![]) => Wait(w) if w.until == Some(mono(MONO + 30)),
    after_doubt_a_new_attempt_is_claimed_not_the_old_one: claimed(0)
        .with(|s| s.memory.opening.doubt = Some(mono(MONO - 30))).searched(MONO, vec![]) => Claim { new: true, .. },
    after_a_lost_answer_the_tunnel_is_adopted: claimed(0)
        .with(|s| s.memory.opening.doubt = Some(mono(MONO - 30))).searched(MONO - 20, vec![found("t1", "own", 11_000)])
        => Record(Change::Adopted { generation: 2, .. }),
    a_rival_who_won_the_claim_is_given_its_grace: claimed(0).with(|s| {
        s.object.record.claim = Some(attempt("rival"));
        s.memory.opening.attempt = None;
        s.memory.opening.claim = Some((attempt("rival"), mono(MONO)));
    }) => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    a_wiped_claim_of_somebody_else_keeps_its_grace: claim_found().with(|s| {
        s.object.record.claim = None;
        s.object.record.finalizer = false;
    }).searched(MONO, vec![]) => Wait(w) if w.until == Some(mono(MONO + 30)),
    an_own_claim_that_was_wiped_before_the_call_is_written_again: claimed(0)
        .with(|s| s.object.record.claim = None) => Claim { attempt: a, new: false } if *a == attempt("own"),
    of_several_the_current_attempts_is_adopted: claim_found()
        .searched(MONO, vec![found("t0", "older", 10_500), found("t1", "theirs", 11_000)])
        => Record(Change::Adopted { found, .. }) if t1(&found.tunnel),
    else_the_oldest: claim_found().searched(MONO, vec![found("t0", "x", 10_600), found("t1", "y", 10_500)])
        => Record(Change::Adopted { found, .. }) if t1(&found.tunnel),
    else_the_smallest_id: claim_found().searched(MONO, vec![found("t2", "x", 10_500), found("t1", "y", 10_500)])
        => Record(Change::Adopted { found, .. }) if t1(&found.tunnel),
    an_adopter_goes_above_whatever_stands_in_the_secret: claim_found().with(|s| s.secrets = vec![ours(7)])
        .searched(MONO, vec![found("t1", "theirs", 11_000)]) => Record(Change::Adopted { generation: 8, .. }),
    a_search_that_fails_is_reported: claim_found().with(|s| s.reads_fail = Some(CallError {
        kind: CallErrorKind::Doubt, message: "timeout".into() }))
        => Record(Change::Report(Report { reason: Reason::AwsUnavailable, .. })),
}

// The answer of OpenTunnel, judged against the object as it is then.
table! {
    an_answer_that_came_late_is_judged_on_a_fresh_read: claimed(0).opened(Some(MONO - 7)) => Read,
    then_the_secret_is_written: claimed(0).opened(Some(MONO))
        => WriteSecret { secret, generation: 1, .. } if secret.name == "sensor-tokens",
    one_that_came_in_time_needs_none: claimed(0).opened(Some(MONO - 6))
        => WriteSecret { secret, generation: 1, .. } if secret.name == "sensor-tokens",
    tokens_that_the_api_server_does_not_take_are_reported_after_5_s: refused_secret(None)
        => Record(Change::Report(Report { reason: Reason::Opening, message })) if message.contains("forbidden"),
    and_tried_on: refused_secret(Some(Reason::Opening))
        => WriteSecret { secret, generation: 1, .. } if secret.name == "sensor-tokens",
    a_name_that_is_taken_is_reason_enough: refused_secret(Some(Reason::SecretConflict))
        => WriteSecret { secret, generation: 1, .. } if secret.name == "sensor-tokens",
    who_does_not_lead_reports_nothing: refused_secret(None).with(|s| s.standing = Standing::Finishes)
        => WriteSecret { secret, generation: 1, .. } if secret.name == "sensor-tokens",
    then_the_status: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![holding(1)])
        => Record(Change::Opened { generation: 1, .. }),
    a_secret_that_was_written_before_the_spec_was_edited_is_written_again: claimed(0).opened(Some(MONO))
        .with(|s| s.secrets = vec![but(holding(1), |s| s.decorated = false)]) => WriteSecret { generation: 1, .. },
    each_secret_is_written: claimed(0).opened(Some(MONO)).with(|s| {
        s.object.spec.secrets.push(wanted("b", ClientMode::Source));
        s.secrets = vec![holding(1), missing()];
    }) => WriteSecret { secret, generation: 1, .. } if secret.name == "b",
    a_secret_of_an_older_generation_is_overwritten: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![ours(0)])
        => WriteSecret { secret, generation: 1, .. } if secret.name == "sensor-tokens",
    an_adopters_newer_secret_is_left_alone: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![ours(2)]) => Forget,
    an_immutable_secret_is_replaced: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![immutable()])
        => DeleteSecret { name } if name == "sensor-tokens",
    a_secret_that_is_going_is_waited_for_with_the_tokens_in_hand: claimed(0).opened(Some(MONO))
        .with(|s| s.secrets = vec![terminating()]) => Wait(w) if w.until == Some(mono(MONO + 5)),
    the_others_get_theirs_first: claimed(0).opened(Some(MONO)).with(|s| {
        s.object.spec.secrets.push(wanted("b", ClientMode::Source));
        s.secrets = vec![terminating(), missing()];
    }) => WriteSecret { secret, generation: 1, .. } if secret.name == "b",
    a_secret_of_somebody_elses_that_came_meanwhile_keeps_the_tunnel: claimed(0).opened(Some(MONO))
        .with(|s| s.secrets = vec![foreign()]) => Record(Change::OpenedInVain { generation: 1, .. }),
    a_status_write_that_was_carried_out_unanswered_is_left: ready().opened(Some(MONO)) => Forget,
    adopted_by_somebody_else_it_is_left: adopted(2).opened(Some(MONO)) => Forget,
    superseded_by_another_tunnel_it_is_closed: adopted(2).opened(Some(MONO))
        .with(|s| s.memory.answer.as_mut().unwrap().tunnel = tunnel("mine"))
        => CloseSurplus { tunnel: t, .. } if *t == tunnel("mine"),
    superseded_by_another_attempt_it_is_closed: claim_found().opened(Some(MONO))
        => CloseSurplus { tunnel: t, .. } if t1(t),
    a_claim_wiped_during_the_call_is_written_again: claimed(0).opened(Some(MONO)).with(|s| s.object.record.claim = None)
        => Claim { attempt: a, new: false } if *a == attempt("own"),
    of_a_tunnel_that_is_gone_it_is_closed: claimed(0).opened(None).with(|s| s.gone = true)
        => CloseSurplus { tunnel: t, .. } if t1(t),
    of_a_tunnel_that_is_being_deleted_it_is_closed_first: deleted(claimed(0).opened(Some(MONO)))
        => Close { tunnel, .. } if t1(tunnel),
    then_the_finalizer_goes: deleted(claimed(0).opened(Some(MONO)))
        .with(|s| { s.memory.ending.closed = vec![TunnelId("t1".into())]; s.memory.opening.doubt = None })
        => RemoveFinalizer,
}

fn refused_secret(reported: Option<Reason>) -> Given {
    claimed(0).opened(Some(MONO)).with(|s| {
        s.trouble = Some("forbidden".into());
        s.memory.first_seen = mono(MONO - 5);
        s.object.record.reported = reported;
        s.object.record.observed_generation = Some(1);
    })
}
