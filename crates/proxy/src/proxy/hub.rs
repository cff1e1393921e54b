//! The session of a link, shared by the tasks that read the link, write it, and serve the local connections.
//!
//! It is locked for a message at a time, never while something is awaited. Whoever changes it wakes whom that concerns.

use crate::session::{ConnectionKey, Event, NotNow, ServiceIndex, Session, SessionError};
use bytes::BytesMut;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

pub(super) struct Hub {
    state: Mutex<State>,
    /// There may be something to send.
    pub send: Notify,
    /// The link may be read again.
    pub resume: Notify,
    /// A connection can be opened that could not.
    pub may_open: Notify,
    /// The last local connection has ended.
    pub idle: Notify,
}

struct State {
    /// `None`: the link is lost.
    session: Option<Session>,
    connections: BTreeMap<ConnectionKey, Arc<Notify>>,
}

/// The link is lost.
#[derive(Debug)]
pub(super) struct Lost;

/// What the task that reads the link does next.
pub(super) enum Step {
    /// The services are known.
    Services(Vec<String>),
    /// Connect to a service.
    Connect(LocalEnd, ServiceIndex),
    /// A service was asked for that is not mapped.
    Refused(String),
    /// Wait for [`Hub::resume`].
    Wait,
    /// Read.
    Read,
}

/// A connection as its local side sees it. When this is dropped, the connection ends.
pub(super) struct LocalEnd {
    hub: Arc<Hub>,
    pub key: ConnectionKey,
    /// The session has something for it.
    pub wake: Arc<Notify>,
}

impl Hub {
    pub fn new(session: Session) -> Self {
        Self {
            state: Mutex::new(State { session: Some(session), connections: BTreeMap::new() }),
            send: Notify::new(),
            resume: Notify::new(),
            may_open: Notify::new(),
            idle: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody panics with it; and if somebody did, the tasks that are left had better end than panic, too.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the session, and wakes whom that concerns.
    pub fn with<T>(&self, act: impl FnOnce(&mut Session) -> T) -> Result<T, Lost> {
        let mut state = self.lock();
        let result = act(state.session.as_mut().ok_or(Lost)?);
        self.wake(&mut state);
        Ok(result)
    }

    fn wake(&self, state: &mut State) {
        let State { session: Some(session), connections } = state else { return };
        while let Some(event) = session.pop_event() {
            self.wake_for(&event, connections);
        }
        if session.has_to_send() {
            self.send.notify_one();
        }
    }

    fn wake_for(&self, event: &Event, connections: &BTreeMap<ConnectionKey, Arc<Notify>>) {
        match event {
            Event::Readable(key) | Event::MaySend(key) => {
                connections.get(key).into_iter().for_each(|wake| wake.notify_one());
            }
            Event::MayOpen(_) => self.may_open.notify_waiters(),
            Event::Resume => self.resume.notify_one(),
            Event::Services | Event::Connect(..) | Event::Refused(_) => {}
        }
    }

    /// What comes of what was received.
    pub fn step(self: &Arc<Self>) -> Result<Result<Step, SessionError>, Lost> {
        let mut state = self.lock();
        let State { session, connections } = &mut *state;
        let session = session.as_mut().ok_or(Lost)?;
        let step = loop {
            match session.poll_event() {
                Ok(Some(Event::Services)) => break Ok(Step::Services(session.services().map(str::to_owned).collect())),
                Ok(Some(Event::Connect(key, service))) => {
                    break Ok(Step::Connect(self.local_end(key, connections), service));
                }
                Ok(Some(Event::Refused(id))) => break Ok(Step::Refused(id)),
                Ok(Some(event)) => self.wake_for(&event, connections),
                Ok(None) if session.is_paused() => break Ok(Step::Wait),
                Ok(None) => break Ok(Step::Read),
                Err(error) => break Err(error),
            }
        };
        if session.has_to_send() {
            self.send.notify_one();
        }
        Ok(step)
    }

    /// A connection for a client.
    pub fn open(self: &Arc<Self>, service: ServiceIndex) -> Result<Result<LocalEnd, NotNow>, Lost> {
        let mut state = self.lock();
        let opened = state.session.as_mut().ok_or(Lost)?.open(service);
        let opened = opened.map(|key| self.local_end(key, &mut state.connections));
        self.wake(&mut state);
        Ok(opened)
    }

    fn local_end(
        self: &Arc<Self>,
        key: ConnectionKey,
        connections: &mut BTreeMap<ConnectionKey, Arc<Notify>>,
    ) -> LocalEnd {
        let wake = Arc::new(Notify::new());
        connections.insert(key, Arc::clone(&wake));
        LocalEnd { hub: Arc::clone(self), key, wake }
    }

    /// The next frame's payload.
    pub fn frame(&self) -> Result<Option<BytesMut>, Lost> {
        self.with(|session| {
            let mut frame = BytesMut::new();
            (session.poll_transmit(&mut frame) > 0).then_some(frame)
        })
    }

    /// The link is lost: all local connections are told.
    pub fn end(&self) -> Option<Session> {
        let mut state = self.lock();
        state.connections.values().for_each(|wake| wake.notify_one());
        self.send.notify_one();
        self.resume.notify_one();
        self.may_open.notify_waiters();
        state.session.take()
    }

    /// Whether no local connection is left.
    pub fn is_idle(&self) -> bool {
        self.lock().connections.is_empty()
    }
}

impl LocalEnd {
    /// Does something with the session.
    pub fn with<T>(&self, act: impl FnOnce(&mut Session, ConnectionKey) -> T) -> Result<T, Lost> {
        self.hub.with(|session| act(session, self.key))
    }
}

impl Drop for LocalEnd {
    fn drop(&mut self) {
        // Where the link is lost there is nobody to be told.
        let _ = self.with(Session::close);
        let mut state = self.hub.lock();
        state.connections.remove(&self.key);
        if state.connections.is_empty() {
            self.hub.idle.notify_one();
        }
    }
}
