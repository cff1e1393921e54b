//! An open tunnel, its tokens and its Secrets.

use super::*;
use AnswerOf::Secrets as ReusedTokens;
use ClientMode::{All, Destination, Source};

// Open and Ready; recovery by rotation.
table! {
    a_ready_tunnel_sleeps_until_it_expires: ready() => Wait(w) if waits_for(w, None, None, Some(MONO + 39_600)),
    a_new_generation_of_the_spec_is_observed: ready().with(|s| s.object.generation = 2)
        => Record(Change::Report(Report { reason: Reason::Open, .. })),
    a_lost_secret_comes_back_by_rotation: ready().with(|s| s.secrets = vec![missing()])
        => Record(Change::Rotating { generation: 2, .. }),
    the_api_server_is_asked_first_whether_it_takes_a_secret: ready()
        .with(|s| { s.secrets = vec![missing()]; s.memory.backoff.trial = trial(MONO - 5, None) })
        => TryCreate { secret } if secret.name == "sensor-tokens",
    in_a_namespace_that_is_being_deleted_none_is_restored: ready()
        .with(|s| { s.secrets = vec![missing()]; s.memory.backoff.trial = ends(MONO) })
        => Wait(w) if waits_for(w, None, None, Some(MONO + 30)),
    nor_are_new_tokens_kept_on_trying: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| s.memory.backoff.trial = ends(MONO - 29)) => Wait(_),
    should_the_namespace_stay_it_is_tried_again: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| s.memory.backoff.trial = ends(MONO - 30))
        => WriteSecret { .. },
    what_the_api_server_refuses_is_told_and_revokes_nothing: ready()
        .with(|s| {
            s.secrets = vec![missing()];
            s.memory.backoff.trial = trial(MONO, Some(Refusal::Told("quota".into())));
        })
        => Record(Change::Report(Report { reason: Reason::Rotating, message })) if message.contains("quota"),
    and_is_tried_again: rotating(RotationStage::Lost)
        .with(|s| s.memory.backoff.trial = trial(MONO - 30, Some(Refusal::Told("quota".into()))))
        => TryCreate { secret } if secret.name == "sensor-tokens",
    a_secret_that_is_going_is_not_rotated_for_yet: ready().with(|s| s.secrets = vec![terminating()])
        => Wait(w) if waits_for(w, None, None, Some(MONO + 5)),
    a_rotation_takes_a_ticket_first: ready().with(|s| { s.secrets = vec![missing()]; s.turn = Turn::None })
        => Queue(Lane::Rotate),
    an_edited_secret_comes_back_by_rotation: ready().with(|s| s.secrets = vec![ours(1)])
        => Record(Change::Rotating { generation: 2, .. }),
    a_forged_generation_is_gone_beyond: ready().with(|s| s.secrets = vec![ours(99)])
        => Record(Change::Rotating { generation: 100, .. }),
    a_secret_of_somebody_elses_that_comes_later_is_reported: ready().with(|s| s.secrets = vec![foreign()])
        => Record(Change::Report(Report { reason: Reason::SecretConflict, .. })),
    a_claimed_rotation_is_carried_out: rotating(RotationStage::Claimed)
        => Rotate { generation: 2, mode: ClientMode::All, .. },
    for_the_sides_that_it_was_claimed_for: rotating(RotationStage::Claimed)
        .with(|s| s.memory.rotating.own.as_mut().unwrap().mode = ClientMode::Source)
        => Rotate { mode: ClientMode::Source, .. },
    only_the_sides_that_a_secret_needs_are_claimed: rotating(RotationStage::Lost)
        .with(|s| s.object.spec.secrets[0].mode = ClientMode::Source)
        => Record(Change::Rotating { generation: 3, mode: ClientMode::Source, .. }),
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
        .with(|s| s.memory.rotating.unfinished = Some((2, mono(MONO - 30))))
        => Record(Change::Rotating { generation: 3, .. }),
    what_stands_in_a_secret_is_not_believed: adopted(2).searched(MONO, vec![])
        .with(|s| { s.memory.rotating.unfinished = Some((2, mono(MONO - 30))); s.secrets = vec![ours(2)] })
        => Record(Change::Rotating { generation: 3, .. }),
    new_tokens_are_judged_on_a_fresh_read: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), None) => Read,
    new_tokens_come_into_the_secret: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO))
        => WriteSecret { secret, generation: 2, .. } if secret.name == "sensor-tokens",
    then_the_tunnel_is_ready: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| s.secrets = vec![holding(2)]) => Record(Change::Rotated { .. }),
    tokens_of_a_superseded_generation_are_dropped: adopted(3).answer(RotateAnswer(2), Some(MONO)) => Forget,
    tokens_of_another_tunnel_are_dropped: adopted(2).answer(RotateAnswer(2), Some(MONO))
        .with(|s| s.memory.answer.as_mut().unwrap().tunnel = super::tunnel("old")) => Forget,
    tokens_of_a_tunnel_that_somebody_recorded_as_ended_are_dropped: rotating(RotationStage::Doubt(mono(MONO - 2)))
        .answer(RotateAnswer(2), Some(MONO)).with(|s| {
            s.recorded_tunnel().state = TunnelState::Closed;
            s.object.record.reported = Some(Reason::Closed);
        }) => Forget,
    a_late_rotate_that_was_superseded_causes_one_more_once_ready: ready()
        .with(|s| { s.object.record.token_generation = 1; s.memory.rotating.late = Some(0) })
        => Record(Change::Rotating { generation: 2, .. }),
    but_never_before: adopted(3).searched(MONO, vec![]).with(|s| s.memory.rotating.late = Some(2)) => Wait(_),
    tokens_that_a_conflict_lost_come_when_the_name_is_free: rotating(RotationStage::Lost)
        => Record(Change::Rotating { generation: 3, .. }),
    a_wiped_finalizer_is_restored: ready().with(|s| s.object.record.finalizer = false) => RestoreFinalizer,
}

#[test]
fn a_rotate_that_is_superseded_under_way_may_come_after_the_newer_one() {
    let late = |stage, generation| {
        let s = rotating(stage).with(|s| s.object.record.token_generation = generation);
        let (view, mut memory) = (s.view(), Memory::restore(s.memory));
        memory.see(&view, s.standing, now());
        memory.into_inner().rotating.late
    };
    assert_eq!(late(RotationStage::Doubt(mono(MONO - 2)), 3), Some(2));
    assert_eq!(late(RotationStage::Doubt(mono(MONO - 2)), 2), None);
    assert_eq!(late(RotationStage::Claimed, 3), None, "nothing was sent");
}

pub(super) fn rotation(generation: i64, mode: ClientMode, others_live: bool, stage: RotationStage) -> Rotation {
    Rotation { generation, mode, others_live, stage, handles: None }
}

pub(super) fn rotating(stage: RotationStage) -> Given {
    adopted(2).with(|s| {
        s.memory.rotating.own = Some(rotation(2, ClientMode::All, false, stage));
        s.read_at = Some(MONO);
    })
}

/// Ready, with these Secrets (a, b, …), each recorded and as it was; the spec wants `wanted`, by index.
fn with_secrets(recorded_modes: &[ClientMode], wanted: &[(usize, ClientMode)]) -> Given {
    let name = |index: usize| ["a", "b", "c"][index].to_owned();
    ready().with(|s| {
        let state = |index: usize| recorded_modes.get(index).map_or(missing(), |mode| intact(1, *mode));
        s.object.record.secrets = Some((0..recorded_modes.len()).map(|index| recorded(&name(index))).collect());
        s.object.spec.secrets = wanted.iter().map(|(index, mode)| super::wanted(&name(*index), *mode)).collect();
        s.secrets = wanted.iter().map(|(index, _)| state(*index)).collect();
        s.former = (0..recorded_modes.len()).filter(|i| !wanted.iter().any(|(w, _)| w == i)).map(state).collect();
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
    a_new_secret_gets_the_tokens_that_another_holds: with_secrets(&[All], &[(0, All), (1, Source)]) => Reuse { .. },
    a_renamed_one_too: with_secrets(&[All], &[(1, All)]) => Reuse { .. },
    they_are_written_beside_the_others: with_secrets(&[All], &[(0, All), (1, Source)]).reused().done(0)
        => WriteSecret { secret, generation: 1, .. } if secret.name == "b",
    then_the_one_that_is_named_no_more_is_deleted: with_secrets(&[All], &[(1, All)]).reused().done(0)
        => DeleteSecret { name } if name == "a",
    then_the_status_names_the_new_ones: with_secrets(&[All], &[(1, All)]).reused().done(0)
        .with(|s| s.former = vec![missing()]) => Record(Change::SecretsUpdated(_)),
    a_side_that_none_holds_is_rotated_alone: with_secrets(&[Source], &[(0, Source), (1, Destination)])
        => Record(Change::Rotating { generation: 2, mode: Destination, .. }),
    a_mode_that_grows_rotates_the_side_that_lacks: with_secrets(&[Source], &[(0, All)])
        => Record(Change::Rotating { mode: Destination, .. }),
    a_mode_that_shrinks_rotates_nothing: with_secrets(&[All], &[(0, Source)]) => Reuse { .. },
    it_is_written_over_its_own_generation: with_secrets(&[All], &[(0, Source)]).reused()
        => WriteSecret { secret, generation: 1, .. } if secret.name == "a",
    a_secret_that_is_named_no_more_and_edited_gives_no_tokens: with_secrets(&[All], &[(1, All)])
        .with(|s| s.former = vec![ours(1)]) => Record(Change::Rotating { mode: All, .. }),
    a_lost_one_is_rotated_though_another_holds_its_side: with_secrets(&[All, Source], &[(0, All), (1, Source)])
        .with(|s| s.secrets[1] = missing()) => Record(Change::Rotating { mode: Source, .. }),
    a_name_that_is_somebody_elses_is_a_conflict: with_secrets(&[All], &[(0, All), (1, Source)])
        .with(|s| s.secrets[1] = foreign())
        => Record(Change::Report(Report { reason: Reason::SecretConflict, .. })),
    one_with_a_generation_that_nobody_counted_to_is_gone_beyond: with_secrets(&[All], &[(0, All), (1, Source)])
        .with(|s| s.secrets[1] = ours(9)) => Record(Change::Rotating { generation: 10, mode: Source, .. }),
    tokens_of_a_generation_that_is_over_are_dropped: with_secrets(&[All], &[(1, All)]).reused()
        .with(|s| s.object.record.token_generation = 2) => Forget,
    a_rotation_that_somebody_claimed_meanwhile_drops_them: with_secrets(&[All], &[(1, All)]).reused()
        .with(|s| s.object.record.reported = Some(Reason::Rotating)) => Forget,
    a_write_that_is_refused_for_ever_does_not_hide_the_end: with_secrets(&[All], &[(0, All), (1, Source)]).reused().done(0)
        .described(closed(12_000)) => Forget,
    a_former_one_goes_when_the_tunnel_ends: with_secrets(&[All], &[(1, All)]).described(closed(12_000))
        => DeleteSecret { name } if name == "a",
}

/// The spec has changed; its Secret lacks a label that it names.
fn relabelled() -> Given {
    ready().with(|s| {
        s.object.generation = 2;
        s.secrets = vec![but(intact(1, All), |s| s.decorated = false)];
    })
}

fn undecorated_but_written() -> Given {
    relabelled().reused().with(|s| {
        s.secrets = vec![but(holding(1), |s| s.decorated = false)];
        s.memory.answer.as_mut().unwrap().written = s.object.spec.secrets.clone();
    })
}

// Labels and annotations of a Secret.
table! {
    a_label_that_the_spec_names_comes_without_a_rotation: relabelled() => Reuse { generation: 1, tokens, .. }
        if tokens.have(All),
    it_is_written_though_the_tokens_are_there: relabelled().reused()
        .with(|s| s.secrets = vec![but(holding(1), |s| s.decorated = false)]) => WriteSecret { generation: 1, .. },
    taken_off_at_once_by_somebody_else_it_is_not_written_again: undecorated_but_written()
        => Record(Change::SecretsUpdated(_)),
    written_before_the_spec_was_edited_again_it_is_written_again: undecorated_but_written()
        .with(|s| drop(s.object.spec.secrets[0].labels.insert("team".into(), "edge".into())))
        => WriteSecret { generation: 1, .. },
    taken_off_later_neither: relabelled().with(|s| s.object.generation = 1) => Wait(_),
    without_the_label_of_the_watch_it_comes_back_by_rotation: ready()
        .with(|s| s.secrets = vec![but(intact(1, All), |s| s.labelled = false)]) => Record(Change::Rotating { .. }),
    taken_off_at_once_the_tokens_are_given_up: claimed(0).opened(Some(MONO))
        .with(|s| s.secrets = vec![but(holding(1), |s| s.labelled = false)]) => Forget,
}

#[test]
fn the_tokens_that_are_reused_are_those_of_intact_secrets_alone() {
    let one = |name: &str| Side { access_token: Token::new(name.into()), client_token: Token::new("c".into()) };
    let given = with_secrets(&[All, Source], &[(0, All), (1, Source), (2, All)]).with(|s| {
        s.secrets[0] =
            but(intact(1, All), |s| s.tokens = Tokens { source: Some(one("a")), destination: Some(one("b")) });
        s.secrets[2] = but(ours(0), |s| s.tokens = Tokens { source: Some(one("x")), destination: Some(one("x")) });
    });
    let Reuse { tokens, .. } = given.decide() else { panic!("no Reuse") };
    let access = |side: Option<Side>| side.unwrap().access_token.expose().to_owned();
    assert_eq!((access(tokens.source), access(tokens.destination)), ("a".into(), "b".into()));
}

#[test]
fn the_tokens_of_the_other_side_go_along_only_where_they_are_live() {
    let others = |others_live| {
        let given = with_secrets(&[All, Source], &[(0, All), (1, Source)]).with(|s| {
            s.object.record.reported = Some(Reason::Rotating);
            s.memory.rotating.own = Some(rotation(1, Source, others_live, RotationStage::Claimed));
            s.read_at = Some(MONO);
        });
        let Rotate { others, .. } = given.decide() else { panic!("no Rotate") };
        others
    };
    assert!(others(true).is_some_and(|tokens| tokens.have(Destination)));
    assert!(others(false).is_none());
}
