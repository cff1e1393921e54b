//! What is remembered of each step, for all that it can come to.

mod calls;
mod writes;

use super::*;
use crate::error::Error;
use crate::memory::{Backoff, Ending, Opening, Rotating};
use crate::read::{SecretSpec, read};
use crate::step::{Identity, Refusal, Report, Wait};
use crate::tunnels::{Attempt, Found, Owner, Side, Tags, Token, TunnelId};
use opentunnel_api::ClientMode;
use serde_json::json;

/// The process is 1000 s old; the Tunnel was created an hour before.
const MONO: u64 = 1000;
const LIMITS: Limits = Limits { aws_timeout: Duration::from_secs(20), recovery_grace: Duration::from_secs(30) };
const KINDS: [CallErrorKind; 8] = [
    CallErrorKind::LimitExceeded,
    CallErrorKind::Throttled,
    CallErrorKind::AccessDenied,
    CallErrorKind::NoCredentials,
    CallErrorKind::InvalidRequest,
    CallErrorKind::NotFound,
    CallErrorKind::Unreachable,
    CallErrorKind::Doubt,
];

fn mono(second: u64) -> Mono {
    Mono(Duration::from_secs(second))
}

/// So many seconds before now.
fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(13_600 - seconds).unwrap()
}

fn object(reason: &str, deleted: bool) -> Object {
    let deleted = deleted.then_some("1970-01-01T03:46:40Z");
    let metadata = json!({
        "name": "sensor", "namespace": "edge", "uid": "u", "creationTimestamp": "1970-01-01T02:46:40Z",
        "deletionTimestamp": deleted,
    });
    let ready = json!({
        "type": "Ready", "status": "True", "reason": reason, "message": "m",
        "lastTransitionTime": "1970-01-01T03:00:00Z",
    });
    let status = json!({"tunnelId": "t", "state": "OPEN", "tokenGeneration": 4, "conditions": [ready]});
    read(&serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap()).unwrap()
}

/// What is remembered after a step of a Ready Tunnel.
fn learnt(before: Remembered, step: &Step, outcome: &Outcome) -> Remembered {
    learnt_of(&object("Open", false), before, step, outcome)
}

fn learnt_of(object: &Object, before: Remembered, step: &Step, outcome: &Outcome) -> Remembered {
    let mut memory = Memory::restore(before);
    memory.learn(step, outcome, object, &LIMITS, Now { wall: ago(0), mono: mono(MONO) });
    memory.into_inner()
}

fn attempt() -> Attempt {
    Attempt("own".into())
}

fn tunnel(id: &str) -> TunnelRef {
    TunnelRef { id: TunnelId(id.into()), arn: format!("arn:{id}") }
}

fn error(kind: CallErrorKind) -> CallError {
    CallError { kind, message: "AWS's words".into() }
}

fn timeout() -> Outcome {
    Outcome::Failed(Error::Timeout("write"))
}

fn written() -> Outcome {
    Outcome::Written(Box::new(object("Open", false)))
}

fn side(name: &str) -> Option<Side> {
    Some(Side { access_token: Token::new(name.into()), client_token: Token::new("client".into()) })
}

fn answer(of: AnswerOf) -> Option<Answer> {
    let tokens = Tokens { source: side("s"), destination: side("d") };
    let (tunnel, at, written) = (tunnel("t"), mono(MONO - 1), vec![]);
    Some(Answer { of, tunnel, tokens, opened_with: None, at, wall: ago(1), written })
}

fn failure() -> Option<Failure> {
    let message = "before".into();
    let (at, retry_at) = (mono(MONO - 1), mono(MONO));
    Some(Failure { reason: Reason::AwsUnavailable, message, at, retry_at, times: 1, told: true })
}

fn rotation(stage: RotationStage) -> Option<Rotation> {
    Some(Rotation { generation: 4, mode: ClientMode::Source, others_live: true, stage, handles: None })
}

/// Something of everything.
fn full(answer: Option<Answer>) -> Remembered {
    let answer = answer.map(Box::new);
    Remembered {
        opening: Opening { claim: None, attempt: Some(attempt()), doubt: Some(mono(900)), since: None },
        rotating: Rotating { own: rotation(RotationStage::Doubt(mono(990))), late: Some(3), ..Rotating::default() },
        backoff: Backoff { failure: failure(), trial: None },
        answer,
        ..Remembered::default()
    }
}

fn open() -> Step {
    Step::Open { attempt: attempt(), tags: Tags::new() }
}

fn opened(answer: Result<(TunnelRef, Tokens), CallErrorKind>) -> Outcome {
    Outcome::Opened { called: mono(995), answer: answer.map_err(error) }
}

fn rotate(others: Option<Tokens>) -> Step {
    Step::Rotate { tunnel: tunnel("t"), mode: ClientMode::Source, generation: 4, others }
}

fn rotated(called: Mono, answer: Result<Tokens, CallErrorKind>) -> Outcome {
    Outcome::Rotated { called, answer: answer.map_err(error) }
}

fn close(opened_at: Timestamp) -> Step {
    Step::Close { tunnel: tunnel("t"), opened_at }
}

fn untag(opened_at: Timestamp) -> Step {
    Step::Untag { tunnel: tunnel("t"), opened_at }
}

fn identify(opened_at: Timestamp) -> Step {
    Step::Identify { tunnel: tunnel("t"), opened_at }
}

fn ended(outcome: Result<(), CallErrorKind>) -> Outcome {
    Outcome::ClosedOrUntagged(outcome.map_err(error))
}

fn reason(memory: &Remembered) -> Option<Reason> {
    memory.backoff.failure.as_ref().map(|f| f.reason)
}
