//! What is done with any object that the API server may show: from the watch to the status that is written. Used by
//! the property tests and by the fuzz target (fuzz/). Panics where something happens that must not.

use super::schema;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DynamicObject;
use opentunnel_operator::clock::{Mono, Now};
use opentunnel_operator::controller::decide::decide;
use opentunnel_operator::controller::decision::{Change, Decision};
use opentunnel_operator::controller::observe::{
    Answer, AnswerOf, Failure, Limits, Memory, Observed, Refusal, Rotation, RotationStage, SecretState, Trial,
};
use opentunnel_operator::controller::validate::{Desired, validate};
use opentunnel_operator::controller::watch::stored;
use opentunnel_operator::controller::{secrets, status};
use opentunnel_operator::crd::{ClientMode, Reason, Tunnel};
use opentunnel_operator::pacer::Turn;
use opentunnel_operator::tunnels::{
    Attempt, Found, Heard, Home, Owner, Search, Side, Token, Tokens, TunnelId, TunnelRef, Word,
};
use serde_json::{Value, json};
use std::time::Duration;

/// Stands in every token, so that it can be looked for in every text.
pub const CANARY: &str = "CANARYcanary0123456789";

/// As the API server has it: whatever else it holds, it has these.
pub fn object(mut value: Value) -> Option<DynamicObject> {
    let root = value.as_object_mut()?;
    let metadata = root.entry("metadata").or_insert_with(|| json!({}));
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata["name"] = json!("sensor-42");
    metadata["namespace"] = json!("edge");
    metadata["uid"] = json!("8f1c3d2e-uid");
    metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    serde_json::from_value(value).ok()
}

/// Any JSON, as a Tunnel; `seed` chooses what else is the case. Returns whether it could be read as one.
pub fn any_tunnel(bytes: &[u8], seed: u64) -> bool {
    let Some(object) = serde_json::from_slice(bytes).ok().and_then(object) else { return false };
    let read = stored::read(object);
    let readable = read.is_ok();
    let tunnel = read.unwrap_or_else(|unreadable| {
        assert!(!unreadable.what.is_empty() && unreadable.what.len() <= 400);
        unreadable.readable
    });
    follow(&tunnel, &mut Dice(seed));
    readable
}

/// Any JSON, as a Secret of a wanted name. Returns whether it is one of the Tunnel's.
pub fn any_secret(value: Value, seed: u64) -> Option<bool> {
    let secret: Secret = serde_json::from_value(value).ok()?;
    let tunnel: Tunnel = serde_json::from_value(json!(object(json!({"spec": {}}))?)).ok()?;
    let desired = validate(&tunnel).ok()?;
    let mut dice = Dice(seed);
    let answer = answer(&mut dice, &desired);
    let read = [("sensor-42-tokens".to_owned(), Some(secret.clone()))];
    let states = secrets::states(&read, &desired, Some((&answer, "us-east-1")));
    let owners = secret.metadata.owner_references.iter().flatten();
    let controlled = owners.into_iter().any(|o| o.uid == desired.key.uid && o.controller == Some(true));
    assert_eq!(states[0] != SecretState::Foreign, controlled, "{:?}", secret.metadata);
    let kept = secrets::kept_tokens(&read, &states);
    let digest = secrets::tokens_digest(&states);
    assert!(digest.is_none_or(|d| d.len() <= 128));
    hides(&format!("{states:?} {kept:?} {answer:?}"));
    let mut memory = memory(&mut dice, &desired);
    memory.answer = Some(answer);
    step(&tunnel, &desired, &observed(&mut dice, &desired, &memory, states.clone()));
    Some(controlled)
}

/// Choices that depend on nothing but a number (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % sides
    }
    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.next(2) == 0).then(|| make(self))
    }
    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.next(choices.len() as u64) as usize].clone()
    }
    fn mono(&mut self) -> Mono {
        Mono(Duration::from_secs(self.next(200)))
    }
    fn time(&mut self) -> Timestamp {
        self.of(&[NOW, Timestamp::UNIX_EPOCH, Timestamp::constant(1_800_000_000 - 90_000, 0), LATEST])
    }
}

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
/// The latest that the gateway believes AWS.
const LATEST: Timestamp = Timestamp::constant(221_845_391_999, 0);

/// Several looks at one Tunnel, in states that may have nothing to do with each other.
fn follow(tunnel: &Tunnel, dice: &mut Dice) {
    let Ok(desired) = validate(tunnel) else { panic!("the API server's own fields are there") };
    hides(&format!("{desired:?}"));
    assert!(desired.request.tags.iter().all(|(key, _)| !key.starts_with("opentunnel.dev/")));
    assert!(!desired.secrets.is_empty());
    for _ in 0..8 {
        let mut memory = memory(dice, &desired);
        memory.note(&desired, Now { wall: NOW, mono: dice.mono() });
        let count = secrets::names(&desired, []).len();
        let states = (0..count).map(|_| state(dice)).collect();
        let observed = observed(dice, &desired, &memory, states);
        hides(&format!("{observed:?}"));
        step(tunnel, &desired, &observed);
    }
}

fn step(tunnel: &Tunnel, desired: &Desired, observed: &Observed) {
    let limits = Limits { aws_timeout: Duration::from_secs(20), recovery_grace: Duration::from_secs(30) };
    let now = Now { wall: NOW, mono: Mono(Duration::from_secs(150)) };
    let decision = decide(desired, observed, &limits, now);
    hides(&format!("{decision:?}"));
    let at = |index: usize| observed.secrets.iter().chain(&observed.former).nth(index).expect("there is such a Secret");
    let known = |id: &TunnelId| {
        let memory = observed.memory;
        desired.record.tunnel.as_ref().is_some_and(|t| t.tunnel.id == *id)
            || memory.answer.as_ref().is_some_and(|a| a.tunnel.id == *id)
            || observed.search.iter().flat_map(|s| &s.found).any(|f| f.tunnel.id == *id)
    };
    match &decision {
        // Never a write to what is not this Tunnel's.
        Decision::WriteSecret { index, .. } => {
            assert!(*index < desired.secrets.len());
            assert!(matches!(at(*index), SecretState::Missing | SecretState::Ours { .. }));
        }
        Decision::DeleteSecret { index } => assert!(matches!(at(*index), SecretState::Ours { .. })),
        Decision::TryCreate { index } => assert_eq!(*at(*index), SecretState::Missing),
        Decision::Rotate { tunnel, .. } => assert!(known(tunnel)),
        Decision::Close { tunnel, .. } | Decision::Disown { tunnel, .. } | Decision::Abandon(tunnel) => {
            assert!(known(&tunnel.id));
        }
        Decision::Record(change) => record(tunnel, desired, observed, change, now),
        _ => {}
    }
}

/// What is written fits the CRD, unless something was there before that does not.
fn record(tunnel: &Tunnel, desired: &Desired, observed: &Observed, change: &Change, now: Now) {
    let before = tunnel.status.clone().unwrap_or_default();
    let after = status::after(&before, change, desired, &observed.secrets, observed.memory, now);
    let body = status::patch(&after);
    hides(&body.to_string());
    let note = status::event(change, &after).map(|note| format!("{} {}", note.reason, note.note));
    hides(&note.unwrap_or_default());
    let fitted = schema::check("spec", &json!(tunnel.spec)).is_ok() && schema::check("status", &json!(before)).is_ok();
    if fitted && let Err(refusal) = schema::check("status", &body) {
        panic!("the API server would refuse the status: {refusal}");
    }
}

fn hides(text: &str) {
    assert!(!text.contains(CANARY), "a token stands in a text");
}

fn tokens() -> Tokens {
    let token = |name: &str| Token::new(format!("{CANARY}{name}"));
    let side = |name: &str| Side { access_token: token(name), client_token: token("client") };
    Tokens { source: Some(side("source")), destination: Some(side("destination")) }
}

fn tunnel_ref(dice: &mut Dice, desired: &Desired) -> TunnelRef {
    let other = TunnelRef { id: TunnelId("x".repeat(128)), arn: "a".repeat(1600) };
    match &desired.record.tunnel {
        Some(recorded) if dice.next(2) == 0 => recorded.tunnel.clone(),
        _ => other,
    }
}

fn attempt(dice: &mut Dice, desired: &Desired) -> Attempt {
    let claim = desired.record.claim.clone().filter(|_| dice.next(3) > 0);
    claim.unwrap_or_else(|| Attempt("another".into()))
}

fn answer(dice: &mut Dice, desired: &Desired) -> Answer {
    let generation = desired.record.token_generation;
    let of = match dice.next(3) {
        0 => AnswerOf::Open(attempt(dice, desired)),
        1 => AnswerOf::Rotate(generation),
        _ => AnswerOf::Secrets(generation),
    };
    Answer { of, tunnel: tunnel_ref(dice, desired), tokens: tokens(), at: dice.mono(), wall: dice.time() }
}

fn memory(dice: &mut Dice, desired: &Desired) -> Memory {
    let words = dice.of(&["", "no", "AWS's words, a kibibyte of them at the most"]);
    let modes = [ClientMode::Source, ClientMode::Destination, ClientMode::All];
    let stages = [RotationStage::Claimed, RotationStage::Lost, RotationStage::Doubt(dice.mono())];
    Memory {
        saw_creation: dice.next(2) == 0,
        first_seen: dice.mono(),
        attempt: dice.maybe(|dice| attempt(dice, desired)),
        open_doubt: dice.maybe(Dice::mono),
        rotation: dice.maybe(|dice| Rotation {
            generation: desired.record.token_generation,
            mode: dice.of(&modes),
            others_live: dice.next(2) == 0,
            stage: dice.of(&stages),
        }),
        answer: dice.maybe(|dice| answer(dice, desired)),
        trial: dice.maybe(|dice| Trial {
            at: dice.mono(),
            refused: dice.of(&[None, Some(Refusal::NamespaceEnds), Some(Refusal::Told("w".repeat(4000)))]),
        }),
        late_rotation: dice.maybe(|dice| dice.next(3) as i64),
        failure: dice.maybe(|dice| Failure {
            reason: dice.of(&[Reason::AwsUnavailable, Reason::AccessDenied, Reason::InvalidRequest]),
            message: words.repeat(23),
            at: dice.mono(),
            retry_at: dice.mono(),
            told: dice.next(2) == 0,
            times: 3,
        }),
        trouble: dice.maybe(|_| "t".repeat(5000)),
        closed: dice.maybe(|dice| tunnel_ref(dice, desired).id).into_iter().collect(),
        ..Memory::default()
    }
}

fn state(dice: &mut Dice) -> SecretState {
    match dice.next(7) {
        0 => SecretState::Missing,
        1 => SecretState::Foreign,
        2 => SecretState::Terminating,
        _ => SecretState::Ours {
            generation: dice.of(&[0, 1, 2, i64::MAX / 4 - 1]),
            digest: "0".repeat(64),
            sound: dice.next(4) > 0,
            intact: dice.next(2) == 0,
            mode: dice.of(&[None, Some(ClientMode::Source), Some(ClientMode::All)]),
            holds_answer: dice.next(2) == 0,
        },
    }
}

fn observed<'a>(dice: &mut Dice, desired: &Desired, memory: &'a Memory, mut all: Vec<SecretState>) -> Observed<'a> {
    let former = all.split_off(desired.secrets.len().min(all.len()));
    let words = [
        Word::NotFound,
        Word::Open { created_at: dice.time() },
        Word::Closed { created_at: dice.time(), closed_at: dice.time() },
    ];
    let found = |dice: &mut Dice| Found {
        tunnel: tunnel_ref(dice, desired),
        owner: Owner {
            cluster: "c".into(),
            namespace: desired.key.namespace.clone(),
            uid: desired.key.uid.clone(),
            attempt: attempt(dice, desired),
        },
        created_at: dice.time(),
    };
    let turns = [Turn::None, Turn::Waiting, Turn::Granted];
    Observed {
        read_at: dice.maybe(Dice::mono),
        gone: dice.next(10) == 0,
        secrets: all,
        former,
        memory,
        search: dice.maybe(|dice| Search { started: dice.mono(), found: dice.maybe(found).into_iter().collect() }),
        home: dice.of(&[Home::Here, Home::Here, Home::Unknown, Home::Elsewhere]),
        heard: dice.maybe(|dice| Heard { word: dice.of(&words), asked: dice.mono() }),
        reads_fail: None,
        open: dice.of(&turns),
        close: dice.of(&turns),
        rotate: dice.of(&turns),
        gate: None,
    }
}
