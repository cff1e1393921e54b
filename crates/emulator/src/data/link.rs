//! Who is connected to a tunnel, what is open between the two sides, and the lanes on which messages pass.
//!
//! Two connections that meet get a lane in either direction. A lane belongs to these two: a connection that is replaced
//! lets go of its lane, the other one reads that to the end, is told what was open on it, and goes on with the next. So
//! nothing of the old connection can come behind something of the new one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use opentunnel_proxy::message::MAX_SERVICES;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_websockets::CloseCode;

use super::Side;
use super::faults::DataFault;

/// Batches of messages on a lane, at most. A batch has 128 KiB at most, so a reader that stands still costs 1 MiB here.
const LANE: usize = 8;

/// Lanes and ends of lanes that a connection has not come to, at most. Each time the other side connects again there is
/// one more lane: a reader that stands still costs 16 MiB here.
const TURNS: usize = 16;

/// A stream that is open between the two sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stream {
    /// As its STREAM_START has it.
    pub(crate) service_id: String,
    pub(crate) id: i32,
}

/// What a message does to the streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Start(Stream),
    Reset(Stream),
}

/// Why the service ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goodbye {
    Closed,
    Expired,
    Replaced,
    /// It reads nothing, while the other side connects again and again.
    Behind,
    /// The emulator forgets everything.
    Reset,
}

impl Goodbye {
    /// What the close frame says. AWS documents neither code nor words.
    pub(crate) fn close(self) -> (CloseCode, &'static str) {
        match self {
            Self::Closed => (CloseCode::NORMAL_CLOSURE, "Tunnel is closed"),
            Self::Expired => (CloseCode::NORMAL_CLOSURE, "Tunnel is closed: its lifetime is over"),
            Self::Replaced => (CloseCode::POLICY_VIOLATION, "Replaced by another connection of this side"),
            Self::Behind => {
                (CloseCode::POLICY_VIOLATION, "Nothing was read while the other side connected again and again")
            }
            Self::Reset => (CloseCode::GOING_AWAY, "The emulator was reset"),
        }
    }
}

/// What a connection is told at once, whatever waits to be sent.
#[derive(Debug)]
pub(crate) enum Command {
    End(Goodbye),
    Fault(Option<DataFault>),
}

/// What happens to a connection's other side, in its turn: behind all that comes on the lane before.
#[derive(Debug)]
pub(crate) enum Event {
    Lane(mpsc::Receiver<Bytes>),
    Reset(Vec<Stream>),
}

#[derive(Debug)]
struct Seat {
    id: u64,
    commands: UnboundedSender<Command>,
    events: mpsc::Sender<Event>,
    /// The lane to this connection. `None`: the other side is not connected.
    lane: Option<mpsc::Sender<Bytes>>,
}

#[derive(Debug, Default)]
struct Seats {
    source: Option<Seat>,
    destination: Option<Seat>,
    streams: Vec<Stream>,
    joined: u64,
}

impl Seat {
    /// Tells it in its turn. Where there are too many turns it is ended, and gives its seat up by itself.
    fn tell(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            let _ = self.commands.send(Command::End(Goodbye::Behind));
        }
    }
}

impl Seats {
    fn of(&mut self, side: Side) -> &mut Option<Seat> {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    /// Tells a side what was open, which is no more.
    fn reset_streams(&mut self, side: Side) {
        let streams = std::mem::take(&mut self.streams);
        if let Some(seat) = self.of(side).as_mut().filter(|_| !streams.is_empty()) {
            seat.tell(Event::Reset(streams));
        }
    }

    /// Makes a lane to a side, behind all that came before, if both sides are there.
    fn lay_lane(&mut self, to: Side) {
        let from_is_there = self.of(to.other()).is_some();
        if let Some(seat) = self.of(to) {
            let (sender, receiver) = mpsc::channel(LANE);
            seat.lane = from_is_there.then_some(sender);
            if from_is_there {
                seat.tell(Event::Lane(receiver));
            }
        }
    }

    fn apply(&mut self, changes: &[Change]) -> bool {
        for change in changes {
            match change {
                Change::Start(stream) => {
                    // One stream a service.
                    self.streams.retain(|open| open.service_id != stream.service_id);
                    if self.streams.len() == MAX_SERVICES {
                        return false;
                    }
                    self.streams.push(stream.clone());
                }
                Change::Reset(stream) => self.streams.retain(|open| {
                    // An end of V1 does not name the service.
                    let service = open.service_id.is_empty() || stream.service_id.is_empty();
                    open.id != stream.id || !(service || open.service_id == stream.service_id)
                }),
            }
        }
        true
    }
}

/// Where a connection's messages go.
#[derive(Debug)]
pub(crate) enum Route {
    /// Where the last ones went.
    Same,
    Lane(mpsc::Sender<Bytes>),
    /// Nowhere: the other side is not connected.
    Nowhere,
    /// There are more streams than any tunnel has services.
    TooManyStreams,
}

/// Both sides of one tunnel.
#[derive(Debug, Default)]
pub(crate) struct Link {
    seats: Mutex<Seats>,
    /// Changes whenever a lane does: who sends looks at the seats only then.
    version: AtomicU64,
}

impl Link {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Takes a side's seat; whoever has it is replaced.
    pub(crate) fn join(self: &Arc<Self>, side: Side) -> Place {
        let mut seats = self.seats();
        seats.joined += 1;
        let id = seats.joined;
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let (events, event_receiver) = mpsc::channel(TURNS);
        let seat = Seat { id, commands, events, lane: None };
        if let Some(replaced) = seats.of(side).replace(seat) {
            let _ = replaced.commands.send(Command::End(Goodbye::Replaced));
        }
        seats.reset_streams(side.other());
        seats.lay_lane(side);
        seats.lay_lane(side.other());
        self.changed();
        Place { link: Arc::clone(self), side, id, commands: command_receiver, events: event_receiver }
    }

    /// Ends both sides' connections.
    pub(crate) fn end(&self, goodbye: Goodbye) {
        let mut seats = self.seats();
        for seat in [seats.source.take(), seats.destination.take()].into_iter().flatten() {
            let _ = seat.commands.send(Command::End(goodbye));
        }
        seats.streams.clear();
        self.changed();
    }

    pub(crate) fn is_connected(&self) -> bool {
        let seats = self.seats();
        seats.source.is_some() || seats.destination.is_some()
    }

    /// Gives a side's connection, if there is one, another fault.
    pub(crate) fn set_fault(&self, side: Side, fault: impl FnOnce() -> Option<DataFault>) {
        if let Some(seat) = self.seats().of(side) {
            let _ = seat.commands.send(Command::Fault(fault()));
        }
    }
}

/// A connection's seat at its tunnel.
#[derive(Debug)]
pub(crate) struct Place {
    link: Arc<Link>,
    side: Side,
    id: u64,
    pub(crate) commands: UnboundedReceiver<Command>,
    pub(crate) events: mpsc::Receiver<Event>,
}

impl Place {
    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// Changes whenever [`Place::route`] may say something else.
    pub(crate) fn version(&self) -> u64 {
        self.link.version.load(Ordering::Acquire)
    }

    /// Where messages go that make these changes. `known`: the version at which this was asked before.
    pub(crate) fn route(&self, changes: &[Change], known: &mut u64) -> Route {
        let mut seats = self.link.seats();
        let version = self.version();
        let is_known = std::mem::replace(known, version) == version;
        if seats.of(self.side).as_ref().is_none_or(|seat| seat.id != self.id) {
            return Route::Nowhere;
        }
        let Some(lane) = seats.of(self.side.other()).as_ref().and_then(|seat| seat.lane.clone()) else {
            return Route::Nowhere;
        };
        if !seats.apply(changes) {
            return Route::TooManyStreams;
        }
        if is_known { Route::Same } else { Route::Lane(lane) }
    }

    /// Ends all streams without ending a connection. The other side is told behind all that it was sent.
    pub(crate) fn reset_streams(&self) {
        let mut seats = self.link.seats();
        if seats.of(self.side).as_ref().is_some_and(|seat| seat.id == self.id) {
            let other = self.side.other();
            seats.reset_streams(other);
            seats.lay_lane(other);
            self.link.changed();
        }
    }

    /// Gives the seat up. False: somebody else has it, or the tunnel has ended.
    pub(crate) fn leave(&self) -> bool {
        let mut seats = self.link.seats();
        if seats.of(self.side).take_if(|seat| seat.id == self.id).is_none() {
            return false;
        }
        let other = self.side.other();
        seats.reset_streams(other);
        seats.lay_lane(other);
        self.link.changed();
        true
    }
}
