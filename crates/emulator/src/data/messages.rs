//! Whole messages out of what one side sends: a byte stream, whatever its frames. They are looked at and passed on as
//! they came, a batch at a time.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use opentunnel_proxy::message::{DecodeError, MAX_PAYLOAD, Message, MessageType};

use super::Side;
use super::link::{Change, Stream};

/// Messages of a frame this long are passed on as they are; of shorter ones several are copied into one batch.
const PASS_ON: usize = 16 << 10;
/// A batch of copied messages is passed on when it has this many bytes.
const BATCH: usize = 64 << 10;

/// Why a side's connection is ended. The rules are those of AWS's V3 protocol guide, "Tunneling message frames".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("a message's payload has more than {MAX_PAYLOAD} bytes")]
    Payload,
    #[error("a client must not send {0}")]
    NotAClients(&'static str),
    #[error("a destination must not send STREAM_START")]
    StartByDestination,
    #[error("a message of a stream has the stream ID 0")]
    StreamZero,
}

/// Whole messages, one after the other.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) bytes: Bytes,
    /// What they do to the streams, in their order.
    pub(crate) changes: Vec<Change>,
}

/// What came from one side.
#[derive(Debug)]
pub(crate) struct Incoming {
    side: Side,
    /// The beginning of a message.
    unfinished: BytesMut,
    /// Short messages that wait for more of them.
    short: BytesMut,
    changes: Vec<Change>,
    ready: VecDeque<Batch>,
}

impl Incoming {
    pub(crate) fn new(side: Side) -> Self {
        Self { side, unfinished: BytesMut::new(), short: BytesMut::new(), changes: Vec::new(), ready: VecDeque::new() }
    }

    /// The batch that goes next.
    pub(crate) fn next(&self) -> Option<&Batch> {
        self.ready.front()
    }

    pub(crate) fn take_next(&mut self) -> Option<Batch> {
        self.ready.pop_front()
    }

    /// Makes a batch of the short messages that wait. False: there are none.
    pub(crate) fn finish_batch(&mut self) -> bool {
        let waits = !self.short.is_empty();
        if waits {
            let bytes = self.short.split().freeze();
            self.ready.push_back(Batch { bytes, changes: std::mem::take(&mut self.changes) });
        }
        waits
    }

    /// More of the stream has come.
    ///
    /// # Errors
    /// What came is no message, or none that this side may send. What came before it is there to be taken.
    pub(crate) fn push(&mut self, mut frame: Bytes) -> Result<(), Violation> {
        while !self.unfinished.is_empty() {
            let whole = whole(&self.unfinished).unwrap_or(LENGTH);
            let missing = whole.saturating_sub(self.unfinished.len()).min(frame.len());
            self.unfinished.extend_from_slice(&frame.split_to(missing));
            match whole_message(&self.unfinished) {
                Some(_) => {
                    let message = self.unfinished.split().freeze();
                    self.look_at(message.slice(LENGTH..))?;
                    self.add(message);
                }
                None if frame.is_empty() => return Ok(()),
                // The length is known now.
                None => {}
            }
        }
        let mut end = 0;
        let mut result = Ok(());
        while let Some(length) = whole_message(&frame[end..]) {
            result = self.look_at(frame.slice(end + LENGTH..end + length));
            if result.is_err() {
                break;
            }
            end += length;
        }
        let messages = frame.split_to(end);
        self.add(messages);
        self.unfinished.extend_from_slice(&frame);
        result
    }

    fn add(&mut self, messages: Bytes) {
        if messages.len() >= PASS_ON {
            let changes = std::mem::take(&mut self.changes);
            // What the short ones do is in their order: they go first, and all changes with them.
            match self.finish_batch() {
                true => {
                    if let Some(short) = self.ready.back_mut() {
                        short.changes = changes;
                    }
                    self.ready.push_back(Batch { bytes: messages, changes: Vec::new() });
                }
                false => self.ready.push_back(Batch { bytes: messages, changes }),
            }
        } else {
            self.short.extend_from_slice(&messages);
            if self.short.len() >= BATCH {
                self.finish_batch();
            }
        }
    }

    fn look_at(&mut self, message: Bytes) -> Result<(), Violation> {
        // What may be left out by who does not know it is passed on.
        let Some(message) = Message::decode(message)? else { return Ok(()) };
        if message.payload.len() > MAX_PAYLOAD {
            return Err(Violation::Payload);
        }
        match message.kind {
            MessageType::SessionReset => return Err(Violation::NotAClients("SESSION_RESET")),
            MessageType::ServiceIds => return Err(Violation::NotAClients("SERVICE_IDS")),
            _ if message.stream_id == 0 => return Err(Violation::StreamZero),
            MessageType::StreamStart if self.side == Side::Destination => return Err(Violation::StartByDestination),
            MessageType::StreamStart | MessageType::StreamReset => {}
            _ => return Ok(()),
        }
        let stream = Stream { service_id: message.service_id, id: message.stream_id };
        self.changes.push(match message.kind {
            MessageType::StreamStart => Change::Start(stream),
            _ => Change::Reset(stream),
        });
        Ok(())
    }
}

/// Bytes of a message's length.
const LENGTH: usize = 2;

/// How long the message that begins here is with its length, if that is known.
fn whole(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk().map(|length| LENGTH + usize::from(u16::from_be_bytes(*length)))
}

/// The same, if all of it is here.
fn whole_message(bytes: &[u8]) -> Option<usize> {
    whole(bytes).filter(|whole| *whole <= bytes.len())
}
