//! The AWS gateway: beside `connections` and `credentials`, the only file that names the AWS SDK. Its types and errors
//! end here.
//!
//! The SDK's retries are off: it takes LimitExceededException for throttling and would send
//! OpenTunnel, which has no idempotency token, up to three times. (Credentials may be asked for again:
//! STS and the Pod Identity agent keep the SDK's retries.) Every call has a time limit.

mod connections;
mod credentials;

use crate::metrics::Metrics;
use crate::telemetry::Readiness;
use crate::traces;
use crate::tunnels::{
    CallError, CallErrorKind, Description, DestinationConfig, Details, InAccount, Life, OpenRequest, Operation, Owner,
    Page, Summary, Tags, Tokens, TunnelId, TunnelRef, owner_of, sides,
};
use aws_sdk_iotsecuretunneling as sdk;
use aws_sdk_iotsecuretunneling::config::IdentityCache;
use aws_sdk_iotsecuretunneling::config::http::HttpResponse;
use aws_sdk_iotsecuretunneling::config::retry::RetryConfig;
use aws_sdk_iotsecuretunneling::config::timeout::TimeoutConfig;
use aws_sdk_iotsecuretunneling::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_iotsecuretunneling::operation::RequestId;
pub use connections::Connector;
use credentials::{Keeper, Lack};
use jiff::Timestamp;
use opentunnel_api::{ClientMode, Connection, ConnectionStatus, GENERATION_TAG, OWNER_TAG, TunnelState};
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Bytes of AWS's words that are kept: they go into conditions and events, whose notes hold 1 KiB.
const MESSAGE_LIMIT: usize = 1024;
/// Bytes of an access token; AWS's have some hundred.
const TOKEN_LIMIT: usize = 16 * 1024;
/// The year 9000.
const LATEST: Timestamp = Timestamp::constant(221_845_392_000, 0);

/// A client of one account and region.
#[derive(Clone)]
pub struct Aws {
    client: sdk::Client,
    region: String,
    /// The account, once AWS has told an ARN.
    account: Arc<OnceLock<String>>,
    metrics: Arc<Metrics>,
}

/// Why the gateway cannot start: there is no region in the environment or profile.
#[derive(Debug, thiserror::Error)]
#[error("no AWS region is configured: set AWS_REGION (for example AWS_REGION=eu-west-1)")]
pub struct NoRegion;

impl Aws {
    /// Configures the client as every AWS program is configured: environment, profile, IRSA, Pod
    /// Identity, instance metadata. `timeout` limits each call. It starts without credentials, too: what there is
    /// for Tunnels to do without AWS is done, and the rest when they come.
    ///
    /// # Errors
    /// There is no region.
    pub async fn from_env(
        timeout: Duration,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
    ) -> Result<Self, NoRegion> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(timeout.min(Duration::from_secs(5)))
            .operation_timeout(timeout)
            .build();
        let config = credentials::environment().timeout_config(timeouts).load().await;
        let region = config.region().ok_or(NoRegion)?.to_string();
        let own = sdk::config::Builder::from(&config)
            .retry_config(RetryConfig::disabled())
            .credentials_provider(Keeper::start(readiness).await)
            // The keeper is one.
            .identity_cache(IdentityCache::no_cache())
            .build();
        Ok(Self { client: sdk::Client::from_conf(own), region, account: Arc::default(), metrics })
    }

    /// The region that is served.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Whether a tunnel of this ARN (`arn:aws:iot:REGION:ACCOUNT:tunnel/ID`) is in this account and region.
    pub fn has(&self, arn: &str) -> InAccount {
        let parts: Vec<_> = arn.split(':').collect();
        let [_, _, _, region, account, ..] = parts.as_slice() else { return InAccount::Unknown };
        match self.account.get() {
            _ if *region != self.region => InAccount::No,
            Some(own) if own != account => InAccount::No,
            Some(_) => InAccount::Yes,
            None => InAccount::Unknown,
        }
    }

    fn learn_account(&self, arn: &str) {
        if let Some(account) = arn.split(':').nth(4) {
            self.account.get_or_init(|| account.to_owned());
        }
    }

    /// The one way that every call goes: its answer is `read`, and it is counted. `None` from `read`:
    /// the answer lacks what it must have. It is in a box, because a call of the SDK is large: a
    /// reconcile has no room for one until it makes it.
    async fn call<A, E, T>(
        &self,
        operation: Operation,
        sent: Pin<Box<impl Future<Output = Result<A, SdkError<E, HttpResponse>>>>>,
        read: impl FnOnce(A) -> Option<T>,
    ) -> Result<T, CallError>
    where
        A: RequestId,
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let begun = Instant::now();
        let mut span = traces::call(operation, &self.region);
        let outcome = match sent.await {
            Ok(answer) => {
                span.request_id(answer.request_id());
                read(answer).ok_or_else(|| unreadable(operation))
            }
            Err(error) => {
                span.request_id(error.request_id());
                let (code, status) =
                    (error.code().map(str::to_owned), error.raw_response().map(|r| r.status().as_u16()));
                let error = classify(error);
                span.failed(code.as_deref(), status, error.kind);
                Err(error)
            }
        };
        drop(span);
        self.metrics.called(operation, begun.elapsed(), &outcome);
        outcome
    }

    /// OpenTunnel. Costs money, and cannot be repeated safely. `tags`: beside the operator's own two; `generation`: of
    /// the tokens that it returns.
    pub async fn open(
        &self,
        request: &OpenRequest,
        tags: &Tags,
        owner: &Owner,
        generation: i64,
    ) -> Result<(TunnelRef, Tokens), CallError> {
        let own = [tag(OWNER_TAG, &owner.to_string()), tag(GENERATION_TAG, &generation.to_string())];
        let tags = tags.iter().map(|(key, value)| tag(key, value)).chain(own).collect::<Result<_, _>>()?;
        let timeout = request
            .lifetime_minutes
            .map(|minutes| sdk::types::TimeoutConfig::builder().max_lifetime_timeout_minutes(minutes).build());
        let sent = self
            .client
            .open_tunnel()
            .set_description(request.description.clone())
            .set_destination_config(request.destination.as_ref().map(destination).transpose()?)
            .set_tags(Some(tags))
            .set_timeout_config(timeout)
            .send();
        let read = |out: sdk::operation::open_tunnel::OpenTunnelOutput| {
            let (source, destination) = (token(out.source_access_token), token(out.destination_access_token));
            Some((reference(out.tunnel_id, out.tunnel_arn)?, sides(ClientMode::All, source, destination)?))
        };
        let opened = self.call(Operation::OpenTunnel, Box::pin(sent), read).await?;
        self.learn_account(&opened.0.arn);
        Ok(opened)
    }

    /// RotateTunnelAccessToken: new tokens for the sides of `mode`; the old ones are dead. The
    /// destination may not be given when the source is rotated.
    pub async fn rotate(
        &self,
        id: &TunnelId,
        mode: ClientMode,
        to: Option<&DestinationConfig>,
    ) -> Result<Tokens, CallError> {
        let (sdk_mode, to) = match mode {
            ClientMode::Source => (sdk::types::ClientMode::Source, None),
            ClientMode::Destination => (sdk::types::ClientMode::Destination, to),
            ClientMode::All => (sdk::types::ClientMode::All, to),
        };
        let sent = self
            .client
            .rotate_tunnel_access_token()
            .tunnel_id(&id.0)
            .client_mode(sdk_mode)
            .set_destination_config(to.map(destination).transpose()?)
            .send();
        let read = |out: sdk::operation::rotate_tunnel_access_token::RotateTunnelAccessTokenOutput| {
            sides(mode, token(out.source_access_token), token(out.destination_access_token))
        };
        self.call(Operation::RotateTunnelAccessToken, Box::pin(sent), read).await
    }

    /// CloseTunnel.
    pub async fn close(&self, id: &TunnelId) -> Result<(), CallError> {
        let sent = self.client.close_tunnel().tunnel_id(&id.0).send();
        self.call(Operation::CloseTunnel, Box::pin(sent), |_| Some(())).await
    }

    /// DescribeTunnel. A tunnel that AWS does not know is an answer, not an error.
    pub async fn describe(&self, id: &TunnelId) -> Result<Description, CallError> {
        let sent = self.client.describe_tunnel().tunnel_id(&id.0).send();
        match self.call(Operation::DescribeTunnel, Box::pin(sent), |out| description(&out.tunnel?)).await {
            Err(e) if e.kind == CallErrorKind::NotFound => Ok(Description::unknown()),
            described => described,
        }
    }

    /// ListTunnels: the next page of up to 100, newest first.
    pub async fn list(&self, next_token: Option<String>) -> Result<Page, CallError> {
        let sent = self.client.list_tunnels().max_results(100).set_next_token(next_token).send();
        let read = |out: sdk::operation::list_tunnels::ListTunnelsOutput| {
            // An entry that cannot be read may be the one that is searched for: so cannot the list.
            let summaries = out.tunnel_summaries.unwrap_or_default().into_iter().map(summary).collect::<Option<_>>()?;
            Some(Page { summaries, next_token: out.next_token.filter(|t| !t.is_empty()) })
        };
        let page = self.call(Operation::ListTunnels, Box::pin(sent), read).await?;
        if let Some(summary) = page.summaries.first() {
            self.learn_account(&summary.tunnel.arn);
        }
        Ok(page)
    }

    /// TagResource: other tags stay as they are.
    pub async fn tag(&self, arn: &str, tags: &Tags) -> Result<(), CallError> {
        let tags = tags.iter().map(|(key, value)| tag(key, value)).collect::<Result<_, _>>()?;
        let sent = self.client.tag_resource().resource_arn(arn).set_tags(Some(tags)).send();
        self.call(Operation::TagResource, Box::pin(sent), |_| Some(())).await
    }

    /// UntagResource.
    pub async fn untag(&self, arn: &str, keys: &[String]) -> Result<(), CallError> {
        let sent = self.client.untag_resource().resource_arn(arn).set_tag_keys(Some(keys.to_vec())).send();
        self.call(Operation::UntagResource, Box::pin(sent), |_| Some(())).await
    }
}

fn description(tunnel: &sdk::types::Tunnel) -> Option<Description> {
    let created_at = time(tunnel.created_at)?;
    let life = match state(tunnel.status.as_ref())? {
        TunnelState::Open => Life::Open { created_at },
        TunnelState::Closed => {
            Life::Closed { created_at, closed_at: time(tunnel.last_updated_at).unwrap_or(created_at) }
        }
    };
    let owner = owner_of(tunnel.tags.iter().flatten().map(|t| (t.key.as_str(), t.value.as_str())));
    let opened_with = OpenRequest {
        description: tunnel.description.clone(),
        destination: tunnel
            .destination_config
            .as_ref()
            .map(|d| DestinationConfig { thing_name: d.thing_name.clone(), services: d.services.clone() }),
        lifetime_minutes: tunnel.timeout_config.as_ref().and_then(|t| t.max_lifetime_timeout_minutes),
        tags: Vec::new(),
    };
    let details = Details {
        tags: tunnel.tags.iter().flatten().map(|t| (t.key.clone(), t.value.clone())).collect(),
        source: tunnel.source_connection_state.as_ref().and_then(connection),
        destination: tunnel.destination_connection_state.as_ref().and_then(connection),
    };
    Some(Description {
        life,
        owner,
        tunnel: Some(reference(tunnel.tunnel_id.clone(), tunnel.tunnel_arn.clone())?),
        opened_with: Some(opened_with.digest()),
        details: Some(Arc::new(details)),
    })
}

fn connection(state: &sdk::types::ConnectionState) -> Option<Connection> {
    let status = match state.status.as_ref()? {
        sdk::types::ConnectionStatus::Connected => ConnectionStatus::Connected,
        sdk::types::ConnectionStatus::Disconnected => ConnectionStatus::Disconnected,
        _ => return None,
    };
    // Kubernetes' times have whole seconds.
    let last_updated_at = time(state.last_updated_at).map(crate::record::floor);
    Some(Connection { status, last_updated_at })
}

fn summary(summary: sdk::types::TunnelSummary) -> Option<Summary> {
    let created_at = time(summary.created_at)?;
    Some(Summary {
        tunnel: reference(summary.tunnel_id, summary.tunnel_arn)?,
        state: state(summary.status.as_ref())?,
        created_at,
        last_updated_at: time(summary.last_updated_at).unwrap_or(created_at),
    })
}

fn tag(key: &str, value: &str) -> Result<sdk::types::Tag, CallError> {
    sdk::types::Tag::builder().key(key).value(value).build().map_err(unbuildable)
}

fn destination(to: &DestinationConfig) -> Result<sdk::types::DestinationConfig, CallError> {
    sdk::types::DestinationConfig::builder()
        .set_thing_name(to.thing_name.clone())
        .set_services(Some(to.services.clone()))
        .build()
        .map_err(unbuildable)
}

fn unbuildable(error: impl Error + 'static) -> CallError {
    CallError { kind: CallErrorKind::InvalidRequest, message: clean(&chain(&error)) }
}

fn unreadable(operation: Operation) -> CallError {
    let message = format!("AWS's answer to {} lacks what it must have", operation.name());
    CallError { kind: CallErrorKind::Doubt, message }
}

fn state(status: Option<&sdk::types::TunnelStatus>) -> Option<TunnelState> {
    match status? {
        sdk::types::TunnelStatus::Open => Some(TunnelState::Open),
        sdk::types::TunnelStatus::Closed => Some(TunnelState::Closed),
        _ => None,
    }
}

/// What AWS cannot mean, the API server would not take into a status, for ever: it is as good as no answer.
fn reference(id: Option<String>, arn: Option<String>) -> Option<TunnelRef> {
    let (id, arn) = (id?, arn?);
    let is_id = |c: char| c.is_ascii_alphanumeric() || "_-+=:".contains(c);
    let fits = (1..=128).contains(&id.len())
        && id.chars().all(is_id)
        && (1..=1600).contains(&arn.len())
        && !arn.contains(char::is_control);
    fits.then_some(TunnelRef { id: TunnelId(id), arn })
}

/// A Secret has 1 MiB, and a Pod's environment takes no NUL.
fn token(token: Option<String>) -> Option<String> {
    token.filter(|t| t.len() <= TOKEN_LIMIT && !t.contains(char::is_control))
}

/// A time that Kubernetes can write: four digits of a year, after the lifetime too.
fn time(time: Option<sdk::primitives::DateTime>) -> Option<Timestamp> {
    let time = Timestamp::from_millisecond(time?.to_millis().ok()?).ok()?;
    (Timestamp::UNIX_EPOCH..LATEST).contains(&time).then_some(time)
}

/// What a failure of the SDK means. Definite is only what is known to have had no effect: no
/// credentials, connection refused, or a well-formed 4xx. Everything else is doubt.
fn classify<E>(error: SdkError<E, HttpResponse>) -> CallError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    if let SdkError::ServiceError(service) = &error {
        let (meta, status) = (service.err().meta(), service.raw().status().as_u16());
        let kind = kind_of(status, meta.code());
        let words = match (meta.code(), meta.message()) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.to_owned(),
            (None, _) => format!("AWS answered HTTP status {status} without an error that can be read"),
        };
        return CallError { kind, message: clean(&words) };
    }
    if let Some(Lack { kind, message }) = find::<Lack>(&error) {
        return CallError { kind: *kind, message: message.clone() };
    }
    let kind = if find::<std::io::Error>(&error).is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
        CallErrorKind::Unreachable
    } else {
        CallErrorKind::Doubt
    };
    CallError { kind, message: clean(&chain(&error)) }
}

/// Maps an HTTP status and AWS's error code (AWS "Common error types", and the service's model).
fn kind_of(status: u16, code: Option<&str>) -> CallErrorKind {
    use CallErrorKind::*;
    let Some(code) = code.filter(|_| (400..500).contains(&status)) else {
        return Doubt;
    };
    match code {
        "LimitExceededException" => LimitExceeded,
        "ResourceNotFoundException" => NotFound,
        "RequestTimeout" | "RequestTimeoutException" => Doubt,
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestThrottled"
        | "TooManyRequestsException"
        | "SlowDown" => Throttled,
        "AccessDeniedException"
        | "AccessDenied"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "NotAuthorized"
        | "OptInRequired"
        | "UnauthorizedException" => AccessDenied,
        _ if status == 408 => Doubt,
        _ if status == 429 => Throttled,
        _ if status == 401 || status == 403 => AccessDenied,
        _ => InvalidRequest,
    }
}

/// The error of type `T` among `error` and its causes.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    causes(error).find_map(|e| e.downcast_ref())
}

/// An error, its cause, the cause of that, and so on.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&e| e.source())
}

/// An error and its causes on one line, each said once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    for part in causes(error).map(ToString::to_string) {
        if !words.iter().any(|w| w.contains(&part)) {
            words.push(part);
        }
    }
    words.join(": ")
}

/// Foreign words for people: control characters out, cut to [`MESSAGE_LIMIT`] bytes.
pub(crate) fn clean(words: &str) -> String {
    let mut clean: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.truncate(clean.floor_char_boundary(MESSAGE_LIMIT));
    clean
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
