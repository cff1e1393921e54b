//! Every state that a crash, a lost answer, a rival or a user can leave behind, and what follows.

use super::super::decision::*;
use super::super::observe::{Failure, Memory, Rotation, Trial};
use super::super::validate::{KeptSecret, Record, SecretRef};
use super::*;
use crate::crd::{ClientMode, DeletionPolicy};
use crate::pacer::{Gate, Key};
use crate::tunnels::{Attempt, CallError, Heard, OpenRequest, Owner, Search, Side, Token, Tokens, TunnelId};

/// The process is 1000 s old; the Tunnel was created at wall second 10 000, an hour before now.
const MONO: u64 = 1000;
const WALL: i64 = 13_600;
const LIMITS: Limits = Limits { aws_timeout: Duration::from_secs(20), recovery_grace: Duration::from_secs(30) };

fn mono(second: u64) -> Mono {
    Mono(Duration::from_secs(second))
}

fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn attempt(name: &str) -> Attempt {
    Attempt(name.into())
}

fn tunnel(name: &str) -> TunnelRef {
    TunnelRef { id: TunnelId(name.into()), arn: format!("arn:{name}") }
}

/// A state to decide on. It begins as a Tunnel that was just created, under the eyes of this process.
struct Given {
    desired: Desired,
    memory: Memory,
    secrets: Vec<SecretState>,
    former: Vec<SecretState>,
    read_at: Option<u64>,
    gone: bool,
    search: Option<Search>,
    heard: Option<Heard>,
    reads_fail: Option<CallError>,
    home: Home,
    turn: Turn,
    gate: Option<Gate>,
}

fn created() -> Given {
    let desired = Desired {
        key: Key { namespace: "edge".into(), name: "sensor".into(), uid: "uid".into() },
        created_at: wall(10_000),
        generation: 1,
        deleted_at: None,
        deletion_policy: DeletionPolicy::Close,
        request: OpenRequest { description: None, destination: None, tags: vec![], lifetime_minutes: None },
        lifetime: SignedDuration::from_mins(720),
        secrets: vec![SecretRef { name: "sensor-tokens".into(), mode: ClientMode::All }],
        record: Record { observed_generation: Some(-1), ..Record::default() },
    };
    Given {
        desired,
        memory: Memory::new(true, mono(MONO - 1)),
        secrets: vec![SecretState::Missing],
        former: vec![],
        read_at: None,
        gone: false,
        search: None,
        heard: None,
        reads_fail: None,
        home: Home::Here,
        turn: Turn::Granted,
        gate: None,
    }
}

/// This process has claimed as "own", `age` seconds ago.
fn claimed(age: u64) -> Given {
    let mut s = created();
    s.desired.record.finalizer = true;
    s.desired.record.claim = Some(attempt("own"));
    s.memory.attempt = Some(attempt("own"));
    s.memory.claim = Some((attempt("own"), mono(MONO - age)));
    s.read_at = Some(MONO - age);
    s
}

/// A process that just started finds the claim of its predecessor.
fn claim_found() -> Given {
    let mut s = claimed(0);
    s.memory = Memory::new(false, mono(MONO));
    s.memory.claim = Some((attempt("theirs"), mono(MONO)));
    s.desired.record.claim = Some(attempt("theirs"));
    s
}

fn ours(generation: i64) -> SecretState {
    SecretState::Ours {
        generation,
        digest: "digest".into(),
        sound: true,
        intact: false,
        mode: Some(ClientMode::All),
        holds_answer: false,
    }
}

fn holding(generation: i64) -> SecretState {
    let mut state = ours(generation);
    if let SecretState::Ours { holds_answer, .. } = &mut state {
        *holds_answer = true;
    }
    state
}

/// As it was recorded.
fn intact(generation: i64, side: ClientMode) -> SecretState {
    let mut state = ours(generation);
    if let SecretState::Ours { intact, mode, .. } = &mut state {
        (*intact, *mode) = (true, Some(side));
    }
    state
}

fn immutable() -> SecretState {
    let mut state = ours(0);
    if let SecretState::Ours { sound, .. } = &mut state {
        *sound = false;
    }
    state
}

/// Recorded as open; not Ready. The finalizer stands.
fn adopted(generation: i64) -> Given {
    let mut s = created();
    s.memory = Memory::new(false, mono(MONO - 100));
    s.desired.record = Record {
        finalizer: true,
        claim: Some(attempt("theirs")),
        tunnel: Some(RecordedTunnel {
            tunnel: tunnel("t1"),
            state: State::Open,
            opened_at: wall(10_000),
            expires_at: wall(10_000 + 720 * 60),
        }),
        token_generation: generation,
        ready_once: false,
        kept: vec![],
        reported: Some(Reason::Rotating),
        observed_generation: Some(1),
    };
    s.memory.unfinished = Some((generation, mono(MONO - 1)));
    s.memory.trial = trial(MONO, None);
    s
}

fn ready() -> Given {
    let mut s = adopted(1);
    s.secrets = vec![intact(1, ClientMode::All)];
    s.desired.record.reported = Some(Reason::Open);
    s.desired.record.ready_once = true;
    s.desired.record.kept = vec![kept("sensor-tokens")];
    s.memory.unfinished = None;
    s
}

fn kept(name: &str) -> KeptSecret {
    KeptSecret { name: name.into(), digest: "digest".into() }
}

fn trial(at: u64, refused: Option<Refusal>) -> Option<Trial> {
    Some(Trial { at: mono(at), refused })
}

fn ends(at: u64) -> Option<Trial> {
    trial(at, Some(Refusal::NamespaceEnds))
}

fn deleted(mut s: Given) -> Given {
    s.desired.deleted_at = Some(wall(WALL));
    s.memory.deleting = Some(mono(MONO));
    s
}

fn found(id: &str, by: &str, at: i64) -> Found {
    let owner = Owner { cluster: "c".into(), namespace: "edge".into(), uid: "uid".into(), attempt: attempt(by) };
    Found { tunnel: tunnel(id), owner, created_at: wall(at) }
}

fn side() -> Side {
    Side { access_token: Token::new("access".into()), client_token: Token::new("client".into()) }
}

fn both() -> Tokens {
    Tokens { source: Some(side()), destination: Some(side()) }
}

impl Given {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn opened(self, read_at: Option<u64>) -> Self {
        self.answer(AnswerOf::Open(attempt("own")), read_at)
    }

    fn answer(self, of: AnswerOf, read_at: Option<u64>) -> Self {
        self.with(|s| {
            let answer = Answer { of, tunnel: tunnel("t1"), tokens: both(), at: mono(MONO - 1), wall: wall(WALL) };
            s.memory.answer = Some(answer);
            s.memory.open_doubt = Some(mono(MONO - 2));
            s.read_at = read_at;
        })
    }

    fn searched(self, started: u64, found: Vec<Found>) -> Self {
        self.with(|s| s.search = Some(Search { started: mono(started), found }))
    }

    fn heard(self, word: Word) -> Self {
        self.with(|s| s.heard = Some(Heard { word, asked: mono(MONO) }))
    }

    fn failing(self, reason: Reason, retry_at: u64) -> Self {
        self.with(|s| {
            s.memory.failure = Some(Failure {
                reason,
                message: "words".into(),
                at: mono(MONO - 1),
                retry_at: mono(retry_at),
                times: 1,
            });
        })
    }

    fn decide(&self) -> Decision {
        let observed = Observed {
            read_at: self.read_at.map(mono),
            gone: self.gone,
            secrets: self.secrets.clone(),
            former: self.former.clone(),
            memory: &self.memory,
            search: self.search.clone(),
            heard: self.heard,
            reads_fail: self.reads_fail.clone(),
            home: self.home,
            open: self.turn,
            close: self.turn,
            rotate: self.turn,
            gate: self.gate.clone(),
        };
        decide(&self.desired, &observed, &LIMITS, Now { wall: wall(WALL), mono: mono(MONO) })
    }
}

/// The table: each row a state, by name, and the one thing that follows.
macro_rules! table {
    ($($name:ident: $state:expr => $decision:pat $(if $guard:expr)?,)*) => {$(
        #[test]
        fn $name() {
            let decision = $state.decide();
            assert!(matches!(&decision, $decision $(if $guard)?), "{decision:#?}");
        }
    )*};
}

use AnswerOf::Rotate as RotateAnswer;
use Decision::*;

fn waits_for(d: &super::Wait, lane: Option<Lane>, need: Option<Need>, until: Option<u64>) -> bool {
    *d == super::Wait { lane, need, until: until.map(mono) }
}

fn t1(id: &TunnelRef) -> bool {
    *id == tunnel("t1")
}

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
        s.desired.record.reported = Some(Reason::Opening);
        s.desired.record.observed_generation = Some(1);
    }) => Wait(w) if waits_for(w, Some(Lane::Open), None, None),
    a_shut_gate_is_reported_in_awss_words: limited(None)
        => Record(Change::Report(Report { reason: Reason::LimitExceeded, message })) if message.contains("AWS's words"),
    a_shut_gate_replaces_opening: limited(Some(Reason::Opening))
        => Record(Change::Report(Report { reason: Reason::LimitExceeded, .. })),
    a_retry_behind_a_shut_gate_costs_no_write: limited(Some(Reason::LimitExceeded)) => Wait(_),
    a_gate_that_opens_again_costs_no_write: limited(Some(Reason::LimitExceeded)).with(|s| s.gate = None) => Wait(_),
    nothing_is_opened_before_the_claim: created() => Claim(None),
    a_claim_whose_write_was_not_answered_is_repeated_with_the_same_attempt:
        created().with(|s| s.memory.attempt = Some(attempt("own"))) => Claim(Some(a)) if *a == attempt("own"),
    a_fresh_claim_is_acted_on: claimed(4) => Open,
    a_claim_older_than_5_s_is_read_again: claimed(5) => Read,
    a_claim_that_only_the_watch_shows_is_read_again: claimed(0).with(|s| s.read_at = None) => Read,
    after_a_definite_refusal_the_same_claim_serves: claimed(0).failing(Reason::AccessDenied, MONO) => Open,
    a_refusal_is_reported: claimed(0).failing(Reason::AccessDenied, MONO + 5)
        => Record(Change::Report(Report { reason: Reason::AccessDenied, message })) if message == "words",
    a_reported_refusal_waits: claimed(0).failing(Reason::AccessDenied, MONO + 5).with(|s| {
        s.desired.record.reported = Some(Reason::AccessDenied);
        s.desired.record.observed_generation = Some(1);
    }) => Wait(w) if waits_for(w, None, None, Some(MONO + 5)),
    a_retry_after_a_refusal_costs_no_write: created().failing(Reason::AccessDenied, MONO).with(|s| {
        s.turn = Turn::Waiting;
        s.memory.first_seen = mono(1);
        s.desired.record.reported = Some(Reason::AccessDenied);
    }) => Wait(w) if w.lane == Some(Lane::Open),
    nor_does_it_behind_a_shut_gate: limited(Some(Reason::InvalidRequest)).failing(Reason::InvalidRequest, MONO)
        => Wait(w) if w.lane == Some(Lane::Open),
    a_secret_of_somebody_elses_is_noticed_before_open_tunnel: created().with(|s| s.secrets = vec![SecretState::Foreign])
        => Record(Change::Report(Report { reason: Reason::SecretConflict, message })) if message.contains("sensor-tokens"),
    it_is_looked_at_again_within_60_s: created().with(|s| {
        s.secrets = vec![SecretState::Foreign];
        s.desired.record.reported = Some(Reason::SecretConflict);
        s.desired.record.observed_generation = Some(1);
    }) => Wait(w) if waits_for(w, None, None, Some(MONO + 60)),
}

fn limited(reported: Option<Reason>) -> Given {
    created().with(|s| {
        s.turn = Turn::Waiting;
        s.memory.first_seen = mono(MONO - 6);
        s.desired.record.reported = reported;
        s.desired.record.observed_generation = Some(1);
        s.gate =
            Some(Gate { cause: CallErrorKind::LimitExceeded, message: "AWS's words".into(), since: wall(WALL - 60) });
    })
}

// Who may have opened already? Crashes, lost answers, rivals, wiped claims.
table! {
    a_tunnel_seen_at_start_is_searched_for_first: created().with(|s| s.memory.saw_creation = false)
        => Wait(w) if waits_for(w, None, Some(Need::Search(mono(MONO - 1))), Some(MONO + 4)),
    with_no_claim_not_found_is_believed_at_once:
        created().with(|s| s.memory.saw_creation = false).searched(MONO - 1, vec![]) => Claim(None),
    a_search_that_began_earlier_proves_nothing:
        created().with(|s| s.memory.saw_creation = false).searched(MONO - 2, vec![]) => Wait(w) if w.need.is_some(),
    a_claim_of_a_predecessor_is_searched_for_at_once: claim_found()
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    its_not_found_is_not_believed_before_the_grace_is_over: claim_found().searched(MONO, vec![])
        => Wait(w) if waits_for(w, None, None, Some(MONO + 30)),
    when_the_grace_is_over_it_is_searched_for_again: claim_found()
        .with(|s| s.memory.claim = Some((attempt("theirs"), mono(MONO - 30)))).searched(MONO - 30, vec![])
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    not_found_after_the_grace_a_new_attempt_is_claimed: claim_found()
        .with(|s| s.memory.claim = Some((attempt("theirs"), mono(MONO - 30)))).searched(MONO, vec![]) => Claim(None),
    found_by_the_first_search_it_is_adopted_two_generations_up: claim_found()
        .searched(MONO, vec![found("t1", "theirs", 11_000)])
        => Record(Change::Adopted { found, generation: 2 }) if t1(&found.tunnel),
    an_answer_that_was_lost_is_searched_for: claimed(0).with(|s| s.memory.open_doubt = Some(mono(MONO)))
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    a_lost_answers_grace_counts_from_the_call: claimed(0)
        .with(|s| { s.memory.claim = Some((attempt("own"), mono(1))); s.memory.open_doubt = Some(mono(MONO)) })
        .searched(MONO, vec![]) => Wait(w) if w.until == Some(mono(MONO + 30)),
    after_doubt_a_new_attempt_is_claimed_not_the_old_one: claimed(0)
        .with(|s| s.memory.open_doubt = Some(mono(MONO - 30))).searched(MONO, vec![]) => Claim(None),
    after_a_lost_answer_the_tunnel_is_adopted: claimed(0)
        .with(|s| s.memory.open_doubt = Some(mono(MONO - 30))).searched(MONO - 20, vec![found("t1", "own", 11_000)])
        => Record(Change::Adopted { generation: 2, .. }),
    a_rival_who_won_the_claim_is_given_its_grace: claimed(0).with(|s| {
        s.desired.record.claim = Some(attempt("rival"));
        s.memory.attempt = None;
        s.memory.claim = Some((attempt("rival"), mono(MONO)));
    }) => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    a_wiped_claim_of_somebody_else_keeps_its_grace: claim_found().with(|s| {
        s.desired.record.claim = None;
        s.desired.record.finalizer = false;
    }).searched(MONO, vec![]) => Wait(w) if w.until == Some(mono(MONO + 30)),
    an_own_claim_that_was_wiped_before_the_call_is_written_again: claimed(0)
        .with(|s| s.desired.record.claim = None) => Claim(Some(a)) if *a == attempt("own"),
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
    an_answer_is_judged_on_a_fresh_read: claimed(0).opened(Some(MONO - 2)) => Read,
    then_the_secret_is_written: claimed(0).opened(Some(MONO)) => WriteSecret { index: 0, generation: 1 },
    tokens_that_the_api_server_does_not_take_are_reported_after_5_s: refused_secret(None)
        => Record(Change::Report(Report { reason: Reason::Opening, message })) if message.contains("forbidden"),
    and_tried_on: refused_secret(Some(Reason::Opening)) => WriteSecret { index: 0, generation: 1 },
    then_the_status: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![holding(1)])
        => Record(Change::Opened { generation: 1 }),
    each_secret_is_written: claimed(0).opened(Some(MONO)).with(|s| {
        s.desired.secrets.push(SecretRef { name: "b".into(), mode: ClientMode::Source });
        s.secrets = vec![holding(1), SecretState::Missing];
    }) => WriteSecret { index: 1, generation: 1 },
    a_secret_of_an_older_generation_is_overwritten: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![ours(0)])
        => WriteSecret { index: 0, generation: 1 },
    an_adopters_newer_secret_is_left_alone: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![ours(2)]) => Forget,
    an_immutable_secret_is_replaced: claimed(0).opened(Some(MONO)).with(|s| s.secrets = vec![immutable()]) => DeleteSecret { index: 0 },
    a_secret_that_is_going_is_waited_for_with_the_tokens_in_hand: claimed(0).opened(Some(MONO))
        .with(|s| s.secrets = vec![SecretState::Terminating]) => Wait(w) if w.until == Some(mono(MONO + 5)),
    the_others_get_theirs_first: claimed(0).opened(Some(MONO)).with(|s| {
        s.desired.secrets.push(SecretRef { name: "b".into(), mode: ClientMode::Source });
        s.secrets = vec![SecretState::Terminating, SecretState::Missing];
    }) => WriteSecret { index: 1, generation: 1 },
    a_secret_of_somebody_elses_that_came_meanwhile_keeps_the_tunnel: claimed(0).opened(Some(MONO))
        .with(|s| s.secrets = vec![SecretState::Foreign]) => Record(Change::Kept { generation: 1 }),
    a_status_write_that_was_carried_out_unanswered_is_left: ready().opened(Some(MONO)) => Forget,
    adopted_by_somebody_else_it_is_left: adopted(2).opened(Some(MONO)) => Forget,
    superseded_by_another_tunnel_it_is_closed: adopted(2).opened(Some(MONO))
        .with(|s| s.memory.answer.as_mut().unwrap().tunnel = tunnel("mine")) => Abandon(t) if *t == tunnel("mine"),
    superseded_by_another_attempt_it_is_closed: claim_found().opened(Some(MONO)) => Abandon(t) if t1(t),
    a_claim_wiped_during_the_call_is_written_again: claimed(0).opened(Some(MONO)).with(|s| s.desired.record.claim = None)
        => Claim(Some(a)) if *a == attempt("own"),
    of_a_tunnel_that_is_gone_it_is_closed: claimed(0).opened(None).with(|s| s.gone = true) => Abandon(t) if t1(t),
    of_a_tunnel_that_is_being_deleted_it_is_closed_first: deleted(claimed(0).opened(Some(MONO)))
        => Close { tunnel, .. } if t1(tunnel),
    then_the_finalizer_goes: deleted(claimed(0).opened(Some(MONO)))
        .with(|s| { s.memory.closed = vec![TunnelId("t1".into())]; s.memory.open_doubt = None }) => Release,
}

fn refused_secret(reported: Option<Reason>) -> Given {
    claimed(0).opened(Some(MONO)).with(|s| {
        s.memory.trouble = Some("forbidden".into());
        s.memory.first_seen = mono(MONO - 5);
        s.desired.record.reported = reported;
        s.desired.record.observed_generation = Some(1);
    })
}

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
        => Close { tunnel, .. } if *tunnel == super::tests::tunnel("t2"),
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
        .with(|s| s.memory.answer.as_mut().unwrap().tunnel = super::tests::tunnel("old")) => Forget,
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

use AnswerOf::Secrets as ReusedTokens;
use ClientMode::{All, Destination, Source};

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

// The end.
table! {
    closed_by_somebody_else_the_secrets_go_first: ready().heard(closed(12_000)) => DeleteSecret { index: 0 },
    then_it_has_ended: ready().heard(closed(12_000)).with(|s| s.secrets = vec![SecretState::Missing])
        => Record(Change::Ended { reason: Reason::Closed, closed_at }) if *closed_at == wall(12_000),
    closed_at_the_end_of_its_lifetime_it_has_expired: ready().heard(closed(10_000 + 43_150))
        .with(|s| s.secrets = vec![SecretState::Missing]) => Record(Change::Ended { reason: Reason::Expired, .. }),
    a_secret_of_somebody_elses_is_never_deleted: ready().heard(closed(12_000))
        .with(|s| s.secrets = vec![SecretState::Foreign]) => Record(Change::Ended { .. }),
    not_found_counts_when_the_tunnel_is_older_than_the_grace: ready().heard(Word::NotFound)
        .with(|s| s.secrets = vec![SecretState::Missing]) => Record(Change::Ended { reason: Reason::Closed, .. }),
    told_of_a_young_tunnel_it_proves_nothing_later_either: ready().heard(Word::NotFound).with(|s| {
        s.desired.record.tunnel.as_mut().unwrap().opened_at = wall(WALL - 40);
        s.heard = Some(Heard { word: Word::NotFound, asked: mono(MONO - 35) });
    }) => Wait(_),
    not_found_proves_nothing_where_the_account_is_not_known: ready().heard(Word::NotFound)
        .with(|s| s.home = Home::Unknown) => Wait(_),
    not_found_of_a_young_tunnel_proves_nothing: ready().heard(Word::NotFound)
        .with(|s| s.desired.record.tunnel.as_mut().unwrap().opened_at = wall(WALL - 30)) => Wait(_),
    at_expires_at_aws_is_asked: expired() => Wait(w) if w.need == Some(Need::Describe),
    aws_says_that_it_is_open_still: expired().heard(Word::Open { created_at: wall(10_000) }) => Wait(w) if w.need.is_none(),
    where_aws_is_away_the_local_clock_ends_it_a_minute_later: expired().with(|s| {
        s.reads_fail = Some(CallError { kind: CallErrorKind::Doubt, message: "timeout".into() });
        s.desired.record.tunnel.as_mut().unwrap().expires_at = wall(WALL - 60);
        s.secrets = vec![SecretState::Missing];
    }) => Record(Change::Ended { reason: Reason::Expired, .. }),
    awss_time_of_opening_replaces_ours: ready().heard(Word::Open { created_at: wall(10_061) })
        => Record(Change::OpenedAt(at)) if *at == wall(10_061),
    within_a_minute_it_does_not: ready().heard(Word::Open { created_at: wall(10_060) }) => Wait(_),
    ended_it_rests: ended() => Wait(w) if waits_for(w, None, None, None),
    ended_a_secret_that_was_left_goes: ended().with(|s| s.secrets = vec![ours(1)]) => DeleteSecret { index: 0 },
    ended_and_deleted_it_is_released_without_a_call: deleted(ended()) => Release,

    a_secret_that_is_going_holds_up_no_end: ready().heard(closed(12_000))
        .with(|s| s.secrets = vec![SecretState::Terminating]) => Record(Change::Ended { .. }),
    a_tunnel_of_another_account_is_left_alone: ready().heard(Word::NotFound).with(|s| s.home = Home::Elsewhere)
        => Record(Change::Report(Report { reason: Reason::WrongAccount, .. })),
    deleted_it_is_held_until_it_ends_by_itself: deleted(ready()).with(|s| {
        s.home = Home::Elsewhere;
        s.desired.record.reported = Some(Reason::WrongAccount);
    }) => Wait(w) if w.until == Some(mono(MONO + 39_600)),
    then_it_is_released: deleted(expired()).with(|s| s.home = Home::Elsewhere) => Release,

    deletion_closes_the_tunnel: deleted(ready()) => Close { tunnel, .. } if t1(tunnel),
    deletion_waits_for_its_turn: deleted(ready()).with(|s| s.turn = Turn::Waiting)
        => Wait(w) if waits_for(w, Some(Lane::Close), None, Some(MONO + 5)),
    closed_the_finalizer_goes: deleted(ready()).with(|s| s.memory.closed = vec![TunnelId("t1".into())]) => Release,
    already_closed_no_call_is_made: deleted(ready()).heard(closed(12_000)) => Release,
    unknown_to_aws_no_call_is_made: deleted(ready()).heard(Word::NotFound) => Release,
    retained_it_loses_its_owner_tag: deleted(ready()).with(|s| s.desired.deletion_policy = DeletionPolicy::Retain)
        => Disown { tunnel, .. } if t1(tunnel),
    never_ready_it_is_closed_all_the_same: deleted(adopted(2)).with(|s| s.desired.deletion_policy = DeletionPolicy::Retain)
        => Close { .. },
    never_ready_others_are_searched_for: deleted(adopted(2)).with(|s| s.memory.closed = vec![TunnelId("t1".into())])
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    deleted_while_somebody_may_be_opening_it_searches: deleted(claim_found())
        => Wait(w) if w.need == Some(Need::Search(mono(MONO))),
    not_found_is_not_believed_before_the_grace: deleted(claim_found()).searched(MONO, vec![])
        => Wait(w) if w.until == Some(mono(MONO + 30)),
    not_found_after_the_grace_it_is_released: deleted(claim_found())
        .with(|s| s.memory.claim = Some((attempt("theirs"), mono(MONO - 30)))).searched(MONO, vec![]) => Release,
    found_it_is_closed: deleted(claim_found()).searched(MONO, vec![found("t1", "theirs", 11_000)])
        => Close { tunnel, .. } if t1(tunnel),
    claimed_but_never_sent_it_is_released: deleted(claimed(0)) => Release,
    where_aws_is_away_deletion_waits: deleted(ready()).failing(Reason::AwsUnavailable, MONO + 10)
        => Record(Change::Report(Report { reason: Reason::AwsUnavailable, .. })),
    but_not_longer_than_the_tunnel_lives: deleted(ready()).failing(Reason::AwsUnavailable, MONO + 10)
        .with(|s| s.desired.record.tunnel.as_mut().unwrap().expires_at = wall(WALL)) => Release,
    nor_longer_behind_others: deleted(expired()).with(|s| s.turn = Turn::Waiting) => Release,
    the_wait_for_its_turn_ends_with_the_tunnel: deleted(ready()).with(|s| {
        s.turn = Turn::Waiting;
        s.memory.deleting = Some(mono(1));
        s.desired.record.reported = Some(Reason::Closing);
    }) => Wait(w) if waits_for(w, Some(Lane::Close), None, Some(MONO + 39_600)),
    nor_where_no_tunnel_is_known: deleted(claim_found())
        .with(|s| s.desired.deleted_at = Some(wall(WALL - 43_200 - 20))) => Release,
    a_close_that_is_refused_asks_whether_it_is_closed: deleted(ready()).failing(Reason::InvalidRequest, MONO + 10)
        => Wait(w) if w.need == Some(Need::Describe),
    deleted_without_a_finalizer_nothing_is_to_do: deleted(created()) => Wait(_),
}

fn closed(at: i64) -> Word {
    Word::Closed { created_at: wall(10_000), closed_at: wall(at) }
}

fn expired() -> Given {
    ready().with(|s| {
        s.desired.record.tunnel.as_mut().unwrap().expires_at = wall(WALL);
        s.memory.expired = Some(mono(MONO));
    })
}

fn ended() -> Given {
    ready().with(|s| {
        s.desired.record.tunnel.as_mut().unwrap().state = State::Closed;
        s.desired.record.reported = Some(Reason::Expired);
        (s.desired.record.ready_once, s.desired.record.kept) = (false, vec![]);
        s.secrets = vec![SecretState::Missing];
    })
}
