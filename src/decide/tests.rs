//! Every state that a crash, a lost answer, a rival or a user can leave behind, and what follows.

use super::*;
use crate::clock::Mono;
use crate::memory::{Answer, Failure, Remembered, Rotation, RotationStage, Trial};
use crate::pacer::{Gate, Turn};
use crate::read::{Key, SecretSpec, Spec};
use crate::record::{Record, RecordedTunnel};
use crate::secrets::{FoundSecret, SecretFacts};
use crate::step::{Identity, Need, Outcome, Refusal, Report, Step::*};
use crate::tunnels::{
    Attempt, CallError, Described, Life, OpenRequest, Owner, Side, Tags, Token, Tokens, TunnelId, TunnelRef,
};
use opentunnel_api::{ClientMode, DeletionPolicy, ReopenPolicy, SecretStatus, TunnelState, UpdatePolicy};

/// The process is 1000 s old; the Tunnel was created at wall second 10 000, an hour before now.
const MONO: u64 = 1000;
const WALL: i64 = 13_600;
const LIMITS: Limits = Limits { aws_timeout: Duration::from_secs(20), recovery_grace: Duration::from_secs(30) };

/// SHA-256 of what a Secret had when the Tunnel was Ready the last time.
const RECORDED: &str = "recorded";
/// SHA-256 of the tokens of the answer in hand.
const OF_ANSWER: &str = "of the answer";
/// SHA-256 of what somebody has edited.
const EDITED: &str = "edited";

fn mono(second: u64) -> Mono {
    Mono(Duration::from_secs(second))
}

fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn now() -> Now {
    Now { wall: wall(WALL), mono: mono(MONO) }
}

fn attempt(name: &str) -> Attempt {
    Attempt(name.into())
}

fn tunnel(name: &str) -> TunnelRef {
    TunnelRef { id: TunnelId(name.into()), arn: format!("arn:{name}") }
}

/// A state to decide on. It begins as a Tunnel that was just created, under the eyes of this process, which leads.
struct Given {
    object: Object,
    memory: Remembered,
    /// The Secrets that the spec names, in its order.
    secrets: Vec<Option<FoundSecret>>,
    /// Those that are recorded and that the spec names no more.
    former: Vec<Option<FoundSecret>>,
    read_at: Option<u64>,
    gone: bool,
    search: Option<Search>,
    described: Option<Described>,
    reads_fail: Option<CallError>,
    in_account: InAccount,
    turn: Turn,
    gate: Option<Gate>,
    trouble: Option<String>,
    tags: Tags,
    rival: Option<String>,
    takes_secrets: bool,
    standing: Standing,
}

fn created() -> Given {
    let object = Object {
        key: Key { namespace: "edge".into(), name: "sensor".into(), uid: "uid".into() },
        resource_version: Some("7".into()),
        created_at: wall(10_000),
        generation: 1,
        deleted_at: None,
        other_finalizers: vec![],
        spec: Spec {
            request: OpenRequest { description: None, destination: None, tags: vec![], lifetime_minutes: None },
            lifetime: SignedDuration::from_mins(720),
            secrets: vec![wanted("sensor-tokens", ClientMode::All)],
            update_policy: UpdatePolicy::Immutable,
            deletion_policy: DeletionPolicy::Close,
            reopen_policy: ReopenPolicy::Never,
            suspend: false,
        },
        record: Record { observed_generation: Some(-1), ..Record::default() },
        conditions: vec![],
        rotate: None,
    };
    Given {
        object,
        memory: Remembered { saw_creation: true, first_seen: mono(MONO - 1), ..Remembered::default() },
        secrets: vec![missing()],
        former: vec![],
        read_at: None,
        gone: false,
        search: None,
        described: None,
        reads_fail: None,
        in_account: InAccount::Yes,
        turn: Turn::Granted,
        gate: None,
        trouble: None,
        tags: Tags::new(),
        rival: None,
        takes_secrets: true,
        standing: Standing::Leads { since: mono(0) },
    }
}

fn wanted(name: &str, mode: ClientMode) -> SecretSpec {
    SecretSpec { name: name.into(), mode, ..SecretSpec::default() }
}

/// This process has claimed as "own", `age` seconds ago.
fn claimed(age: u64) -> Given {
    let mut s = created();
    s.object.record.finalizer = true;
    s.object.record.claim = Some(attempt("own"));
    s.memory.opening.attempt = Some(attempt("own"));
    s.memory.opening.claim = Some((attempt("own"), mono(MONO - age)));
    s.read_at = Some(MONO - age);
    s
}

/// A process that just started finds the claim of its predecessor.
fn claim_found() -> Given {
    let mut s = claimed(0);
    s.memory = Remembered { first_seen: mono(MONO), ..Remembered::default() };
    s.memory.opening.claim = Some((attempt("theirs"), mono(MONO)));
    s.object.record.claim = Some(attempt("theirs"));
    s
}

fn missing() -> Option<FoundSecret> {
    None
}

/// This Tunnel's, but not as it was recorded.
fn ours(generation: i64) -> Option<FoundSecret> {
    Some(FoundSecret {
        controller: Some("uid".into()),
        leftover: false,
        predecessor: false,
        holder: "controlled by Tunnel sensor".into(),
        editors: None,
        terminating: false,
        version: Some("9".into()),
        generation,
        sha256: EDITED.into(),
        sound: true,
        labelled: true,
        decorated: true,
        mode: Some(ClientMode::All),
        tokens: both(),
    })
}

/// Another's.
fn foreign() -> Option<FoundSecret> {
    but(ours(0), |s| s.controller = Some("another".into()))
}

/// This Tunnel's; somebody's finalizer holds it back.
fn terminating() -> Option<FoundSecret> {
    but(ours(0), |s| s.terminating = true)
}

/// It holds the tokens of the answer.
fn holding(generation: i64) -> Option<FoundSecret> {
    but(ours(generation), |s| s.sha256 = OF_ANSWER.into())
}

/// As it was recorded.
fn intact(generation: i64, side: ClientMode) -> Option<FoundSecret> {
    but(ours(generation), |s| (s.sha256, s.mode) = (RECORDED.into(), Some(side)))
}

fn immutable() -> Option<FoundSecret> {
    but(ours(0), |s| s.sound = false)
}

fn but(secret: Option<FoundSecret>, change: impl FnOnce(&mut FoundSecret)) -> Option<FoundSecret> {
    secret.map(|mut secret| {
        change(&mut secret);
        secret
    })
}

/// Recorded as open; not Ready. The finalizer stands. This process knows that the tunnel is its own.
fn adopted(generation: i64) -> Given {
    let mut s = created();
    s.memory = Remembered { first_seen: mono(MONO - 100), owned: vec![tunnel("t1")], ..Remembered::default() };
    s.object.record = Record {
        finalizer: true,
        claim: Some(attempt("theirs")),
        tunnel: Some(RecordedTunnel {
            reference: tunnel("t1"),
            state: TunnelState::Open,
            opened_at: wall(10_000),
            expires_at: wall(10_000 + 720 * 60),
            closed_at: None,
            end_reason: None,
            attempt: Some(attempt("theirs")),
            opened_with: None,
        }),
        token_generation: generation,
        secrets: None,
        reported: Some(Reason::Rotating),
        observed_generation: Some(1),
        ..Record::default()
    };
    s.memory.rotating.marked = Some(generation);
    s.memory.rotating.unfinished = Some((generation, mono(MONO - 1)));
    s.memory.backoff.trial = trial(MONO, None);
    s
}

fn ready() -> Given {
    let mut s = adopted(1);
    s.secrets = vec![intact(1, ClientMode::All)];
    s.object.record.reported = Some(Reason::Open);
    s.object.record.secrets = Some(vec![recorded("sensor-tokens")]);
    s.memory.rotating.unfinished = None;
    s
}

fn recorded(name: &str) -> SecretStatus {
    SecretStatus { name: name.into(), sha256: RECORDED.into(), resource_version: Some("9".into()) }
}

/// Not the first refusal, if it is one.
fn trial(at: u64, refused: Option<Refusal>) -> Option<Trial> {
    let refusals = refused.as_ref().map_or(0, |_| 6);
    Some(Trial { at: mono(at), refused, refusals })
}

fn ends(at: u64) -> Option<Trial> {
    trial(at, Some(Refusal::NamespaceEnds))
}

fn deleted(mut s: Given) -> Given {
    s.object.deleted_at = Some(wall(WALL));
    s.memory.ending.down = Some(mono(MONO));
    s
}

fn found(id: &str, by: &str, at: i64) -> Found {
    let owner = Owner { cluster: "c".into(), namespace: "edge".into(), uid: "uid".into(), attempt: attempt(by) };
    Found { tunnel: tunnel(id), owner, created_at: wall(at), opened_with: None }
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
            let (at, wall) = (mono(MONO - 1), wall(WALL));
            let (tunnel, tokens, written) = (super::tests::tunnel("t1"), both(), vec![]);
            s.memory.answer = Some(Box::new(Answer { of, tunnel, tokens, opened_with: None, at, wall, written }));
            s.memory.owned = vec![super::tests::tunnel("t1")];
            s.memory.opening.doubt = Some(mono(MONO - 2));
            s.read_at = read_at;
        })
    }

    fn searched(self, started: u64, found: Vec<Found>) -> Self {
        self.with(|s| s.search = Some(Search { started: mono(started), found }))
    }

    fn described(self, life: Life) -> Self {
        self.with(|s| s.described = Some(Described { life, asked: mono(MONO), details: None }))
    }

    fn failing(self, reason: Reason, retry_at: u64) -> Self {
        self.with(|s| {
            s.memory.backoff.failure = Some(Failure {
                reason,
                message: "words".into(),
                at: mono(MONO - 1),
                retry_at: mono(retry_at),
                times: 1,
                told: false,
            });
        })
    }

    fn recorded_tunnel(&mut self) -> &mut RecordedTunnel {
        self.object.record.tunnel.as_mut().unwrap()
    }

    fn view(&self) -> View {
        let (object, read_at) = (self.object.clone(), self.read_at.map(mono));
        View { object, read_at, gone: self.gone, wiped: false }
    }

    fn facts(&self) -> Facts {
        let object = &self.object;
        let wanted: Vec<_> = object.spec.secrets.iter().map(|s| s.name.clone()).collect();
        let recorded = object.record.secrets.iter().flatten().map(|s| s.name.clone());
        let former: Vec<_> = recorded.filter(|name| !wanted.contains(name)).collect();
        let facts = |(name, found): (String, &Option<FoundSecret>)| SecretFacts {
            name,
            found: found.clone(),
            sha256_of_answer: self.memory.answer.as_ref().map(|_| OF_ANSWER.into()),
        };
        let wanted = wanted.into_iter().zip(&self.secrets);
        Facts {
            fresh_attempt: attempt("new"),
            secrets: wanted.chain(former.into_iter().zip(&self.former)).map(facts).collect(),
            search: self.search.clone(),
            in_account: self.in_account,
            described: self.described.clone().map(|d| (TunnelId("t1".into()), d)).into_iter().collect(),
            reads_fail: self.reads_fail.clone(),
            turns: crate::facts::Turns::all(self.turn),
            gate: self.gate.clone(),
            trouble: self.trouble.clone(),
            tags: self.tags.clone(),
            rival: self.rival.clone(),
            takes_secrets: self.takes_secrets,
        }
    }

    fn decide(self) -> Step {
        let (view, facts) = (self.view(), self.facts());
        decide(&view, &facts, &Memory::restore(self.memory), self.standing, &LIMITS, now())
    }

    /// What a step came to is remembered.
    fn learn(mut self, step: &Step, outcome: &Outcome) -> Self {
        let mut memory = Memory::restore(self.memory);
        memory.learn(step, outcome, &self.object, &LIMITS, now());
        self.memory = memory.into_inner();
        self
    }
}

/// The table: each row a state, by name, and the one thing that follows.
macro_rules! table {
    ($($name:ident: $state:expr => $step:pat $(if $guard:expr)?,)*) => {$(
        #[test]
        fn $name() {
            let step = $state.decide();
            assert!(matches!(&step, $step $(if $guard)?), "{step:#?}");
        }
    )*};
}

use AnswerOf::Rotate as RotateAnswer;

fn waits_for(w: &super::Wait, lane: Option<Lane>, need: Option<Need>, until: Option<u64>) -> bool {
    *w == super::Wait { lane, need, until: until.map(mono), names: vec![] }
}

/// It waits for nothing but to be woken.
fn rests(w: &super::Wait) -> bool {
    *w == super::Wait::default()
}

fn asks(w: &super::Wait, id: &str) -> bool {
    w.need == Some(Need::Describe(TunnelId(id.into())))
}

fn t1(id: &TunnelRef) -> bool {
    *id == tunnel("t1")
}

fn closed(at: i64) -> Life {
    Life::Closed { created_at: wall(10_000), closed_at: wall(at) }
}

mod again;
mod ending;
mod identity;
mod opening;
mod ready;
mod samples;
mod standing;
mod tending;

/// docs/lifecycle.md has the phases and goals of the code, and names tests that exist.
#[test]
fn the_page_about_the_life_of_a_tunnel_says_what_the_code_says() {
    use std::collections::BTreeSet;
    use std::fs;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/lifecycle.md")).unwrap();
    // A new phase or goal does not compile here before it is named.
    let phase = |phase: Phase<'_>| match phase {
        Phase::None => "None",
        Phase::Open(_) => "Open",
        Phase::Ready(_) => "Ready",
        Phase::Ended(_) => "Ended",
    };
    let down = |down: Down| match down {
        Down::Deleted => "`Deleted`",
        Down::Suspended => "`Suspended`",
        Down::Outdated => "`Outdated`",
    };
    let recorded = ready();
    let tunnel = recorded.object.record.tunnel.as_ref().unwrap();
    let phases = [Phase::None, Phase::Open(tunnel), Phase::Ready(tunnel), Phase::Ended(tunnel)].map(phase);
    let diagram = page.split("```").find(|part| part.starts_with("mermaid")).unwrap();
    let arrows = diagram.lines().filter_map(|line| line.split_once("-->"));
    let ends = arrows.flat_map(|(from, to)| [from.trim(), to.split(':').next().unwrap().trim()]);
    assert_eq!(ends.filter(|end| *end != "[*]").collect::<BTreeSet<_>>(), BTreeSet::from(phases));
    for name in [Down::Deleted, Down::Suspended, Down::Outdated].map(down) {
        assert!(page.contains(name), "{name}");
    }
    let sources = ["tests/cluster", "tests/cluster/matrix", "src/decide/tests"]
        .map(|folder| fs::read_dir(root.join(folder)).unwrap());
    let sources = sources.into_iter().flatten().map(|entry| entry.unwrap().path());
    let code: String = sources.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).unwrap()).collect();
    let named = page.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 2);
    // In `table!` a row is a test.
    let is_there = |name: &&str| code.contains(&format!("fn {name}(")) || code.contains(&format!("\n    {name}: "));
    let missing: Vec<_> = named.filter(|name| !is_there(name)).collect();
    assert_eq!(missing, [""; 0], "tests that do not exist");
}
