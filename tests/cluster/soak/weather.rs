//! What requests meet between an operator and the API server or AWS, at random: lost before or after they are
//! carried out, late, refused, answered by nonsense; watches that lag and break.

use super::counts::Counts;
use super::plan::within;
use crate::support::api_proxy::{Cut, Request};
use crate::support::weather::{self, Answer};
use axum::body::{Body, to_bytes};
use axum::http::{Response, StatusCode, header};
use fastrand::Rng;
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::sleep;

/// So late a request of AWS's is carried out at the most: less than `--aws-timeout`, see `replicas`. What AWS
/// carries out later than an operator waits for it is no fault that the protocol can stand (docs/protocol.md).
const LATEST: Duration = Duration::from_millis(1500);
/// So late an answer, an event or a write of the API server's is at the most.
const LATEST_ANSWER: Duration = Duration::from_secs(3);

/// The weather of one or more proxies.
pub struct Weather {
    rng: Mutex<Rng>,
    /// So many requests of a thousand something happens to.
    per_mille: AtomicU32,
    /// Nothing happens any more.
    over: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stroke {
    /// It is lost.
    CutBefore,
    /// It is carried out, its answer is lost.
    CutAfter,
    /// It is carried out late.
    LateBefore(Duration),
    /// It is answered late.
    LateAfter(Duration),
    /// It is not carried out, but refused.
    Refuse(u16, &'static str),
    /// It is carried out, and answered by an error all the same.
    RefuseAfter(u16, &'static str),
    /// It is carried out, and answered by what cannot be read.
    Garble,
    /// A watch that breaks after this time.
    Break(Duration),
    /// A watch whose events come late.
    Lag,
}

impl Weather {
    /// A calm one.
    pub fn new(rng: Rng, counts: Arc<Counts>) -> Arc<Self> {
        Arc::new(Self { rng: Mutex::new(rng), per_mille: AtomicU32::new(0), over: Arc::default(), counts })
    }

    /// Changes it now and then, for ever.
    pub async fn change(&self) {
        loop {
            let (per_mille, time) = self.draw(|rng| match rng.u32(..12) {
                0..2 => (0, 5000),
                2..5 => (30, 10_000),
                5..8 => (100, 6000),
                8..11 => (300, 5000),
                _ => (1000, 2500),
            });
            self.per_mille.store(per_mille, Ordering::Relaxed);
            let time = Duration::from_millis(time);
            sleep(self.draw(|rng| within(rng, time))).await;
        }
    }

    /// Nothing happens from now on.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stroke(&self, request: &Request) -> Option<Stroke> {
        if self.over.load(Ordering::Relaxed) {
            return None;
        }
        let per_mille = self.per_mille.load(Ordering::Relaxed);
        let stroke = self.draw(|rng| {
            if request.operation.is_some() {
                // There are fewer of them.
                (rng.u32(..1000) < per_mille * 2).then(|| of_aws(rng, request))
            } else if request.query.contains("watch=") {
                // A watch is one request for half a minute.
                (rng.u32(..1000) < per_mille.max(200)).then(|| of_a_watch(rng))
            } else {
                (rng.u32(..1000) < per_mille).then(|| of_kubernetes(rng, request))
            }
        });
        if stroke.is_some() {
            self.counts.faults.add();
        }
        stroke
    }

    async fn strike(&self, stroke: Stroke, aws: bool, forward: Answer<'_>) -> Result<Response<Body>, Cut> {
        match stroke {
            Stroke::CutBefore => Err(Cut),
            Stroke::CutAfter => {
                done(forward).await?;
                Err(Cut)
            }
            Stroke::LateBefore(time) => {
                sleep(time).await;
                forward.await
            }
            Stroke::LateAfter(time) => {
                let answer = forward.await;
                sleep(time).await;
                answer
            }
            Stroke::Refuse(code, reason) => Ok(refusal(aws, code, reason)),
            Stroke::RefuseAfter(code, reason) => {
                done(forward).await?;
                Ok(refusal(aws, code, reason))
            }
            Stroke::Garble => {
                done(forward).await?;
                Ok(answer(200, &json!("x"), None))
            }
            Stroke::Break(time) => {
                let (parts, body) = forward.await?.into_parts();
                let body = body.into_data_stream().take_until(sleep(time));
                Ok(Response::from_parts(parts, Body::from_stream(body)))
            }
            Stroke::Lag => {
                let (parts, body) = forward.await?.into_parts();
                let (over, mut rng) = (self.over.clone(), self.draw(Rng::fork));
                let body = body.into_data_stream().then(move |event| {
                    let late = rng.u32(..3) == 0 && !over.load(Ordering::Relaxed);
                    let time = if late { within(&mut rng, LATEST_ANSWER) } else { Duration::ZERO };
                    async move {
                        sleep(time).await;
                        event
                    }
                });
                Ok(Response::from_parts(parts, Body::from_stream(body)))
            }
        }
    }
}

impl weather::Weather for Weather {
    fn pass<'a>(&'a self, request: &'a Request, forward: Answer<'a>) -> Answer<'a> {
        match self.stroke(request) {
            Some(stroke) => self.strike(stroke, request.operation.is_some(), forward).boxed(),
            None => forward,
        }
    }
}

fn of_aws(rng: &mut Rng, request: &Request) -> Stroke {
    match rng.u32(..20) {
        0..3 => Stroke::CutBefore,
        3..7 => Stroke::CutAfter,
        7..9 => Stroke::LateBefore(within(rng, LATEST)),
        9..11 => Stroke::LateAfter(within(rng, LATEST_ANSWER)),
        11 if request.calls("OpenTunnel") => Stroke::Refuse(400, "LimitExceededException"),
        11..13 => Stroke::Refuse(400, "ThrottlingException"),
        13..15 => Stroke::Refuse(503, "ServiceUnavailable"),
        15..17 => Stroke::RefuseAfter(500, "InternalFailure"),
        17..19 => Stroke::Garble,
        _ => Stroke::Refuse(400, "AccessDeniedException"),
    }
}

fn of_kubernetes(rng: &mut Rng, request: &Request) -> Stroke {
    let reads = request.method == "GET";
    match rng.u32(..20) {
        0..3 => Stroke::CutBefore,
        3..7 => Stroke::CutAfter,
        7..9 => Stroke::LateBefore(within(rng, LATEST)),
        9..11 => Stroke::LateAfter(within(rng, LATEST_ANSWER)),
        11..14 if !reads => Stroke::Refuse(409, "Conflict"),
        11..16 => Stroke::Refuse(429, "TooManyRequests"),
        16 => Stroke::Refuse(500, "InternalError"),
        17 => Stroke::Refuse(503, "ServiceUnavailable"),
        18 => Stroke::RefuseAfter(504, "Timeout"),
        _ => Stroke::RefuseAfter(500, "InternalError"),
    }
}

fn of_a_watch(rng: &mut Rng) -> Stroke {
    match rng.u32(..8) {
        0 => Stroke::CutBefore,
        1 => Stroke::Refuse(410, "Expired"),
        2 => Stroke::Refuse(500, "InternalError"),
        3..5 => Stroke::Lag,
        _ => Stroke::Break(within(rng, Duration::from_secs(20))),
    }
}

/// Returns once it is carried out.
async fn done(forward: Answer<'_>) -> Result<(), Cut> {
    to_bytes(forward.await?.into_body(), usize::MAX).await.map_err(|_| Cut)?;
    Ok(())
}

fn refusal(aws: bool, code: u16, reason: &str) -> Response<Body> {
    let words = "made up by a test";
    let body = match aws {
        true => json!({"__type": reason, "message": words}),
        false => json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": words
        }),
    };
    answer(code, &body, (code == 429).then_some("1"))
}

fn answer(code: u16, body: &Value, retry_after: Option<&str>) -> Response<Body> {
    let code = StatusCode::from_u16(code).expect("a status");
    let mut answer = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    if let Some(seconds) = retry_after {
        answer = answer.header(header::RETRY_AFTER, seconds);
    }
    answer.body(body.to_string().into()).expect("a response")
}
