//! Traces by OTLP: one for each opening of a tunnel, from the moment a Tunnel asks for it until its status says Ready. Off,
//! unless the environment names a collector (docs/tracing.md).
//!
//! The root span of an opening is kept from reconcile to reconcile ([`Opening`]). What is done for it is a child:
//! each request to the API server, each call to AWS, and each wait. They are made where they happen, by OpenTelemetry's own
//! API, and not of the spans of the log: of these a reconcile has one whatever it does, and kube would enter it each time
//! that it polls. A reconcile that opens nothing makes no span.
//!
//! No span has what a user or AWS wrote (a description, a tag, a message), let alone a token: names, IDs and codes only.

mod export;

use crate::clock::{Clock, Mono};
use crate::error::Error;
use crate::facts::{Standing, View};
use crate::memory::Memory;
use crate::pacer::Gate;
use crate::read::{Down, Goal, Key, Object};
use crate::record::Phase;
use crate::step::{Need, Wait};
use crate::tunnels::{CallErrorKind, Operation, TunnelRef};
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use opentunnel_api::Reason;
use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

/// So long the end of the process waits for spans that are still to be sent.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Empty where traces are off. One for the process, because a span is made wherever something is sent.
static TRACES: OnceLock<Traces> = OnceLock::new();

struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Begins to make and send spans, if the environment says where to.
pub fn start() {
    if let Some(provider) = export::provider() {
        use opentelemetry::trace::TracerProvider;
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        let _ = TRACES.set(Traces { provider, tracer });
    }
}

/// Sends what is still to be sent, as far as that can be done in [`FLUSH_LIMIT`].
pub async fn stop() {
    if let Some(traces) = TRACES.get() {
        // What could not be sent has been told.
        let flush = || drop(traces.provider.shutdown_with_timeout(FLUSH_LIMIT));
        let _ = tokio::task::spawn_blocking(flush).await;
    }
}

/// The opening of a Tunnel's tunnel that is under way. Dropped, it is the end of a Tunnel that is gone.
pub struct Opening {
    root: Context,
    /// What it waits for, since it is waited for.
    wait: Option<(&'static str, Span)>,
}

/// How an opening ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Ready,
    Deleted,
    Suspended,
    /// The tunnel was closed, or the spec was changed.
    Closed,
    LostLead,
    Stopped,
    Panic,
}

/// Begins the trace of a Tunnel's opening, goes on with it, or ends it.
pub fn follow(opening: &mut Option<Box<Opening>>, memory: &Memory, view: &View, standing: Standing, clock: Clock) {
    let Some(traces) = TRACES.get() else { return };
    if opening.is_some() {
        let end = if view.gone { Some(End::Deleted) } else { End::of(memory, &view.object, standing) };
        end_as(opening, end, memory, &view.object);
    } else if let (Standing::Leads { .. }, Some(since), false) = (standing, memory.opening.since, view.gone) {
        *opening = Some(Box::new(Opening::begin(traces, &view.object.key, since, clock)));
    }
}

/// The Tunnel was written: if it is Ready by that, this is the end of the trace.
pub fn written(opening: &mut Option<Box<Opening>>, memory: &Memory, object: &Object) {
    let ready = matches!((object.goal(), object.record.phase()), (Goal::Open, Phase::Ready(_)));
    end_as(opening, ready.then_some(End::Ready), memory, object);
}

fn end_as(opening: &mut Option<Box<Opening>>, end: Option<End>, memory: &Memory, object: &Object) {
    let Some((end, opening)) = end.and_then(|end| Some((end, opening.take()?))) else { return };
    let record = &object.record;
    let tunnel = memory.answer.as_ref().map(|answer| &answer.tunnel);
    opening.end(end, tunnel.or(record.tunnel.as_ref().map(|t| &t.reference)), record.reported);
}

impl End {
    fn of(memory: &Memory, object: &Object, standing: Standing) -> Option<Self> {
        match (object.goal(), object.record.phase()) {
            (Goal::Down(Down::Deleted), _) => Some(Self::Deleted),
            (Goal::Down(Down::Suspended), _) => Some(Self::Suspended),
            (Goal::Down(Down::Outdated), _) => Some(Self::Closed),
            (Goal::Open, Phase::Ready(_)) => Some(Self::Ready),
            (Goal::Open, Phase::Ended(_)) if memory.opening.since.is_none() => Some(Self::Closed),
            _ if standing == Standing::Finishes && !memory.is_in_hand(object) => Some(Self::LostLead),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Deleted => "Deleted",
            Self::Suspended => "Suspended",
            Self::Closed => "Closed",
            Self::LostLead => "LostLead",
            Self::Stopped => "Stopped",
            Self::Panic => "Panic",
        }
    }

    fn status(self) -> Status {
        match self {
            Self::Ready => Status::Ok,
            Self::Deleted => Status::error("the Tunnel was deleted before it was Ready"),
            Self::Suspended => Status::error("the Tunnel was suspended before it was Ready"),
            Self::Closed => Status::error("the tunnel was closed, or its spec changed, before the Tunnel was Ready"),
            Self::LostLead => Status::error("another replica leads now, and goes on with the opening"),
            Self::Stopped => Status::error("the operator stopped before the Tunnel was Ready"),
            Self::Panic => Status::error("a panic in the operator, which is a bug: its log has the place"),
        }
    }
}

impl Opening {
    fn begin(traces: &Traces, key: &Key, since: Mono, clock: Clock) -> Self {
        let ago = clock.mono().0.saturating_sub(since.0);
        let now = SystemTime::now();
        let began = now.checked_sub(ago).unwrap_or(now);
        let attributes = vec![
            KeyValue::new("k8s.namespace.name", key.namespace.clone()),
            KeyValue::new("opentunnel.tunnel.name", key.name.clone()),
            KeyValue::new("opentunnel.tunnel.uid", key.uid.clone()),
        ];
        let root = traces.tracer.span_builder("open a tunnel").with_start_time(began).with_attributes(attributes);
        let root = Context::new().with_span(traces.tracer.build_with_context(root, &Context::new()));
        // It has come to it just now.
        let first = traces.tracer.span_builder("wait for a reconcile").with_start_time(began);
        traces.tracer.build_with_context(first, &root).end();
        Self { root, wait: None }
    }

    /// Makes what is done in a reconcile of `opening` its children.
    pub async fn around<F: Future>(opening: Option<&Self>, mut work: Pin<&mut F>) -> F::Output {
        let root = opening.map(|opening| opening.root.clone());
        poll_fn(|cx| {
            let _attached = root.clone().map(Context::attach);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Nothing is done for now. A wait for the same goes on, whatever a reconcile has looked at meanwhile.
    pub fn waits(&mut self, wait: &Wait, memory: &Memory, gate: Option<&Gate>) {
        let (why, gate) = match wait {
            Wait { names, .. } if !names.is_empty() => ("wait for a Secret's name", None),
            Wait { need: Some(Need::Search(_)), .. } => ("search for a tunnel", None),
            Wait { need: Some(Need::Describe(_)), .. } => ("wait for DescribeTunnel", None),
            Wait { lane: Some(_), .. } if gate.is_some() => ("wait for AWS's limit", gate),
            Wait { lane: Some(_), .. } => ("wait for its turn", None),
            _ if memory.backoff.failure.is_some() => ("back off", None),
            _ => ("wait", None),
        };
        self.wait_for(why, gate.map(|gate| gate.cause));
    }

    /// A reconcile has failed.
    pub fn backs_off(&mut self) {
        self.wait_for("back off", None);
    }

    fn wait_for(&mut self, why: &'static str, cause: Option<CallErrorKind>) {
        if self.wait.as_ref().is_none_or(|(before, _)| *before != why) {
            self.wait = None;
            let span = recording(&self.root).map(|traces| {
                let mut span = traces.tracer.build_with_context(traces.tracer.span_builder(why), &self.root);
                if let Some(cause) = cause {
                    span.set_attribute(KeyValue::new("error.type", format!("{cause:?}")));
                }
                span
            });
            self.wait = span.map(|span| (why, span));
        }
    }

    /// Something is done: what it waited for is over.
    pub fn goes_on(&mut self) {
        self.wait = None;
    }

    /// The process ends.
    pub fn stop(self, memory: &Memory) {
        self.end(End::Stopped, memory.answer.as_ref().map(|answer| &answer.tunnel), None);
    }

    fn end(mut self, end: End, tunnel: Option<&TunnelRef>, reason: Option<Reason>) {
        self.wait = None;
        let root = self.root.span();
        if let Some(TunnelRef { id, arn }) = tunnel {
            root.set_attribute(KeyValue::new("opentunnel.tunnel.id", id.0.clone()));
            root.set_attribute(KeyValue::new("cloud.resource_id", arn.clone()));
        }
        if let Some(reason) = reason {
            root.set_attribute(KeyValue::new("opentunnel.condition.reason", reason.to_string()));
        }
        root.set_attribute(KeyValue::new("opentunnel.outcome", end.name()));
        root.set_status(end.status());
        root.end();
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let root = self.root.span();
        if root.is_recording() {
            let end = if std::thread::panicking() { End::Panic } else { End::Deleted };
            self.wait = None;
            root.set_attribute(KeyValue::new("opentunnel.outcome", end.name()));
            root.set_status(end.status());
            root.end();
        }
    }
}

/// Something that is sent in a reconcile. It ends when this is dropped. Empty: no opening is traced. In a box, because a
/// reconcile has no room for a span as a rule.
pub struct Sent(Option<Box<Span>>);

/// A request to the API server, or what comes before a call to AWS.
pub fn sent(what: impl Into<Cow<'static, str>>, kind: SpanKind) -> Sent {
    if TRACES.get().is_none() {
        return Sent(None);
    }
    let opening = Context::current();
    let span = |traces: &Traces| {
        let builder = traces.tracer.span_builder(what).with_kind(kind);
        Box::new(traces.tracer.build_with_context(builder, &opening))
    };
    Sent(recording(&opening).map(span))
}

/// A call to AWS, with the attributes of AWS' SDKs.
pub fn call(operation: Operation, region: &str) -> Sent {
    let mut sent = sent(operation.name(), SpanKind::Client);
    if let Some(span) = &mut sent.0 {
        let service = "IoTSecureTunneling";
        span.update_name(format!("{service}.{}", operation.name()));
        span.set_attribute(KeyValue::new("rpc.system", "aws-api"));
        span.set_attribute(KeyValue::new("rpc.service", service));
        span.set_attribute(KeyValue::new("rpc.method", operation.name()));
        span.set_attribute(KeyValue::new("cloud.region", region.to_owned()));
    }
    sent
}

impl Sent {
    /// AWS's ID of a request.
    pub fn request_id(&mut self, id: Option<&str>) {
        if let (Some(span), Some(id)) = (&mut self.0, id) {
            span.set_attribute(KeyValue::new("aws.request_id", crate::aws::clean(id)));
        }
    }

    /// A call to AWS failed. `code`: AWS's own, if it has answered with one.
    pub fn failed(&mut self, code: Option<&str>, status: Option<u16>, kind: CallErrorKind) {
        if self.0.is_some() {
            self.refused(code.map_or_else(|| format!("{kind:?}"), crate::aws::clean), status);
        }
    }

    /// A request to the API server has ended.
    pub fn answered(&mut self, error: Option<&Error>) {
        if let (Some(_), Some(error)) = (&self.0, error) {
            let code = error.code();
            let what = match (code, error) {
                (Some(code), _) => code.to_string().into(),
                (None, Error::Timeout(_)) => Value::from("timeout"),
                (None, _) => "no_answer".into(),
            };
            self.refused(what, code);
        }
    }

    fn refused(&mut self, error: impl Into<Value>, status: Option<u16>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("error.type", error.into()));
            if let Some(status) = status {
                span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
            }
            span.set_status(Status::error(""));
        }
    }
}

/// `None`: traces are off, `opening` is none, it has ended, or the sampler has left it out.
fn recording(opening: &Context) -> Option<&'static Traces> {
    TRACES.get().filter(|_| opening.span().is_recording())
}
