//! A message of the protocol, and its bytes: protobuf (proto3), seven fields.
//!
//! It is framed by hand because almost all bytes that pass are one field: a payload is handed on as the part of the buffer
//! that it came in. A test compares every message with prost.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a payload at most, by AWS's protocol guide.
pub const MAX_PAYLOAD: usize = 63 * 1024;
/// Services of one tunnel that are taken at most. AWS's own quota is 3.
pub const MAX_SERVICES: usize = 128;
/// Bytes of a service's ID at most, by OpenTunnel's constraint.
pub const MAX_SERVICE_ID: usize = 128;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// Bytes of a connection.
    Data,
    /// The first connection of a service begins.
    StreamStart,
    /// A service's stream, with all its connections, has ended.
    StreamReset,
    /// All streams have ended.
    SessionReset,
    /// From the service, first: the IDs of the tunnel's services.
    ServiceIds,
    /// One more connection of a stream begins (V3).
    ConnectionStart,
    /// One connection of a stream has ended (V3).
    ConnectionReset,
}

impl MessageType {
    fn number(self) -> u64 {
        match self {
            Self::Data => 1,
            Self::StreamStart => 2,
            Self::StreamReset => 3,
            Self::SessionReset => 4,
            Self::ServiceIds => 5,
            Self::ConnectionStart => 6,
            Self::ConnectionReset => 7,
        }
    }

    fn of(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Data,
            2 => Self::StreamStart,
            3 => Self::StreamReset,
            4 => Self::SessionReset,
            5 => Self::ServiceIds,
            6 => Self::ConnectionStart,
            7 => Self::ConnectionReset,
            _ => return None,
        })
    }
}

/// A message.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub kind: MessageType,
    /// The stream. 0: none.
    pub stream_id: i32,
    /// Whoever does not know its type may leave it out.
    pub ignorable: bool,
    /// Of [`MessageType::Data`]. At most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
    /// The service (V2, V3). Empty: the one that there is (V1).
    pub service_id: String,
    /// Of [`MessageType::ServiceIds`]. At most [`MAX_SERVICES`].
    pub available_service_ids: Vec<String>,
    /// The connection of the stream, from 1 (V3). 0: there is one.
    pub connection_id: u32,
}

/// What passes through a tunnel is nobody's business: a payload is told by its length.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("kind", &self.kind)
            .field("stream_id", &self.stream_id)
            .field("connection_id", &self.connection_id)
            .field("service_id", &self.service_id)
            .field("available_service_ids", &self.available_service_ids)
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .finish()
    }
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends within a field.
    #[error("a message ends within a field")]
    Truncated,
    /// A number has more bits than it may have.
    #[error("a number in a message has too many bits")]
    Overflow,
    /// A field has another wire type than the protocol gives it, or one that proto3 does not have.
    #[error("field {field} of a message has wire type {wire_type}")]
    WireType {
        /// Its number.
        field: u32,
        /// As protobuf counts them.
        wire_type: u8,
    },
    /// A field has the number 0.
    #[error("a field of a message has the number 0")]
    FieldZero,
    /// A service's ID is not UTF-8, or longer than [`MAX_SERVICE_ID`].
    #[error("the ID of a service is not UTF-8, or has more than {MAX_SERVICE_ID} bytes")]
    ServiceId,
    /// There are more than [`MAX_SERVICES`] services.
    #[error("a message names more than {MAX_SERVICES} services")]
    TooManyServices,
    /// Its type is not known, and it must not be left out.
    #[error("a message has the type {0}, which this version does not know")]
    UnknownType(u64),
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

impl Message {
    /// A message without anything else.
    pub fn new(kind: MessageType) -> Self {
        Self {
            kind,
            stream_id: 0,
            ignorable: false,
            payload: Bytes::new(),
            service_id: String::new(),
            available_service_ids: Vec::new(),
            connection_id: 0,
        }
    }

    /// Reads a message. `None`: its type is not known, and it may be left out.
    ///
    /// # Errors
    /// The bytes are no message. Nothing that is longer than they are is allocated.
    pub fn decode(mut bytes: Bytes) -> Result<Option<Self>, DecodeError> {
        let mut message = Self::new(MessageType::Data);
        // proto3: what is left out is 0, which is UNKNOWN.
        let mut kind = 0;
        while bytes.has_remaining() {
            // A field's number has 29 bits.
            let key = u32::try_from(varint(&mut bytes)?).map_err(|_| DecodeError::Overflow)?;
            let (field, wire_type) = (key >> 3, (key & 7) as u8);
            match (field, wire_type) {
                (0, _) => return Err(DecodeError::FieldZero),
                (1, VARINT) => kind = varint(&mut bytes)?,
                // A negative int32 has ten bytes: what is above 32 bits is cut off, as protobuf says.
                (2, VARINT) => message.stream_id = varint(&mut bytes)? as i32,
                (3, VARINT) => message.ignorable = varint(&mut bytes)? != 0,
                (4, BYTES) => message.payload = delimited(&mut bytes)?,
                (5, BYTES) => message.service_id = service_id(&delimited(&mut bytes)?)?,
                (6, BYTES) => {
                    if message.available_service_ids.len() == MAX_SERVICES {
                        return Err(DecodeError::TooManyServices);
                    }
                    message.available_service_ids.push(service_id(&delimited(&mut bytes)?)?);
                }
                (7, VARINT) => message.connection_id = varint(&mut bytes)? as u32,
                (1..=7, _) => return Err(DecodeError::WireType { field, wire_type }),
                // A field of a later version.
                (_, VARINT) => drop(varint(&mut bytes)?),
                (_, FIXED64) => skip(&mut bytes, 8)?,
                (_, BYTES) => drop(delimited(&mut bytes)?),
                (_, FIXED32) => skip(&mut bytes, 4)?,
                (_, _) => return Err(DecodeError::WireType { field, wire_type }),
            }
        }
        match MessageType::of(kind) {
            Some(kind) => Ok(Some(Self { kind, ..message })),
            None if message.ignorable => Ok(None),
            None => Err(DecodeError::UnknownType(kind)),
        }
    }

    /// Writes the message without its payload, and the payload's key and length: the payload itself, which may be large,
    /// comes right behind.
    pub(crate) fn encode_head(&self, out: &mut BytesMut) {
        put_number(out, 1, self.kind.number());
        // An int32 is sign-extended.
        put_number(out, 2, i64::from(self.stream_id) as u64);
        put_number(out, 3, self.ignorable.into());
        if !self.service_id.is_empty() {
            put_bytes(out, 5, self.service_id.as_bytes());
        }
        for id in &self.available_service_ids {
            put_bytes(out, 6, id.as_bytes());
        }
        put_number(out, 7, self.connection_id.into());
        if !self.payload.is_empty() {
            put_varint(out, 4 << 3 | u64::from(BYTES));
            put_varint(out, self.payload.len() as u64);
        }
    }
}

fn varint(bytes: &mut Bytes) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        if !bytes.has_remaining() {
            return Err(DecodeError::Truncated);
        }
        let byte = bytes.get_u8();
        // The tenth byte has room for one bit.
        if shift == 63 && byte > 1 {
            return Err(DecodeError::Overflow);
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(DecodeError::Overflow)
}

fn delimited(bytes: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = usize::try_from(varint(bytes)?).map_err(|_| DecodeError::Truncated)?;
    if length > bytes.remaining() {
        return Err(DecodeError::Truncated);
    }
    Ok(bytes.split_to(length))
}

fn skip(bytes: &mut Bytes, length: usize) -> Result<(), DecodeError> {
    if length > bytes.remaining() {
        return Err(DecodeError::Truncated);
    }
    bytes.advance(length);
    Ok(())
}

fn service_id(bytes: &[u8]) -> Result<String, DecodeError> {
    if bytes.len() > MAX_SERVICE_ID {
        return Err(DecodeError::ServiceId);
    }
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::ServiceId)
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn put_number(out: &mut BytesMut, field: u64, value: u64) {
    // proto3 leaves out what is 0.
    if value != 0 {
        put_varint(out, field << 3 | u64::from(VARINT));
        put_varint(out, value);
    }
}

fn put_bytes(out: &mut BytesMut, field: u64, value: &[u8]) {
    put_varint(out, field << 3 | u64::from(BYTES));
    put_varint(out, value.len() as u64);
    out.put_slice(value);
}
