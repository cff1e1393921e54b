//! A proxy between an operator and the API server that knows requests: it can hold one, lose its
//! answer, or answer it itself. So a test stops the world at a line of the protocol. The one in front
//! of AWS (`aws_proxy`) is made of the same [`Proxy`].

use super::LIMIT;
use super::control_plane::write_private;
use super::faults::{Connection, Reset};
use super::namespace::client;
use super::tap::Tap;
use super::weather::Weather;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::extract::connect_info::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request as HttpRequest, Response, StatusCode, header};
use futures::FutureExt;
use kube::Client;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// A request of an operator's. Its body may hold tokens: it is not for printing.
#[derive(Clone)]
pub struct Request {
    /// As `PATCH`.
    pub method: String,
    /// As `/apis/opentunnel.dev/v1alpha1/namespaces/a/tunnels/b/status`.
    pub path: String,
    /// As `watch=true&…`; empty where there is none.
    pub query: String,
    /// As `OpenTunnel`, where AWS is called.
    pub operation: Option<String>,
    headers: HeaderMap,
    body: Bytes,
}

impl Request {
    /// The body; `Null` where there is none.
    pub fn body(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether it is a call of this operation of AWS's.
    pub fn calls(&self, operation: &str) -> bool {
        self.operation.as_deref() == Some(operation)
    }

    /// Whether it is a write of a Tunnel that claims an opening.
    pub fn is_claim(&self) -> bool {
        let annotations = &self.body()["metadata"]["annotations"];
        self.method == "PATCH" && annotations[opentunnel_api::OPENING_ANNOTATION].is_string()
    }

    /// Whether it writes a Tunnel's status, with this reason in the main condition.
    pub fn is_status(&self, reason: &str) -> bool {
        self.method == "PATCH"
            && self.path.ends_with("/status")
            && self.body()["status"]["conditions"][0]["reason"] == reason
    }

    /// Whether it creates or updates a Secret.
    pub fn is_secret_write(&self) -> bool {
        self.path.contains("/secrets") && ["POST", "PUT", "PATCH"].contains(&self.method.as_str())
    }

    /// The same, but for trials (`dryRun`).
    pub fn is_secret_write_in_earnest(&self) -> bool {
        self.is_secret_write() && !self.query.contains("dryRun")
    }
}

/// Where a request is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The API server does not know of it.
    BeforeForward,
    /// The API server has carried it out; the operator does not know.
    AfterCommit,
}

type Matches = Box<dyn Fn(&Request) -> bool + Send + Sync>;
type Rewrite = Arc<dyn Fn(&mut Value) + Send + Sync>;

struct Rule {
    matches: Matches,
    action: Action,
}

enum Action {
    Hold(Point, oneshot::Sender<()>, oneshot::Receiver<()>),
    Answer(StatusCode, Value),
    Rewrite(Rewrite),
}

/// A request that is held, or will be. Dropping it closes the request's connection.
#[must_use]
pub struct Held {
    reached: oneshot::Receiver<()>,
    go: oneshot::Sender<()>,
}

impl Held {
    /// Returns once a request is held.
    pub async fn reached(&mut self) {
        let reached = timeout(LIMIT, &mut self.reached).await;
        reached.expect("such a request comes").expect("the proxy runs");
    }

    /// Lets it go on.
    pub fn pass(self) {
        let _ = self.go.send(());
    }

    /// Closes its connection, so that the operator gets no answer.
    pub fn cut(self) {}
}

/// A request's connection is closed without an answer.
pub struct Cut;

struct Shared {
    client: Client,
    tap: Option<Arc<Tap>>,
    weather: OnceLock<Arc<dyn Weather>>,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Request>>,
}

/// A running proxy in front of a service.
pub struct Proxy {
    shared: Arc<Shared>,
    /// Where it listens.
    pub address: SocketAddr,
    door: usize,
    server: JoinHandle<()>,
}

/// A running proxy in front of the API server. It has the operator's rights.
pub struct ApiProxy {
    proxy: Proxy,
    kubeconfig: PathBuf,
}

impl ApiProxy {
    /// Starts one, and writes a kubeconfig that leads to it. A `tap` counts what goes through.
    pub async fn start(server: &Path, kubeconfig: PathBuf, tap: Option<Arc<Tap>>) -> Self {
        Self::with(Proxy::start(client(server).await, tap).await, kubeconfig)
    }

    /// See [`Proxy::next_door`].
    pub async fn next_door(&self, kubeconfig: PathBuf) -> Self {
        Self::with(self.proxy.next_door().await, kubeconfig)
    }

    fn with(proxy: Proxy, kubeconfig: PathBuf) -> Self {
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{}", proxy.address)}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        });
        write_private(&kubeconfig, &text.to_string()).expect("a file can be written");
        Self { proxy, kubeconfig }
    }

    /// The kubeconfig that leads to it.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

impl Deref for ApiProxy {
    type Target = Proxy;
    fn deref(&self) -> &Proxy {
        &self.proxy
    }
}

impl Proxy {
    /// Starts one that forwards to where `client` leads.
    pub async fn start(client: Client, tap: Option<Arc<Tap>>) -> Self {
        Self::listen(
            Arc::new(Shared { client, tap, weather: OnceLock::new(), rules: Mutex::default(), seen: Mutex::default() }),
            0,
        )
        .await
    }

    /// The same proxy for the next operator: what an earlier one sent, and is read only now, comes in by
    /// another door.
    pub async fn next_door(&self) -> Self {
        Self::listen(self.shared.clone(), self.door + 1).await
    }

    async fn listen(shared: Arc<Shared>, door: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let app = Router::new().fallback(handle).with_state((shared.clone(), door));
        let app = app.into_make_service_with_connect_info::<Connection>();
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Self { shared, address, door, server }
    }

    /// Holds the next request that matches, once.
    pub fn hold(&self, point: Point, matches: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Held {
        let (tell, reached) = oneshot::channel();
        let (go, gone) = oneshot::channel();
        self.add(matches, Action::Hold(point, tell, gone));
        Held { reached, go }
    }

    /// Carries the next request that matches out, once, and loses its answer.
    pub fn lose_answer(&self, matches: impl Fn(&Request) -> bool + Send + Sync + 'static) {
        self.hold(Point::AfterCommit, matches).cut();
    }

    /// Answers every request that matches by itself, until [`Self::answer_no_more`].
    pub fn answer(&self, status: StatusCode, body: Value, matches: impl Fn(&Request) -> bool + Send + Sync + 'static) {
        self.add(matches, Action::Answer(status, body));
    }

    /// The service answers again.
    pub fn answer_no_more(&self) {
        lock(&self.shared.rules).retain(|rule| !matches!(rule.action, Action::Answer(..)));
    }

    /// Changes the body of every request that matches.
    pub fn rewrite(
        &self,
        matches: impl Fn(&Request) -> bool + Send + Sync + 'static,
        change: impl Fn(&mut Value) + Send + Sync + 'static,
    ) {
        self.add(matches, Action::Rewrite(Arc::new(change)));
    }

    /// From now on, all that comes meets this weather. To be called once.
    pub fn meets(&self, weather: Arc<dyn Weather>) {
        assert!(self.shared.weather.set(weather).is_ok(), "there is one weather");
    }

    /// Requests so far that match.
    pub fn count(&self, matches: impl Fn(&Request) -> bool) -> usize {
        lock(&self.shared.seen).iter().filter(|request| matches(request)).count()
    }

    /// Returns once more requests that match have come than these.
    pub async fn more_than(&self, before: usize, matches: impl Fn(&Request) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while self.count(&matches) <= before {
            assert!(Instant::now() < deadline, "no such request comes");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn add(&self, matches: impl Fn(&Request) -> bool + Send + Sync + 'static, action: Action) {
        let matches = Box::new(matches);
        lock(&self.shared.rules).push(Rule { matches, action });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// What the API server says when it refuses: a `Status`.
pub fn failure(code: StatusCode, message: &str) -> Value {
    // As `NotFound`: in these, Kubernetes' words are HTTP's.
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    let code = code.as_u16();
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message})
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Notes a request, and finds what is to be done with it.
    fn note(&self, request: Request) -> Option<Action> {
        let mut rules = lock(&self.rules);
        let found = rules.iter().position(|rule| (rule.matches)(&request));
        // In weather there are too many.
        if self.weather.get().is_none() {
            lock(&self.seen).push(request);
        }
        match &rules[found?].action {
            Action::Answer(status, body) => Some(Action::Answer(*status, body.clone())),
            Action::Rewrite(change) => Some(Action::Rewrite(change.clone())),
            Action::Hold(..) => Some(rules.remove(found?).action),
        }
    }
}

async fn handle(
    State((shared, door)): State<(Arc<Shared>, usize)>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: HttpRequest<Body>,
) -> Response<Body> {
    let answer = match shared.receive(request).await {
        Ok((request, received)) => {
            let forwarded = shared.forward(&request, received).boxed();
            let forwarded = match shared.weather.get() {
                Some(weather) => weather.pass(&request, forwarded),
                None => forwarded,
            };
            match &shared.tap {
                Some(tap) => tap.pass(door, &request, tap.eyes.look(&request, forwarded)).await,
                None => forwarded.await,
            }
        }
        Err(cut) => Err(cut),
    };
    let answer = answer.and_then(|answer| match answer.extensions().get::<Reset>() {
        None => Ok(answer),
        Some(Reset) => {
            connection.resets().expect("a socket");
            Err(Cut)
        }
    });
    // The panic ends the connection's task, silently.
    answer.unwrap_or_else(|Cut| std::panic::resume_unwind(Box::new("the connection is cut")))
}

impl Shared {
    async fn receive(&self, request: HttpRequest<Body>) -> Result<(Request, Parts), Cut> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, usize::MAX).await.map_err(|_| Cut)?;
        let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
        let request = Request {
            method: parts.method.to_string(),
            path: parts.uri.path().into(),
            query: parts.uri.query().unwrap_or_default().into(),
            operation: target.and_then(|target| Some(target.split_once('.')?.1.to_owned())),
            headers: parts.headers.clone(),
            body,
        };
        Ok((request, parts))
    }

    async fn forward(&self, request: &Request, mut parts: Parts) -> Result<Response<Body>, Cut> {
        let mut body = request.body.clone();
        let mut after_commit = None;
        match self.note(request.clone()) {
            Some(Action::Answer(status, body)) => {
                let answer = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
                return Ok(answer.body(Body::from(body.to_string())).expect("a response"));
            }
            Some(Action::Rewrite(change)) => {
                let mut changed = request.body();
                change(&mut changed);
                body = changed.to_string().into();
            }
            Some(Action::Hold(Point::BeforeForward, reached, go)) => held(reached, go).await?,
            Some(Action::Hold(Point::AfterCommit, reached, go)) => after_commit = Some((reached, go)),
            None => {}
        }
        // The client that forwards sets its own.
        for name in [header::HOST, header::CONTENT_LENGTH, header::CONNECTION] {
            parts.headers.remove(name);
        }
        let forwarded = self.client.send(HttpRequest::from_parts(parts, body.into())).await;
        let answer = forwarded.map_err(|_| Cut)?;
        if let Some((reached, go)) = after_commit {
            held(reached, go).await?;
        }
        let (mut parts, body) = answer.into_parts();
        for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION] {
            parts.headers.remove(name);
        }
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

async fn held(reached: oneshot::Sender<()>, go: oneshot::Receiver<()>) -> Result<(), Cut> {
    let _ = reached.send(());
    go.await.map_err(|_| Cut)
}

#[tokio::test]
async fn a_request_through_the_proxy_is_held_lost_or_answered_as_the_test_says() {
    use k8s_openapi::api::core::v1::Secret;
    use kube::Api;
    use kube::api::PostParams;

    let world = super::World::new().await;
    let proxy = world.api_proxy().await;
    let secrets: Api<Secret> = Api::namespaced(client(proxy.kubeconfig()).await, &world.name);
    let secret =
        |name: &str| -> Secret { serde_json::from_value(json!({"metadata": {"name": name}})).expect("a Secret") };
    let create = async |name: &str| secrets.create(&PostParams::default(), &secret(name)).await;
    let exists = async |name: &str| world.secret_data(name).await.is_some();

    let creates = |request: &Request| request.is_secret_write();
    let mut held = proxy.hold(Point::BeforeForward, creates);
    let (created, ()) = tokio::join!(create("cut"), async {
        held.reached().await;
        held.cut();
    });
    assert!(created.is_err() && !exists("cut").await, "a request that is cut is never made");

    let mut held = proxy.hold(Point::AfterCommit, creates);
    let (created, ()) = tokio::join!(create("passed"), async {
        held.reached().await;
        assert!(exists("passed").await, "it is carried out when it is reached");
        held.pass();
    });
    assert!(created.is_ok());

    proxy.lose_answer(creates);
    assert!(create("lost").await.is_err() && exists("lost").await, "it is carried out, and not answered");

    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    proxy.answer(unavailable, failure(unavailable, "later"), creates);
    let refused = create("refused").await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 503 && status.message == "later"));
    proxy.answer_no_more();
    assert!(!exists("refused").await && create("refused").await.is_ok());
    assert_eq!(proxy.count(creates), 5);
}
