//! The product's own types, made of this model's numbers, and back.

use crate::rules::Rules;
use crate::world::{self, *};
use jiff::{SignedDuration, Timestamp};
use opentunnel_api::{ClientMode, DeletionPolicy, Reopen, SecretStatus, TunnelState, UpdatePolicy};
use opentunnel_operator::clock::{Mono, Now};
use opentunnel_operator::facts::{Facts, Limits, Turns, View};
use opentunnel_operator::memory::redone::{Damage, Redone};
use opentunnel_operator::memory::{
    self, Backoff, Ending, Failure, Memory, Opening, Remembered, Rotating, Rotation, RotationStage, Tending, Trial,
};
use opentunnel_operator::pacer::Turn;
use opentunnel_operator::read::{self, Key, RotateRequest, SecretSpec, Spec};
use opentunnel_operator::record::{Connections, Record, RecordedTunnel};
use opentunnel_operator::secrets::{self, FoundSecret, SecretFacts};
use opentunnel_operator::tunnels::{
    self, Attempt, CallError, CallErrorKind, Described, Details, Found, InAccount, OpenRequest, Owner, Search, Side,
    Tags, Token, Tokens, TunnelId, TunnelRef,
};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

const TICK: Duration = Duration::from_secs(6);
/// The process is this old, and the lifetime is AWS's default.
const NOW: Mono = Mono(Duration::from_secs(100_000));
const LIFETIME: SignedDuration = SignedDuration::from_mins(720);
/// When the Tunnel was created, by the wall's clock; all that is opened in time is opened half an hour later.
const CREATED: i64 = 1_000_000;
const OPENED: i64 = CREATED + 1_800;
/// A new lifetime after the first.
const LATER: i64 = 13 * 3600;

pub fn limits(rules: &Rules) -> Limits {
    let grace = if rules.no_grace { Duration::ZERO } else { Duration::from_secs(30) };
    Limits { aws_timeout: Duration::from_secs(20), recovery_grace: grace }
}

pub fn at(age: Age) -> Mono {
    Mono(NOW.0 - TICK * age.into())
}

fn age(at: Mono) -> Age {
    u8::try_from(NOW.0.saturating_sub(at.0).as_secs() / TICK.as_secs()).unwrap_or(OLD).min(OLD)
}

fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

/// The moment, or that when a tunnel was opened.
pub fn now(late: bool) -> Now {
    Now { wall: wall(OPENED + 60 + if late { LATER } else { 0 }), mono: NOW }
}

/// When a tunnel was opened: each a second after the one before, or a moment ago.
pub fn opened_at(world: &World, id: u8, late: bool) -> Timestamp {
    let age = world.tunnels.iter().find(|t| t.id == id).map_or(OLD, |t| t.age);
    let second = if age == OLD { OPENED + i64::from(id) } else { OPENED + 60 - 6 * i64::from(age) };
    wall(second + if late { LATER } else { 0 })
}

pub fn attempt(n: u8) -> Attempt {
    Attempt(n.to_string())
}

pub fn number(text: &str) -> u8 {
    text.parse().expect("a number of the model's")
}

fn small(generation: i64) -> u8 {
    u8::try_from(generation).unwrap_or(u8::MAX)
}

pub fn tunnel(n: u8) -> TunnelRef {
    TunnelRef { id: TunnelId(n.to_string()), arn: String::new() }
}

fn key(uid: u8) -> Key {
    Key { namespace: String::new(), name: String::new(), uid: uid.to_string() }
}

pub fn owner(uid: u8, n: u8) -> Owner {
    Owner { cluster: String::new(), namespace: String::new(), uid: uid.to_string(), attempt: attempt(n) }
}

/// Arguments of OpenTunnel.
fn request(n: u8, tag: u8) -> OpenRequest {
    let description = (n > 0).then(|| n.to_string());
    OpenRequest { description, destination: None, tags: tags(tag).into_iter().collect(), lifetime_minutes: None }
}

/// The key of the tag.
pub const TAG: &str = "t";

/// The tags of a tunnel whose tag has this value.
pub fn tags(value: u8) -> Tags {
    (value > 0).then(|| (TAG.to_owned(), value.to_string())).into_iter().collect()
}

/// The value that it has among these.
pub fn tag(tags: &Tags) -> u8 {
    tags.get(TAG).map_or(0, |value| number(value))
}

fn asked(n: u8) -> Option<String> {
    (n > 0).then(|| n.to_string())
}

/// Which they are.
pub fn request_number(request: &OpenRequest) -> u8 {
    request.description.as_deref().map_or(0, number)
}

/// The digests of all that there are.
static REQUESTS: LazyLock<[String; 2]> = LazyLock::new(|| [request(0, 0).digest(), request(1, 0).digest()]);

fn request_digest(n: u8) -> String {
    REQUESTS[usize::from(n)].clone()
}

fn request_of(digest: &str) -> Option<u8> {
    REQUESTS.iter().position(|known| known == digest).and_then(|n| u8::try_from(n).ok())
}

/// What stands for the SHA-256 of a Secret's data.
fn digest(data: Data) -> String {
    format!("{} {} {}", data.tunnel, data.source, data.destination)
}

fn data(digest: &str) -> Data {
    let mut numbers = digest.split(' ').map(number);
    let mut next = || numbers.next().expect("three numbers");
    Data { tunnel: next(), source: next(), destination: next() }
}

/// The Tunnel.
pub fn object(world: &World, object: &Object, specs: Specs, rules: &Rules) -> read::Object {
    let recorded = object.tunnel.map(|id| {
        let opened_at = opened_at(world, id, object.opened_late);
        // The rule is left out by what the decision is told.
        let hour = SignedDuration::from_hours(if rules.no_not_found_grace { 1 } else { 0 });
        RecordedTunnel {
            reference: tunnel(id),
            state: if object.closed { TunnelState::Closed } else { TunnelState::Open },
            opened_at: opened_at - hour,
            expires_at: opened_at + LIFETIME,
            closed_at: None,
            end_reason: object
                .end
                .filter(|_| object.closed || !rules.way_back || specs[usize::from(object.spec)].suspend),
            attempt: object.attempt.map(attempt),
            opened_with: object.opened_with.filter(|_| rules.recreate).map(request_digest),
        }
    });
    let spec = &specs[usize::from(object.spec)];
    let pause = || Reopen { count: 1, not_before: Some(now(world.lifetime_over).wall + SignedDuration::from_mins(1)) };
    let status = |(name, data): &(u8, Data)| SecretStatus {
        name: name.to_string(),
        sha256: digest(*data),
        resource_version: None,
    };
    let secret =
        |(name, mode): &(u8, ClientMode)| SecretSpec { name: name.to_string(), mode: *mode, ..SecretSpec::default() };
    read::Object {
        key: key(object.uid),
        resource_version: None,
        created_at: wall(CREATED),
        generation: object.spec.into(),
        deleted_at: object.deleted.then(|| now(world.lifetime_over).wall),
        other_finalizers: Vec::new(),
        spec: Spec {
            request: request(spec.request, spec.tag),
            lifetime: LIFETIME,
            secrets: spec.secrets.iter().map(secret).collect(),
            update_policy: if rules.recreate { UpdatePolicy::Recreate } else { UpdatePolicy::Immutable },
            deletion_policy: if rules.retain { DeletionPolicy::Retain } else { DeletionPolicy::Close },
            reopen_policy: rules.reopen,
            suspend: spec.suspend,
        },
        record: Record {
            finalizer: object.finalizer,
            claim: object.claim.filter(|(uid, _)| *uid == object.uid).map(|(_, n)| attempt(n)),
            tunnel: recorded,
            token_generation: object.generation.into(),
            secrets: object.kept.as_ref().map(|kept| kept.iter().map(status).collect()),
            reported: object.reported,
            observed_generation: object.observed.map(i64::from),
            tag_keys: if object.tag_key { vec![TAG.to_owned()] } else { Vec::new() },
            handled_rotate_at: asked(object.handled),
            reopen: object.pause.then(pause),
            connections: Connections::default(),
        },
        conditions: Vec::new(),
        rotate: asked(object.rotate).map(|value| RotateRequest { value, mode: Some(rules.rotates) }),
    }
}

/// The object takes over what a status write has made of its record.
pub fn take(object: &mut Object, record: &Record) {
    let tunnel = record.tunnel.as_ref();
    object.tunnel = tunnel.map(|t| number(&t.reference.id.0));
    object.opened_late = tunnel.is_some_and(|t| t.opened_at > wall(OPENED + 3600));
    object.closed = tunnel.is_some_and(|t| t.state == TunnelState::Closed);
    object.end = tunnel.and_then(|t| t.end_reason);
    object.attempt = tunnel.and_then(|t| t.attempt.as_ref()).map(|attempt| number(&attempt.0));
    object.opened_with = tunnel.and_then(|t| t.opened_with.as_deref()).and_then(request_of);
    object.pause = record.reopen.as_ref().is_some_and(|reopen| reopen.not_before.is_some());
    object.generation = small(record.token_generation);
    let kept = |secret: &SecretStatus| (number(&secret.name), data(&secret.sha256));
    object.kept = record.secrets.as_ref().map(|secrets| secrets.iter().map(kept).collect());
    object.reported = record.reported;
    object.observed = record.observed_generation.map(small);
    object.tag_key = !record.tag_keys.is_empty();
    object.handled = record.handled_rotate_at.as_deref().map_or(0, number);
}

/// The Tunnel as a reconcile sees it.
pub fn view(world: &World, reconcile: &Reconcile, wiped: bool, specs: Specs, rules: &Rules) -> View {
    let object = object(world, &reconcile.view, specs, rules);
    View { object, read_at: reconcile.read.map(at), gone: reconcile.gone, wiped }
}

/// What there is beside it.
pub fn facts(world: &World, i: usize, reconcile: &Reconcile, view: &View, memory: &Memory, rules: &Rules) -> Facts {
    let operator = &world.operators[i];
    let found = |id: &u8| {
        let t = world.tunnels.iter().find(|t| t.id == *id);
        let owner = owner(reconcile.view.uid, t.map_or(0, |t| t.attempt));
        let created_at = opened_at(world, *id, t.is_some_and(|t| t.late));
        let opened_with = t.filter(|_| rules.recreate).map(|t| request_digest(t.request));
        Found { tunnel: tunnel(*id), owner, created_at, opened_with }
    };
    let search = operator.search.as_ref();
    let mut search = search.map(|(age, ids)| Search { started: at(*age), found: ids.iter().map(found).collect() });
    if rules.no_search {
        search = Some(Search { started: NOW + Duration::from_secs(3600), found: Vec::new() });
    }
    let described = operator.described.filter(|(id, ..)| Some(*id) == reconcile.view.tunnel).map(|(id, life, age)| {
        let created_at = opened_at(world, id, reconcile.view.opened_late);
        // Closed in time, or by the end of its lifetime.
        let late = reconcile.view.opened_late;
        let closed_at = if world.lifetime_over && !late { created_at + LIFETIME } else { now(late).wall };
        let life = match life {
            Life::Open => tunnels::Life::Open {
                created_at: view.object.record.tunnel.as_ref().map_or(created_at, |t| t.opened_at),
            },
            Life::Closed => tunnels::Life::Closed { created_at, closed_at },
            Life::NotFound => tunnels::Life::NotFound,
        };
        Described { life, asked: at(age), details: None }
    });
    let told = operator.told_tag.filter(|(id, ..)| Some(*id) == reconcile.view.tunnel && !rules.trusts_tags);
    let described = told.map_or(described.clone(), |(id, value, age)| {
        let life = tunnels::Life::Open { created_at: opened_at(world, id, reconcile.view.opened_late) };
        let described = described.unwrap_or(Described { life, asked: at(age), details: None });
        let details = Details { tags: tags(value), ..Details::default() };
        Some(Described { details: Some((Arc::new(details), at(age))), ..described })
    });
    let fresh = if rules.counted_attempts {
        reconcile.view.claim.map_or(1, |(_, attempt)| attempt + 1)
    } else {
        world.last.attempt + 1
    };
    Facts {
        fresh_attempt: attempt(fresh),
        secrets: secret_facts(reconcile, view, memory, rules),
        search,
        in_account: InAccount::Yes,
        described: described.map(|d| (tunnel(reconcile.view.tunnel.unwrap_or_default()).id, d)).into_iter().collect(),
        reads_fail: world.away.then(|| CallError { kind: CallErrorKind::Doubt, message: String::new() }),
        turns: Turns::all(Turn::Granted),
        gate: None,
        trouble: operator.memory.as_ref().filter(|m| m.trouble).map(|_| String::new()),
        tags: view.object.spec.tags(&Tags::new()),
        rival: None,
        takes_secrets: true,
    }
}

fn secret_facts(reconcile: &Reconcile, view: &View, memory: &Memory, rules: &Rules) -> Vec<SecretFacts> {
    let (object, uid) = (&view.object, reconcile.view.uid);
    let all = reconcile.secrets.as_ref().expect("read before");
    let owned = (0..3_u8).filter(|n| all[usize::from(*n)].as_ref().is_some_and(|s| s.owner == Some(uid)));
    let fact = |name: String| {
        let wanted = object.spec.secrets.iter().find(|s| s.name == name);
        let answer = memory.answer.as_deref().zip(wanted);
        let secret = all[usize::from(number(&name))].as_ref();
        let believed = rules.believes_leftovers && secret.is_some_and(|secret| secret.leftover);
        let owner = |secret: &Secret| if believed || rules.foreign_is_ours { Some(uid) } else { secret.owner };
        let found = secret.map(|secret| FoundSecret {
            controller: owner(secret).map(|uid| uid.to_string()),
            leftover: secret.leftover && !rules.leftover_is_foreign && !believed,
            predecessor: false,
            holder: String::new(),
            editors: None,
            terminating: false,
            version: None,
            generation: match secret.leftover {
                true if believed => object.record.token_generation + 1,
                true => 0,
                false => secret.generation.into(),
            },
            sha256: digest(secret.data),
            sound: secret.sound,
            labelled: true,
            decorated: true,
            mode: secret.data.mode(),
            tokens: tokens(secret.data),
        });
        let data = |(answer, wanted): (&memory::Answer, &SecretSpec)| match secret {
            Some(secret) if believed => secret.data,
            _ => data_of(answer).of(wanted.mode),
        };
        let sha256_of_answer = answer.map(|answer| digest(data(answer)));
        SecretFacts { name, found, sha256_of_answer }
    };
    secrets::names(object, owned.map(|n| n.to_string())).into_iter().map(fact).collect()
}

fn data_of(answer: &memory::Answer) -> Data {
    with_tokens(number(&answer.tunnel.id.0), &answer.tokens)
}

/// The tokens of a tunnel.
pub fn with_tokens(tunnel: u8, tokens: &Tokens) -> Data {
    let token = |side: Option<&Side>| side.map_or(0, |side| number(side.access_token.expose()));
    Data { tunnel, source: token(tokens.source.as_ref()), destination: token(tokens.destination.as_ref()) }
}

pub fn tokens(data: Data) -> Tokens {
    let side = |token: u8| {
        let text = || Token::new(token.to_string());
        (token != 0).then(|| Side { access_token: text(), client_token: text() })
    };
    Tokens { source: side(data.source), destination: side(data.destination) }
}

/// More rotations in a row make no other difference than a longer pause.
const MOST_REDONE: u8 = 4;

/// `over`: the pause after them is over, and the next one is still one in a row.
fn redone((damage, times, over): (Option<Damage>, u8, bool)) -> Redone {
    let (times, last) = (times.into(), if over { Mono(NOW.0 - Duration::from_secs(121)) } else { NOW });
    Redone { damage, times, last }
}

/// A Secret as it was written: how it is decorated does not matter here.
fn as_written(name: u8) -> SecretSpec {
    SecretSpec { name: name.to_string(), ..SecretSpec::default() }
}

impl Mem {
    pub fn new(uid: u8, saw_creation: bool) -> Self {
        Self { uid, saw_creation, ..Self::default() }
    }

    /// The product's.
    pub fn real(&self, world: &World) -> Memory {
        let ids = |ids: &[u8]| ids.iter().map(|n| TunnelId(n.to_string())).collect();
        let rotation = |r: world::Rotation| Rotation {
            generation: r.generation.into(),
            mode: r.mode,
            others_live: r.others_live,
            handles: asked(r.handles),
            stage: match r.stage {
                Stage::Claimed => RotationStage::Claimed,
                Stage::Doubt(age) => RotationStage::Doubt(at(age)),
                Stage::Lost => RotationStage::Lost,
            },
        };
        let answer = |a: &Answer| memory::Answer {
            of: match a.of {
                AnswerOf::Open(n) => memory::AnswerOf::Open(attempt(n)),
                AnswerOf::Rotate(generation) => memory::AnswerOf::Rotate(generation.into()),
                AnswerOf::Secrets(generation) => memory::AnswerOf::Secrets(generation.into()),
            },
            tunnel: tunnel(a.data.tunnel),
            tokens: tokens(a.data),
            opened_with: matches!(a.of, AnswerOf::Open(_)).then(|| (tags(a.tag), request_digest(a.request))),
            at: at(a.age),
            wall: opened_at(world, a.data.tunnel, a.late),
            written: (0..3_u8).filter(|n| a.written & (1 << n) != 0).map(as_written).collect(),
        };
        let failure = |(reason, age, told): (opentunnel_api::Reason, Age, bool)| Failure {
            reason,
            message: String::new(),
            at: at(age),
            retry_at: at(age) + Duration::from_secs(5),
            times: 1,
            told,
        };
        Memory::restore(Remembered {
            saw_creation: self.saw_creation,
            first_seen: at(self.first_seen),
            opening: Opening {
                claim: self.claim.map(|(n, age)| (attempt(n), at(age))),
                attempt: self.attempt.map(attempt),
                doubt: self.open_doubt.map(at),
                since: self.opens.map(at),
            },
            rotating: Rotating {
                unfinished: self.unfinished.map(|(generation, age)| (generation.into(), at(age))),
                own: self.rotation.map(rotation),
                late: self.late_rotation.map(i64::from),
                // That a tag was written is not kept: it would be written once more, which changes nothing.
                marked: None,
                redone: self.redone.map(redone),
            },
            tending: Tending {
                tags: self.tag.map(|(value, age)| ([(TAG.to_owned(), asked(value))].into(), at(age))),
                tags_failed: self.tag_failed.then(|| (1, at(OLD))),
                ..Tending::default()
            },
            ending: Ending {
                down: self.deleting.map(at),
                expired: self.expired.map(at),
                closed: ids(&self.closed),
                foreign: ids(&self.foreign),
            },
            owned: self.owned.iter().map(|n| tunnel(*n)).collect(),
            answer: self.answer.as_ref().map(|held| Box::new(answer(held))),
            backoff: Backoff {
                failure: self.failure.map(failure),
                trial: self.trial.map(|age| Trial { at: at(age), refused: None, refusals: 0 }),
            },
        })
    }

    /// Takes over what the product's has become.
    pub fn take(&mut self, memory: Memory, policy: Policy) {
        let real = memory.into_inner();
        let ids = |ids: &[TunnelId]| ids.iter().map(|id| number(&id.0)).collect();
        let rotation = |r: Rotation| {
            let stage = match r.stage {
                RotationStage::Claimed => Stage::Claimed,
                RotationStage::Doubt(called) => Stage::Doubt(age(called)),
                RotationStage::Lost => Stage::Lost,
            };
            let (generation, handles) = (small(r.generation), r.handles.as_deref().map_or(0, number));
            world::Rotation { generation, mode: r.mode, others_live: r.others_live, stage, handles }
        };
        let answer = |a: memory::Answer| Answer {
            of: match &a.of {
                memory::AnswerOf::Open(n) => AnswerOf::Open(number(&n.0)),
                memory::AnswerOf::Rotate(generation) => AnswerOf::Rotate(small(*generation)),
                memory::AnswerOf::Secrets(generation) => AnswerOf::Secrets(small(*generation)),
            },
            data: data_of(&a),
            request: a.opened_with.as_ref().and_then(|(_, digest)| request_of(digest)).unwrap_or_default(),
            tag: a.opened_with.as_ref().map_or(0, |(tags, _)| tag(tags)),
            written: match policy {
                Policy::Never => 0,
                _ => a.written.iter().fold(0, |all, secret| all | 1 << number(&secret.name)),
            },
            late: a.wall > wall(OPENED + 3600),
            age: age(a.at),
        };
        *self = Self {
            uid: self.uid,
            wiped: self.wiped,
            saw_creation: real.saw_creation,
            first_seen: age(real.first_seen),
            claim: real.opening.claim.map(|(n, seen)| (number(&n.0), age(seen))),
            attempt: real.opening.attempt.map(|n| number(&n.0)),
            open_doubt: real.opening.doubt.map(age),
            opens: real.opening.since.map(age),
            unfinished: real.rotating.unfinished.map(|(generation, since)| (small(generation), age(since))),
            rotation: real.rotating.own.map(rotation),
            answer: real.answer.map(|held| answer(*held)),
            // A dry-run answer counts for 5 s.
            trial: real.backoff.trial.map(|t| age(t.at)).filter(|age| *age == 0),
            late_rotation: real.rotating.late.map(small),
            redone: real.rotating.redone.filter(|_| policy != Policy::Never).map(|r| {
                let over = r.next_at(r.damage.unwrap_or(Damage::Edited), NOW).is_none() && r.last < NOW;
                (r.damage, u8::try_from(r.times).unwrap_or(MOST_REDONE).min(MOST_REDONE), over)
            }),
            tag: real
                .tending
                .tags
                .and_then(|(known, set)| Some((known.get(TAG)?.as_deref().map_or(0, number), age(set)))),
            tag_failed: real.tending.tags_failed.is_some(),
            deleting: real.ending.down.map(age),
            expired: real.ending.expired.map(age),
            closed: ids(&real.ending.closed),
            foreign: ids(&real.ending.foreign),
            owned: real.owned.iter().map(|t| number(&t.id.0)).collect(),
            failure: real.backoff.failure.map(|f| (f.reason, age(f.at), f.told)),
            trouble: self.trouble,
            written: self.written.take(),
        };
    }
}
