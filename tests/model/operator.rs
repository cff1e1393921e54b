//! One step of an operator: the product's own `decide` on what it knows, and what it does then. What comes of a
//! write or a call for its memory are the product's own rules, too.

use crate::rules::Rules;
use crate::world::*;
use jiff::{SignedDuration, Timestamp};
use opentunnel_operator::clock::{Mono, Now};
use opentunnel_operator::controller::decide::decide;
use opentunnel_operator::controller::decision::Decision;
use opentunnel_operator::controller::observe::{self, Failure, Limits, Memory, Observed, Rotation, RotationStage};
use opentunnel_operator::controller::observe::{SecretState, Trial};
use opentunnel_operator::controller::validate::{Desired, KeptSecret, Record, RecordedTunnel, SecretRef};
use opentunnel_operator::crd::{ClientMode, DeletionPolicy, State};
use opentunnel_operator::pacer::{Key, Turn};
use opentunnel_operator::tunnels::{
    Attempt, Found, Heard, Home, OpenRequest, Owner, Search, Side, Token, Tokens, TunnelId, TunnelRef, Word,
};
use std::time::Duration;

const TICK: Duration = Duration::from_secs(6);
/// The process is this old, and the lifetime is AWS's default.
pub const NOW: Mono = Mono(Duration::from_secs(100_000));
const LIFETIME: SignedDuration = SignedDuration::from_mins(720);
/// When the Tunnel was created, by the wall's clock; all that is opened in time is opened half an hour later.
const CREATED: i64 = 1_000_000;
const OPENED: i64 = CREATED + 1_800;

/// A name of a Secret and its mode, for each version of the spec.
pub type Specs = &'static [&'static [(u8, ClientMode)]];

pub fn limits(rules: &Rules) -> Limits {
    let grace = if rules.no_grace { Duration::ZERO } else { Duration::from_secs(30) };
    Limits { aws_timeout: Duration::from_secs(20), recovery_grace: grace }
}

fn at(age: Age) -> Mono {
    Mono(NOW.0 - TICK * age.into())
}

fn age(at: Mono) -> Age {
    u8::try_from(NOW.0.saturating_sub(at.0).as_secs() / TICK.as_secs()).unwrap_or(OLD).min(OLD)
}

fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

/// When a tunnel was opened: each a second after the one before.
fn opened_at(id: u8, late: bool) -> Timestamp {
    wall(OPENED + i64::from(id) + if late { 13 * 3600 } else { 0 })
}

pub fn now(world: &World) -> Now {
    Now { wall: wall(OPENED + 60 + if world.lifetime_over { 13 * 3600 } else { 0 }), mono: NOW }
}

fn attempt(n: u8) -> Attempt {
    Attempt(n.to_string())
}

pub fn number(text: &str) -> u8 {
    text.parse().expect("a number of the model's")
}

fn tunnel(n: u8) -> TunnelRef {
    TunnelRef { id: TunnelId(n.to_string()), arn: String::new() }
}

/// What the object says.
pub fn desired(object: &Object, specs: Specs, retain: bool, now: Now) -> Desired {
    let recorded = object.tunnel.map(|id| RecordedTunnel {
        tunnel: tunnel(id),
        state: if object.closed { State::Closed } else { State::Open },
        opened_at: opened_at(id, object.opened_late),
        expires_at: opened_at(id, object.opened_late) + LIFETIME,
    });
    let kept =
        object.kept.iter().flatten().map(|(name, _)| KeptSecret { name: name.to_string(), digest: String::new() });
    Desired {
        key: Key { namespace: String::new(), name: String::new(), uid: object.uid.to_string() },
        created_at: wall(CREATED),
        generation: object.spec.into(),
        deleted_at: object.deleted.then_some(now.wall),
        deletion_policy: if retain { DeletionPolicy::Retain } else { DeletionPolicy::Close },
        request: OpenRequest { description: None, destination: None, tags: Vec::new(), lifetime_minutes: None },
        lifetime: LIFETIME,
        secrets: specs[usize::from(object.spec)]
            .iter()
            .map(|(name, mode)| SecretRef { name: name.to_string(), mode: *mode })
            .collect(),
        record: Record {
            finalizer: object.finalizer,
            claim: object.claim.filter(|(uid, _)| *uid == object.uid).map(|(_, n)| attempt(n)),
            tunnel: recorded,
            token_generation: object.generation.into(),
            ready_once: object.kept.is_some(),
            kept: kept.collect(),
            reported: object.reported,
            observed_generation: object.observed.map(i64::from),
        },
    }
}

/// The names of the Secrets that concern it: the wanted ones, then those of before and all others that it owns.
pub fn names(object: &Object, specs: Specs, secrets: &[Option<Secret>; 3]) -> Vec<u8> {
    let mut names: Vec<u8> = specs[usize::from(object.spec)].iter().map(|(name, _)| *name).collect();
    let owned = (0..3).filter(|n| secrets[usize::from(*n)].as_ref().is_some_and(|s| s.owner == Some(object.uid)));
    for name in object.kept.iter().flatten().map(|(name, _)| *name).chain(owned) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

pub fn is_intact(object: &Object, name: u8, secret: &Secret) -> bool {
    secret.owner == Some(object.uid)
        && secret.sound
        && object.kept.iter().flatten().any(|(kept, data)| *kept == name && *data == secret.data)
}

fn states(
    reconcile: &Reconcile,
    names: &[u8],
    specs: Specs,
    answer: Option<&Answer>,
    rules: &Rules,
) -> Vec<SecretState> {
    let object = &reconcile.view;
    let secrets = reconcile.secrets.as_ref().expect("read before");
    let state = |name: &u8| {
        let Some(secret) = &secrets[usize::from(*name)] else { return SecretState::Missing };
        if secret.owner != Some(object.uid) && !rules.foreign_is_ours {
            return SecretState::Foreign;
        }
        let wanted = specs[usize::from(object.spec)].iter().find(|(n, _)| n == name).map(|(_, mode)| *mode);
        let holds_answer = answer.zip(wanted).is_some_and(|(a, mode)| a.data.of(mode) == secret.data);
        SecretState::Ours {
            generation: secret.generation.into(),
            digest: String::new(),
            sound: secret.sound,
            intact: is_intact(object, *name, secret),
            mode: secret.data.mode(),
            holds_answer,
        }
    };
    names.iter().map(state).collect()
}

/// The tokens that intact Secrets hold, for the sides that `data` lacks.
pub fn with_kept(mut data: Data, reconcile: &Reconcile) -> Data {
    for (name, secret) in (0..).zip(reconcile.secrets.iter().flatten()) {
        if let Some(secret) = secret.as_ref().filter(|s| is_intact(&reconcile.view, name, s)) {
            let other = |token: &mut u8, kept| *token = if *token == 0 { kept } else { *token };
            other(&mut data.source, secret.data.source);
            other(&mut data.destination, secret.data.destination);
        }
    }
    data
}

fn tokens(data: Data) -> Tokens {
    let side = |token: u8| {
        let text = || Token::new(token.to_string());
        (token != 0).then(|| Side { access_token: text(), client_token: text() })
    };
    Tokens { source: side(data.source), destination: side(data.destination) }
}

fn token_of(side: Option<&Side>) -> u8 {
    side.map_or(0, |side| number(side.access_token.expose()))
}

impl Mem {
    pub fn new(uid: u8, saw_creation: bool) -> Self {
        Self { uid, saw_creation, ..Self::default() }
    }

    /// The product's.
    pub fn real(&self) -> Memory {
        Memory {
            saw_creation: self.saw_creation,
            first_seen: at(self.first_seen),
            claim: self.claim.map(|(n, age)| (attempt(n), at(age))),
            attempt: self.attempt.map(attempt),
            open_doubt: self.open_doubt.map(at),
            unfinished: self.unfinished.map(|(generation, age)| (generation.into(), at(age))),
            rotation: self.rotation.map(|(generation, mode, others_live, stage)| Rotation {
                generation: generation.into(),
                mode,
                others_live,
                stage: match stage {
                    Stage::Claimed => RotationStage::Claimed,
                    Stage::Doubt(age) => RotationStage::Doubt(at(age)),
                    Stage::Lost => RotationStage::Lost,
                },
            }),
            answer: self.answer.as_ref().map(|a| observe::Answer {
                of: match a.of {
                    AnswerOf::Open(n) => observe::AnswerOf::Open(attempt(n)),
                    AnswerOf::Rotate(generation) => observe::AnswerOf::Rotate(generation.into()),
                    AnswerOf::Secrets(generation) => observe::AnswerOf::Secrets(generation.into()),
                },
                tunnel: tunnel(a.data.tunnel),
                tokens: tokens(a.data),
                at: at(a.age),
                wall: opened_at(a.data.tunnel, a.late),
            }),
            trial: self.trial.map(|age| Trial { at: at(age), refused: None }),
            late_rotation: self.late_rotation.map(i64::from),
            deleting: self.deleting.map(at),
            expired: self.expired.map(at),
            closed: self.closed.iter().map(|n| TunnelId(n.to_string())).collect(),
            failure: self.failure.map(|(reason, age, told)| Failure {
                reason,
                message: String::new(),
                at: at(age),
                retry_at: at(age) + Duration::from_secs(5),
                times: 1,
                told,
            }),
            trouble: self.trouble.then(String::new),
            written: None,
        }
    }

    /// Takes over what the product's has become.
    pub fn take(&mut self, real: Memory) {
        let small = |generation: i64| u8::try_from(generation).unwrap_or(u8::MAX);
        *self = Self {
            uid: self.uid,
            vanished: self.vanished,
            saw_creation: real.saw_creation,
            first_seen: age(real.first_seen),
            claim: real.claim.map(|(n, seen)| (number(&n.0), age(seen))),
            attempt: real.attempt.map(|n| number(&n.0)),
            open_doubt: real.open_doubt.map(age),
            unfinished: real.unfinished.map(|(generation, since)| (small(generation), age(since))),
            rotation: real.rotation.map(|r| {
                let stage = match r.stage {
                    RotationStage::Claimed => Stage::Claimed,
                    RotationStage::Doubt(called) => Stage::Doubt(age(called)),
                    RotationStage::Lost => Stage::Lost,
                };
                (small(r.generation), r.mode, r.others_live, stage)
            }),
            answer: real.answer.map(|a| Answer {
                of: match a.of {
                    observe::AnswerOf::Open(n) => AnswerOf::Open(number(&n.0)),
                    observe::AnswerOf::Rotate(generation) => AnswerOf::Rotate(small(generation)),
                    observe::AnswerOf::Secrets(generation) => AnswerOf::Secrets(small(generation)),
                },
                data: Data {
                    tunnel: number(&a.tunnel.id.0),
                    source: token_of(a.tokens.source.as_ref()),
                    destination: token_of(a.tokens.destination.as_ref()),
                },
                late: a.wall > wall(OPENED + 3600),
                age: age(a.at),
            }),
            // The API server's word counts for 5 s.
            trial: real.trial.map(|t| age(t.at)).filter(|age| *age == 0),
            late_rotation: real.late_rotation.map(small),
            deleting: real.deleting.map(age),
            expired: real.expired.map(age),
            closed: real.closed.iter().map(|id| number(&id.0)).collect(),
            failure: real.failure.map(|f| (f.reason, age(f.at), f.told)),
            trouble: real.trouble.is_some(),
            written: self.written.take(),
        };
    }

    /// An answer as the product keeps it.
    pub fn answer(of: observe::AnswerOf, data: Data, late: bool) -> observe::Answer {
        let wall = opened_at(data.tunnel, late);
        observe::Answer { of, tunnel: tunnel(data.tunnel), tokens: tokens(data), at: NOW, wall }
    }
}

/// Asks the product what to do next.
pub fn ask(
    world: &World,
    i: usize,
    reconcile: &Reconcile,
    memory: &Memory,
    rules: &Rules,
    specs: Specs,
) -> (Desired, Decision) {
    let operator = &world.operators[i];
    let now = now(world);
    let desired = desired(&reconcile.view, specs, rules.retain, now);
    let names = names(&reconcile.view, specs, reconcile.secrets.as_ref().expect("read before"));
    let answer = operator.memory.as_ref().and_then(|m| m.answer.as_ref());
    let mut secrets =
        if desired.deleted_at.is_some() { Vec::new() } else { states(reconcile, &names, specs, answer, rules) };
    let former = secrets.split_off(desired.secrets.len().min(secrets.len()));
    let found = |id: &u8| {
        let t = world.tunnels.iter().find(|t| t.id == *id);
        let owner = Owner {
            cluster: String::new(),
            namespace: String::new(),
            uid: reconcile.view.uid.to_string(),
            attempt: attempt(t.map_or(0, |t| t.attempt)),
        };
        Found { tunnel: tunnel(*id), owner, created_at: opened_at(*id, t.is_some_and(|t| t.late)) }
    };
    let search = operator.search.as_ref().filter(|_| !rules.no_search);
    let mut search = search.map(|(age, ids)| Search { started: at(*age), found: ids.iter().map(found).collect() });
    if rules.no_search {
        search = Some(Search { started: NOW + Duration::from_secs(3600), found: Vec::new() });
    }
    let heard = operator.heard.filter(|(id, ..)| Some(*id) == reconcile.view.tunnel).map(|(id, open, age)| {
        let created_at = opened_at(id, reconcile.view.opened_late);
        // Closed in time, or by the end of its lifetime.
        let closed_at = if world.lifetime_over { created_at + LIFETIME } else { now.wall };
        Heard {
            word: if open { Word::Open { created_at } } else { Word::Closed { created_at, closed_at } },
            asked: at(age),
        }
    });
    let observed = Observed {
        read_at: reconcile.read.map(at),
        gone: reconcile.gone,
        secrets,
        former,
        memory,
        search,
        home: Home::Here,
        heard,
        reads_fail: None,
        open: Turn::Granted,
        close: Turn::Granted,
        rotate: Turn::Granted,
        gate: None,
    };
    let decision = decide(&desired, &observed, &limits(rules), now);
    (desired, decision)
}
