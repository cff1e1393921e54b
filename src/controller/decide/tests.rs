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
                told: false,
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

fn closed(at: i64) -> Word {
    Word::Closed { created_at: wall(10_000), closed_at: wall(at) }
}

mod ending;
mod opening;
mod ready;
