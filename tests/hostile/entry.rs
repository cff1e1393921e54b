//! What is done with any object that the API server may show: from the watch to the status that is written, and to what
//! is remembered. Used by the property tests and by the fuzz target (fuzz/). Panics where something happens that must
//! not.

use super::schema;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DynamicObject;
use opentunnel_api::{ClientMode, Connection, ConnectionStatus, GENERATIONS, Reason, Tunnel, TunnelStatus};
use opentunnel_operator::clock::{Mono, Now};
use opentunnel_operator::decide::decide;
use opentunnel_operator::facts::{Facts, Limits, Standing, Turns, View};
use opentunnel_operator::memory::redone::Redone;
use opentunnel_operator::memory::{
    Answer, AnswerOf, Backoff, Ending, Failure, Memory, Opening, Remembered, Rotating, Rotation, RotationStage,
    Tending, Trial,
};
use opentunnel_operator::pacer::Turn;
use opentunnel_operator::read::{Object, read};
use opentunnel_operator::record::Change;
use opentunnel_operator::secrets::{self, FoundSecret, SecretFacts};
use opentunnel_operator::step::{Identity, Outcome, Refusal, Step, Wait};
use opentunnel_operator::tunnels::{
    Attempt, CallError, CallErrorKind, Described, Details, Found, InAccount, Life, Owner, Search, Side, Tags, Token,
    Tokens, TunnelId, TunnelRef,
};
use opentunnel_operator::watch::stored;
use opentunnel_operator::{event, status};
use serde_json::{Value, json};
use std::sync::Arc;
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
    let object = read(&tunnel).ok()?;
    let mut dice = Dice(seed);
    let answer = answer(&mut dice, &object);
    let wanted = &object.spec.secrets[0];
    let found = secrets::found(&secret, &object.key, Some(wanted));
    let owners = secret.metadata.owner_references.iter().flatten();
    let controller = owners.into_iter().find(|o| o.controller == Some(true)).map(|o| o.uid.clone());
    assert_eq!(found.controller, controller, "{:?}", secret.metadata);
    let leftover = found.leftover;
    assert!(!leftover || controller.is_none(), "somebody has it");
    assert_eq!(found.sha256.len(), 64);
    hides(&format!("{found:?} {answer:?}"));

    let data = secrets::data(wanted.mode, &answer.tokens, &answer.tunnel.id, "us-east-1");
    let sha256 = secrets::sha256(&data);
    let mut memory = remembered(&mut dice, &object);
    memory.answer = Some(Box::new(answer));
    let facts = SecretFacts {
        name: wanted.name.clone(),
        found: Some(found),
        sha256_of_answer: memory.answer.as_ref().map(|_| sha256.clone()),
    };
    let case = Case {
        tunnel: &tunnel,
        view: view(&mut dice, &object),
        facts: self::facts(&mut dice, &object, vec![facts]),
        memory: Memory::restore(memory),
        standing: standing(&mut dice),
    };
    case.step(&mut dice);

    // Whatever stood there, what is written over it is the Tunnel's, and has these tokens and no others.
    let mut written = secrets::prepared(&object, wanted, secret);
    secrets::fill(&mut written, data, &TunnelId("id".into()), 3);
    let read_back = secrets::found(&written, &object.key, Some(wanted));
    assert_eq!(read_back.controller.as_ref(), Some(&object.key.uid));
    assert_eq!((read_back.sha256, read_back.generation, read_back.mode), (sha256, 3, Some(wanted.mode)));
    assert!(read_back.labelled && read_back.decorated);
    Some(controller.as_ref() == Some(&object.key.uid) || leftover)
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
/// The latest that is believed of AWS's times.
const LATEST: Timestamp = Timestamp::constant(221_845_391_999, 0);
const LIMITS: Limits = Limits { aws_timeout: Duration::from_secs(20), recovery_grace: Duration::from_secs(30) };

fn now() -> Now {
    Now { wall: NOW, mono: Mono(Duration::from_secs(150)) }
}

/// Several looks at one Tunnel, in states that may have nothing to do with each other.
fn follow(tunnel: &Tunnel, dice: &mut Dice) {
    let Ok(object) = read(tunnel) else { panic!("the API server's own fields are there") };
    hides(&format!("{object:?}"));
    assert!(object.spec.request.tags.iter().all(|(key, _)| !key.starts_with("opentunnel.dev/")));
    assert!(!object.spec.secrets.is_empty());
    for _ in 0..8 {
        let (view, standing) = (view(dice, &object), standing(dice));
        let mut memory = Memory::restore(remembered(dice, &object));
        memory.see(&view, standing, Now { wall: NOW, mono: dice.mono() });
        let owned = dice.maybe(|_| "owned".to_owned());
        let names = secrets::names(&object, owned);
        let secrets = names.into_iter().map(|name| SecretFacts {
            name,
            found: found_secret(dice, &object),
            sha256_of_answer: memory.answer.as_ref().map(|_| "1".repeat(64)),
        });
        let secrets = secrets.collect();
        let facts = facts(dice, &object, secrets);
        Case { tunnel, view, facts, memory, standing }.step(dice);
    }
}

/// All that one step depends on.
struct Case<'a> {
    tunnel: &'a Tunnel,
    view: View,
    facts: Facts,
    memory: Memory,
    standing: Standing,
}

impl Case<'_> {
    fn step(mut self, dice: &mut Dice) {
        hides(&format!("{:?} {:?} {:?}", self.view, self.facts, self.memory));
        let step = decide(&self.view, &self.facts, &self.memory, self.standing, &LIMITS, now());
        hides(&format!("{step:?}"));
        self.check(&step);
        let outcome = outcome(dice, &step, &self.view.object);
        hides(&format!("{outcome:?}"));
        let notice = event::after(&step, &outcome, &self.view.object);
        hides(&format!("{notice:?}"));
        self.memory.learn(&step, &outcome, &self.view.object, &LIMITS, now());
        hides(&format!("{:?}", self.memory));
    }

    /// Never a write to a Secret that is not this Tunnel's, nor a call about a tunnel that AWS has not told to be its
    /// own.
    fn check(&self, step: &Step) {
        let object = &self.view.object;
        let secret = |name: &str| {
            let facts = self.facts.secrets.iter().find(|s| s.name == name).expect("there is such a Secret");
            facts.found.as_ref()
        };
        let owns = |found: &FoundSecret| found.controller.as_ref() == Some(&object.key.uid) || found.leftover;
        let is_ours = |found: &FoundSecret| owns(found) && !found.terminating;
        let recorded = object.record.tunnel.as_ref().map(|t| &t.reference.id);
        let answered = self.memory.answer.as_ref().map(|a| &a.tunnel.id);
        match step {
            Step::WriteSecret { secret: wanted, tokens, .. } => {
                assert!(object.spec.secrets.contains(wanted));
                assert!(secret(&wanted.name).is_none_or(is_ours));
                assert!(tokens.have(wanted.mode) || !matches!(self.answer_of(), Some(AnswerOf::Rotate(_))));
            }
            Step::DeleteSecret { name } => assert!(secret(name).is_some_and(is_ours)),
            Step::TryCreate { secret: wanted } => assert!(secret(&wanted.name).is_none()),
            Step::Rotate { tunnel, .. } => assert!(self.is_own(tunnel) && recorded == Some(&tunnel.id)),
            Step::Mark { tunnel, .. } | Step::Tag { tunnel, .. } | Step::TakeTagsOff { tunnel, .. } => {
                assert!(self.is_own(tunnel) && recorded == Some(&tunnel.id));
            }
            Step::Close { tunnel, .. } | Step::Untag { tunnel, .. } => assert!(self.is_own(tunnel)),
            Step::CloseSurplus { tunnel, .. } => assert_eq!(Some(&tunnel.id), answered),
            Step::Identify { tunnel, .. } => {
                assert!([recorded, answered].contains(&Some(&tunnel.id)));
                // A search from before the lead is no proof, so AWS is asked again.
                let term = self.standing.leads_since();
                let counts = self.facts.search.as_ref().is_none_or(|s| term.is_some_and(|term| s.started >= term));
                assert!(!counts || !self.is_own(tunnel));
                assert!(!self.memory.owned.contains(tunnel));
            }
            Step::Record(change) => self.record(change),
            _ => {}
        }
        if self.standing == Standing::Finishes {
            assert!(self.memory.is_in_hand(object) || matches!(step, Step::Wait(w) if *w == Wait::default()));
            let calls = matches!(
                step,
                Step::Open { .. }
                    | Step::Mark { .. }
                    | Step::Tag { .. }
                    | Step::TakeTagsOff { .. }
                    | Step::Rotate { .. }
                    | Step::Close { .. }
                    | Step::Untag { .. }
                    | Step::Identify { .. }
                    | Step::Claim { new: true, .. }
            );
            assert!(!calls, "{step:?} without the lead");
        }
    }

    fn answer_of(&self) -> Option<&AnswerOf> {
        self.memory.answer.as_ref().map(|a| &a.of)
    }

    /// By AWS's own account. What the status says is no proof.
    fn is_own(&self, tunnel: &TunnelRef) -> bool {
        let found = self.facts.search.iter().flat_map(|s| &s.found).map(|f| &f.tunnel);
        self.memory.owned.iter().chain(found).any(|own| own == tunnel)
    }

    /// What is written fits the CRD, unless something was there before that does not; and it is read back as what it
    /// was rendered of.
    fn record(&self, change: &Change) {
        let object = &self.view.object;
        let after = object.record.after(change, object.generation, object.spec.lifetime);
        let status = status::render(object, change, &after, NOW);
        let body = json!(status);
        hides(&body.to_string());
        let before = self.tunnel.status.clone().unwrap_or_default();
        let is_whole = |part: &str, value: Value| schema::check(part, &value).is_ok();
        if is_whole("spec", json!(self.tunnel.spec)) && is_whole("status", json!(before)) {
            schema::check("status", &body).unwrap_or_else(|refusal| panic!("the API server would refuse: {refusal}"));
        }
        let stored: TunnelStatus = serde_json::from_value(body).expect("it is a status");
        let tunnel = Tunnel { status: Some(stored), ..self.tunnel.clone() };
        let read_back = read(&tunnel).expect("it is as complete as before");
        if GENERATIONS.contains(&after.token_generation) {
            assert_eq!(read_back.record, after, "{change:?}");
        }
        let written = Outcome::Written(Box::new(read_back));
        let notice = event::after(&Step::Record(change.clone()), &written, object);
        hides(&format!("{notice:?}"));
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

fn tunnel_ref(dice: &mut Dice, object: &Object) -> TunnelRef {
    let other = TunnelRef { id: TunnelId("x".repeat(128)), arn: "a".repeat(1600) };
    match &object.record.tunnel {
        Some(recorded) if dice.next(2) == 0 => recorded.reference.clone(),
        _ => other,
    }
}

fn attempt(dice: &mut Dice, object: &Object) -> Attempt {
    let claim = object.record.claim.clone().filter(|_| dice.next(3) > 0);
    claim.unwrap_or_else(|| Attempt("another".into()))
}

fn answer(dice: &mut Dice, object: &Object) -> Answer {
    let generation = object.record.token_generation;
    let of = match dice.next(3) {
        0 => AnswerOf::Open(attempt(dice, object)),
        1 => AnswerOf::Rotate(generation),
        _ => AnswerOf::Secrets(generation),
    };
    let written = dice.maybe(|_| object.spec.secrets[0].clone()).into_iter().collect();
    let opened_with = dice.maybe(|_| (Tags::from([("k".into(), "v".into())]), "0".repeat(64)));
    let (tunnel, tokens) = (tunnel_ref(dice, object), tokens());
    Answer { of, tunnel, tokens, opened_with, at: dice.mono(), wall: dice.time(), written }
}

fn standing(dice: &mut Dice) -> Standing {
    let since = Mono(Duration::from_secs(dice.of(&[0, 0, 100])));
    dice.of(&[Standing::Leads { since }, Standing::Leads { since }, Standing::Stopping { since }, Standing::Finishes])
}

fn view(dice: &mut Dice, object: &Object) -> View {
    let (gone, wiped) = (dice.next(10) == 0, dice.next(10) == 0);
    View { object: object.clone(), read_at: dice.maybe(Dice::mono), gone, wiped }
}

fn remembered(dice: &mut Dice, object: &Object) -> Remembered {
    let words = dice.of(&["", "no", "AWS's words, a kibibyte of them at the most"]);
    let modes = [ClientMode::Source, ClientMode::Destination, ClientMode::All];
    let stages = [RotationStage::Claimed, RotationStage::Lost, RotationStage::Doubt(dice.mono())];
    let ids = |dice: &mut Dice| dice.maybe(|dice| tunnel_ref(dice, object).id).into_iter().collect();
    Remembered {
        saw_creation: dice.next(2) == 0,
        first_seen: dice.mono(),
        opening: Opening {
            claim: None,
            attempt: dice.maybe(|dice| attempt(dice, object)),
            doubt: dice.maybe(Dice::mono),
            since: dice.maybe(Dice::mono),
        },
        rotating: Rotating {
            unfinished: None,
            own: dice.maybe(|dice| Rotation {
                generation: object.record.token_generation,
                mode: dice.of(&modes),
                others_live: dice.next(2) == 0,
                stage: dice.of(&stages),
                handles: dice.maybe(|_| "now".into()),
            }),
            late: dice.maybe(|dice| dice.next(3) as i64),
            marked: dice.maybe(|_| object.record.token_generation),
            redone: dice.maybe(|dice| Redone { damage: None, times: dice.next(9) as u32, last: dice.mono() }),
        },
        tending: Tending {
            tags: dice.maybe(|dice| ([("k".to_owned(), None)].into(), dice.mono())),
            tags_due: dice.next(2) == 0,
            tags_failed: dice.maybe(|dice| (7, dice.mono())),
            connections: dice.maybe(Dice::mono),
            told_unconnected: dice.next(2) == 0,
            new: dice.next(2) == 0,
        },
        ending: Ending { closed: ids(dice), foreign: ids(dice), ..Ending::default() },
        owned: dice.maybe(|dice| tunnel_ref(dice, object)).into_iter().collect(),
        answer: dice.maybe(|dice| Box::new(answer(dice, object))),
        backoff: Backoff {
            failure: dice.maybe(|dice| Failure {
                reason: dice.of(&[Reason::AwsUnavailable, Reason::AccessDenied, Reason::InvalidRequest]),
                message: words.repeat(23),
                at: dice.mono(),
                retry_at: dice.mono(),
                told: dice.next(2) == 0,
                times: 3,
            }),
            trial: dice.maybe(|dice| Trial {
                at: dice.mono(),
                refused: dice.of(&[None, Some(Refusal::NamespaceEnds), Some(Refusal::Told("w".repeat(4000)))]),
                refusals: dice.of(&[0, 1, 40, u32::MAX]),
            }),
        },
    }
}

fn found_secret(dice: &mut Dice, object: &Object) -> Option<FoundSecret> {
    let own = Some(object.key.uid.clone());
    (dice.next(5) > 0).then(|| FoundSecret {
        controller: dice.of(&[own.clone(), own.clone(), own.clone(), own, Some("another".into()), None]),
        leftover: dice.next(9) == 0,
        predecessor: dice.next(9) == 0,
        holder: "controlled by nobody".into(),
        editors: dice.maybe(|_| "m (data.region)".repeat(300)),
        terminating: dice.next(8) == 0,
        version: dice.maybe(|dice| dice.of(&["1", "2"]).into()),
        generation: dice.of(&[0, 1, 2, 3, i64::MAX / 4 - 1]),
        sha256: dice.of(&["0", "1", "2"]).repeat(64),
        sound: dice.next(4) > 0,
        labelled: dice.next(4) > 0,
        decorated: dice.next(2) == 0,
        mode: dice.of(&[None, Some(ClientMode::Source), Some(ClientMode::All)]),
        tokens: dice.of(&[tokens(), Tokens::default()]),
    })
}

fn facts(dice: &mut Dice, object: &Object, secrets: Vec<SecretFacts>) -> Facts {
    let lives = [
        Life::NotFound,
        Life::Open { created_at: dice.time() },
        Life::Closed { created_at: dice.time(), closed_at: dice.time() },
    ];
    let found = |dice: &mut Dice| Found {
        tunnel: tunnel_ref(dice, object),
        owner: Owner {
            cluster: "c".into(),
            namespace: object.key.namespace.clone(),
            uid: object.key.uid.clone(),
            attempt: attempt(dice, object),
        },
        created_at: dice.time(),
        opened_with: dice.maybe(|_| "0".repeat(64)),
    };
    let turns = [Turn::None, Turn::Waiting, Turn::Granted, Turn::Granted];
    Facts {
        fresh_attempt: Attempt("fresh".into()),
        secrets,
        search: dice.maybe(|dice| Search { started: dice.mono(), found: dice.maybe(found).into_iter().collect() }),
        in_account: dice.of(&[InAccount::Yes, InAccount::Yes, InAccount::Unknown, InAccount::No]),
        described: dice
            .maybe(|dice| Described {
                life: dice.of(&lives),
                asked: dice.mono(),
                details: dice.maybe(|dice| (Arc::new(details(dice)), dice.mono())),
            })
            .zip(object.record.tunnel.as_ref().map(|t| t.reference.id.clone()))
            .map(|(described, id)| (id, described))
            .into_iter()
            .collect(),
        reads_fail: None,
        turns: Turns { open: dice.of(&turns), close: dice.of(&turns), rotate: dice.of(&turns), tag: dice.of(&turns) },
        gate: None,
        trouble: dice.maybe(|_| "t".repeat(5000)),
        tags: object.spec.request.tags.iter().cloned().collect(),
        rival: dice.maybe(|_| "edge/other".into()),
        takes_secrets: dice.next(2) == 0,
    }
}

fn details(dice: &mut Dice) -> Details {
    let generation = dice.of(&["0", "1", "9", "-1", "x", "9223372036854775807"]);
    let connection = |dice: &mut Dice| {
        let status = dice.of(&[ConnectionStatus::Connected, ConnectionStatus::Disconnected]);
        dice.maybe(|dice| Connection { status, last_updated_at: dice.maybe(Dice::time) })
    };
    Details {
        tags: Tags::from([("opentunnel.dev/generation".into(), generation.into()), ("k".into(), "v".into())]),
        source: connection(dice),
        destination: connection(dice),
    }
}

/// What a step may come to.
fn outcome(dice: &mut Dice, step: &Step, object: &Object) -> Outcome {
    let kinds = [
        CallErrorKind::LimitExceeded,
        CallErrorKind::Throttled,
        CallErrorKind::AccessDenied,
        CallErrorKind::InvalidRequest,
        CallErrorKind::NotFound,
        CallErrorKind::Unreachable,
        CallErrorKind::Doubt,
    ];
    let error = dice.maybe(|dice| CallError { kind: dice.of(&kinds), message: "AWS's words".into() });
    let called = dice.mono();
    match step {
        Step::Open { .. } => {
            Outcome::Opened { called, answer: error.map_or_else(|| Ok((tunnel_ref(dice, object), tokens())), Err) }
        }
        Step::Rotate { .. } => Outcome::Rotated { called, answer: error.map_or_else(|| Ok(tokens()), Err) },
        Step::Mark { .. } | Step::Tag { .. } | Step::TakeTagsOff { .. } => Outcome::Tagged(error.map_or(Ok(()), Err)),
        Step::Close { .. } | Step::Untag { .. } => Outcome::ClosedOrUntagged(error.map_or(Ok(()), Err)),
        Step::Identify { tunnel, .. } => {
            let identity = dice.of(&[Identity::Own(tunnel.clone()), Identity::Foreign, Identity::NotFound]);
            Outcome::Identified(error.map_or(Ok(identity), Err))
        }
        Step::TryCreate { .. } => Outcome::Tried(dice.maybe(|_| Refusal::Told("w".repeat(4000)))),
        Step::WriteSecret { .. } => Outcome::SecretWritten(dice.maybe(|_| Box::default())),
        Step::Claim { .. } | Step::RestoreFinalizer | Step::RemoveFinalizer | Step::Record(_) => match dice.next(3) {
            0 => Outcome::Conflict(dice.maybe(|_| Box::new(object.clone()))),
            _ => Outcome::Written(Box::new(object.clone())),
        },
        _ => Outcome::Done,
    }
}
