//! The life of one link: a task that reads it, one that writes it, and the passing of time.

use super::hub::{Hub, LocalEnd, Step};
use super::source::{Link, LinkState, ListenError, Listeners};
use super::{Ends, Shared, asked_to, relay, target};
use crate::config::{Services, Target};
use crate::link::{LinkError, LinkReader, LinkWriter};
use crate::session::{ServiceIndex, Session, SessionError, Version};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

/// How often the session is told the time, at least.
const TICK: Duration = Duration::from_secs(1);
/// How long the last messages may take on their way out.
const GOODBYE: Duration = Duration::from_secs(1);
/// When a link cannot be written: how long it may take to read why.
const REASON_WAIT: Duration = Duration::from_millis(200);

/// How a link ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The proxy was asked to stop.
    Stopped,
    /// The service closed it, with these words.
    Closed(String),
    Link(LinkError),
    Session(SessionError),
    /// The services are known, and one of them cannot be listened for.
    Listen(ListenError),
    /// A task of the proxy has failed, which is a bug.
    Task(tokio::task::JoinError),
}

/// Serves a link until it ends. Returns the next stream's ID, too.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    session: Session,
    reader: LinkReader,
    writer: LinkWriter,
    listeners: &mut Listeners<'_>,
    stop: &mut watch::Receiver<bool>,
) -> (Ended, i32) {
    let mut link = shared.link.subscribe();
    let hub = Arc::new(Hub::new(session));
    let goodbye = Arc::new(AtomicBool::new(false));
    let mut reads = tokio::spawn(read(reader, Arc::clone(&hub), Arc::clone(shared)));
    let mut writes = tokio::spawn(write(writer, Arc::clone(&hub), Arc::clone(shared), Arc::clone(&goodbye)));
    let quiet = shared.options.session.stall.min(shared.options.session.half_close) / 5;
    let mut ticks = interval(TICK.min(quiet).max(Duration::from_millis(20)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = loop {
        tokio::select! {
            ended = &mut reads => break ended.unwrap_or_else(Ended::Task),
            ended = &mut writes => break match timeout(REASON_WAIT, &mut reads).await {
                Ok(Ok(ended)) => ended,
                _ => ended.unwrap_or_else(Ended::Task),
            },
            now = ticks.tick() => {
                let peer = hub.with(|session| {
                    session.tick(now.into_std());
                    session.peer()
                });
                shared.stats.set_peer_protocol(peer.ok().flatten().map_or(0, number));
            }
            _ = link.changed() => {
                let LinkState::Up(up) = link.borrow_and_update().clone() else { continue };
                if let Err(error) = listeners.services_known(shared, &up.services).await {
                    break Ended::Listen(error);
                }
            }
            () = asked_to(stop) => {
                listeners.close();
                drain(shared, &hub, &goodbye, &mut reads, &mut writes).await;
                break Ended::Stopped;
            }
        }
    };
    reads.abort();
    writes.abort();
    shared.link.send_replace(LinkState::Down(Instant::now()));
    shared.stats.set_peer_protocol(0);
    let next_stream_id = hub.end().map_or(1, |session| session.next_stream_id());
    if matches!(ended, Ended::Stopped) {
        // A socket that its task has not reset when the program ends is closed as if all had been sent.
        let idle = async {
            while !hub.is_idle() {
                hub.idle.notified().await;
            }
        };
        let _ = timeout(GOODBYE, idle).await;
    }
    (ended, next_stream_id)
}

fn number(version: Version) -> u8 {
    match version {
        Version::V1 => 1,
        Version::V2 => 2,
        Version::V3 => 3,
    }
}

/// Connections that are open may end by themselves; then the others are ended, and the peer is told.
async fn drain(
    shared: &Arc<Shared>,
    hub: &Hub,
    goodbye: &AtomicBool,
    reads: &mut JoinHandle<Ended>,
    writes: &mut JoinHandle<Ended>,
) {
    shared.draining.store(true, Ordering::Relaxed);
    // Nobody is accepted any more; who waits is told.
    shared.link.send_replace(LinkState::Down(Instant::now()));
    let deadline = Instant::now() + shared.options.drain;
    let mut ticks = interval(TICK);
    while !hub.is_idle() {
        tokio::select! {
            () = hub.idle.notified() => {}
            now = ticks.tick() => drop(hub.with(|session| session.tick(now.into_std()))),
            () = tokio::time::sleep_until(deadline) => break,
            // The link is lost.
            _ = &mut *reads => return,
        }
    }
    let _ = hub.with(Session::abort_all);
    goodbye.store(true, Ordering::Relaxed);
    hub.send.notify_one();
    let _ = timeout_at(Instant::now() + GOODBYE, writes).await;
}

async fn read(mut reader: LinkReader, hub: Arc<Hub>, shared: Arc<Shared>) -> Ended {
    // What came while the session took nothing.
    let mut early = None;
    loop {
        let step = match hub.step() {
            Ok(Ok(step)) => step,
            Ok(Err(error)) => return Ended::Session(error),
            Err(_) => return Ended::Stopped,
        };
        match step {
            Step::Services(services) => {
                tracing::info!(?services, "the tunnel's services");
                shared.stats.set_connected(true);
                shared.link.send_replace(LinkState::Up(Arc::new(Link { hub: Arc::clone(&hub), services })));
            }
            Step::Connect(end, service) => connect(end, service, &hub, &shared),
            Step::Refused(service) => tracing::warn!(service, "refused: this service has no address here"),
            // Until data comes pings are answered, and the link's end is seen.
            Step::Wait if early.is_none() => tokio::select! {
                () = hub.resume.notified() => {}
                next = next_frame(&mut reader, &shared) => match next {
                    Ok(bytes) => early = Some(bytes),
                    Err(ended) => return ended,
                },
            },
            Step::Wait => hub.resume.notified().await,
            Step::Read => {
                let bytes = match early.take() {
                    Some(bytes) => bytes,
                    None => match next_frame(&mut reader, &shared).await {
                        Ok(bytes) => bytes,
                        Err(ended) => return ended,
                    },
                };
                if hub.with(|session| session.receive(bytes)).is_err() {
                    return Ended::Stopped;
                }
            }
        }
    }
}

async fn next_frame(reader: &mut LinkReader, shared: &Shared) -> Result<Bytes, Ended> {
    match reader.next().await {
        Ok(Some(bytes)) => {
            shared.stats.frames_received.inc();
            Ok(bytes)
        }
        Ok(None) => {
            let words = reader.close_reason().map(|reason| reason.words.clone());
            Err(Ended::Closed(words.unwrap_or_default()))
        }
        Err(error) => Err(Ended::Link(error)),
    }
}

async fn write(mut writer: LinkWriter, hub: Arc<Hub>, shared: Arc<Shared>, goodbye: Arc<AtomicBool>) -> Ended {
    loop {
        // Before it is looked: what is told by it is sent before it says goodbye.
        let last = goodbye.load(Ordering::Relaxed);
        let sent = match hub.frame() {
            Ok(Some(frame)) => {
                shared.stats.frames_sent.inc();
                writer.send(frame.freeze()).await
            }
            Ok(None) if last => {
                let _ = writer.close().await;
                return Ended::Stopped;
            }
            Ok(None) => {
                hub.send.notified().await;
                Ok(())
            }
            Err(_) => return Ended::Stopped,
        };
        if let Err(error) = sent {
            return Ended::Link(error);
        }
    }
}

/// A destination connects to a service. Meanwhile the session keeps what the peer sends.
fn connect(end: LocalEnd, service: ServiceIndex, hub: &Arc<Hub>, shared: &Arc<Shared>) {
    if shared.draining.load(Ordering::Relaxed) {
        return;
    }
    let id = hub.with(|session| session.services().nth(service.0).unwrap_or_default().to_owned()).unwrap_or_default();
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let Ends::Destination { targets, bind } = &shared.ends else { return };
        let Some(target) = of(targets, &id) else { return };
        match target::connect(target, bind.as_deref()).await {
            Ok(local) => relay::run(end, local, &id, shared.stats.service(&id)).await,
            Err(error) => tracing::warn!(service = id, %error, "the service cannot be reached"),
        }
    });
}

fn of<'a>(targets: &'a Services<Target>, id: &str) -> Option<&'a Target> {
    match targets {
        Services::Only(target) => Some(target),
        Services::Exactly(targets) | Services::Among(targets) => targets.get(id),
    }
}
