//! The control API under `/_emulator`: what no AWS has.

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::{DataFault, Side, faults};
use crate::faults::{Fault, FaultKind};
use crate::quotas::{Meter, Quotas};
use crate::shared::{Shared, State};
use crate::tunnel::{ConnectionStatus, Tunnel, TunnelInfo};

/// Why something that was asked of the emulator itself was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No tunnel of that ID is visible.
    #[error("there is no tunnel {0}")]
    NoSuchTunnel(String),
    /// A closed tunnel has no connections.
    #[error("tunnel {0} is CLOSED")]
    TunnelClosed(String),
    /// The request's body is not what the call takes.
    #[error("{0}")]
    BadRequest(String),
    /// No such path.
    #[error("{0} is no path of the control API")]
    NoSuchPath(String),
    /// The path takes another method.
    #[error("this path takes {0}")]
    WrongMethod(&'static str),
}

impl ControlError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchTunnel(_) | Self::NoSuchPath(_) => StatusCode::NOT_FOUND,
            Self::TunnelClosed(_) => StatusCode::CONFLICT,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// New connection states of a tunnel's sides; `None` leaves a side as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connections {
    /// The source side's.
    #[serde(default)]
    pub source: Option<ConnectionStatus>,
    /// The destination side's.
    #[serde(default)]
    pub destination: Option<ConnectionStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Advance {
    advance_seconds: f64,
}

/// The farthest that one request advances the clock: 100 years.
const MAX_ADVANCE_SECONDS: f64 = 100.0 * 365.0 * 86_400.0;

/// Answers one request of the control API; `path` is what follows `/_emulator`.
pub(crate) fn answer(shared: &Shared, method: &Method, path: &str, body: &[u8]) -> Result<Value, ControlError> {
    match path {
        "/calls" => {
            takes(method, Method::GET, "GET")?;
            Ok(shared.look(|state| json!(state.calls.all())))
        }
        "/tunnels" => {
            takes(method, Method::GET, "GET")?;
            Ok(json!(shared.look(tunnels)))
        }
        "/quotas" => {
            takes(method, Method::PUT, "PUT")?;
            let quotas: Quotas = read(body)?;
            if let Some((operation, rate)) = quotas.rates.iter().find(|(_, rate)| **rate < 0.0) {
                let name = operation.name();
                let message = format!("{name}: {rate} calls per second: must not be negative");
                return Err(ControlError::BadRequest(message));
            }
            set_quotas(shared, &quotas);
            Ok(json!({}))
        }
        "/faults" => {
            takes(method, Method::PUT, "PUT")?;
            let faults: Vec<Fault> = read(body)?;
            if faults.iter().any(|fault| fault.kind == FaultKind::Delay && fault.delay_ms == 0) {
                let message = "a fault of kind Delay needs delayMs (milliseconds, above 0)";
                return Err(ControlError::BadRequest(message.to_owned()));
            }
            set_faults(shared, faults);
            Ok(json!({}))
        }
        "/data-faults" => {
            takes(method, Method::PUT, "PUT")?;
            let faults: Vec<DataFault> = read(body)?;
            faults.iter().try_for_each(DataFault::check).map_err(ControlError::BadRequest)?;
            set_data_faults(shared, faults);
            Ok(json!({}))
        }
        "/clock" => {
            takes(method, Method::POST, "POST")?;
            let Advance { advance_seconds } = read(body)?;
            if !(0.0..=MAX_ADVANCE_SECONDS).contains(&advance_seconds) {
                let message = format!("advanceSeconds must be 0 to {MAX_ADVANCE_SECONDS}");
                return Err(ControlError::BadRequest(message));
            }
            advance_clock(shared, Duration::from_secs_f64(advance_seconds));
            Ok(json!({}))
        }
        "/reset" => {
            takes(method, Method::POST, "POST")?;
            shared.reset();
            Ok(json!({}))
        }
        _ => {
            let thing = path.strip_prefix("/things/").and_then(|rest| rest.strip_suffix("/notifications"));
            if let Some(thing) = thing {
                takes(method, Method::GET, "GET")?;
                return Ok(shared.look(|state| json!(state.service.notifications.of(thing))));
            }
            let id = path.strip_prefix("/tunnels/").and_then(|rest| rest.strip_suffix("/connections"));
            let id = id.ok_or_else(|| ControlError::NoSuchPath(format!("/_emulator{path}")))?;
            takes(method, Method::POST, "POST")?;
            set_connections(shared, id, read(body)?)?;
            Ok(json!({}))
        }
    }
}

fn takes(method: &Method, wanted: Method, name: &'static str) -> Result<(), ControlError> {
    if *method == wanted { Ok(()) } else { Err(ControlError::WrongMethod(name)) }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(body).map_err(|error| ControlError::BadRequest(error.to_string()))
}

/// All visible tunnels, newest first.
pub(crate) fn tunnels(state: &mut State) -> Vec<TunnelInfo> {
    let now = state.service.clock.now();
    state.service.store.newest_first(u64::MAX, now).map(|(_, tunnel)| tunnel.info(now)).collect()
}

pub(crate) fn set_quotas(shared: &Shared, quotas: &Quotas) {
    shared.change(|state| state.meter = Meter::new(quotas, Instant::now()));
}

pub(crate) fn set_faults(shared: &Shared, faults: Vec<Fault>) {
    shared.change(|state| state.faults = faults);
}

/// Replaces the faults of the data plane, also of who is connected.
pub(crate) fn set_data_faults(shared: &Shared, faults: Vec<DataFault>) {
    shared.change(|state| {
        state.data_faults = faults;
        for tunnel in state.service.store.all_mut() {
            for side in [Side::Source, Side::Destination] {
                tunnel.link.set_fault(side, || faults::take_of_connection(&mut state.data_faults, side));
            }
        }
    });
}

pub(crate) fn advance_clock(shared: &Shared, by: Duration) {
    shared.change(|state| {
        state.service.clock.advance(by);
        state.service.end_expired();
    });
    shared.expiries.notify_one();
}

pub(crate) fn set_connections(shared: &Shared, tunnel_id: &str, connections: Connections) -> Result<(), ControlError> {
    with_tunnel(shared, tunnel_id, |tunnel, now| {
        if !tunnel.is_open(now) {
            return Err(ControlError::TunnelClosed(tunnel_id.to_owned()));
        }
        tunnel.connect(connections.source, connections.destination, now);
        Ok(())
    })?
}

/// What DescribeTunnel tells about a visible tunnel's connections.
pub(crate) fn connections(state: &mut State, tunnel_id: &str) -> Option<Connections> {
    let now = state.service.clock.now();
    let tunnel = state.service.store.get_mut(tunnel_id, now)?;
    let status = |side| Some(tunnel.status_of(side, now));
    Some(Connections { source: status(Side::Source), destination: status(Side::Destination) })
}

/// Does something to a visible tunnel.
pub(crate) fn with_tunnel<T>(
    shared: &Shared,
    tunnel_id: &str,
    act: impl FnOnce(&mut Tunnel, crate::clock::Millis) -> T,
) -> Result<T, ControlError> {
    shared.change(|state| {
        let now = state.service.clock.now();
        let tunnel = state.service.store.get_mut(tunnel_id, now);
        let tunnel = tunnel.ok_or_else(|| ControlError::NoSuchTunnel(tunnel_id.to_owned()))?;
        Ok(act(tunnel, now))
    })
}
