//! What an operator sees of the API server's watches, and when: late, in part, or not at all. What it writes
//! and reads itself is not touched.

use super::api_proxy::{Cut, Request, failure};
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Response, StatusCode, header};
use futures::StreamExt;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// Long enough for the operator to do all that it can do meanwhile.
const LATE: Duration = Duration::from_secs(3);
/// So often bookmarks come, where nothing else does.
const BOOKMARKS: Duration = Duration::from_millis(500);

/// What the watches show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Everything, at once.
    Clear,
    /// Everything, 3 s late.
    Late,
    /// The first event is held back until the next one comes or the watch ends, and so on. Of two states of one
    /// object only the second is seen.
    EveryOther,
    /// Nothing.
    Blind,
    /// For 3 s nothing but bookmarks.
    Bookmarks,
    /// For 3 s not a byte; then the connection is cut.
    Silent,
    /// The history is gone: an event says so, which ends the watch.
    GoneEvent,
    /// The watch ends, and an HTTP status says that the history is gone, until it is listed anew.
    GoneStatus,
    /// The history is gone, and the next list is the first one that was ever made. What has happened since comes
    /// by the watch, 3 s late.
    Older,
}

impl Sight {
    /// All that end by themselves, or show all in the end.
    pub const ALL: [Self; 7] =
        [Self::Late, Self::EveryOther, Self::Bookmarks, Self::Silent, Self::GoneEvent, Self::GoneStatus, Self::Older];
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clear => "clear",
            Self::Late => "late",
            Self::EveryOther => "every other",
            Self::Blind => "blind",
            Self::Bookmarks => "bookmarks",
            Self::Silent => "silent",
            Self::GoneEvent => "410 event",
            Self::GoneStatus => "410",
            Self::Older => "older list",
        })
    }
}

/// The sight of all watches.
pub struct Eyes {
    /// With the time of its beginning.
    sight: watch::Sender<(Sight, Instant)>,
    lists: Mutex<HashMap<String, List>>,
}

/// Of one kind.
#[derive(Default)]
struct List {
    first: Option<Bytes>,
    /// When it was last made.
    made: Option<Instant>,
}

/// Whether it is a watch.
pub fn is_watch(request: &Request) -> bool {
    request.method == "GET" && request.query.contains("watch=")
}

fn is_list(request: &Request) -> bool {
    let collection = request.path.rsplit('/').next();
    request.method == "GET" && !is_watch(request) && matches!(collection, Some("tunnels" | "secrets"))
}

impl Default for Eyes {
    fn default() -> Self {
        Self { sight: watch::Sender::new((Sight::Clear, Instant::now())), lists: Mutex::default() }
    }
}

impl Eyes {
    /// From now on.
    pub fn see(&self, sight: Sight) {
        self.sight.send_replace((sight, Instant::now()));
    }

    /// Returns once what is shown wrongly now has had its effect, and sees clearly again.
    pub async fn clear(&self) {
        let (sight, since) = *self.sight.borrow();
        if sight != Sight::Clear {
            sleep_until(since + LATE + BOOKMARKS).await;
            self.see(Sight::Clear);
            // A watch that ended begins anew.
            sleep(LATE).await;
        }
    }

    /// What an operator gets to see of an answer.
    pub async fn look(
        self: &Arc<Self>,
        request: &Request,
        forward: impl Future<Output = Result<Response<Body>, Cut>>,
    ) -> Result<Response<Body>, Cut> {
        let (sight, since) = *self.sight.borrow();
        if is_list(request) {
            let body = to_bytes(forward.await?.into_body(), usize::MAX).await.map_err(|_| Cut)?;
            let mut lists = self.lists();
            let list = lists.entry(request.path.clone()).or_default();
            let first = list.first.get_or_insert_with(|| body.clone()).clone();
            let anew = list.made.replace(Instant::now()).is_none_or(|made| made < since);
            return Ok(answer(StatusCode::OK, if sight == Sight::Older && anew { first } else { body }));
        }
        if !is_watch(request) {
            return forward.await;
        }
        let listed = self.lists().get(&request.path).and_then(|list| list.made);
        if sight == Sight::GoneStatus && listed.is_some_and(|made| made < since) {
            return Ok(answer(StatusCode::GONE, gone().to_string().into()));
        }
        let (parts, body) = forward.await?.into_parts();
        let (shown, show) = mpsc::unbounded_channel();
        let from = request.query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let watch = Watch {
            seen: self.sight.subscribe(),
            begun: Instant::now(),
            held: VecDeque::new(),
            version: from.unwrap_or_default().to_owned(),
            shown,
        };
        tokio::spawn(watch.run(body));
        let show = futures::stream::unfold(show, |mut show| async { Some((show.recv().await?, show)) });
        Ok(Response::from_parts(parts, Body::from_stream(show)))
    }

    fn lists(&self) -> MutexGuard<'_, HashMap<String, List>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(status: StatusCode, body: Bytes) -> Response<Body> {
    let answer = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    answer.body(body.into()).expect("a response")
}

fn gone() -> Value {
    let mut status = failure(StatusCode::GONE, "too old resource version");
    status["reason"] = json!("Expired");
    status
}

/// One watch.
struct Watch {
    seen: watch::Receiver<(Sight, Instant)>,
    begun: Instant,
    /// Lines that came, with when.
    held: VecDeque<(Instant, Bytes)>,
    /// How far the operator is.
    version: String,
    shown: mpsc::UnboundedSender<io::Result<Bytes>>,
}

/// How a watch goes on.
enum Next {
    /// Until a line comes, the sight changes, or then.
    Wait(Option<Instant>),
    /// It ends.
    End,
}

impl Watch {
    async fn run(mut self, body: Body) {
        let mut chunks = body.into_data_stream();
        let mut half = Vec::new();
        loop {
            let Next::Wait(until) = self.show() else { return };
            let until = until.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = self.shown.closed() => return,
                _ = self.seen.changed() => {}
                () = sleep_until(until) => {}
                chunk = chunks.next() => {
                    // What is held back then is not lost: the operator goes on from where it is.
                    let Some(Ok(chunk)) = chunk else { return };
                    half.extend_from_slice(&chunk);
                    while let Some(end) = half.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = half.drain(..=end).collect();
                        self.held.push_back((Instant::now(), line.into()));
                    }
                }
            }
        }
    }

    /// Shows what is to be seen now.
    fn show(&mut self) -> Next {
        let (sight, since) = *self.seen.borrow_and_update();
        let (now, over) = (Instant::now(), since + LATE);
        match sight {
            Sight::Clear => self.show_until(|_| true),
            Sight::Blind => {}
            Sight::Late => return self.show_late(now),
            // What was held back when a watch ended is told by the next one.
            Sight::EveryOther if self.begun <= since => self.show_every_other(),
            Sight::EveryOther => self.show_until(|_| true),
            // The lists that follow are told from the earlier ones by their time.
            Sight::GoneEvent | Sight::Older if self.begun <= since => {
                let error = json!({"type": "ERROR", "object": gone()});
                self.send(format!("{error}\n").into());
                return Next::End;
            }
            Sight::GoneStatus if self.begun <= since => return Next::End,
            Sight::GoneEvent | Sight::GoneStatus => self.show_until(|_| true),
            Sight::Older => return self.show_late(now),
            Sight::Silent if self.begun <= since && now < over => return Next::Wait(Some(over)),
            Sight::Silent if self.begun <= since => {
                let _ = self.shown.send(Err(io::Error::other("the connection is cut")));
                return Next::End;
            }
            Sight::Bookmarks if now < over => {
                let metadata = json!({"resourceVersion": self.version, "creationTimestamp": null});
                let bookmark = json!({"kind": "Bookmark", "apiVersion": "v1", "metadata": metadata});
                let bookmark = json!({"type": "BOOKMARK", "object": bookmark});
                let _ = self.shown.send(Ok(format!("{bookmark}\n").into()));
                return Next::Wait(Some(now + BOOKMARKS));
            }
            Sight::Silent | Sight::Bookmarks => self.show_until(|_| true),
        }
        Next::Wait(None)
    }

    fn show_late(&mut self, now: Instant) -> Next {
        self.show_until(|came| came + LATE <= now);
        Next::Wait(self.held.front().map(|(came, _)| *came + LATE))
    }

    fn show_every_other(&mut self) {
        let object = |line: &Bytes| -> Option<Value> {
            let event: Value = serde_json::from_slice(line).ok()?;
            (event["type"] != "BOOKMARK").then(|| event["object"]["metadata"]["uid"].clone())
        };
        // A bookmark would say that what is held back was seen.
        self.held.retain(|(_, line)| object(line).is_some());
        while self.held.len() >= 2 {
            let first = self.held.pop_front().map(|(_, line)| line).expect("there are two");
            let second = self.held.pop_front().map(|(_, line)| line).expect("there are two");
            if object(&first) != object(&second) {
                self.send(first);
            }
            self.send(second);
        }
    }

    fn show_until(&mut self, is: impl Fn(Instant) -> bool) {
        while let Some((_, line)) = self.held.pop_front_if(|(came, _)| is(*came)) {
            self.send(line);
        }
    }

    fn send(&mut self, line: Bytes) {
        let event: Value = serde_json::from_slice(&line).unwrap_or_default();
        if let Some(version) = event["object"]["metadata"]["resourceVersion"].as_str() {
            self.version = version.to_owned();
        }
        let _ = self.shown.send(Ok(line));
    }
}
