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

/// How the message after another one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// In the same batch, if it likes.
    Joined,
    /// In a frame of its own: AWS's local proxy as the destination leaves what follows a start in its frame until another
    /// frame comes.
    Apart,
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
                    let next = self.look_at(message.slice(LENGTH..))?;
                    self.add(message);
                    if next == Next::Apart {
                        self.finish_batch();
                    }
                }
                None if frame.is_empty() => return Ok(()),
                // The length is known now.
                None => {}
            }
        }
        let mut end = 0;
        let mut result = Ok(());
        while let Some(length) = whole_message(&frame[end..]) {
            match self.look_at(frame.slice(end + LENGTH..end + length)) {
                Ok(Next::Joined) => end += length,
                Ok(Next::Apart) => {
                    self.add(frame.split_to(end + length));
                    self.finish_batch();
                    end = 0;
                }
                Err(violation) => {
                    result = Err(violation);
                    break;
                }
            }
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

    fn look_at(&mut self, message: Bytes) -> Result<Next, Violation> {
        // What may be left out by who does not know it is passed on.
        let Some(message) = Message::decode(message)? else { return Ok(Next::Joined) };
        if message.payload.len() > MAX_PAYLOAD {
            return Err(Violation::Payload);
        }
        match message.kind {
            MessageType::SessionReset => return Err(Violation::NotAClients("SESSION_RESET")),
            MessageType::ServiceIds => return Err(Violation::NotAClients("SERVICE_IDS")),
            _ if message.stream_id == 0 => return Err(Violation::StreamZero),
            MessageType::StreamStart if self.side == Side::Destination => return Err(Violation::StartByDestination),
            MessageType::StreamStart | MessageType::StreamReset => {}
            MessageType::ConnectionStart => return Ok(Next::Apart),
            _ => return Ok(Next::Joined),
        }
        let stream = Stream { service_id: message.service_id, id: message.stream_id };
        if message.kind == MessageType::StreamStart {
            self.changes.push(Change::Start(stream));
            Ok(Next::Apart)
        } else {
            self.changes.push(Change::Reset(stream));
            Ok(Next::Joined)
        }
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

#[cfg(test)]
mod tests {
    use opentunnel_proxy::codec;

    use super::*;

    fn message(kind: MessageType, stream_id: i32, payload: usize) -> Message {
        Message { stream_id, service_id: "SSH".to_owned(), payload: vec![1; payload].into(), ..Message::new(kind) }
    }

    fn stream() -> Bytes {
        let mut stream = BytesMut::new();
        for message in [
            message(MessageType::StreamStart, 1, 0),
            message(MessageType::Data, 1, 5),
            message(MessageType::Data, 1, MAX_PAYLOAD),
            message(MessageType::Data, 1, 300),
            message(MessageType::StreamReset, 1, 0),
        ] {
            codec::encode(&message, &mut stream).expect("it fits");
        }
        stream.freeze()
    }

    #[test]
    fn a_start_ends_its_frame() {
        for kind in [MessageType::StreamStart, MessageType::ConnectionStart] {
            let mut stream = BytesMut::new();
            for message in [message(MessageType::Data, 1, 3), message(kind, 1, 0), message(MessageType::Data, 1, 5)] {
                codec::encode(&message, &mut stream).expect("it fits");
            }
            // In one frame, and byte by byte.
            for frame in [stream.len(), 1] {
                let mut incoming = Incoming::new(Side::Source);
                stream.chunks(frame).for_each(|part| incoming.push(Bytes::copy_from_slice(part)).expect("messages"));
                incoming.finish_batch();
                let batches: Vec<_> = std::iter::from_fn(|| incoming.take_next()).collect();
                assert_eq!(batches.len(), 2, "{kind:?} {frame}");
                assert_eq!([&batches[0].bytes[..], &batches[1].bytes].concat(), stream);
                assert!(batches[0].bytes.len() > batches[1].bytes.len());
            }
        }
    }

    fn taken(incoming: &mut Incoming) -> (Vec<u8>, Vec<Change>) {
        incoming.finish_batch();
        let (mut bytes, mut changes) = (Vec::new(), Vec::new());
        while let Some(batch) = incoming.take_next() {
            bytes.extend_from_slice(&batch.bytes);
            changes.extend(batch.changes);
        }
        (bytes, changes)
    }

    #[test]
    fn every_cut_gives_the_same_bytes_and_changes_and_only_whole_messages() {
        let stream = stream();
        let mut ends = vec![0];
        while let Some(length) = whole_message(&stream[ends[ends.len() - 1]..]) {
            ends.push(ends[ends.len() - 1] + length);
        }
        let ssh = |id| Stream { service_id: "SSH".to_owned(), id };
        // All places near the ends of messages, and some of the others.
        let near = |at: &usize| ends.iter().any(|end| at.abs_diff(*end) < 8);
        for at in (0..=stream.len()).filter(|at| near(at) || at % 997 == 0) {
            let mut incoming = Incoming::new(Side::Source);
            incoming.push(stream.slice(..at)).expect("messages");
            let (mut bytes, mut changes) = taken(&mut incoming);
            assert!(ends.contains(&bytes.len()), "cut at {at}");
            incoming.push(stream.slice(at..)).expect("messages");
            let (more, more_changes) = taken(&mut incoming);
            bytes.extend(more);
            changes.extend(more_changes);
            assert!(bytes == stream, "cut at {at}");
            assert_eq!(changes, [Change::Start(ssh(1)), Change::Reset(ssh(1))]);
        }
    }

    #[test]
    fn byte_by_byte_is_the_same_and_holds_one_unfinished_message() {
        let stream = stream();
        let mut incoming = Incoming::new(Side::Source);
        let mut bytes = Vec::new();
        for at in 0..stream.len() {
            incoming.push(stream.slice(at..=at)).expect("messages");
            assert!(incoming.unfinished.len() <= LENGTH + usize::from(u16::MAX));
            bytes.extend(taken(&mut incoming).0);
        }
        assert!(bytes == stream && incoming.unfinished.is_empty());
    }

    #[test]
    fn what_comes_before_a_violation_is_there() {
        let good = stream();
        let mut incoming = Incoming::new(Side::Source);
        let bytes = [&good[..], &[0, 2, 8, 4, 0, 0]].concat();
        assert_eq!(incoming.push(bytes.into()), Err(Violation::NotAClients("SESSION_RESET")));
        assert!(taken(&mut incoming).0 == good);
    }

    #[test]
    fn long_messages_are_passed_on_without_a_copy_and_short_ones_in_batches() {
        let mut incoming = Incoming::new(Side::Source);
        let mut long = BytesMut::new();
        codec::encode(&message(MessageType::Data, 1, MAX_PAYLOAD), &mut long).expect("it fits");
        let long = long.freeze();
        incoming.push(long.clone()).expect("a message");
        let batch = incoming.take_next().expect("a batch");
        assert_eq!((batch.bytes.as_ptr(), batch.bytes.len()), (long.as_ptr(), long.len()));
        let mut short = BytesMut::new();
        codec::encode(&message(MessageType::Data, 1, 50), &mut short).expect("it fits");
        let short = short.freeze();
        for _ in 0..BATCH / short.len() {
            incoming.push(short.clone()).expect("a message");
        }
        assert!(incoming.next().is_none());
        incoming.push(short).expect("a message");
        assert!(incoming.take_next().is_some_and(|batch| batch.bytes.len() >= BATCH));
    }
}
