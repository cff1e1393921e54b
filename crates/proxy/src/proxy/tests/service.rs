//! AWS's service in memory: it forwards messages, cut and joined as it likes, between the two ends that are connected.

use crate::Side;
use crate::codec::{self, Decoder};
use crate::connect::ConnectError;
use crate::link::{self, Keepalive, LinkReader, LinkWriter};
use crate::message::{Message, MessageType};
use crate::tokens::Tokens;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use hyper::StatusCode;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_websockets::{ServerBuilder, WebSocketStream};

type Socket = WebSocketStream<tokio::io::DuplexStream>;

pub(super) struct TestService {
    /// Bytes of a frame, at most.
    cut: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ids: Vec<String>,
    source: Option<End>,
    destination: Option<End>,
    /// By service: what a side that is left alone is told.
    streams: BTreeMap<String, i32>,
    refusals: VecDeque<ConnectError>,
    /// The only access token that is taken.
    token: Option<String>,
    connects: usize,
}

struct End {
    out: mpsc::Sender<Bytes>,
    _tasks: JoinSet<()>,
}

impl State {
    fn end(&mut self, side: Side) -> &mut Option<End> {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }
}

impl TestService {
    pub fn new(ids: &[&str]) -> Arc<Self> {
        Self::cutting(ids, 131_076)
    }

    pub fn cutting(ids: &[&str], cut: usize) -> Arc<Self> {
        let service = Self { cut, state: Mutex::default() };
        service.set_services(ids);
        Arc::new(service)
    }

    /// Whoever connects from now on is told these services.
    pub fn set_services(&self, ids: &[&str]) {
        self.state.lock().expect("no panic").ids = ids.iter().map(|id| (*id).to_owned()).collect();
    }

    /// The next ones that connect are refused.
    pub fn refuse(&self, refusals: impl IntoIterator<Item = ConnectError>) {
        self.state.lock().expect("no panic").refusals.extend(refusals);
    }

    /// From now on another access token is the right one.
    pub fn rotate(&self, token: &str) {
        self.state.lock().expect("no panic").token = Some(token.to_owned());
    }

    pub fn connects(&self) -> usize {
        self.state.lock().expect("no panic").connects
    }

    pub fn connect(self: &Arc<Self>, side: Side, tokens: &Tokens) -> Result<(LinkReader, LinkWriter), ConnectError> {
        let mut state = self.state.lock().expect("no panic");
        state.connects += 1;
        if let Some(refusal) = state.refusals.pop_front() {
            return Err(refusal);
        }
        if state.token.as_deref().is_some_and(|token| token != tokens.access.reveal()) {
            let words = "Invalid access token".to_owned();
            return Err(ConnectError::Refused { status: StatusCode::BAD_REQUEST, words });
        }
        let (near, far) = tokio::io::duplex(64 << 10);
        let (out, forwarded) = mpsc::channel(4);
        let (sink, stream) = ServerBuilder::new().serve(far).split();
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(forwarded, sink, self.cut));
        tasks.spawn(Arc::clone(self).read(side, stream));
        let available_service_ids = state.ids.clone();
        let ids = Message { available_service_ids, ..Message::new(MessageType::ServiceIds) };
        out.try_send(encoded(&ids)).expect("room");
        self.reset_streams(&mut state, side);
        *state.end(side) = Some(End { out, _tasks: tasks });
        Ok(link::open(near, Keepalive::default()))
    }

    /// Who is left is told which streams are over.
    fn reset_streams(&self, state: &mut State, gone: Side) {
        let streams = std::mem::take(&mut state.streams);
        let Some(other) = state.end(gone.other()) else { return };
        let out = other.out.clone();
        tokio::spawn(async move {
            for (service_id, stream_id) in streams {
                let reset = Message { stream_id, service_id, ..Message::new(MessageType::StreamReset) };
                // Who is not there needs not be told.
                let _ = out.send(encoded(&reset)).await;
            }
        });
    }

    /// Cuts a side's connection.
    pub fn cut(&self, side: Side) {
        let mut state = self.state.lock().expect("no panic");
        *state.end(side) = None;
        self.reset_streams(&mut state, side);
    }

    async fn read(self: Arc<Self>, side: Side, mut stream: futures_util::stream::SplitStream<Socket>) {
        let mut decoder = Decoder::default();
        while let Some(Ok(frame)) = stream.next().await {
            if !frame.is_binary() {
                continue;
            }
            decoder.push(frame.into_payload().into());
            while let Some(message) = decoder.next_message().expect("messages") {
                let other = {
                    let mut state = self.state.lock().expect("no panic");
                    if message.kind == MessageType::StreamStart {
                        state.streams.insert(message.service_id.clone(), message.stream_id);
                    }
                    state.end(side.other()).as_ref().map(|end| end.out.clone())
                };
                if let Some(other) = other {
                    // It may have gone meanwhile.
                    let _ = other.send(encoded(&message)).await;
                }
            }
        }
    }
}

fn encoded(message: &Message) -> Bytes {
    let mut bytes = BytesMut::new();
    codec::encode(message, &mut bytes).expect("it fits");
    bytes.freeze()
}

async fn forward(
    mut from: mpsc::Receiver<Bytes>,
    mut to: futures_util::stream::SplitSink<Socket, tokio_websockets::Message>,
    cut: usize,
) {
    while let Some(mut bytes) = from.recv().await {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(cut));
            if to.send(tokio_websockets::Message::binary(piece)).await.is_err() {
                return;
            }
        }
    }
}
