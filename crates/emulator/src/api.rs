//! AWS JSON 1.1: one HTTP request is one call of an operation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::calls::CallNumber;
use crate::constraints::is_tunnel_id;
use crate::error::ApiError;
use crate::faults::{self, Fault, FaultKind};
use crate::operation::Operation;
use crate::service::tunnel_id_of_arn;
use crate::shared::Shared;

const TARGET_PREFIX: &str = "IoTSecuredTunneling.";

/// How a call ends for its client.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Result<Value, ApiError>),
    /// The connection is closed without a byte.
    Drop,
    /// The connection stays open without a byte.
    Hang,
}

/// Answers the call that a POST to `/` makes.
pub(crate) async fn answer(shared: &Arc<Shared>, headers: &HeaderMap, body: &[u8]) -> Answer {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let Some(name) = target.and_then(|target| target.strip_prefix(TARGET_PREFIX)) else {
        return Answer::Reply(Err(ApiError::unknown_operation(
            "The header X-Amz-Target must be IoTSecuredTunneling.<Operation>",
        )));
    };
    let Some(operation) = Operation::from_name(name) else {
        return Answer::Reply(Err(unknown(shared, name)));
    };
    let body = parse(body);
    let region = signed_region(headers).unwrap_or(&shared.config.region).to_owned();
    let named = body.as_ref().ok().and_then(named_tunnel);
    let (number, fault) = shared.change(|state| {
        let at = state.service.clock.now().timestamp();
        (state.calls.arrive(name, at, named), faults::take(&mut state.faults, operation))
    });
    let call = Call { number, operation, region, body };
    match fault {
        None => call.act(shared, None),
        Some(fault) if fault.kind == FaultKind::Delay => {
            let answer = call.act(shared, None);
            sleep(Duration::from_millis(fault.delay_ms)).await;
            answer
        }
        Some(fault) if fault.delay_ms == 0 => call.fail(shared, fault.kind),
        Some(fault) => call.fail_late(shared, fault).await,
    }
}

/// A call that has been logged.
struct Call {
    number: CallNumber,
    operation: Operation,
    region: String,
    body: Result<Value, ApiError>,
}

impl Call {
    /// Carries the call out. `fault` is what the log tells instead of the result.
    fn act(self, shared: &Shared, fault: Option<FaultKind>) -> Answer {
        shared.change(|state| {
            // A call that was held up across a reset must not touch what came after.
            if state.calls.is_forgotten(self.number) {
                return Answer::Drop;
            }
            let max_open_tunnels = state.meter.max_open_tunnels;
            let result = if !state.meter.admit(self.operation, Instant::now()) {
                Err(rate_exceeded(self.operation))
            } else {
                self.body.and_then(|body| state.service.perform(self.operation, &self.region, max_open_tunnels, &body))
            };
            let outcome = match (&fault, &result) {
                (Some(kind), _) => kind.name(),
                (None, Ok(_)) => "ok",
                (None, Err(error)) => error.name,
            };
            let opened = result.as_ref().ok().and_then(|answer| answer["tunnelId"].as_str());
            state.calls.decide(self.number, outcome, opened);
            Answer::Reply(result)
        })
    }

    fn fail(self, shared: &Shared, kind: FaultKind) -> Answer {
        let error = match kind {
            FaultKind::LimitExceeded => rate_exceeded(Operation::OpenTunnel),
            FaultKind::Throttling => ApiError::throttling(),
            FaultKind::AccessDenied => {
                ApiError::access_denied(format!("User is not authorized to perform: iot:{}", self.operation.name()))
            }
            FaultKind::InternalError => ApiError::internal_failure(),
            FaultKind::DropBefore | FaultKind::HangBefore => {
                shared.change(|state| state.calls.decide(self.number, kind.name(), None));
                return silent(kind);
            }
            FaultKind::DropAfter | FaultKind::HangAfter => {
                self.act(shared, Some(kind));
                return silent(kind);
            }
            FaultKind::Delay => return self.act(shared, None),
        };
        shared.change(|state| state.calls.decide(self.number, error.name, None));
        Answer::Reply(Err(error))
    }

    /// Fails after the fault's delay, in a task of its own: a client that gives up in
    /// the meantime does not keep the service from what it is about to do.
    async fn fail_late(self, shared: &Arc<Shared>, fault: Fault) -> Answer {
        let (sender, answer) = oneshot::channel();
        let later = Arc::clone(shared);
        shared.tasks.spawn(async move {
            sleep(Duration::from_millis(fault.delay_ms)).await;
            // The client may be gone.
            let _ = sender.send(self.fail(&later, fault.kind));
        });
        answer.await.unwrap_or(Answer::Drop)
    }
}

fn silent(kind: FaultKind) -> Answer {
    match kind {
        FaultKind::HangBefore | FaultKind::HangAfter => Answer::Hang,
        _ => Answer::Drop,
    }
}

fn rate_exceeded(operation: Operation) -> ApiError {
    match operation {
        Operation::OpenTunnel => ApiError::limit_exceeded("Rate exceeded"),
        _ => ApiError::throttling(),
    }
}

fn unknown(shared: &Shared, name: &str) -> ApiError {
    let error = ApiError::unknown_operation(format!("Unknown operation: {name}"));
    shared.change(|state| {
        let at = state.service.clock.now().timestamp();
        let call = state.calls.arrive(name, at, None);
        state.calls.decide(call, error.name, None);
    });
    error
}

fn parse(body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    serde_json::from_slice(body).map_err(|error| ApiError::serialization(format!("The body is not JSON: {error}")))
}

/// The tunnel that a request names, for the log: only what can be a tunnel's ID.
fn named_tunnel(body: &Value) -> Option<String> {
    let arn = || body["resourceArn"].as_str().map(tunnel_id_of_arn);
    let id = body["tunnelId"].as_str().or_else(arn)?;
    is_tunnel_id(id).then(|| id.to_owned())
}

/// The region of SigV4's credential scope:
/// `Credential=<key id>/<date>/<region>/<service>/aws4_request`.
fn signed_region(headers: &HeaderMap) -> Option<&str> {
    let authorization = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (_, credential) = authorization.split_once("Credential=")?;
    let region = credential.split('/').nth(2)?;
    let is_region = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (!region.is_empty() && region.chars().all(is_region)).then_some(region)
}
