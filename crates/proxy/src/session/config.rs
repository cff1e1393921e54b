//! What a session is told at its beginning, and how much it holds.

use crate::message::MAX_PAYLOAD;
use std::time::Duration;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// One service, whose ID is not sent; one connection at a time.
    V1,
    /// Several services; one connection at a time for each.
    V2,
    /// Several services; several connections for each.
    V3,
}

/// How much a session holds at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Local bytes of one connection that are not sent yet. One more message's payload may come on top.
    pub send_connection: usize,
    /// Local bytes of all connections that are not sent yet. At least [`MAX_PAYLOAD`].
    pub send_total: usize,
    /// Bytes that were received for one connection and not taken yet. One more message's payload may come on top.
    pub receive_connection: usize,
    /// Bytes that were received for all connections and not taken yet. One more message's payload may come on top.
    pub receive_total: usize,
    /// Connections. One more is refused.
    pub connections: usize,
    /// Messages without a payload that wait to be sent, above which nothing is received and no connection is opened.
    pub control: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            send_connection: 2 * MAX_PAYLOAD,
            send_total: 8 << 20,
            receive_connection: 1 << 20,
            receive_total: 32 << 20,
            connections: 1 << 16,
            control: 1024,
        }
    }
}

/// The services that are mapped to addresses here, by what they must have to do with those of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// The tunnel's only one, whatever its ID, and if it has none.
    Only,
    /// These are the tunnel's, written just so.
    Exactly(Vec<String>),
    /// Those of these that the tunnel has; to a source all that it has, because it can listen anywhere.
    Among(Vec<String>),
}

/// What a session is told at its beginning.
#[derive(Clone, Debug)]
pub struct Config {
    /// The services that are mapped to addresses here.
    pub services: Mapped,
    /// The version that a source's peer speaks. `None`: V3, until its answers show another one. A destination follows
    /// what comes.
    pub peer: Option<Version>,
    /// A source's next stream has this ID, from 1. A session that follows another one goes on where that was
    /// ([`next_stream_id`](super::Session::next_stream_id)), so that data of an old stream is not taken for a new one's.
    pub first_stream_id: i32,
    /// How long nothing is received for a connection of a source, whose client has closed its side, before it ends.
    pub half_close: Duration,
    /// How long the local side of a connection takes nothing, while its full buffer holds up others, before it is given up.
    pub stall: Duration,
    /// How much it holds.
    pub bounds: Bounds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            services: Mapped::Only,
            peer: None,
            first_stream_id: 1,
            half_close: Duration::from_secs(5),
            stall: Duration::from_secs(30),
            bounds: Bounds::default(),
        }
    }
}
