//! The driver: local sockets and the link to the service, joined by a session. It connects, serves, and connects again.
//!
//! One task reads the link and one writes it; each local connection has one of its own, which is small as long as nothing
//! passes. A source listens while links come and go; its clients wait for a link for a short time, then they are reset.
//!
//! # Ends of a local connection
//! When the peer has ended it, what was received is written, and the socket is closed as TCP does it. When it was cut (the
//! link is lost, the peer was replaced, its reader stood still) the socket is reset, so that nobody takes a part for the
//! whole.

mod hub;
mod local;
mod relay;
mod serve;
mod source;
mod target;
#[cfg(test)]
mod tests;

use crate::Side;
use crate::config::{Config, DestinationClientType, Ends, Services};
use crate::connect::{ConnectError, Connector};
use crate::link::{LinkReader, LinkWriter};
use crate::listening::Listening;
use crate::reconnect::{Next, Reconnect};
use crate::session::{self, Mapped, ServicesError, Session, SessionError, Version};
use crate::stats::{ReconnectCause, Stats};
use crate::tokens::{TokenSource, Tokens};
use serve::Ended;
pub use source::ListenError;
use source::{LinkState, Listeners};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// What connects to the service.
pub trait Connect {
    /// Connects one side of a tunnel.
    fn connect(
        &self,
        side: Side,
        tokens: &Tokens,
    ) -> impl Future<Output = Result<(LinkReader, LinkWriter), ConnectError>> + Send;
}

impl Connect for Connector {
    async fn connect(&self, side: Side, tokens: &Tokens) -> Result<(LinkReader, LinkWriter), ConnectError> {
        Connector::connect(self, side, tokens).await
    }
}

/// What a proxy is told besides where its services are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of each session. [`session::Config::services`] and [`session::Config::first_stream_id`] are the driver's.
    pub session: session::Config,
    /// How long open connections have to end, once the proxy is asked to stop.
    pub drain: Duration,
}

impl From<&Config> for Options {
    fn from(config: &Config) -> Self {
        let peer = match config.destination_client_type {
            DestinationClientType::V1 => Some(Version::V1),
            DestinationClientType::V2 => Some(Version::V2),
            // Until its answers say otherwise.
            DestinationClientType::V3 => None,
        };
        let session = session::Config { peer, stall: config.stall_timeout, ..session::Config::default() };
        Self { session, drain: config.drain }
    }
}

/// Why a proxy ends that was not asked to.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The token is refused, and no other can come.
    #[error(transparent)]
    Refused(ConnectError),
    /// An address is in use, or not this machine's.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The tunnel has other services than are mapped, and no other tunnel's token can come.
    #[error(transparent)]
    Services(ServicesError),
}

/// What all tasks share.
struct Shared {
    ends: Ends,
    options: Options,
    stats: Arc<Stats>,
    link: watch::Sender<LinkState>,
    /// The proxy was asked to stop: nothing new begins.
    draining: AtomicBool,
}

/// One end of a tunnel.
pub struct Proxy {
    shared: Arc<Shared>,
    listeners: Vec<source::Listener>,
}

impl Proxy {
    /// A source listens from now on, before a token is used, on what it is told to listen on.
    ///
    /// # Errors
    /// An address is in use, or not this machine's.
    pub async fn bind(ends: Ends, options: Options, stats: Arc<Stats>) -> Result<Self, ListenError> {
        let listeners = match &ends {
            Ends::Source(services, _) => source::bind(services).await?,
            Ends::Destination { .. } => Vec::new(),
        };
        let link = watch::Sender::new(LinkState::Down(Instant::now()));
        let shared = Shared { ends, options, stats, link, draining: AtomicBool::new(false) };
        Ok(Self { shared: Arc::new(shared), listeners })
    }

    /// Connects and serves until it is asked to stop. `announce` is told where a source listens: at once, or where it may
    /// listen anywhere, when the tunnel's services are known, and again when another tunnel has others.
    ///
    /// # Errors
    /// It cannot go on.
    pub async fn run(
        self,
        connector: &impl Connect,
        mut tokens: TokenSource,
        mut stop: watch::Receiver<bool>,
        announce: impl Fn(&[Listening]) + Sync,
    ) -> Result<(), ProxyError> {
        let Self { shared, listeners } = self;
        let mut listeners = Listeners::new(listeners, &announce);
        // Clients wait for the first link as for any other.
        shared.link.send_replace(LinkState::Down(Instant::now()));
        listeners.serve(&shared);
        let mut reconnect = Reconnect::default();
        // A peer may hold streams of a proxy that was before this one.
        let mut next_stream_id = fastrand::i32(1..);
        loop {
            let current = match tokens.current() {
                Ok(tokens) => tokens.clone(),
                Err(error) => {
                    tracing::error!(%error, "there is no token to connect with: waiting for one");
                    tokio::select! {
                        () = asked_to(&mut stop) => return Ok(()),
                        () = tokens.changed() => continue,
                    }
                }
            };
            let next = reconnect.next(&current, fastrand::f64());
            let wait = async {
                match next {
                    Next::After(wait) => sleep(wait).await,
                    Next::OtherTokens => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = asked_to(&mut stop) => return Ok(()),
                () = wait => {}
                () = tokens.changed() => {
                    tracing::info!("the tokens have changed");
                    reconnect.other_tokens();
                    continue;
                }
            }
            let link = tokio::select! {
                () = asked_to(&mut stop) => return Ok(()),
                link = connector.connect(shared.ends.side(), &current) => link,
            };
            let (reader, writer) = match link {
                Ok(link) => link,
                Err(error) => {
                    shared.stats.connect_failed(&error);
                    if !matches!(error, ConnectError::Refused { .. }) {
                        tracing::warn!(%error, "not connected: it will be tried again");
                    } else if tokens.may_change() {
                        tracing::error!(%error, "not connected: waiting for other tokens");
                        reconnect.refused(current);
                    } else {
                        return Err(ProxyError::Refused(error));
                    }
                    continue;
                }
            };
            let session = Session::new(shared.ends.side(), shared.session_config(next_stream_id));
            let begin = Instant::now();
            let (ended, next) = {
                let serving = serve::serve(&shared, session, reader, writer, &mut listeners, &mut stop);
                let mut serving = std::pin::pin!(serving);
                loop {
                    // What comes meanwhile is taken at the next reconnect: this link serves.
                    tokio::select! {
                        served = &mut serving => break served,
                        () = tokens.changed() => reconnect.other_tokens(),
                    }
                }
            };
            next_stream_id = next;
            shared.stats.set_connected(false);
            reconnect.lost(begin.elapsed());
            let cause = match ended {
                Ended::Stopped => return Ok(()),
                Ended::Listen(error) => return Err(error.into()),
                Ended::Session(SessionError::Services(error)) => {
                    if !tokens.may_change() {
                        return Err(ProxyError::Services(error));
                    }
                    tracing::error!(%error, "waiting for other tokens");
                    reconnect.refused(current);
                    continue;
                }
                Ended::Session(error) => {
                    tracing::error!(%error, "disconnected");
                    ReconnectCause::Protocol
                }
                Ended::Link(error) => {
                    tracing::warn!(%error, "disconnected");
                    ReconnectCause::from(&error)
                }
                Ended::Closed(words) => {
                    tracing::warn!(words, "disconnected: the service has closed the connection");
                    ReconnectCause::Closed
                }
                Ended::Task(error) => {
                    tracing::error!(%error, "disconnected: the proxy has failed, please report it");
                    ReconnectCause::Protocol
                }
            };
            shared.stats.reconnects(cause);
        }
    }
}

/// Waits until the proxy is asked to stop, or nobody is there who could.
async fn asked_to(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Shared {
    fn session_config(&self, first_stream_id: i32) -> session::Config {
        fn mapped<A>(services: &Services<A>) -> Mapped {
            match services {
                Services::Only(_) => Mapped::Only,
                Services::Exactly(services) => Mapped::Exactly(services.keys().cloned().collect()),
                Services::Among(services) => Mapped::Among(services.keys().cloned().collect()),
            }
        }
        let services = match &self.ends {
            Ends::Source(services, _) => mapped(services),
            Ends::Destination { targets, .. } => mapped(targets),
        };
        session::Config { services, first_stream_id, ..self.options.session.clone() }
    }
}
