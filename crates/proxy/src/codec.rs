//! Messages in a stream of bytes: each behind its length, 16 bits, big-endian. The stream is cut into WebSocket frames
//! anywhere, so a message may come in pieces, or many in one.

use crate::message::{DecodeError, MAX_PAYLOAD, Message};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a message at most: what its length can say.
pub const MAX_MESSAGE: usize = u16::MAX as usize;

/// Takes messages out of a stream of bytes. It holds one unfinished message at most, besides what was given to it and
/// not yet taken. A message that comes whole in one piece is not copied: it is a part of that piece.
#[derive(Default)]
pub struct Decoder {
    /// A message that comes in several pieces.
    partial: BytesMut,
    /// What has come behind it.
    rest: Bytes,
}

impl Decoder {
    /// More of the stream has come.
    pub fn push(&mut self, bytes: Bytes) {
        self.partial.extend_from_slice(&self.rest);
        self.rest = bytes;
    }

    /// The next whole message. `None`: more bytes are needed. A message that may be left out, of an unknown type, is.
    ///
    /// # Errors
    /// What comes is no message: the stream is of no use any more.
    pub fn next_message(&mut self) -> Result<Option<Message>, DecodeError> {
        while let Some(mut bytes) = self.next_bytes() {
            bytes.advance(2);
            if let Some(message) = Message::decode(bytes)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// The bytes of the next whole message, its length included.
    fn next_bytes(&mut self) -> Option<Bytes> {
        if self.partial.is_empty() {
            match whole(&self.rest) {
                Some(whole) if whole <= self.rest.len() => return Some(self.rest.split_to(whole)),
                Some(whole) => self.partial.reserve(whole),
                None => {}
            }
        }
        while whole(&self.partial).is_none() && self.rest.has_remaining() {
            self.partial.put_u8(self.rest.get_u8());
        }
        let whole = whole(&self.partial)?;
        let missing = whole.saturating_sub(self.partial.len());
        self.partial.reserve(missing);
        self.partial.extend_from_slice(&self.rest.split_to(missing.min(self.rest.len())));
        match self.partial.len() {
            // Taken with its buffer, which would be kept as long as the message anyway.
            length if length == whole => Some(std::mem::take(&mut self.partial).freeze()),
            length if length > whole => Some(self.partial.split_to(whole).freeze()),
            _ => None,
        }
    }

    /// Bytes that were given to it and not yet taken.
    pub fn buffered(&self) -> usize {
        self.partial.len() + self.rest.len()
    }
}

/// The length of the message that begins here, with its length's own bytes. `None`: more are needed to know.
fn whole(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk().map(|length| 2 + usize::from(u16::from_be_bytes(*length)))
}

/// Writes a message behind its length.
///
/// # Errors
/// The payload has more than [`MAX_PAYLOAD`] bytes, or the services' IDs are too long for one message: nothing is written.
pub fn encode(message: &Message, out: &mut BytesMut) -> Result<(), TooLong> {
    if message.payload.len() > MAX_PAYLOAD {
        return Err(TooLong);
    }
    let begin = out.len();
    out.put_u16(0);
    message.encode_head(out);
    out.extend_from_slice(&message.payload);
    let Ok(length) = u16::try_from(out.len() - begin - 2) else {
        out.truncate(begin);
        return Err(TooLong);
    };
    out[begin..begin + 2].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// A message is too long for the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message is longer than the protocol allows")]
pub struct TooLong;

/// A payload in pieces that fit into messages.
pub fn pieces(mut payload: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!payload.is_empty()).then(|| payload.split_to(payload.len().min(MAX_PAYLOAD))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MAX_SERVICE_ID, MAX_SERVICES, MessageType};
    use proptest::prelude::*;
    use prost::Message as _;

    /// The same by another's code.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Theirs {
        #[prost(int32, tag = "1")]
        kind: i32,
        #[prost(int32, tag = "2")]
        stream_id: i32,
        #[prost(bool, tag = "3")]
        ignorable: bool,
        #[prost(bytes = "vec", tag = "4")]
        payload: Vec<u8>,
        #[prost(string, tag = "5")]
        service_id: String,
        #[prost(string, repeated, tag = "6")]
        available_service_ids: Vec<String>,
        #[prost(uint32, tag = "7")]
        connection_id: u32,
    }

    const KINDS: [MessageType; 7] = [
        MessageType::Data,
        MessageType::StreamStart,
        MessageType::StreamReset,
        MessageType::SessionReset,
        MessageType::ServiceIds,
        MessageType::ConnectionStart,
        MessageType::ConnectionReset,
    ];

    fn theirs(message: &Message) -> Theirs {
        Theirs {
            kind: KINDS.iter().position(|kind| *kind == message.kind).expect("one of them") as i32 + 1,
            stream_id: message.stream_id,
            ignorable: message.ignorable,
            payload: message.payload.to_vec(),
            service_id: message.service_id.clone(),
            available_service_ids: message.available_service_ids.clone(),
            connection_id: message.connection_id,
        }
    }

    fn message() -> impl Strategy<Value = Message> {
        let payload = prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..40),
            1 => Just(vec![7; MAX_PAYLOAD]),
        ];
        let ids = prop::collection::vec("[a-zA-Z0-9:_-]{1,20}", 0..5);
        let numbers = (any::<i32>(), any::<bool>(), any::<u32>());
        (prop::sample::select(&KINDS[..]), numbers, payload, "[a-zA-Z0-9:_-]{0,128}", ids).prop_map(
            |(kind, (stream_id, ignorable, connection_id), payload, service_id, available_service_ids)| Message {
                kind,
                stream_id,
                ignorable,
                payload: payload.into(),
                service_id,
                available_service_ids,
                connection_id,
            },
        )
    }

    fn encoded(message: &Message) -> BytesMut {
        let mut out = BytesMut::new();
        encode(message, &mut out).expect("it fits");
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_prost_reads_and_the_other_way_round(message in message()) {
            let ours = encoded(&message);
            prop_assert_eq!(Theirs::decode(&ours[2..]).expect("protobuf"), theirs(&message));
            let bytes = Bytes::from(theirs(&message).encode_to_vec());
            prop_assert_eq!(Message::decode(bytes), Ok(Some(message)));
        }

        #[test]
        fn messages_come_whole_however_the_stream_is_cut(
            messages in prop::collection::vec(message(), 1..6),
            cuts in prop::collection::vec(1usize..5000, 1..40),
        ) {
            let mut stream = BytesMut::new();
            messages.iter().for_each(|message| encode(message, &mut stream).expect("it fits"));
            let (mut decoder, mut read, mut cuts) = (Decoder::default(), Vec::new(), cuts.into_iter().cycle());
            while !stream.is_empty() {
                let cut = cuts.next().expect("it goes on").min(stream.len());
                decoder.push(stream.split_to(cut).freeze());
                while let Some(message) = decoder.next_message().expect("messages") {
                    read.push(message);
                }
                prop_assert!(decoder.buffered() < 2 + MAX_MESSAGE);
            }
            prop_assert_eq!(read, messages);
            prop_assert_eq!(decoder.buffered(), 0);
        }

        #[test]
        fn any_bytes_are_a_message_or_a_named_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let ours = Message::decode(bytes.clone().into());
            // What is a message for us is one for others.
            if let Ok(Some(message)) = ours {
                let read = Theirs::decode(&bytes[..]).expect("protobuf");
                prop_assert_eq!(read, theirs(&message));
            }
            let mut decoder = Decoder::default();
            decoder.push(bytes.into());
            while let Ok(Some(_)) = decoder.next_message() {}
        }

        #[test]
        fn a_message_that_is_cut_is_an_error_or_a_shorter_one(message in message(), at in any::<prop::sample::Index>()) {
            let whole = encoded(&message).split_off(2).freeze();
            let _ = Message::decode(whole.slice(..at.index(whole.len() + 1)));
        }
    }

    #[test]
    fn a_message_that_comes_whole_is_not_copied() {
        let mut stream = BytesMut::new();
        let payload = Bytes::from(vec![7; 1000]);
        let message = Message { payload, ..Message::new(MessageType::Data) };
        (0..3).for_each(|_| encode(&message, &mut stream).expect("it fits"));
        let stream = stream.freeze();
        let mut decoder = Decoder::default();
        decoder.push(stream.slice(..1500));
        let inside = |bytes: &Bytes| stream.as_ptr_range().contains(&bytes.as_ptr());
        assert!(inside(&decoder.next_message().expect("a message").expect("whole").payload));
        assert_eq!(decoder.next_message(), Ok(None));
        // More than once before any is taken.
        decoder.push(stream.slice(1500..1600));
        decoder.push(stream.slice(1600..));
        assert!(!inside(&decoder.next_message().expect("a message").expect("whole").payload));
        assert!(inside(&decoder.next_message().expect("a message").expect("whole").payload));
        assert_eq!((decoder.next_message(), decoder.buffered()), (Ok(None), 0));
    }

    #[test]
    fn what_is_too_long_is_not_written() {
        let mut out = BytesMut::from(&b"before"[..]);
        let payload = Bytes::from(vec![0; MAX_PAYLOAD + 1]);
        assert_eq!(
            encode(&Message { payload: payload.clone(), ..Message::new(MessageType::Data) }, &mut out),
            Err(TooLong)
        );
        let available_service_ids = vec!["a".repeat(1000); 70];
        let ids = Message { available_service_ids, ..Message::new(MessageType::ServiceIds) };
        assert_eq!(encode(&ids, &mut out), Err(TooLong));
        assert_eq!(out, &b"before"[..]);
        assert_eq!(pieces(payload).map(|piece| piece.len()).collect::<Vec<_>>(), [MAX_PAYLOAD, 1]);
    }

    #[test]
    fn what_the_protocol_does_not_know_is_left_out_or_named() {
        let unknown = |ignorable| Theirs { kind: 9, ignorable, ..Theirs::default() }.encode_to_vec();
        assert_eq!(Message::decode(unknown(true).into()), Ok(None));
        assert_eq!(Message::decode(unknown(false).into()), Err(DecodeError::UnknownType(9)));
        assert_eq!(Message::decode(Bytes::new()), Err(DecodeError::UnknownType(0)));
        let many = Theirs { kind: 5, available_service_ids: vec!["a".into(); MAX_SERVICES + 1], ..Theirs::default() };
        assert_eq!(Message::decode(many.encode_to_vec().into()), Err(DecodeError::TooManyServices));
        let long = Theirs { kind: 2, service_id: "a".repeat(MAX_SERVICE_ID + 1), ..Theirs::default() };
        assert_eq!(Message::decode(long.encode_to_vec().into()), Err(DecodeError::ServiceId));
        for (bytes, error) in [
            (&[0x08][..], DecodeError::Truncated),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], DecodeError::Overflow),
            (&[0x0a, 0x00], DecodeError::WireType { field: 1, wire_type: 2 }),
            (&[0x7b], DecodeError::WireType { field: 15, wire_type: 3 }),
            (&[0x00, 0x00], DecodeError::FieldZero),
            (&[0x22, 0x05, 0x00], DecodeError::Truncated),
            (&[0x79, 0x00], DecodeError::Truncated),
            (&[0x2a, 0x01, 0xff], DecodeError::ServiceId),
        ] {
            assert_eq!(Message::decode(Bytes::from_static(bytes)), Err(error), "{bytes:?}");
        }
        // Fields of a later version are passed over.
        let later =
            [&[0x08, 0x03, 0x78, 0x05, 0x7a, 0x01, 0x00, 0x7d, 0, 0, 0, 0, 0x79, 0, 0, 0, 0, 0, 0, 0, 0][..]].concat();
        assert_eq!(Message::decode(later.into()), Ok(Some(Message::new(MessageType::StreamReset))));
    }

    #[test]
    fn what_passes_is_in_no_text() {
        let message = Message { payload: Bytes::from_static(b"s3cret"), ..Message::new(MessageType::Data) };
        assert!(!format!("{message:?}").contains("s3cret"));
    }
}
