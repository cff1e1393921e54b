//! Why a session cannot go on.

use crate::message::{DecodeError, MessageType};

/// Why a session cannot go on. Its WebSocket is closed, and another one may be tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// What comes is no message.
    #[error("the service sent bytes that are no message of the protocol: {0}")]
    Decode(#[from] DecodeError),
    /// The tunnel has other services than are mapped here. It is the same at the next try.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// A stream began before the services were known.
    #[error("the service sent a {0:?} before the tunnel's service IDs")]
    BeforeServices(MessageType),
    /// A stream began at a source, where none can.
    #[error("a stream was started towards the source: is its peer a source too?")]
    StartedAtSource,
    /// A stream, or a connection of one, began without the stream's ID.
    #[error("the service sent a {0:?} without a stream's ID")]
    NoStreamId(MessageType),
}

/// The services of the tunnel do not go with those that are mapped here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServicesError {
    /// They must be the same, and are not.
    #[error("the tunnel has {}, not {}: give each its address, its ID written just so", list(.tunnel), list(.mapped))]
    Differ {
        /// Those that are mapped here.
        mapped: Vec<String>,
        /// The tunnel's.
        tunnel: Vec<String>,
    },
    /// None of the tunnel's services is mapped here.
    #[error("the tunnel has {}: no address is known for any of them", list(.tunnel))]
    NoneMapped {
        /// The tunnel's.
        tunnel: Vec<String>,
    },
    /// One address was given without a service's ID, and the tunnel has several services.
    #[error("the tunnel has {}: give each its address, as in SERVICE=ADDRESS", list(.tunnel))]
    Several {
        /// The tunnel's.
        tunnel: Vec<String>,
    },
    /// The service has changed the tunnel's services within one session.
    #[error("the tunnel's services have changed: it has {}", list(.tunnel))]
    Changed {
        /// The tunnel's.
        tunnel: Vec<String>,
    },
}

fn list(ids: &[String]) -> String {
    match ids {
        [] => "one service without an ID".into(),
        [id] => format!("the service {id}"),
        ids => format!("the services {}", ids.join(", ")),
    }
}
