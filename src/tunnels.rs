//! AWS IoT Secure Tunneling in the words that the controller uses: what is asked of it, what it
//! answers, and how a call can fail.

use crate::clock::Mono;
use crate::record::Connections;
use jiff::{SignedDuration, Timestamp};
use opentunnel_api::{ClientMode, Connection, DEFAULT_LIFETIME_MINUTES, GENERATION_TAG, OWNER_TAG, TunnelState};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// AWS's ID of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(pub String);

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One intent to open a tunnel: a random 128-bit ID, new for each intent, never used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attempt(pub String);

impl Attempt {
    /// Whether a text can be one, and has room in the status.
    pub fn fits(text: &str) -> bool {
        (1..=128).contains(&text.len())
    }

    /// A new one (UUIDv4: 122 random bits).
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose tunnel it is: the value of the tag [`OWNER_TAG`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster's ID: the UID of namespace kube-system, or `--cluster-id`.
    pub cluster: String,
    /// The Tunnel's namespace.
    pub namespace: String,
    /// The Tunnel's UID.
    pub uid: String,
    /// The attempt that opened it.
    pub attempt: Attempt,
}

impl Owner {
    /// Reads the tag's value; `None` when it is not of the operator's form.
    pub fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split('/').map(str::to_owned);
        let owner = Self {
            cluster: parts.next()?,
            namespace: parts.next()?,
            uid: parts.next()?,
            attempt: Attempt(parts.next()?),
        };
        (parts.next().is_none() && Attempt::fits(&owner.attempt.0)).then_some(owner)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.cluster, self.namespace, self.uid, self.attempt)
    }
}

/// An access token or client token. Its `Debug` prints nothing of it, and its memory is wiped.
#[derive(Clone, Debug)]
pub struct Token(SecretString);

impl Token {
    /// Takes AWS's access token.
    pub fn new(token: String) -> Self {
        Self(token.into())
    }

    /// A client token (UUIDv4): with it a restarted local proxy may use its access token again.
    pub fn random_client_token() -> Self {
        Self::new(Uuid::new_v4().to_string())
    }

    /// The token itself. Only a Secret's data may be made of it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// What a client needs to connect to one side.
#[derive(Clone, Debug)]
pub struct Side {
    /// AWS's token.
    pub access_token: Token,
    /// The operator's own, made once for each access token.
    pub client_token: Token,
}

/// The tokens that a call returned: of both sides, or of the side that was rotated.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// The source's.
    pub source: Option<Side>,
    /// The destination's.
    pub destination: Option<Side>,
}

impl Tokens {
    /// Whether the tokens of all sides of `mode` are there.
    pub fn have(&self, mode: ClientMode) -> bool {
        (!mode.has_source() || self.source.is_some()) && (!mode.has_destination() || self.destination.is_some())
    }

    /// These, and `others` for the sides that are not there.
    pub fn or(self, others: Self) -> Self {
        Self { source: self.source.or(others.source), destination: self.destination.or(others.destination) }
    }
}

/// The destination of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationConfig {
    /// The IoT thing.
    pub thing_name: Option<String>,
    /// At least one.
    pub services: Vec<String>,
}

/// Arguments of OpenTunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// 1-2048 characters.
    pub description: Option<String>,
    /// Device and services.
    pub destination: Option<DestinationConfig>,
    /// The user's tags; the owner tag is put beside them.
    pub tags: Vec<(String, String)>,
    /// Minutes, 1-720; `None` is AWS's default, 720.
    pub lifetime_minutes: Option<i32>,
}

impl OpenRequest {
    /// SHA-256 of what AWS cannot change on an open tunnel, in hexadecimal. The order of the services does not matter,
    /// and no lifetime is AWS's default.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut put = |part: &str| {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        };
        let destination = self.destination.as_ref();
        put(self.description.as_deref().unwrap_or_default());
        put(destination.and_then(|d| d.thing_name.as_deref()).unwrap_or_default());
        put(&self.lifetime_minutes.unwrap_or(DEFAULT_LIFETIME_MINUTES).to_string());
        let mut services: Vec<&String> = destination.iter().flat_map(|d| &d.services).collect();
        services.sort();
        services.into_iter().for_each(|service| put(service));
        hexadecimal(&hash.finalize())
    }
}

/// Bytes as hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Tags of a tunnel.
pub type Tags = BTreeMap<String, String>;

/// A tunnel that AWS knows, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelRef {
    /// Its ID.
    pub id: TunnelId,
    /// Its ARN.
    pub arn: String,
}

/// One entry of ListTunnels.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Which tunnel.
    pub tunnel: TunnelRef,
    /// OPEN or CLOSED.
    pub state: TunnelState,
    /// When it was opened.
    pub created_at: Timestamp,
    /// When it last changed: for a closed tunnel, when it was closed.
    pub last_updated_at: Timestamp,
}

/// What AWS tells of a tunnel's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is open.
    Open {
        /// When it was opened.
        created_at: Timestamp,
    },
    /// It is closed.
    Closed {
        /// When it was opened.
        created_at: Timestamp,
        /// When it was closed: AWS has no other time of it than the last update.
        closed_at: Timestamp,
    },
    /// AWS does not know it (any more): closed tunnels are forgotten after some hours.
    NotFound,
}

impl Life {
    /// Whether a lifetime that ran out explains a closed tunnel: closed within a minute of
    /// createdAt + lifetime, or later.
    pub fn lifetime_ran_out(created_at: Timestamp, closed_at: Timestamp, lifetime: SignedDuration) -> bool {
        closed_at.duration_since(created_at) >= lifetime - SignedDuration::from_secs(60)
    }
}

/// What DescribeTunnel tells.
#[derive(Clone, Debug)]
pub struct Description {
    /// Open or closed, since when.
    pub life: Life,
    /// The value of its owner tag, where it is one of an operator.
    pub owner: Option<Owner>,
    /// ID and ARN, as AWS has them; `None`: it does not know it.
    pub tunnel: Option<TunnelRef>,
    /// What it was opened with: see [`OpenRequest::digest`].
    pub opened_with: Option<String>,
    /// What changes while it is open.
    pub details: Option<Arc<Details>>,
}

impl Description {
    /// AWS does not know it.
    pub fn unknown() -> Self {
        Self { life: Life::NotFound, owner: None, tunnel: None, opened_with: None, details: None }
    }
}

/// What DescribeTunnel tells beside a tunnel's life.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Its tags.
    pub tags: Tags,
    /// Whether the source is connected.
    pub source: Option<Connection>,
    /// Whether the destination is connected.
    pub destination: Option<Connection>,
}

impl Details {
    /// Whether the two sides are connected.
    pub fn connections(&self) -> Connections {
        Connections { source: self.source.clone(), destination: self.destination.clone() }
    }

    /// The generation of its newest tokens, by its tag. `None`: the tag is not there, or is no such number.
    pub fn generation(&self) -> Option<i64> {
        self.tags.get(GENERATION_TAG)?.parse().ok().filter(|g| opentunnel_api::GENERATIONS.contains(g))
    }
}

/// A page of ListTunnels, newest first.
#[derive(Debug, Default)]
pub struct Page {
    /// At most 100.
    pub summaries: Vec<Summary>,
    /// Where the next page begins.
    pub next_token: Option<String>,
}

/// Whether a tunnel is in the operator's own account and region, by its ARN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InAccount {
    /// It is.
    Yes,
    /// It is in the region; the account is not known until AWS has told any ARN.
    Unknown,
    /// It is in another.
    No,
}

/// A completed search: open tunnels that carry the Tunnel's owner tag.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// When its listing began.
    pub started: Mono,
    /// What it found.
    pub found: Vec<Found>,
}

/// A tunnel found by its owner tag.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Which.
    pub tunnel: TunnelRef,
    /// Who opened it.
    pub owner: Owner,
    /// When.
    pub created_at: Timestamp,
    /// With what: see [`OpenRequest::digest`].
    pub opened_with: Option<String>,
}

/// What AWS told of a tunnel, and when it was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// What AWS told.
    pub life: Life,
    /// When it was asked.
    pub asked: Mono,
    /// What DescribeTunnel told last beside its life, and when it was asked: a listing does not tell it.
    pub details: Option<(Arc<Details>, Mono)>,
}

/// An operation that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Opens a tunnel.
    OpenTunnel,
    /// Closes one.
    CloseTunnel,
    /// Makes new tokens.
    RotateTunnelAccessToken,
    /// Tells all of one tunnel.
    DescribeTunnel,
    /// Tells little of all tunnels.
    ListTunnels,
    /// Puts tags on a tunnel.
    TagResource,
    /// Takes tags off a tunnel.
    UntagResource,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::OpenTunnel,
        Self::CloseTunnel,
        Self::RotateTunnelAccessToken,
        Self::DescribeTunnel,
        Self::ListTunnels,
        Self::TagResource,
        Self::UntagResource,
    ];

    /// AWS's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenTunnel => "OpenTunnel",
            Self::CloseTunnel => "CloseTunnel",
            Self::RotateTunnelAccessToken => "RotateTunnelAccessToken",
            Self::DescribeTunnel => "DescribeTunnel",
            Self::ListTunnels => "ListTunnels",
            Self::TagResource => "TagResource",
            Self::UntagResource => "UntagResource",
        }
    }
}

/// Why a call failed. The text is AWS's own, cut to 1 KiB, without control characters.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct CallError {
    /// What kind of failure it is: what follows depends on nothing else.
    pub kind: CallErrorKind,
    /// AWS's words.
    pub message: String,
}

impl CallError {
    /// It came too early, or there is no room: nobody's fault, and the pacer's business.
    pub fn is_limit(&self) -> bool {
        matches!(self.kind, CallErrorKind::LimitExceeded | CallErrorKind::Throttled)
    }
}

/// The kinds of failure of an AWS call. All but [`Doubt`](Self::Doubt) are definite: nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallErrorKind {
    /// LimitExceededException: the account's limit.
    LimitExceeded,
    /// ThrottlingException and its kin: too many calls.
    Throttled,
    /// Credentials, signature or rights.
    AccessDenied,
    /// There are no credentials to sign with, and a person has to see to it: nothing was sent.
    NoCredentials,
    /// AWS refuses what was asked.
    InvalidRequest,
    /// ResourceNotFoundException.
    NotFound,
    /// The connection was refused, or whoever gives out credentials cannot be reached: nothing was sent.
    Unreachable,
    /// No answer, a 5xx, or one that cannot be read: it may have been done, or be done yet.
    Doubt,
}

/// Whether `tags` hold the owner tag, and what it says.
pub fn owner_of<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<Owner> {
    tags.into_iter().find(|(key, _)| *key == OWNER_TAG).and_then(|(_, value)| Owner::parse(value))
}

/// Sides of `mode` of what a call returned; a client token is made for each.
pub fn sides(mode: ClientMode, source: Option<String>, destination: Option<String>) -> Option<Tokens> {
    let side = |token: Option<String>| {
        token
            .filter(|t| !t.is_empty())
            .map(|t| Side { access_token: Token::new(t), client_token: Token::random_client_token() })
    };
    let tokens = Tokens {
        source: side(source).filter(|_| mode.has_source()),
        destination: side(destination).filter(|_| mode.has_destination()),
    };
    let complete =
        tokens.source.is_some() == mode.has_source() && tokens.destination.is_some() == mode.has_destination();
    complete.then_some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> OpenRequest {
        let services = vec!["ssh".into(), "http".into()];
        OpenRequest {
            description: Some("d".into()),
            destination: Some(DestinationConfig { thing_name: Some("thing".into()), services }),
            tags: vec![("team".into(), "edge".into())],
            lifetime_minutes: Some(60),
        }
    }

    fn digest(change: impl FnOnce(&mut OpenRequest)) -> String {
        let mut request = request();
        change(&mut request);
        request.digest()
    }

    fn to(request: &mut OpenRequest) -> &mut DestinationConfig {
        request.destination.as_mut().unwrap()
    }

    #[test]
    fn the_digest_is_that_of_all_that_aws_cannot_change_and_of_nothing_else() {
        let same = request().digest();
        assert_eq!((same.len(), same.chars().all(|c| c.is_ascii_hexdigit())), (64, true), "the status has room for it");
        assert_eq!(digest(|r| to(r).services.reverse()), same, "the order of the services does not matter");
        assert_eq!(digest(|r| r.tags.clear()), same, "tags can be changed");
        for (what, other) in [
            ("description", digest(|r| r.description = Some("e".into()))),
            ("no description", digest(|r| r.description = None)),
            ("thing", digest(|r| to(r).thing_name = None)),
            ("a service less", digest(|r| drop(to(r).services.pop()))),
            ("a service twice", digest(|r| to(r).services.push("ssh".into()))),
            ("no destination", digest(|r| r.destination = None)),
            ("lifetime", digest(|r| r.lifetime_minutes = Some(61))),
            (
                "what stands in another field",
                digest(|r| {
                    r.description = Some("dthing".into());
                    to(r).thing_name = None;
                }),
            ),
            ("two services as one", digest(|r| to(r).services = vec!["httpssh".into()])),
        ] {
            assert_ne!(other, same, "{what}");
        }
    }

    #[test]
    fn no_lifetime_is_awss_default() {
        assert_eq!(digest(|r| r.lifetime_minutes = None), digest(|r| r.lifetime_minutes = Some(720)));
        // AWS tells of a tunnel that was opened without either as it was asked for.
        let nothing = || OpenRequest { description: None, destination: None, tags: vec![], lifetime_minutes: None };
        assert_eq!(OpenRequest { description: Some(String::new()), ..nothing() }.digest(), nothing().digest());
    }

    #[test]
    fn the_generation_of_a_tunnel_is_a_number_that_somebody_may_have_counted_to() {
        for (value, expected) in [
            (Some("7"), Some(7)),
            (Some("0"), Some(0)),
            (None, None),
            (Some(""), None),
            (Some("-1"), None),
            (Some("x"), None),
            (Some("9223372036854775807"), None),
        ] {
            let tags = value.map(|value| (GENERATION_TAG.to_owned(), value.to_owned())).into_iter().collect();
            assert_eq!(Details { tags, ..Details::default() }.generation(), expected, "{value:?}");
        }
    }
}
