//! No tunnel for now, and another one: suspend and resume, Recreate, reopenPolicy.

use super::ending::expired;
use super::ready::rotating;
use super::*;
use opentunnel_api::Reopen;

impl Given {
    /// `spec.suspend` is true.
    fn suspended(self) -> Self {
        self.with(|s| {
            s.object.spec.suspend = true;
            s.memory.ending.down = Some(mono(MONO));
        })
    }

    /// It stands in the status that its tunnel is being closed for this reason.
    fn closing(self, reason: Reason) -> Self {
        self.with(|s| {
            s.recorded_tunnel().end_reason = Some(reason);
            s.object.record.reported = Some(if reason == Reason::Recreating { reason } else { Reason::Closing });
            s.memory.ending.down = Some(mono(MONO));
        })
    }

    fn reported(self, reason: Reason) -> Self {
        self.with(|s| {
            s.object.record.reported = Some(reason);
            s.object.record.observed_generation = Some(s.object.generation);
        })
    }

    /// This process knows from AWS that `t1` is closed.
    fn known_closed(self) -> Self {
        self.with(|s| s.memory.ending.closed = vec![TunnelId("t1".into())])
    }

    fn without_secrets(self) -> Self {
        self.with(|s| s.secrets = vec![missing()])
    }

    fn policy(self, policy: ReopenPolicy) -> Self {
        self.with(|s| s.object.spec.reopen_policy = policy)
    }

    /// A search that this process made since it saw the Tunnel has found nothing.
    fn searched_in_vain(self) -> Self {
        self.searched(MONO - 100, vec![])
    }

    fn away(self) -> Self {
        self.with(|s| s.reads_fail = Some(CallError { kind: CallErrorKind::Doubt, message: "timeout".into() }))
    }

    /// It claims under this attempt, which was seen on the object so long ago.
    fn claims(self, by: &str, seen: u64) -> Self {
        self.with(|s| {
            s.object.record.claim = Some(attempt(by));
            s.memory.opening.claim = Some((attempt(by), mono(MONO - seen)));
        })
    }

    /// This process has claimed to open the next tunnel.
    fn claimed_again(self) -> Self {
        self.claims("own", 0).with(|s| {
            s.memory.opening.attempt = Some(attempt("own"));
            s.read_at = Some(MONO);
        })
    }

    /// OpenTunnel has answered to it.
    fn opened_again(self) -> Self {
        self.claimed_again().opened(Some(MONO)).with(|s| {
            s.memory.answer.as_mut().unwrap().tunnel = tunnel("t2");
            s.memory.owned.push(tunnel("t2"));
        })
    }
}

fn is_t2(id: &TunnelRef) -> bool {
    *id == tunnel("t2")
}

/// Its tunnel has ended for this reason; what the status reports follows from it.
fn ended_for(reason: Reason) -> Given {
    ready().without_secrets().with(|s| {
        let tunnel = s.recorded_tunnel();
        (tunnel.state, tunnel.closed_at, tunnel.end_reason) = (TunnelState::Closed, Some(wall(12_000)), Some(reason));
        s.object.record.reported = Some(reason);
        s.object.record.secrets = None;
        s.memory.opening.since = Some(mono(MONO - 1));
    })
}

// Suspended: what is open is closed.
table! {
    suspended_it_is_made_known_before_the_close: ready().suspended() => Record(Change::Closing(Reason::Suspended)),
    one_that_is_not_ready_too: adopted(2).suspended() => Record(Change::Closing(Reason::Suspended)),
    it_is_ready_no_more_before_its_tokens_are_dead: ready().suspended().closing(Reason::Suspended).reported(Reason::Open)
        => Record(Change::Closing(Reason::Suspended)),
    then_it_is_closed: ready().suspended().closing(Reason::Suspended) => Close { tunnel, .. } if t1(tunnel),
    its_close_takes_a_ticket: ready().suspended().closing(Reason::Suspended).with(|s| s.turn = Turn::None)
        => Queue(Lane::Close),
    and_waits_for_its_turn: ready().suspended().closing(Reason::Suspended).with(|s| s.turn = Turn::Waiting)
        => Wait(w) if waits_for(w, Some(Lane::Close), None, Some(MONO + 5)),
    whose_it_is_is_asked_first: ready().suspended().closing(Reason::Suspended).with(|s| s.memory.owned = vec![])
        => Identify { tunnel, .. } if t1(tunnel),
    one_that_is_not_named_goes_too: ready().suspended().closing(Reason::Suspended)
        .searched(MONO, vec![found("t2", "x", 10_001)]) => Close { tunnel, .. } if is_t2(tunnel),
    closed_its_secrets_go: ready().suspended().closing(Reason::Suspended).known_closed()
        => DeleteSecret { name } if name == "sensor-tokens",
    closed_the_end_is_recorded: ready().suspended().closing(Reason::Suspended).known_closed().without_secrets()
        => Record(Change::Ended { reason: Reason::Suspended, told: true, reopen: None, .. }),
    closed_by_somebody_else_meanwhile_it_is_suspended_all_the_same: ready().suspended().described(closed(12_000))
        .without_secrets() => Record(Change::Ended { reason: Reason::Suspended, closed_at, reopen: None, .. })
        if *closed_at == wall(12_000),
    nor_does_the_policy_want_another_then: ready().suspended().policy(ReopenPolicy::Always).described(closed(12_000))
        .without_secrets() => Record(Change::Ended { reason: Reason::Suspended, reopen: None, .. }),
    a_close_that_fails_is_told: ready().suspended().closing(Reason::Suspended).failing(Reason::AwsUnavailable, MONO + 10)
        => Record(Change::Report(Report { reason: Reason::AwsUnavailable, .. })),
    and_tried_again: ready().suspended().closing(Reason::Suspended).failing(Reason::AwsUnavailable, MONO + 10)
        .reported(Reason::AwsUnavailable) => Wait(w) if w.until == Some(mono(MONO + 10)),
    a_close_that_is_refused_asks_whether_it_is_open: ready().suspended().closing(Reason::Suspended)
        .failing(Reason::InvalidRequest, MONO + 10) => Wait(w) if asks(w, "t1"),
    where_aws_is_away_the_clock_ends_it: expired().suspended().closing(Reason::Suspended).without_secrets().away()
        .with(|s| s.recorded_tunnel().expires_at = wall(WALL - 60))
        => Record(Change::Ended { reason: Reason::Suspended, told: false, .. }),
    tokens_of_a_rotation_under_way_are_dropped: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).suspended() => Forget,
    about_to_stop_nothing_of_it_is_begun: ready().suspended()
        .with(|s| s.standing = Standing::Stopping { since: mono(0) }) => Wait(w) if rests(w),
    what_is_begun_goes_on: ready().suspended().closing(Reason::Suspended)
        .with(|s| s.standing = Standing::Stopping { since: mono(0) }) => Close { .. },
    a_tunnel_of_another_account_is_not_suspended: ready().suspended().with(|s| s.in_account = InAccount::No)
        => Record(Change::Report(Report { reason: Reason::WrongAccount, .. })),
    deletion_comes_first: deleted(ready().suspended()) => Close { tunnel, .. } if t1(tunnel),
}

// Suspended, and no open tunnel is recorded.
table! {
    never_opened_it_is_suspended_at_once: created().suspended() => Record(Change::Suspended),
    then_nothing_follows: created().suspended().reported(Reason::Suspended) => Wait(w) if rests(w),
    a_new_generation_is_observed: created().suspended().reported(Reason::Suspended).with(|s| s.object.generation = 2)
        => Record(Change::Report(Report { reason: Reason::Suspended, .. })),
    claimed_and_never_sent_it_is_suspended_at_once: claimed(0).suspended() => Record(Change::Suspended),
    what_somebody_may_be_opening_is_searched_for: claim_found().suspended()
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    after_5_s_it_says_so: claim_found().suspended().with(|s| s.memory.ending.down = Some(mono(MONO - 5)))
        => Record(Change::Report(Report { reason: Reason::Closing, .. })),
    one_that_is_suspended_already_is_made_sure_of_without_a_word: claim_found().suspended()
        .with(|s| s.memory.ending.down = Some(mono(MONO - 5))).reported(Reason::Suspended)
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    nothing_found_proves_nothing_before_the_grace: claim_found().suspended().searched(MONO, vec![])
        => Wait(w) if w.until == Some(mono(MONO + 30)),
    after_it_it_does: claim_found().suspended().claims("theirs", 30).searched(MONO, vec![])
        => Record(Change::Suspended),
    what_is_found_is_named_before_it_is_closed: claim_found().suspended()
        .searched(MONO, vec![found("t1", "theirs", 11_000)])
        => Record(Change::Adopted { found, generation: 2, handled: None, .. }) if t1(&found.tunnel),
    that_is_no_rotation_that_was_asked_for: claim_found().suspended()
        .with(|s| s.object.rotate = Some(crate::read::RotateRequest { value: "new".into(), mode: None }))
        .searched(MONO, vec![found("t1", "theirs", 11_000)]) => Record(Change::Adopted { handled: None, .. }),
    what_was_just_opened_too: claimed(0).opened(Some(MONO)).suspended()
        => Record(Change::Adopted { found, .. }) if t1(&found.tunnel) && found.owner.attempt == attempt("own"),
    named_its_tokens_are_dropped: adopted(2).opened(Some(MONO)).suspended() => Forget,
    what_is_found_closed_is_nothing: claim_found().suspended().searched(MONO, vec![found("t1", "theirs", 11_000)])
        .described(closed(12_000)) => Wait(w) if w.until == Some(mono(MONO + 30)),
    one_that_has_expired_is_made_sure_of: ended_for(Reason::Expired).suspended()
        => Wait(w) if w.need == Some(Need::Search(mono(MONO - 100))),
    then_it_is_suspended: ended_for(Reason::Expired).suspended().searched_in_vain() => Record(Change::Suspended),
    a_secret_that_was_left_goes_first: ended_for(Reason::Expired).suspended().searched_in_vain()
        .with(|s| s.secrets = vec![ours(1)]) => DeleteSecret { .. },
    closed_for_it_nothing_follows: ended_for(Reason::Suspended).suspended().searched_in_vain() => Wait(w) if rests(w),
    one_that_was_to_be_opened_again_is_not: ended_for(Reason::Closed).policy(ReopenPolicy::Always)
        .reported(Reason::Opening).suspended().searched_in_vain() => Record(Change::Suspended),
}

// Resumed: another one is opened, once AWS has said that the one before is closed.
table! {
    resumed_before_it_is_closed_there_is_no_way_back: ready().closing(Reason::Suspended) => Close { tunnel, .. }
        if t1(tunnel),
    closed_it_ends_as_suspended: ready().closing(Reason::Suspended).known_closed().without_secrets()
        => Record(Change::Ended { reason: Reason::Suspended, .. }),
    resumed_aws_is_asked: ended_for(Reason::Suspended) => Wait(w) if asks(w, "t1"),
    that_aws_is_away_is_told: ended_for(Reason::Suspended).away()
        => Record(Change::Report(Report { reason: Reason::AwsUnavailable, .. })),
    one_that_this_process_closed_needs_no_question: ended_for(Reason::Suspended).known_closed().searched_in_vain()
        => Claim { new: true, .. },
    nor_one_that_aws_says_is_closed: ended_for(Reason::Suspended).described(closed(12_000)).searched_in_vain()
        => Claim { new: true, .. },
    nor_an_old_one_that_aws_does_not_know: ended_for(Reason::Suspended).described(Life::NotFound).searched_in_vain()
        => Claim { new: true, .. },
    a_young_one_that_aws_does_not_know_may_be_there: ended_for(Reason::Suspended).described(Life::NotFound)
        .with(|s| s.recorded_tunnel().opened_at = wall(WALL - 30)) => Wait(w) if asks(w, "t1"),
    one_that_aws_says_is_open_is_closed_first: ended_for(Reason::Suspended)
        .described(Life::Open { created_at: wall(10_000) }) => Close { tunnel, .. } if t1(tunnel),
    if_it_is_this_tunnels: ended_for(Reason::Suspended).described(Life::Open { created_at: wall(10_000) })
        .with(|s| s.memory.owned = vec![]) => Identify { tunnel, .. } if t1(tunnel),
    a_close_of_it_that_failed_is_tried_again_later: ended_for(Reason::Suspended)
        .described(Life::Open { created_at: wall(10_000) }).failing(Reason::AwsUnavailable, MONO + 10)
        .reported(Reason::AwsUnavailable) => Wait(w) if w.until == Some(mono(MONO + 10)),
    never_opened_it_is_opened: created().reported(Reason::Suspended) => Claim { new: true, .. },
}

// Who may have opened the next one already?
table! {
    whoever_has_not_seen_all_of_it_searches: ended_for(Reason::Suspended).known_closed()
        => Wait(w) if w.need == Some(Need::Search(mono(MONO - 100))),
    the_claim_of_the_tunnel_that_ended_needs_no_grace: ended_for(Reason::Suspended).known_closed().claims("theirs", 0)
        .searched_in_vain() => Claim { new: true, .. },
    the_claim_of_another_does: ended_for(Reason::Suspended).known_closed().claims("rival", 0).searched_in_vain()
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    so_does_any_where_nobody_recorded_who_opened_it: ended_for(Reason::Suspended).known_closed().claims("theirs", 0)
        .with(|s| s.recorded_tunnel().attempt = None).searched_in_vain()
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    after_the_grace_a_new_attempt_is_claimed_again: ended_for(Reason::Suspended).known_closed().claims("rival", 30)
        .searched(MONO, vec![]) => Claim { new: true, .. },
    one_that_is_found_is_adopted_two_generations_up: ended_for(Reason::Suspended).known_closed()
        .searched(MONO, vec![found("t2", "rival", 12_100)])
        => Record(Change::Adopted { found, generation: 3, .. }) if is_t2(&found.tunnel),
    the_one_that_ended_is_not_found_again: ended_for(Reason::Suspended).known_closed()
        .searched(MONO, vec![found("t1", "theirs", 10_000)]) => Claim { new: true, .. },
    the_own_claim_is_acted_on: ended_for(Reason::Suspended).known_closed().searched_in_vain().claimed_again()
        => Open { attempt: a, .. } if *a == attempt("own"),
    its_tokens_come_one_generation_up: ended_for(Reason::Suspended).known_closed().opened_again()
        => WriteSecret { generation: 2, tunnel, .. } if *tunnel == TunnelId("t2".into()),
    then_it_is_ready: ended_for(Reason::Suspended).known_closed().opened_again()
        .with(|s| s.secrets = vec![holding(2)]) => Record(Change::Opened { opening, generation: 2, .. })
        if is_t2(&opening.tunnel) && opening.attempt == attempt("own"),
    superseded_by_a_rival_it_is_closed: ended_for(Reason::Suspended).known_closed().opened_again().claims("rival", 0)
        => CloseSurplus { tunnel, .. } if is_t2(tunnel),
    wanted_no_more_it_is_closed: ended_for(Reason::Closed).opened_again() => CloseSurplus { tunnel, .. } if is_t2(tunnel),
    suspended_again_it_is_named_and_closed: ended_for(Reason::Suspended).opened_again().suspended()
        => Record(Change::Adopted { found, .. }) if is_t2(&found.tunnel),
    deleted_it_is_closed: deleted(ended_for(Reason::Suspended).opened_again()) => Close { tunnel, .. } if is_t2(tunnel),
    deleted_after_the_end_it_goes_where_nobody_has_claimed_since: deleted(ended_for(Reason::Closed)) => RemoveFinalizer,
    else_it_is_searched_for_the_next_one: deleted(ended_for(Reason::Closed)).claims("rival", 0)
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    and_closed: deleted(ended_for(Reason::Closed)).claims("rival", 0).searched(MONO, vec![found("t2", "rival", 12_100)])
        => Close { tunnel, .. } if is_t2(tunnel),
}

/// Ready, opened with the spec as it was; since then its description has changed.
fn edited(policy: UpdatePolicy) -> Given {
    ready().with(|s| {
        s.recorded_tunnel().opened_with = Some(s.object.spec.request.digest());
        s.object.spec.request.description = Some("new".into());
        s.object.spec.update_policy = policy;
    })
}

// updatePolicy: Recreate.
table! {
    an_edit_is_made_known_before_the_close: edited(UpdatePolicy::Recreate) => Record(Change::Closing(Reason::Recreating)),
    then_the_old_one_is_closed: edited(UpdatePolicy::Recreate).closing(Reason::Recreating) => Close { tunnel, .. }
        if t1(tunnel),
    its_secrets_are_dead: edited(UpdatePolicy::Recreate).closing(Reason::Recreating).known_closed() => DeleteSecret { .. },
    its_end_is_recorded: edited(UpdatePolicy::Recreate).closing(Reason::Recreating).known_closed().without_secrets()
        => Record(Change::Ended { reason: Reason::Recreating, reopen: None, .. }),
    closed_by_somebody_else_it_is_recreated_all_the_same: edited(UpdatePolicy::Recreate).without_secrets()
        .policy(ReopenPolicy::Always).described(closed(12_000))
        => Record(Change::Ended { reason: Reason::Recreating, reopen: None, .. }),
    then_a_new_one_is_opened_whatever_the_policy: ended_for(Reason::Recreating).known_closed().searched_in_vain()
        => Claim { new: true, .. },
    but_not_before_aws_has_said_that_the_old_one_is_closed: ended_for(Reason::Recreating) => Wait(w) if asks(w, "t1"),
    where_it_is_immutable_nothing_is_closed: edited(UpdatePolicy::Immutable) => Wait(_),
    the_same_spec_closes_nothing: edited(UpdatePolicy::Recreate)
        .with(|s| s.object.spec.request.description = None) => Wait(_),
    tags_are_no_reason: edited(UpdatePolicy::Recreate).with(|s| {
        s.object.spec.request.description = None;
        s.object.spec.request.tags = vec![("team".into(), "edge".into())];
    }) => Wait(_),
    with_what_it_was_opened_nobody_recorded: edited(UpdatePolicy::Recreate)
        .with(|s| s.recorded_tunnel().opened_with = None) => Wait(_),
    an_edit_that_is_taken_back_does_not_stop_the_close: ready().closing(Reason::Recreating) => Close { .. },
    a_policy_that_is_taken_back_neither: edited(UpdatePolicy::Immutable).closing(Reason::Recreating) => Close { .. },
    suspended_meanwhile_it_is_closed_for_that: edited(UpdatePolicy::Recreate).closing(Reason::Recreating).suspended()
        => Record(Change::Closing(Reason::Suspended)),
    an_edit_before_its_tokens_came_needs_none: edited(UpdatePolicy::Recreate).reported(Reason::Rotating)
        => Record(Change::Closing(Reason::Recreating)),
    that_the_old_one_is_not_closed_yet_is_told: edited(UpdatePolicy::Recreate).closing(Reason::Recreating)
        .failing(Reason::AccessDenied, MONO + 10) => Record(Change::Report(Report { reason: Reason::AccessDenied, .. })),
}

/// The spec has changed in all that can be changed, and new tokens are asked for.
fn all_is_changed(given: Given) -> Given {
    given.asked("2", Some(ClientMode::All)).with(|s| {
        s.object.spec.update_policy = UpdatePolicy::Recreate;
        s.object.spec.request.description = Some("new".into());
        s.object.spec.request.tags = vec![("team".into(), "new".into())];
        s.object.generation += 1;
    })
}

// What is asked for while there is no tunnel that it could be done to.
table! {
    edited_while_it_is_opened_its_tokens_are_kept_first: all_is_changed(claimed(0).opened(Some(MONO)))
        => WriteSecret { generation: 1, .. },
    what_was_asked_for_before_it_was_opened_is_done: all_is_changed(claimed(0).opened(Some(MONO)))
        .with(|s| s.secrets = vec![holding(1)])
        => Record(Change::Opened { opening, .. }) if opening.handled.as_deref() == Some("2"),
    edited_after_the_end_it_says_so_and_nothing_more: all_is_changed(ended_for(Reason::Expired))
        => Record(Change::Report(Report { reason: Reason::Expired, .. })),
    then_nothing_is_done_for_it: all_is_changed(ended_for(Reason::Expired)).reported(Reason::Expired)
        => Wait(w) if rests(w),
    edited_before_another_is_opened_that_is_opened_with_it: all_is_changed(
        ended_for(Reason::Recreating).known_closed().searched_in_vain().claimed_again())
        .with(|s| s.tags = [("team".to_owned(), "new".to_owned())].into())
        => Open { tags, .. } if tags["team"] == "new",
    new_tokens_that_were_asked_for_between_two_are_those_of_the_second: all_is_changed(
        ended_for(Reason::Suspended).known_closed().opened_again()).with(|s| s.secrets = vec![holding(2)])
        => Record(Change::Opened { opening, .. }) if opening.handled.as_deref() == Some("2"),
    an_edit_while_tokens_are_made_anew_waits_for_no_rotation: all_is_changed(edited(UpdatePolicy::Recreate))
        .reported(Reason::Rotating) => Record(Change::Closing(Reason::Recreating)),
    tags_and_tokens_wait_until_the_rotation_is_over: rotating(RotationStage::Claimed).asked("2", Some(ClientMode::All))
        .with(|s| s.tags = [("team".to_owned(), "new".to_owned())].into()) => Rotate { generation: 2, .. },
}

fn reopens(reopen: &Option<Reopen>, count: i32, not_before: Option<i64>) -> bool {
    *reopen == Some(Reopen { count, not_before: not_before.map(wall) })
}

/// It was closed by somebody else, before its lifetime was over, `count` times in a row: the next comes at `not_before`.
fn keeps_being_closed(count: i32, not_before: i64) -> Given {
    ended_for(Reason::Closed)
        .policy(ReopenPolicy::Always)
        .reported(Reason::Opening)
        .known_closed()
        .searched_in_vain()
        .with(|s| s.object.record.reopen = Some(Reopen { count, not_before: Some(wall(not_before)) }))
}

// reopenPolicy.
table! {
    closed_by_somebody_else_another_is_opened_a_minute_later: ready().policy(ReopenPolicy::Always).without_secrets()
        .described(closed(12_000)) => Record(Change::Ended { reason: Reason::Closed, told: true, reopen, .. })
        if reopens(reopen, 1, Some(WALL + 60)),
    each_in_a_row_doubles_the_pause: ready().policy(ReopenPolicy::Always).without_secrets().described(closed(12_000))
        .with(|s| s.object.record.reopen = Some(Reopen { count: 3, not_before: None }))
        => Record(Change::Ended { reopen, .. }) if reopens(reopen, 4, Some(WALL + 480)),
    expired_another_is_opened_at_once: ready().policy(ReopenPolicy::Always).without_secrets()
        .described(closed(10_000 + 43_150)).with(|s| s.object.record.reopen = Some(Reopen { count: 3, not_before: None }))
        => Record(Change::Ended { reason: Reason::Expired, reopen, .. }) if reopens(reopen, 0, None),
    on_expiry_too: ready().policy(ReopenPolicy::OnExpiry).without_secrets().described(closed(10_000 + 43_150))
        => Record(Change::Ended { reopen, .. }) if reopens(reopen, 0, None),
    on_expiry_one_that_was_closed_is_not: ready().policy(ReopenPolicy::OnExpiry).without_secrets()
        .described(closed(12_000)) => Record(Change::Ended { reason: Reason::Closed, reopen: None, .. }),
    never_is_never: ready().without_secrets().described(closed(10_000 + 43_150))
        => Record(Change::Ended { reason: Reason::Expired, reopen: None, .. }),
    the_secrets_of_the_one_that_ended_go_first: ready().policy(ReopenPolicy::Always).described(closed(12_000))
        => DeleteSecret { .. },

    the_pause_is_waited_for: keeps_being_closed(1, WALL + 60) => Wait(w) if w.until == Some(mono(MONO + 60)),
    and_told: keeps_being_closed(2, WALL + 60).reported(Reason::Closed)
        => Record(Change::Report(Report { reason: Reason::Opening, message })) if message.contains("2 in a row"),
    after_it_a_new_attempt_is_claimed: keeps_being_closed(1, WALL) => Claim { new: true, .. },
    nor_before_aws_has_said_that_it_is_closed: keeps_being_closed(1, WALL).with(|s| s.memory.ending.closed.clear())
        => Wait(w) if asks(w, "t1"),
    the_pause_is_none_for_one_that_expired: keeps_being_closed(1, WALL + 60)
        .with(|s| s.recorded_tunnel().end_reason = Some(Reason::Expired)) => Claim { new: true, .. },
    nor_for_one_that_was_suspended_meanwhile: keeps_being_closed(1, WALL + 60).policy(ReopenPolicy::Never)
        .with(|s| s.recorded_tunnel().end_reason = Some(Reason::Suspended)) => Claim { new: true, .. },
    ended_by_the_clock_alone_aws_is_asked: ended_for(Reason::Expired).policy(ReopenPolicy::OnExpiry)
        => Wait(w) if asks(w, "t1"),
    where_it_is_open_still_it_is_closed_first: ended_for(Reason::Expired).policy(ReopenPolicy::OnExpiry)
        .described(Life::Open { created_at: wall(10_000) }) => Close { tunnel, .. } if t1(tunnel),
    a_policy_that_comes_after_the_end_opens_another: ended_for(Reason::Closed).policy(ReopenPolicy::Always)
        .known_closed().searched_in_vain() => Claim { new: true, .. },
    one_that_wants_it_no_more_ends_it: keeps_being_closed(1, WALL + 60).policy(ReopenPolicy::OnExpiry)
        => Record(Change::Report(Report { reason: Reason::Closed, .. })),
    then_it_rests: keeps_being_closed(1, WALL + 60).policy(ReopenPolicy::OnExpiry).reported(Reason::Closed)
        => Wait(w) if rests(w),
    deleted_during_the_pause_it_goes: deleted(keeps_being_closed(1, WALL + 60)) => RemoveFinalizer,
    a_queue_is_reported_as_for_the_first_one: keeps_being_closed(1, WALL).with(|s| s.turn = Turn::None)
        => Queue(Lane::Open),
    suspended_during_the_pause_none_is_opened: keeps_being_closed(1, WALL + 60).suspended()
        => Record(Change::Suspended),
    of_another_account_no_other_is_opened: ended_for(Reason::Expired).policy(ReopenPolicy::Always)
        .with(|s| s.in_account = InAccount::No) => Wait(w) if rests(w),
}

#[test]
fn only_awss_own_word_of_the_end_lets_another_be_opened_without_a_question() {
    for (told, expected) in [(true, vec![TunnelId("t1".into())]), (false, vec![])] {
        let ended = Change::Ended { reason: Reason::Expired, closed_at: wall(WALL), told, reopen: None };
        assert_eq!(ready().wrote(ended).memory.ending.closed, expected, "told: {told}");
    }
}
