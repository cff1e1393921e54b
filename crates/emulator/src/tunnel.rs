//! One tunnel: what is stored of it, and what it is at a given moment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::clock::{Millis, rfc3339};
use crate::data::link::{Goodbye, Link, Place};
use crate::data::{ClientToken, Refusal, Side};
use crate::requests::{Destination, OpenTunnel, Tags};

/// A closed tunnel stays visible for at least three hours (AWS IoT developer guide,
/// "Secure tunnel lifecycle"): here for exactly three.
const RETENTION_MINUTES: i32 = 180;

/// AWS's two states of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TunnelStatus {
    /// Clients may connect.
    Open,
    /// Closed by somebody, or expired. Never opened again.
    Closed,
}

/// AWS's two states of a side's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names say it")]
pub enum ConnectionStatus {
    Connected,
    Disconnected,
}

/// What the emulator knows about a tunnel, tokens left out. Serializes as the control
/// API tells it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are AWS's own")]
pub struct TunnelInfo {
    pub tunnel_id: String,
    pub tunnel_arn: String,
    pub status: TunnelStatus,
    pub description: Option<String>,
    pub thing_name: Option<String>,
    pub services: Vec<String>,
    pub tags: BTreeMap<String, String>,
    #[serde(serialize_with = "rfc3339")]
    pub created_at: Timestamp,
    #[serde(serialize_with = "rfc3339")]
    pub last_updated_at: Timestamp,
    /// `created_at` plus the lifetime, also of a tunnel that was closed earlier.
    #[serde(serialize_with = "rfc3339")]
    pub expires_at: Timestamp,
    /// Source tokens handed out so far: one by OpenTunnel, one by each rotation of
    /// SOURCE or ALL.
    pub source_tokens_issued: u32,
    /// The same of destination tokens.
    pub destination_tokens_issued: u32,
}

/// The access tokens that an open tunnel accepts now. Debug prints none of them.
#[derive(Clone, PartialEq, Eq)]
pub struct LiveTokens {
    /// The source side's.
    pub source: String,
    /// The destination side's.
    pub destination: String,
}

impl fmt::Debug for LiveTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveTokens(..)")
    }
}

/// Who used an access token.
#[derive(Debug)]
enum TokenUse {
    /// A client without a client token: nobody may use it again.
    Once,
    /// A client with this client token, which may use it again.
    By(ClientToken),
}

/// One side of a tunnel.
#[derive(Debug)]
struct SideState {
    connection: ConnectionStatus,
    connection_updated_at: Millis,
    issued: u32,
    /// Of the access token that is valid now.
    used: Option<TokenUse>,
}

#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) id: String,
    pub(crate) arn: String,
    pub(crate) region: String,
    pub(crate) tags: Tags,
    spec: OpenTunnel,
    created_at: Millis,
    updated_at: Millis,
    closed_at: Option<Millis>,
    tokens: LiveTokens,
    source: SideState,
    destination: SideState,
    /// Who is connected to its data plane.
    pub(crate) link: Arc<Link>,
}

impl Tunnel {
    pub(crate) fn open(mut spec: OpenTunnel, region: &str, account: &str, now: Millis) -> Self {
        let id = Uuid::new_v4().to_string();
        let side = || SideState {
            connection: ConnectionStatus::Disconnected,
            connection_updated_at: now,
            issued: 1,
            used: None,
        };
        Self {
            arn: format!("arn:aws:iot:{region}:{account}:tunnel/{id}"),
            id,
            region: region.to_owned(),
            tags: std::mem::take(&mut spec.tags),
            spec,
            created_at: now,
            updated_at: now,
            closed_at: None,
            tokens: LiveTokens { source: new_token(), destination: new_token() },
            source: side(),
            destination: side(),
            link: Arc::default(),
        }
    }

    pub(crate) fn destination(&self) -> Option<&Destination> {
        self.spec.destination.as_ref()
    }

    pub(crate) fn services(&self) -> &[String] {
        self.destination().map_or(&[], |destination| &destination.services)
    }

    pub(crate) fn thing_name(&self) -> Option<&str> {
        self.spec.destination.as_ref()?.thing_name.as_deref()
    }

    pub(crate) fn expires_at(&self) -> Millis {
        self.created_at.after(self.spec.lifetime_minutes)
    }

    /// When it ended, if it has: closed, or its lifetime over.
    fn ended_at(&self, now: Millis) -> Option<Millis> {
        self.closed_at.or_else(|| Some(self.expires_at()).filter(|expiry| *expiry <= now))
    }

    pub(crate) fn is_open(&self, now: Millis) -> bool {
        self.ended_at(now).is_none()
    }

    pub(crate) fn is_visible(&self, now: Millis) -> bool {
        self.ended_at(now).is_none_or(|ended| now < ended.after(RETENTION_MINUTES))
    }

    fn status(&self, now: Millis) -> TunnelStatus {
        if self.is_open(now) { TunnelStatus::Open } else { TunnelStatus::Closed }
    }

    fn last_updated_at(&self, now: Millis) -> Millis {
        self.ended_at(now).unwrap_or(self.updated_at)
    }

    /// Closes it; what is closed already stays as it is.
    pub(crate) fn close(&mut self, now: Millis) {
        if self.is_open(now) {
            self.closed_at = Some(now);
            self.updated_at = now;
            self.link.end(Goodbye::Closed);
        }
    }

    /// Revokes the tokens of the named sides and issues new ones. Who is connected stays connected.
    pub(crate) fn rotate(&mut self, source: bool, destination: bool, now: Millis) {
        let tokens = &mut self.tokens;
        for (rotated, token, side) in [
            (source, &mut tokens.source, &mut self.source),
            (destination, &mut tokens.destination, &mut self.destination),
        ] {
            if rotated {
                *token = new_token();
                side.issued += 1;
                side.used = None;
            }
        }
        self.updated_at = now;
    }

    /// The side that an access token of this tunnel is for. `None`: it is none of this tunnel's, or revoked.
    pub(crate) fn side_of(&self, access_token: &str) -> Option<Side> {
        if self.tokens.source == access_token {
            Some(Side::Source)
        } else if self.tokens.destination == access_token {
            Some(Side::Destination)
        } else {
            None
        }
    }

    fn side_mut(&mut self, side: Side) -> &mut SideState {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    /// Lets a client in that has this side's access token: the token is used up by it, and whoever is connected on this
    /// side is replaced.
    pub(crate) fn admit(
        &mut self,
        side: Side,
        client_token: Option<&ClientToken>,
        now: Millis,
    ) -> Result<Place, Refusal> {
        if !self.is_open(now) {
            return Err(Refusal::closed());
        }
        let state = self.side_mut(side);
        match (&state.used, client_token) {
            (None, None) => state.used = Some(TokenUse::Once),
            (None, Some(token)) => state.used = Some(TokenUse::By(token.clone())),
            (Some(TokenUse::By(first)), Some(token)) if first == token => {}
            (Some(TokenUse::By(_)), Some(_)) => return Err(Refusal::other_client_token()),
            (Some(_), _) => return Err(Refusal::used()),
        }
        self.connect_side(side, ConnectionStatus::Connected, now);
        Ok(self.link.join(side))
    }

    /// The connection at this place has ended. It may have been replaced before.
    pub(crate) fn leave(&mut self, place: &Place, now: Millis) {
        if place.leave() && self.is_open(now) {
            self.connect_side(place.side(), ConnectionStatus::Disconnected, now);
        }
    }

    pub(crate) fn connect(
        &mut self,
        source: Option<ConnectionStatus>,
        destination: Option<ConnectionStatus>,
        now: Millis,
    ) {
        for (side, status) in [(Side::Source, source), (Side::Destination, destination)] {
            if let Some(status) = status {
                self.connect_side(side, status, now);
            }
        }
    }

    fn connect_side(&mut self, side: Side, status: ConnectionStatus, now: Millis) {
        let state = self.side_mut(side);
        state.connection = status;
        state.connection_updated_at = now;
        self.updated_at = now;
    }

    /// What DescribeTunnel tells of a side's connection.
    pub(crate) fn status_of(&self, side: Side, now: Millis) -> ConnectionStatus {
        let side = match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        };
        self.connection_at(side, now).0
    }

    /// The tokens as they stand, whether or not the tunnel is open.
    pub(crate) fn tokens(&self) -> &LiveTokens {
        &self.tokens
    }

    /// As in ListTunnels.
    pub(crate) fn summary(&self, now: Millis) -> Map<String, Value> {
        let mut summary = Map::new();
        summary.insert("tunnelId".into(), json!(self.id));
        summary.insert("tunnelArn".into(), json!(self.arn));
        summary.insert("status".into(), json!(self.status(now)));
        if let Some(description) = &self.spec.description {
            summary.insert("description".into(), json!(description));
        }
        summary.insert("createdAt".into(), json!(self.created_at.epoch_seconds()));
        summary.insert("lastUpdatedAt".into(), json!(self.last_updated_at(now).epoch_seconds()));
        summary
    }

    /// As in DescribeTunnel: the summary and the rest.
    pub(crate) fn description(&self, now: Millis) -> Map<String, Value> {
        let mut tunnel = self.summary(now);
        tunnel.insert("sourceConnectionState".into(), self.connection(&self.source, now));
        tunnel.insert("destinationConnectionState".into(), self.connection(&self.destination, now));
        if let Some(destination) = &self.spec.destination {
            let mut config = Map::new();
            if let Some(thing_name) = &destination.thing_name {
                config.insert("thingName".into(), json!(thing_name));
            }
            config.insert("services".into(), json!(destination.services));
            tunnel.insert("destinationConfig".into(), Value::Object(config));
        }
        let lifetime = json!({"maxLifetimeTimeoutMinutes": self.spec.lifetime_minutes});
        tunnel.insert("timeoutConfig".into(), lifetime);
        if !self.tags.is_empty() {
            tunnel.insert("tags".into(), self.tag_list());
        }
        tunnel
    }

    pub(crate) fn tag_list(&self) -> Value {
        self.tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
    }

    /// A tunnel that ended has no connections any more.
    fn connection_at(&self, side: &SideState, now: Millis) -> (ConnectionStatus, Millis) {
        match self.ended_at(now) {
            Some(ended) if side.connection == ConnectionStatus::Connected => (ConnectionStatus::Disconnected, ended),
            _ => (side.connection, side.connection_updated_at),
        }
    }

    fn connection(&self, side: &SideState, now: Millis) -> Value {
        let (status, updated_at) = self.connection_at(side, now);
        json!({"status": status, "lastUpdatedAt": updated_at.epoch_seconds()})
    }

    pub(crate) fn info(&self, now: Millis) -> TunnelInfo {
        let destination = self.spec.destination.as_ref();
        TunnelInfo {
            tunnel_id: self.id.clone(),
            tunnel_arn: self.arn.clone(),
            status: self.status(now),
            description: self.spec.description.clone(),
            thing_name: self.thing_name().map(str::to_owned),
            services: destination.map(|d| d.services.clone()).unwrap_or_default(),
            tags: self.tags.clone(),
            created_at: self.created_at.timestamp(),
            last_updated_at: self.last_updated_at(now).timestamp(),
            expires_at: self.expires_at().timestamp(),
            source_tokens_issued: self.source.issued,
            destination_tokens_issued: self.destination.issued,
        }
    }
}

/// 256 random characters of the base64 alphabet: as long and opaque as AWS's.
fn new_token() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let random = (0..16).flat_map(|_| Uuid::new_v4().into_bytes());
    random.map(|byte| char::from(ALPHABET[usize::from(byte & 63)])).collect()
}
