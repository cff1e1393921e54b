//! An open WebSocket to the service, as two streams of bytes: one to read, one to write.
//!
//! Both halves share the WebSocket, and may be used by two tasks. Pings are answered with what they carry. Our own say
//! whether the other side is still there, and keep what is on the way from forgetting an idle connection.

mod heard;

pub use crate::session::MAX_FRAME;
use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;
use heard::Heard;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_websockets::{ClientBuilder, CloseCode, Config, Error, Limits, Message, WebSocketStream};

/// Bytes that wait to be sent before a sender has to wait.
const FLUSH_THRESHOLD: usize = 2 * MAX_FRAME;

/// When a silent connection is taken for dead. Nothing is held against the other side while it still sends something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Time between two pings. AWS's proxy has 20 s.
    pub interval: Duration,
    /// Time that the answer of a ping may take.
    pub answer: Duration,
    /// The same where data was sent since the last answer: the ping waits behind it, and the other side need not read
    /// it while its own reader is slow.
    pub answer_behind_data: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(20),
            answer: Duration::from_secs(15),
            answer_behind_data: Duration::from_secs(120),
        }
    }
}

/// Why a link is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection broke, or ended without a word.
    #[error("the connection to the service is lost: {0}")]
    Lost(io::Error),
    /// The other side does not answer.
    #[error("the service has not answered a ping for {} s: the connection is taken for dead", .0.as_secs_f32())]
    Silent(Duration),
    /// A message is longer than the service may send.
    #[error("the service sent a WebSocket message of more than {MAX_FRAME} bytes")]
    TooLong,
    /// What came is no WebSocket, or not as it is used here.
    #[error("the service breaks the WebSocket protocol: {0}")]
    Protocol(String),
    /// The link is closed.
    #[error("the connection to the service is closed")]
    Closed,
}

/// What the other side said when it closed the WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// RFC 6455, section 7.4; `None`: it gave none.
    pub code: Option<u16>,
    /// For people; may be empty.
    pub words: String,
}

type Socket = WebSocketStream<Heard>;

struct Shared {
    socket: Socket,
    /// Whether data was sent since the last ping.
    sent_data: bool,
    /// Who waits for room to write. A stream wakes one task alone for that: the reader must not take the writer's place.
    writer: Option<Waker>,
}

/// Never held while something is awaited.
type Link = Arc<Mutex<Shared>>;

fn lock(link: &Link) -> MutexGuard<'_, Shared> {
    // Whoever panicked with it is gone, and the WebSocket says itself whether it is still of use.
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the halves of what was upgraded to a WebSocket.
pub(crate) fn open(
    connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    keepalive: Keepalive,
) -> (LinkReader, LinkWriter) {
    let socket = ClientBuilder::new()
        .limits(Limits::default().max_payload_len(Some(MAX_FRAME)))
        .config(Config::default().frame_size(MAX_FRAME).flush_threshold(FLUSH_THRESHOLD))
        .take_over(Heard { connection: Box::new(connection), last: Instant::now() });
    let link = Arc::new(Mutex::new(Shared { socket, sent_data: false, writer: None }));
    let next_ping = Instant::now() + keepalive.interval;
    let watch = Watch { keepalive, asked: None, next_ping, alarm: Box::pin(sleep_until(next_ping)) };
    (LinkReader { link: Arc::clone(&link), watch, flushed: true, close_reason: None }, LinkWriter { link })
}

/// What comes from the service.
pub struct LinkReader {
    link: Link,
    watch: Watch,
    /// Whether what this half sends itself, pings and their answers, is on its way.
    flushed: bool,
    close_reason: Option<CloseReason>,
}

impl LinkReader {
    /// The next bytes of the stream, as they come; never empty. `None`: the other side has closed the WebSocket as it
    /// should; [`LinkReader::close_reason`] has what it said. It may be dropped at any time without losing anything.
    ///
    /// As long as nobody waits here, no ping is sent or answered.
    ///
    /// # Errors
    /// The link is of no use any more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// What the other side said when it closed the WebSocket.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        self.close_reason.as_ref()
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, LinkError>> {
        let mut shared = lock(&self.link);
        while let Poll::Ready(next) = Pin::new(&mut shared.socket).poll_next(context) {
            let message = match next {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Poll::Ready(Err(named(error))),
                None if self.close_reason.is_some() => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(LinkError::Lost(io::ErrorKind::UnexpectedEof.into()))),
            };
            if message.is_binary() {
                let payload = Bytes::from(message.into_payload());
                if !payload.is_empty() {
                    return Poll::Ready(Ok(Some(payload)));
                }
            } else if message.is_ping() {
                // The library has put the answer in line.
                self.flushed = false;
            } else if message.is_pong() {
                self.watch.answered();
            } else if let Some((code, words)) = message.as_close() {
                let code = Some(u16::from(code)).filter(|_| code != CloseCode::NO_STATUS_RECEIVED);
                self.close_reason = Some(CloseReason { code, words: words.to_owned() });
            } else {
                return Poll::Ready(Err(LinkError::Protocol("it sent text".to_owned())));
            }
        }
        // All that has come is read.
        if let Poll::Ready(error) = self.watch.poll(&mut shared, &mut self.flushed, context) {
            return Poll::Ready(Err(error));
        }
        if !self.flushed {
            let waker = shared.writer.clone().unwrap_or_else(|| context.waker().clone());
            match Pin::new(&mut shared.socket).poll_flush(&mut Context::from_waker(&waker)) {
                Poll::Ready(Ok(())) => self.flushed = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(named(error))),
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }
}

/// Asks the other side whether it is there.
struct Watch {
    keepalive: Keepalive,
    /// The ping that is not answered yet.
    asked: Option<Asked>,
    /// When the next one is due.
    next_ping: Instant,
    /// When there is something to do: it is, or the answer of the last one is late, if there was none.
    alarm: Pin<Box<Sleep>>,
}

struct Asked {
    at: Instant,
    /// How long its answer may take.
    patience: Duration,
}

impl Watch {
    fn answered(&mut self) {
        if self.asked.take().is_some() {
            self.alarm.as_mut().reset(self.next_ping);
        }
    }

    /// Ready when the other side is gone. Called when there is nothing more to read.
    fn poll(&mut self, shared: &mut Shared, flushed: &mut bool, context: &mut Context<'_>) -> Poll<LinkError> {
        loop {
            ready!(self.alarm.as_mut().poll(context));
            let now = Instant::now();
            let due = match &self.asked {
                Some(asked) => shared.socket.get_ref().last.max(asked.at) + asked.patience,
                None => self.next_ping,
            };
            if due > now {
                self.alarm.as_mut().reset(due);
                continue;
            }
            if let Some(asked) = &self.asked {
                return Poll::Ready(LinkError::Silent(asked.patience));
            }
            // As AWS's proxy has it: the service knows pings with a number.
            let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            if let Err(error) = Pin::new(&mut shared.socket).start_send(Message::ping(millis.to_string())) {
                return Poll::Ready(named(error));
            }
            *flushed = false;
            let behind_data = std::mem::replace(&mut shared.sent_data, false);
            let patience = if behind_data { self.keepalive.answer_behind_data } else { self.keepalive.answer };
            self.asked = Some(Asked { at: now, patience });
            self.next_ping = now + self.keepalive.interval;
            self.alarm.as_mut().reset(now + patience);
        }
    }
}

/// What goes to the service.
pub struct LinkWriter {
    link: Link,
}

impl LinkWriter {
    /// Sends bytes of the stream, and waits until the system has them. Bytes that nobody else holds are not copied: they
    /// are masked where they are. It may be dropped at any time: then all that was given is sent later, or none of
    /// what does not fit into one message of [`MAX_FRAME`].
    ///
    /// # Errors
    /// The link is of no use any more.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        self.feed(bytes).await?;
        self.flush().await
    }

    /// As [`LinkWriter::send`], but it waits only where much is waiting already: [`LinkWriter::flush`] must follow.
    ///
    /// # Errors
    /// The link is of no use any more.
    pub async fn feed(&mut self, mut bytes: Bytes) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            poll_fn(|context| self.poll(context, |socket, context| socket.poll_ready(context))).await?;
            let message = bytes.split_to(bytes.len().min(MAX_FRAME));
            let mut shared = lock(&self.link);
            Pin::new(&mut shared.socket).start_send(Message::binary(message)).map_err(named)?;
            shared.sent_data = true;
        }
        Ok(())
    }

    /// Waits until the system has all that was sent.
    ///
    /// # Errors
    /// The link is of no use any more.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        poll_fn(|context| self.poll(context, |socket, context| socket.poll_flush(context))).await
    }

    /// Says goodbye. What comes may still be read, until the other side has said it, too.
    ///
    /// # Errors
    /// The link is of no use any more.
    pub async fn close(&mut self) -> Result<(), LinkError> {
        let goodbye = Message::close(Some(CloseCode::NORMAL_CLOSURE), "");
        Pin::new(&mut lock(&self.link).socket).start_send(goodbye).map_err(named)?;
        self.flush().await
    }

    fn poll(
        &self,
        context: &mut Context<'_>,
        step: impl FnOnce(Pin<&mut Socket>, &mut Context<'_>) -> Poll<Result<(), Error>>,
    ) -> Poll<Result<(), LinkError>> {
        let mut shared = lock(&self.link);
        let done = step(Pin::new(&mut shared.socket), context);
        shared.writer = done.is_pending().then(|| context.waker().clone());
        done.map_err(named)
    }
}

impl fmt::Debug for LinkReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkReader").field("close_reason", &self.close_reason).finish_non_exhaustive()
    }
}

impl fmt::Debug for LinkWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkWriter").finish_non_exhaustive()
    }
}

fn named(error: Error) -> LinkError {
    match error {
        Error::Io(error) => LinkError::Lost(error),
        Error::PayloadTooLong { .. } => LinkError::TooLong,
        Error::AlreadyClosed => LinkError::Closed,
        other => LinkError::Protocol(other.to_string()),
    }
}
