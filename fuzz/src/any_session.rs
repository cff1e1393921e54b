//! libFuzzer's any bytes as what happens to one end of a tunnel: the first byte says which end and what it was told, the
//! others are bytes and messages of the service, cut anywhere, and what the local side does meanwhile. No panic, nothing
//! beyond the bounds, a named error or the right continuation.

#![no_main]

use bytes::{Bytes, BytesMut};
use opentunnel_proxy::Side;
use opentunnel_proxy::codec::{self, Decoder};
use opentunnel_proxy::message::{MAX_PAYLOAD, Message, MessageType};
use opentunnel_proxy::session::{
    Bounds, Config, ConnectionKey, Event, MAX_FRAME, Mapped, RequestAnswer, ServiceIndex, Session, SessionError, Taken,
    Version,
};
use peak_alloc::PeakAlloc;
use std::time::{Duration, Instant};

/// What a session says that it holds may be wrong. What it has allocated is not.
#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes of memory that one session, a frame that comes and one that goes may have. Buffers grow by doubling.
const MEMORY: usize = 768 << 10;

/// So that each is the first to be reached for somebody.
const BOUNDS: Bounds = Bounds {
    send_connection: 2 * MAX_PAYLOAD,
    send_total: 4 * MAX_PAYLOAD,
    receive_connection: 70_000,
    receive_total: 80_000,
    connections: 6,
    control: 6,
};

const SERVICES: [&str; 4] = ["", "SSH", "WEB", "VNC"];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let before = ALLOCATOR.current_usage();
    let mut input = Input(bytes);
    if let Some(first) = input.next() {
        let mut end = End::new(first, before);
        while end.step(&mut input).is_some() {}
        end.finish();
    }
    assert_eq!(ALLOCATOR.current_usage(), before, "all memory is given back");
});

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Mostly short, and up to what a message can have.
    fn length(&mut self) -> Option<usize> {
        self.next().map(|byte| match byte {
            0..200 => byte.into(),
            200..255 => usize::from(byte - 199) * 1000,
            255 => MAX_PAYLOAD,
        })
    }
}

struct End {
    session: Session,
    side: Side,
    keys: Vec<ConnectionKey>,
    /// What the service has sent, and a frame was cut before.
    cut: Vec<u8>,
    /// The same bytes as the session has.
    decoder: Decoder,
    /// What must end it has come.
    is_wrong: bool,
    error: Option<SessionError>,
    services_known: bool,
    now: Instant,
    memory_before: usize,
}

impl End {
    fn new(first: u8, memory_before: usize) -> Self {
        let side = if first & 1 == 0 { Side::Source } else { Side::Destination };
        let peer = [None, Some(Version::V1), Some(Version::V2), Some(Version::V3)][usize::from(first >> 1 & 3)];
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let services = match first >> 3 & 3 {
            0 => Mapped::Exactly(ids(&["SSH"])),
            1 => Mapped::Exactly(ids(&["SSH", "WEB"])),
            2 => Mapped::Only,
            _ => Mapped::Among(ids(&["SSH", "VNC"])),
        };
        let first_stream_id = if first >> 5 & 1 == 0 { 1 } else { i32::MAX };
        let config = Config { services, peer, first_stream_id, bounds: BOUNDS, ..Config::default() };
        Self {
            session: Session::new(side, config),
            side,
            keys: Vec::new(),
            cut: Vec::new(),
            decoder: Decoder::default(),
            is_wrong: false,
            error: None,
            services_known: false,
            now: Instant::now(),
            memory_before,
        }
    }

    /// The next thing that happens. `None`: there is no more.
    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        let act = input.next()?;
        // Of what the local side does: to which connection.
        let key = match act & 15 {
            5..13 => {
                let nth = usize::from(act >> 4);
                // Of the last sixteen.
                self.keys.iter().rev().nth(nth % self.keys.len().clamp(1, 16)).copied()
            }
            _ => None,
        };
        match (act & 15, key) {
            (0..3, _) => {
                let message = encoded(input)?;
                self.receive(&message, (act >> 4).into());
            }
            (3, _) => {
                let length = input.next()?;
                self.receive(input.take(length.into()), (act >> 4).into());
            }
            (4, _) => self.keys.extend(self.session.open(ServiceIndex((act >> 4 & 3).into()))),
            (5 | 6, Some(key)) => self.send(key, input.length()?),
            (7, Some(key)) => self.session.finish(key),
            (8, Some(key)) => self.session.close(key),
            (9, Some(key)) => self.session.abort(key),
            (10, Some(key)) => drop(self.session.take(key)),
            (11, Some(key)) => while matches!(self.session.take(key), Taken::Data(_)) {},
            (12, Some(key)) => drop(self.session.is_given_up(key)),
            (13, _) => drop(self.transmit()),
            (14, _) => {
                self.now += Duration::from_millis(500) * u32::from(act >> 4);
                self.session.tick(self.now);
            }
            (15, _) if act >> 4 == 15 => self.session.abort_all(),
            _ => {}
        }
        self.events();
        self.check();
        Some(())
    }

    /// Whoever drives it reads nothing while it is paused. The last bytes come with the next ones.
    fn receive(&mut self, bytes: &[u8], later: usize) {
        if self.session.is_paused() {
            return;
        }
        self.cut.extend_from_slice(bytes);
        let rest = self.cut.split_off(self.cut.len().saturating_sub(later));
        let frame = std::mem::replace(&mut self.cut, rest);
        assert!(frame.len() <= MAX_FRAME);
        let frame = Bytes::from(frame);
        if !self.is_wrong {
            self.decoder.push(frame.clone());
        }
        while !self.is_wrong
            && let Some(message) = self.decoder.next_message().transpose()
        {
            let may_start = self.side == Side::Destination;
            let is_right = message.is_ok_and(|message| may_start || message.kind != MessageType::StreamStart);
            self.is_wrong = !is_right;
        }
        self.session.receive(frame);
    }

    fn send(&mut self, key: ConnectionKey, length: usize) {
        if self.session.request(key) == RequestAnswer::Granted {
            // Nothing is sent: it was asked for in vain.
            self.session.send(key, vec![b'l'; length].into());
        }
    }

    fn events(&mut self) {
        loop {
            match self.session.poll_event() {
                Ok(None) => {
                    assert!(self.error.is_none(), "an error is not forgotten");
                    assert!(!self.is_wrong || self.session.is_paused(), "what is wrong is not passed over");
                    return;
                }
                Ok(Some(event)) => self.event(event),
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    assert!(self.error.as_ref().is_none_or(|first| *first == error));
                    self.error = Some(error);
                    return;
                }
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Services => {
                assert!(!std::mem::replace(&mut self.services_known, true), "told once");
                assert!(self.session.services().next().is_some());
            }
            Event::Connect(key, index) => {
                assert!(self.side == Side::Destination && self.services_known);
                assert!(self.session.services().nth(index.0).is_some() && !self.keys.contains(&key));
                self.keys.push(key);
            }
            Event::MaySend(key) => self.session.decline(key),
            Event::Readable(key) => assert!(self.keys.contains(&key)),
            Event::MayOpen(_) => assert!(self.side == Side::Source && self.services_known),
            Event::Refused(_) => assert!(self.side == Side::Destination),
            Event::Resume => assert!(!self.session.is_paused()),
        }
    }

    /// Whether there was something to send.
    fn transmit(&mut self) -> bool {
        let had_to = self.session.has_to_send();
        let mut frame = BytesMut::new();
        let count = self.session.poll_transmit(&mut frame);
        assert!(frame.len() <= MAX_FRAME && had_to == (count > 0));
        let mut decoder = Decoder::default();
        decoder.push(frame.freeze());
        let mut control = 0;
        for nth in 1..=count {
            let message = decoder.next_message().expect("messages").expect("as many");
            assert!(message.stream_id != 0, "the service would refuse {message:?}");
            control += usize::from(message.kind != MessageType::Data);
            match message.kind {
                MessageType::StreamStart | MessageType::ConnectionStart => {
                    assert!(self.side == Side::Source && nth == count, "{message:?}");
                }
                MessageType::ServiceIds | MessageType::SessionReset => panic!("only the service sends {message:?}"),
                MessageType::Data => assert!(!message.payload.is_empty()),
                MessageType::StreamReset | MessageType::ConnectionReset => {}
            }
        }
        assert_eq!(decoder.buffered(), 0);
        // One for each connection on top, and once more where it has ended because all was sent.
        assert!(control <= BOUNDS.control + 2 * BOUNDS.connections + 2, "{control} messages waited");
        count > 0
    }

    fn check(&self) {
        let ((queued, held), connections) = (self.session.held(), self.session.connections());
        assert!(connections <= BOUNDS.connections);
        assert!(
            queued <= BOUNDS.send_total && queued <= connections * (BOUNDS.send_connection + MAX_PAYLOAD),
            "{queued}"
        );
        let most = connections * (BOUNDS.receive_connection + MAX_PAYLOAD);
        assert!(held < BOUNDS.receive_total + MAX_PAYLOAD && held <= most, "{held}");
        assert!(self.session.next_stream_id() > 0);
        let memory = ALLOCATOR.current_usage() - self.memory_before;
        assert!(memory <= MEMORY, "{memory} bytes of memory");
    }

    /// All that waits is taken and sent: then it goes on. In the end nothing is kept for anybody.
    fn finish(mut self) {
        for key in self.keys.clone() {
            while matches!(self.session.take(key), Taken::Data(_)) {}
        }
        // What is sent makes room for what comes, whose answers are to be sent.
        while self.transmit() {
            self.events();
            for key in self.keys.clone() {
                while matches!(self.session.take(key), Taken::Data(_)) {}
            }
        }
        assert!(!self.session.is_paused(), "nothing holds it up");
        self.session.abort_all();
        for key in self.keys.clone() {
            while matches!(self.session.take(key), Taken::Data(_)) {}
        }
        while self.transmit() {}
        self.check();
        assert_eq!((self.session.connections(), self.session.held()), (0, (0, 0)));
        assert!(!self.session.has_to_send());
        if self.side == Side::Source && self.services_known {
            let key = self.session.open(ServiceIndex(0)).expect("there is room for another one");
            assert_eq!(self.session.request(key), RequestAnswer::Granted);
        }
    }
}

/// A message of any type, with numbers and services that are likely to be those of another one.
fn encoded(input: &mut Input<'_>) -> Option<Bytes> {
    let kind = match input.next()? {
        0..80 => MessageType::Data,
        80..112 => MessageType::StreamStart,
        112..176 => MessageType::ConnectionStart,
        176..208 => MessageType::ConnectionReset,
        208..224 => MessageType::StreamReset,
        224..232 => MessageType::SessionReset,
        232.. => MessageType::ServiceIds,
    };
    let numbers = input.next()?;
    let mut message = Message {
        stream_id: (numbers & 3).into(),
        connection_id: (numbers >> 2 & 7).into(),
        service_id: SERVICES[usize::from(numbers >> 5 & 3)].to_owned(),
        ignorable: numbers >> 7 == 1,
        ..Message::new(kind)
    };
    if kind == MessageType::ServiceIds {
        let ids = SERVICES.iter().enumerate().filter(|(nth, id)| numbers >> nth & 1 == 1 && !id.is_empty());
        message.available_service_ids = ids.map(|(_, id)| (*id).to_owned()).collect();
    } else if kind == MessageType::Data {
        message.payload = vec![b's'; input.length()?].into();
    }
    let mut bytes = BytesMut::new();
    codec::encode(&message, &mut bytes).expect("it fits");
    Some(bytes.freeze())
}
