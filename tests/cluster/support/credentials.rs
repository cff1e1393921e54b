//! Where a Pod on EKS gets its AWS credentials from, played on this machine: STS (IRSA) and the Pod
//! Identity agent.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What it gives out lives that long; the SDK asks for new ones 10 s before.
const LIFETIME: SignedDuration = SignedDuration::from_secs(15);

/// What becomes of who asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Manner {
    /// It is given credentials, at the second request.
    Gives,
    /// Each request fails with a 503.
    Fails,
    /// Each is refused, as where the role's trust policy does not name the ServiceAccount.
    Refuses,
}

struct Shared {
    manner: Mutex<Manner>,
    /// The first who asks is told that it fails.
    failed: AtomicBool,
    given: AtomicUsize,
    /// What those who asked showed, the last one first.
    shown: Mutex<Vec<String>>,
}

/// A running source of credentials: `ASIA0000` first, then `ASIA0001` and so on. The first request fails with a
/// 500, as such a service may at any time.
pub struct Credentials {
    shared: Arc<Shared>,
    /// Its URL.
    pub url: String,
    server: JoinHandle<()>,
}

/// The access key ID of the n-th credentials.
pub fn key_id(number: usize) -> String {
    format!("ASIA{number:04}")
}

/// The session token of the n-th credentials.
pub fn session_token(number: usize) -> String {
    format!("session-{number}")
}

impl Credentials {
    /// Starts one.
    pub async fn start() -> Self {
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Gives),
            failed: AtomicBool::new(false),
            given: AtomicUsize::new(0),
            shown: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let app = Router::new().route("/", post(sts)).route("/v1/credentials", get(pod_identity));
        let app = app.with_state(shared.clone());
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Self { shared, url, server }
    }

    /// What becomes of who asks from now on.
    pub fn behaves(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// How often it was asked.
    pub fn given(&self) -> usize {
        self.shared.given.load(Ordering::Relaxed)
    }

    /// What the last one who asked showed: the form, or the Authorization header.
    pub fn shown(&self) -> String {
        let shown = self.shared.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.last().cloned().expect("somebody has asked")
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    /// The refusal of a request that gets no credentials.
    fn refusal(&self) -> Option<Response> {
        match *self.manner.lock().unwrap_or_else(PoisonError::into_inner) {
            Manner::Gives => {
                (!self.failed.swap(true, Ordering::Relaxed)).then(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())
            }
            Manner::Fails => Some(StatusCode::SERVICE_UNAVAILABLE.into_response()),
            // STS's own form; the agent's has no part that the SDK reads.
            Manner::Refuses => {
                let words = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>Not authorized to \
                             perform sts:AssumeRoleWithWebIdentity</Message></Error></ErrorResponse>";
                Some((StatusCode::FORBIDDEN, words).into_response())
            }
        }
    }

    /// The number of the next ones, and when they end.
    fn next(&self, shown: String) -> (usize, Timestamp) {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
        (self.given.fetch_add(1, Ordering::Relaxed), Timestamp::now() + LIFETIME)
    }
}

/// AssumeRoleWithWebIdentity of AWS STS, API version 2011-06-15.
async fn sts(State(shared): State<Arc<Shared>>, form: String) -> Response {
    if !form.contains("Action=AssumeRoleWithWebIdentity") {
        return StatusCode::BAD_REQUEST.into_response();
    }
    if let Some(refusal) = shared.refusal() {
        return refusal;
    }
    let (number, end) = shared.next(form);
    let (key, token) = (key_id(number), session_token(number));
    format!(
        r#"<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>
<SessionToken>{token}</SessionToken><Expiration>{end:.0}</Expiration></Credentials>
<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/opentunnel/o</Arn><AssumedRoleId>A:o</AssumedRoleId></AssumedRoleUser>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"#
    )
    .into_response()
}

/// The Pod Identity agent's answer.
async fn pod_identity(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let Some(shown) = headers.get("authorization").and_then(|value| value.to_str().ok()) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    if let Some(refusal) = shared.refusal() {
        return refusal;
    }
    let (number, end) = shared.next(shown.to_owned());
    let credentials = json!({
        "AccessKeyId": key_id(number), "SecretAccessKey": "s", "Token": session_token(number),
        "AccountId": "123456789012", "Expiration": format!("{end:.0}"),
    });
    axum::Json(credentials).into_response()
}
