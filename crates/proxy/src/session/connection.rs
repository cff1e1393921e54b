//! One connection of a session: what it has to send, what was received for it, and how far each side has got.

use super::{End, ServiceIndex};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::Instant;

/// What a connection's local side may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Local {
    /// Send and receive.
    Open,
    /// Receive.
    Finished,
    /// Nothing.
    Gone,
}

/// Whether a connection may take bytes from its local side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// It was not asked for.
    None,
    /// Its own queue is full.
    Blocked,
    /// All queues together are full: it is in the session's list.
    Waiting,
    /// Room for one payload is set aside.
    Granted,
}

pub(super) struct Connection {
    pub service: ServiceIndex,
    /// 0 in V1 and V2.
    pub connection_id: u32,
    /// At most [`super::Bounds::send_connection`], and a payload.
    pub queue: Pieces,
    pub permit: Permit,
    /// It is in the session's list of those that have something to send.
    pub scheduled: bool,
    pub local: Local,
    /// At most [`super::Bounds::receive_connection`], and a payload.
    pub received: Pieces,
    /// [`super::Event::Readable`] was sent, and not all was taken.
    pub signalled: bool,
    /// Its received bytes reached their bound, and are not at half of it yet.
    pub full: bool,
    pub ended: Option<End>,
    /// The peer knows it no longer: nothing is sent for it.
    pub detached: bool,
    pub still_since: Option<Instant>,
    pub quiet_since: Option<Instant>,
}

impl Connection {
    pub fn new(service: ServiceIndex, connection_id: u32) -> Self {
        Self {
            service,
            connection_id,
            queue: Pieces::default(),
            permit: Permit::None,
            scheduled: false,
            local: Local::Open,
            received: Pieces::default(),
            signalled: false,
            full: false,
            ended: None,
            detached: false,
            still_since: None,
            quiet_since: None,
        }
    }
}

/// Bytes in the pieces that they came in, except that small ones are joined: each piece keeps the whole buffer alive that
/// it is a part of, so many small ones would hold far more memory than they have bytes.
#[derive(Default)]
pub(super) struct Pieces {
    /// Each has at least [`SMALL`] bytes, or was joined.
    pieces: VecDeque<Bytes>,
    /// Behind `pieces`. At most [`JOINED`] bytes and [`SMALL`].
    tail: BytesMut,
    length: usize,
}

/// A piece with fewer bytes is copied: a buffer has up to 128 KiB, so a piece keeps at most eight times its size alive.
const SMALL: usize = 16 << 10;
/// Small pieces are joined up to this size.
const JOINED: usize = 32 << 10;

impl Pieces {
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        if bytes.len() < SMALL {
            self.tail.extend_from_slice(&bytes);
        }
        if bytes.len() >= SMALL || self.tail.len() >= JOINED {
            self.close_tail();
        }
        if bytes.len() >= SMALL {
            self.pieces.push_back(bytes);
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            // Taken whole: what an idle connection has sent or received keeps no buffer.
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    pub fn pop(&mut self) -> Option<Bytes> {
        if self.pieces.is_empty() {
            self.close_tail();
        }
        let bytes = self.pieces.pop_front()?;
        self.length -= bytes.len();
        if self.length == 0 {
            self.pieces = VecDeque::new();
        }
        Some(bytes)
    }

    /// Bytes of the next piece.
    pub fn next_len(&self) -> usize {
        self.pieces.front().map_or(self.tail.len(), Bytes::len)
    }

    /// The next bytes, as many as there are up to `most`.
    pub fn pop_up_to(&mut self, most: usize) -> Option<Bytes> {
        let mut bytes = self.pop()?;
        if bytes.len() > most {
            let rest = bytes.split_off(most);
            self.length += rest.len();
            self.pieces.push_front(rest);
        }
        Some(bytes)
    }

    /// How many bytes are dropped.
    pub fn clear(&mut self) -> usize {
        std::mem::take(self).length
    }
}
