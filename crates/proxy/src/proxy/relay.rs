//! One local connection, both ways between its socket and the session. An idle one holds no buffer.

use super::hub::{LocalEnd, Lost};
use super::local::Local;
use crate::message::MAX_PAYLOAD;
use crate::session::{End, RequestAnswer, Session, Taken};
use crate::stats::ServiceStats;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::timeout;

/// How long the local side has to close, after the last byte and the end were written to it. A socket that is closed with
/// bytes unread is reset, and the other side loses what it has not read yet.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// What fills less of the buffer is copied out of it, so that it does not keep all of it alive. The session does so by
/// itself with what has less than 16 KiB.
const LARGE: usize = MAX_PAYLOAD / 4 * 3;

thread_local! {
    /// What is read from sockets comes here first: one buffer for each thread, not for each connection.
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// How a connection ends for its socket.
#[derive(Debug)]
enum Outcome {
    Ended(End),
    /// The link is lost.
    Lost,
    /// The socket has failed, or is closed.
    Gone,
}

/// Serves a connection of a service until it ends.
pub(super) async fn run(end: LocalEnd, mut local: Local, service: &str, stats: ServiceStats) {
    tracing::debug!(service, "a connection begins");
    stats.connections.inc();
    stats.open.inc();
    let outcome = {
        let wake = Arc::clone(&end.wake);
        let mut relay = Relay {
            end: &end,
            local: &mut local,
            stats: &stats,
            chunk: Bytes::new(),
            more: true,
            finished: false,
            waits: false,
        };
        let mut woken = std::pin::pin!(wake.notified());
        poll_fn(|context| {
            while woken.as_mut().poll(context).is_ready() {
                woken.set(wake.notified());
                relay.more = true;
                relay.waits = false;
            }
            relay.poll(context)
        })
        .await
    };
    // The session forgets it before its socket is waited for.
    drop(end);
    stats.open.dec();
    tracing::debug!(service, ?outcome, "a connection ends");
    match outcome {
        Outcome::Ended(End::Closed) => close(local).await,
        Outcome::Ended(End::Stalled) => {
            tracing::warn!(service, "a connection is reset: its reader took nothing, and held up the others");
            stats.stalls.inc();
            local.reset();
        }
        Outcome::Ended(End::Reset) | Outcome::Lost => local.reset(),
        Outcome::Gone => {}
    }
}

struct Relay<'a> {
    end: &'a LocalEnd,
    local: &'a mut Local,
    stats: &'a ServiceStats,
    /// What is being written to the socket.
    chunk: Bytes,
    /// The session may have more to write.
    more: bool,
    /// The socket has nothing more to read.
    finished: bool,
    /// There is no room to read into.
    waits: bool,
}

impl Relay<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Outcome> {
        if let Poll::Ready(outcome) = self.poll_to_local(context) {
            return Poll::Ready(outcome.unwrap_or(Outcome::Lost));
        }
        self.poll_to_tunnel(context).map(|outcome| outcome.unwrap_or(Outcome::Lost))
    }

    fn poll_to_local(&mut self, context: &mut Context<'_>) -> Poll<Result<Outcome, Lost>> {
        loop {
            while !self.chunk.is_empty() {
                match self.local.poll_write(context, &self.chunk) {
                    Poll::Ready(Ok(written)) => {
                        self.chunk.advance(written);
                        self.stats.bytes_from_tunnel.add(written as u64);
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Ok(Outcome::Gone)),
                    // A reader that stands still must not hide the end.
                    Poll::Pending if self.end.with(|session, key| session.is_given_up(key))? => {
                        return Poll::Ready(Ok(Outcome::Ended(End::Stalled)));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            if !self.more {
                return Poll::Pending;
            }
            match self.end.with(Session::take)? {
                Taken::Data(bytes) => self.chunk = bytes,
                Taken::Nothing => self.more = false,
                Taken::End(end) => return Poll::Ready(Ok(Outcome::Ended(end))),
            }
        }
    }

    fn poll_to_tunnel(&mut self, context: &mut Context<'_>) -> Poll<Result<Outcome, Lost>> {
        while !self.finished && !self.waits {
            if ready!(self.local.poll_read_ready(context)).is_err() {
                return Poll::Ready(Ok(Outcome::Gone));
            }
            match self.end.with(Session::request)? {
                RequestAnswer::Granted => {}
                RequestAnswer::Wait => self.waits = true,
                RequestAnswer::Ended => self.finished = true,
            }
            if self.waits || self.finished {
                break;
            }
            match read(self.local) {
                Ok(bytes) if bytes.is_empty() => {
                    self.finished = true;
                    self.end.with(Session::finish)?;
                }
                Ok(bytes) => {
                    self.stats.bytes_to_tunnel.add(bytes.len() as u64);
                    self.end.with(|session, key| session.send(key, bytes))?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.end.with(Session::decline)?,
                Err(_) => return Poll::Ready(Ok(Outcome::Gone)),
            }
        }
        Poll::Pending
    }
}

fn read(local: &Local) -> io::Result<Bytes> {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.clear();
        buffer.reserve(MAX_PAYLOAD);
        let length = local.try_read(&mut (&mut *buffer).limit(MAX_PAYLOAD))?;
        Ok(match length {
            0x4000..LARGE => Bytes::copy_from_slice(buffer),
            _ => buffer.split().freeze(),
        })
    })
}

/// All was written: the other side is told, and has time to read it.
async fn close(mut local: Local) {
    if local.shutdown().await.is_err() {
        return;
    }
    let closed = poll_fn(|context| {
        loop {
            if ready!(local.poll_read_ready(context)).is_err() {
                return Poll::Ready(());
            }
            match read(&local) {
                Ok(bytes) if !bytes.is_empty() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return Poll::Ready(()),
            }
        }
    });
    // Who has not closed by then will be reset.
    let _ = timeout(CLOSE_WAIT, closed).await;
}
