//! An open tunnel, its tokens and its Secrets.

use super::*;
use AnswerOf::Secrets as ReusedTokens;
use ClientMode::{All, Destination, Source};

// Open and Ready; recovery by rotation.
table! {
    a_ready_tunnel_sleeps_until_it_expires: ready() => Wait(w) if waits_for(w, None, None, Some(MONO + 39_600)),
    a_new_generation_of_the_spec_is_observed: ready().with(|s| s.desired.generation = 2)
        => Record(Change::Report(Report { reason: Reason::Open, .. })),
    a_lost_secret_comes_back_by_rotation: ready().with(|s| s.secrets = vec![SecretState::Missing])
        => Record(Change::Rotating { generation: 2, .. }),
    the_api_server_is_asked_first_whether_it_takes_a_secret: ready()
        .with(|s| { s.secrets = vec![SecretState::Missing]; s.memory.trial = trial(MONO - 5, None) })
        => TryCreate { index: 0 },
    in_a_namespace_that_is_being_deleted_none_is_restored: ready()
        .with(|s| { s.secrets = vec![SecretState::Missing]; s.memory.trial = ends(MONO) })
        => Wait(w) if waits_for(w, None, None, Some(MONO + 30)),
    nor_are_new_tokens_kept_on_trying: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| s.memory.trial = ends(MONO - 29)) => Wait(_),
    should_the_namespace_stay_it_is_tried_again: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| s.memory.trial = ends(MONO - 30))
        => WriteSecret { .. },
    what_the_api_server_refuses_is_told_and_revokes_nothing: ready()
        .with(|s| { s.secrets = vec![SecretState::Missing]; s.memory.trial = trial(MONO, Some(Refusal::Told("quota".into()))) })
        => Record(Change::Report(Report { reason: Reason::Rotating, message })) if message.contains("quota"),
    and_is_tried_again: rotating(RotationStage::Lost)
        .with(|s| s.memory.trial = trial(MONO - 30, Some(Refusal::Told("quota".into())))) => TryCreate { index: 0 },
    a_secret_that_is_going_is_not_rotated_for_yet: ready().with(|s| s.secrets = vec![SecretState::Terminating])
        => Wait(w) if waits_for(w, None, None, Some(MONO + 5)),
    a_rotation_takes_a_ticket_first: ready().with(|s| { s.secrets = vec![SecretState::Missing]; s.turn = Turn::None })
        => Queue(Lane::Rotate),
    an_edited_secret_comes_back_by_rotation: ready().with(|s| s.secrets = vec![ours(1)])
        => Record(Change::Rotating { generation: 2, .. }),
    a_forged_generation_is_gone_beyond: ready().with(|s| s.secrets = vec![ours(99)])
        => Record(Change::Rotating { generation: 100, .. }),
    a_secret_of_somebody_elses_that_comes_later_is_reported: ready().with(|s| s.secrets = vec![SecretState::Foreign])
        => Record(Change::Report(Report { reason: Reason::SecretConflict, .. })),
    a_claimed_rotation_is_carried_out: rotating(RotationStage::Claimed)
        => Rotate { generation: 2, mode: ClientMode::All, .. },
    for_the_sides_that_it_was_claimed_for: rotating(RotationStage::Claimed)
        .with(|s| s.memory.rotation.as_mut().unwrap().mode = ClientMode::Source)
        => Rotate { mode: ClientMode::Source, .. },
    only_the_sides_that_a_secret_needs_are_claimed: rotating(RotationStage::Lost)
        .with(|s| s.desired.secrets[0].mode = ClientMode::Source)
        => Record(Change::Rotating { generation: 3, mode: ClientMode::Source }),
    new_tokens_that_lack_a_side_which_is_wanted_by_now_are_dropped: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| s.memory.answer.as_mut().unwrap().tokens.source = None) => Forget,
    an_old_claim_to_rotate_is_read_again: rotating(RotationStage::Claimed).with(|s| s.read_at = Some(MONO - 5)) => Read,
    an_unanswered_rotate_waits_for_the_grace: rotating(RotationStage::Doubt(mono(MONO - 29)))
        => Wait(w) if w.until == Some(mono(MONO + 1)),
    then_it_is_repeated_under_a_new_generation: rotating(RotationStage::Doubt(mono(MONO - 30)))
        => Record(Change::Rotating { generation: 3, .. }),
    a_predecessors_rotation_is_searched_for_surplus_tunnels: adopted(2)
        => Wait(w) if w.need == Some(Need::Search(mono(MONO - 1))),
    a_surplus_tunnel_is_closed_before_ready: adopted(2)
        .searched(MONO, vec![found("t1", "theirs", 10_000), found("t2", "x", 10_001)])
        => Close { tunnel, .. } if *tunnel == super::tunnel("t2"),
    a_predecessors_rotation_waits_for_the_grace: adopted(2).searched(MONO, vec![found("t1", "theirs", 10_000)])
        => Wait(w) if w.until == Some(mono(MONO + 29)),
    then_it_is_repeated_by_whoever_is_there: adopted(2).searched(MONO, vec![])
        .with(|s| s.memory.unfinished = Some((2, mono(MONO - 30)))) => Record(Change::Rotating { generation: 3, .. }),
    what_stands_in_a_secret_is_not_believed: adopted(2).searched(MONO, vec![])
        .with(|s| { s.memory.unfinished = Some((2, mono(MONO - 30))); s.secrets = vec![ours(2)] })
        => Record(Change::Rotating { generation: 3, .. }),
    new_tokens_are_judged_on_a_fresh_read: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), None) => Read,
    new_tokens_come_into_the_secret: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)) => WriteSecret { index: 0, generation: 2 },
    then_the_tunnel_is_ready: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| s.secrets = vec![holding(2)]) => Record(Change::Rotated),
    tokens_of_a_superseded_generation_are_dropped: adopted(3).answer(RotateAnswer(2), Some(MONO)) => Forget,
    tokens_of_another_tunnel_are_dropped: adopted(2).answer(RotateAnswer(2), Some(MONO))
        .with(|s| s.memory.answer.as_mut().unwrap().tunnel = super::tunnel("old")) => Forget,
    tokens_of_a_tunnel_that_somebody_recorded_as_ended_are_dropped: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| {
            s.desired.record.tunnel.as_mut().unwrap().state = State::Closed;
            s.desired.record.reported = Some(Reason::Closed);
        }) => Forget,
    a_late_rotate_that_was_superseded_causes_one_more_once_ready: ready()
        .with(|s| { s.desired.record.token_generation = 1; s.memory.late_rotation = Some(0) })
        => Record(Change::Rotating { generation: 2, .. }),
    but_never_before: adopted(3).searched(MONO, vec![]).with(|s| s.memory.late_rotation = Some(2)) => Wait(_),
    tokens_that_a_conflict_lost_come_when_the_name_is_free: rotating(RotationStage::Lost)
        => Record(Change::Rotating { generation: 3, .. }),
    a_wiped_finalizer_is_restored: ready().with(|s| s.desired.record.finalizer = false) => RestoreFinalizer,
}

#[test]
fn a_rotate_that_is_superseded_under_way_may_come_after_the_newer_one() {
    let late = |stage, generation| {
        let mut s = rotating(stage);
        s.desired.record.token_generation = generation;
        s.memory.note(&s.desired, Now { wall: wall(WALL), mono: mono(MONO) });
        s.memory.late_rotation
    };
    assert_eq!(late(RotationStage::Doubt(mono(MONO - 2)), 3), Some(2));
    assert_eq!(late(RotationStage::Doubt(mono(MONO - 2)), 2), None);
    assert_eq!(late(RotationStage::Claimed, 3), None, "nothing was sent");
}

fn rotating(stage: RotationStage) -> Given {
    adopted(2).with(|s| {
        s.memory.rotation = Some(Rotation { generation: 2, mode: ClientMode::All, others_live: false, stage });
        s.read_at = Some(MONO);
    })
}

/// Ready, with these Secrets (a, b, …), each recorded and as it was; the spec wants `wanted`, by index.
fn with_secrets(kept_modes: &[ClientMode], wanted: &[(usize, ClientMode)]) -> Given {
    let name = |index: usize| ["a", "b", "c"][index].to_owned();
    ready().with(|s| {
        let state = |index: usize| kept_modes.get(index).map_or(SecretState::Missing, |mode| intact(1, *mode));
        s.desired.record.kept = (0..kept_modes.len()).map(|index| kept(&name(index))).collect();
        s.desired.secrets = wanted.iter().map(|(index, mode)| SecretRef { name: name(*index), mode: *mode }).collect();
        s.secrets = wanted.iter().map(|(index, _)| state(*index)).collect();
        s.former = (0..kept_modes.len()).filter(|i| !wanted.iter().any(|(w, _)| w == i)).map(state).collect();
    })
}

impl Given {
    fn reused(self) -> Self {
        self.answer(ReusedTokens(1), Some(MONO))
    }

    /// The wanted Secret at `index` holds what it is to hold.
    fn done(self, index: usize) -> Self {
        self.with(|s| s.secrets[index] = holding(1))
    }
}

// spec.secrets is edited on an open tunnel.
table! {
    the_same_secrets_in_another_order_are_no_change: with_secrets(&[Source, Destination], &[(1, Destination), (0, Source)])
        => Wait(_),
    a_new_secret_gets_the_tokens_that_another_holds: with_secrets(&[All], &[(0, All), (1, Source)]) => Reuse,
    a_renamed_one_too: with_secrets(&[All], &[(1, All)]) => Reuse,
    they_are_written_beside_the_others: with_secrets(&[All], &[(0, All), (1, Source)]).reused().done(0)
        => WriteSecret { index: 1, generation: 1 },
    then_the_one_that_is_named_no_more_is_deleted: with_secrets(&[All], &[(1, All)]).reused().done(0)
        => DeleteSecret { index: 1 },
    then_the_status_names_the_new_ones: with_secrets(&[All], &[(1, All)]).reused().done(0)
        .with(|s| s.former = vec![SecretState::Missing]) => Record(Change::Arranged),
    a_side_that_none_holds_is_rotated_alone: with_secrets(&[Source], &[(0, Source), (1, Destination)])
        => Record(Change::Rotating { generation: 2, mode: Destination }),
    a_mode_that_grows_rotates_the_side_that_lacks: with_secrets(&[Source], &[(0, All)])
        => Record(Change::Rotating { mode: Destination, .. }),
    a_mode_that_shrinks_rotates_nothing: with_secrets(&[All], &[(0, Source)]) => Reuse,
    it_is_written_over_its_own_generation: with_secrets(&[All], &[(0, Source)]).reused()
        => WriteSecret { index: 0, generation: 1 },
    a_secret_that_is_named_no_more_and_edited_gives_no_tokens: with_secrets(&[All], &[(1, All)])
        .with(|s| s.former = vec![ours(1)]) => Record(Change::Rotating { mode: All, .. }),
    a_lost_one_is_rotated_though_another_holds_its_side: with_secrets(&[All, Source], &[(0, All), (1, Source)])
        .with(|s| s.secrets[1] = SecretState::Missing) => Record(Change::Rotating { mode: Source, .. }),
    a_name_that_is_somebody_elses_is_a_conflict: with_secrets(&[All], &[(0, All), (1, Source)])
        .with(|s| s.secrets[1] = SecretState::Foreign)
        => Record(Change::Report(Report { reason: Reason::SecretConflict, .. })),
    one_with_a_generation_that_nobody_counted_to_is_gone_beyond: with_secrets(&[All], &[(0, All), (1, Source)])
        .with(|s| s.secrets[1] = ours(9)) => Record(Change::Rotating { generation: 10, mode: Source }),
    tokens_of_a_generation_that_is_over_are_dropped: with_secrets(&[All], &[(1, All)]).reused()
        .with(|s| s.desired.record.token_generation = 2) => Forget,
    a_rotation_that_somebody_claimed_meanwhile_drops_them: with_secrets(&[All], &[(1, All)]).reused()
        .with(|s| s.desired.record.reported = Some(Reason::Rotating)) => Forget,
    a_write_that_is_refused_for_ever_does_not_hide_the_end: with_secrets(&[All], &[(0, All), (1, Source)]).reused().done(0)
        .heard(closed(12_000)) => Forget,
    a_former_one_goes_when_the_tunnel_ends: with_secrets(&[All], &[(1, All)]).heard(closed(12_000))
        => DeleteSecret { index: 1 },
}
