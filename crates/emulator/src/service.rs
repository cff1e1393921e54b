//! The 8 operations on the account's tunnels. No I/O, no faults, no call rates.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::clock::{Clock, Millis};
use crate::data::link::Goodbye;
use crate::error::ApiError;
use crate::notifications::Notifications;
use crate::operation::Operation;
use crate::requests::{
    CloseTunnel, DescribeTunnel, ListTagsForResource, ListTunnels, MAX_TAGS, OpenTunnel, RotateTunnelAccessToken,
    TagResource, UntagResource,
};
use crate::store::Store;
use crate::tunnel::Tunnel;

/// The tunnels and their clock.
#[derive(Debug)]
pub(crate) struct Service {
    account: String,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) notifications: Notifications,
}

impl Service {
    pub(crate) fn new(account: &str) -> Self {
        Self {
            account: account.to_owned(),
            clock: Clock::new(),
            store: Store::default(),
            notifications: Notifications::default(),
        }
    }

    /// Carries out one call that came in for `region`. A tunnel is seen in its own
    /// region only.
    pub(crate) fn perform(
        &mut self,
        operation: Operation,
        region: &str,
        max_open_tunnels: Option<u64>,
        body: &Value,
    ) -> Result<Value, ApiError> {
        let now = self.clock.now();
        match operation {
            Operation::OpenTunnel => self.open(OpenTunnel::read(body)?, region, max_open_tunnels, now),
            Operation::CloseTunnel => self.close(&CloseTunnel::read(body)?, region, now),
            Operation::DescribeTunnel => {
                let request = DescribeTunnel::read(body)?;
                let tunnel = self.tunnel(&request.tunnel_id, region, now)?;
                Ok(json!({"tunnel": tunnel.description(now)}))
            }
            Operation::ListTunnels => self.list(&ListTunnels::read(body)?, region, now),
            Operation::RotateTunnelAccessToken => self.rotate(&RotateTunnelAccessToken::read(body)?, region, now),
            Operation::TagResource => self.tag(TagResource::read(body)?, region, now),
            Operation::UntagResource => {
                let request = UntagResource::read(body)?;
                let tunnel = self.resource(&request.resource_arn, region, now)?;
                tunnel.tags.retain(|key, _| !request.tag_keys.contains(key));
                Ok(json!({}))
            }
            Operation::ListTagsForResource => {
                let request = ListTagsForResource::read(body)?;
                let tunnel = self.resource(&request.resource_arn, region, now)?;
                Ok(json!({"tags": tunnel.tag_list()}))
            }
        }
    }

    /// Ends the connections of tunnels whose lifetime is over. Returns how long it is until the next one's is.
    pub(crate) fn end_expired(&mut self) -> Option<Duration> {
        let now = self.clock.now();
        let connected = self.store.all_mut().filter(|tunnel| tunnel.link.is_connected());
        connected.fold(None, |next: Option<Duration>, tunnel| {
            let left = tunnel.expires_at().since(now);
            if left.is_zero() {
                tunnel.link.end(Goodbye::Expired);
                return next;
            }
            Some(next.map_or(left, |next| next.min(left)))
        })
    }

    fn open(
        &mut self,
        request: OpenTunnel,
        region: &str,
        max_open_tunnels: Option<u64>,
        now: Millis,
    ) -> Result<Value, ApiError> {
        self.store.forget_invisible(now);
        if let Some(max) = max_open_tunnels.filter(|max| self.store.open_tunnels(now) >= *max) {
            return Err(ApiError::limit_exceeded(format!(
                "Tunnel limit exceeded: the account may have {max} open tunnels"
            )));
        }
        let tunnel = Tunnel::open(request, region, &self.account, now);
        let answer = json!({
            "tunnelId": tunnel.id,
            "tunnelArn": tunnel.arn,
            "sourceAccessToken": tunnel.tokens().source,
            "destinationAccessToken": tunnel.tokens().destination,
        });
        self.notifications.publish(&tunnel, tunnel.destination());
        self.store.insert(tunnel);
        Ok(answer)
    }

    fn close(&mut self, request: &CloseTunnel, region: &str, now: Millis) -> Result<Value, ApiError> {
        self.tunnel(&request.tunnel_id, region, now)?.close(now);
        if request.delete {
            self.store.remove(&request.tunnel_id);
        }
        Ok(json!({}))
    }

    fn list(&self, request: &ListTunnels, region: &str, now: Millis) -> Result<Value, ApiError> {
        let before = request.next_token.as_deref().map_or(Ok(u64::MAX), position)?;
        let wanted = |tunnel: &Tunnel| {
            tunnel.region == region
                && (request.thing_name.is_none() || request.thing_name.as_deref() == tunnel.thing_name())
        };
        let mut tunnels = self.store.newest_first(before, now).filter(|(_, tunnel)| wanted(tunnel)).peekable();
        let mut summaries = Vec::new();
        let mut last = before;
        while let Some((number, tunnel)) = tunnels.next_if(|_| summaries.len() < request.max_results) {
            summaries.push(tunnel.summary(now));
            last = number;
        }
        let mut answer = Map::new();
        if tunnels.peek().is_some() {
            answer.insert("nextToken".into(), json!(next_token(last)));
        }
        answer.insert("tunnelSummaries".into(), json!(summaries));
        Ok(Value::Object(answer))
    }

    fn rotate(&mut self, request: &RotateTunnelAccessToken, region: &str, now: Millis) -> Result<Value, ApiError> {
        let found = self.store.get_mut(&request.tunnel_id, now).filter(|tunnel| tunnel.region == region);
        let tunnel = found.ok_or_else(|| not_found(&request.tunnel_id))?;
        // The one error that the model allows this operation.
        if !tunnel.is_open(now) {
            return Err(ApiError::not_found(format!("Tunnel {} is closed", tunnel.id)));
        }
        tunnel.rotate(request.source, request.destination, now);
        if request.destination {
            self.notifications.publish(tunnel, request.config.as_ref().or(tunnel.destination()));
        }
        let mut answer = Map::new();
        answer.insert("tunnelArn".into(), json!(tunnel.arn));
        if request.source {
            answer.insert("sourceAccessToken".into(), json!(tunnel.tokens().source));
        }
        if request.destination {
            answer.insert("destinationAccessToken".into(), json!(tunnel.tokens().destination));
        }
        Ok(Value::Object(answer))
    }

    fn tag(&mut self, request: TagResource, region: &str, now: Millis) -> Result<Value, ApiError> {
        let tunnel = self.resource(&request.resource_arn, region, now)?;
        let new = request.tags.keys().filter(|key| !tunnel.tags.contains_key(*key)).count();
        if tunnel.tags.len() + new > MAX_TAGS {
            return Err(ApiError::validation(format!("A tunnel can have {MAX_TAGS} tags at most")));
        }
        tunnel.tags.extend(request.tags);
        Ok(json!({}))
    }

    fn tunnel(&mut self, id: &str, region: &str, now: Millis) -> Result<&mut Tunnel, ApiError> {
        let found = self.store.get_mut(id, now).filter(|tunnel| tunnel.region == region);
        found.ok_or_else(|| not_found(id))
    }

    fn resource(&mut self, arn: &str, region: &str, now: Millis) -> Result<&mut Tunnel, ApiError> {
        let found = self.store.get_mut(tunnel_id_of_arn(arn), now);
        found
            .filter(|tunnel| tunnel.arn == arn && tunnel.region == region)
            .ok_or_else(|| ApiError::not_found(format!("Resource {arn} not found")))
    }
}

fn not_found(tunnel_id: &str) -> ApiError {
    ApiError::not_found(format!("Tunnel {tunnel_id} not found"))
}

/// The last part of `arn:aws:iot:REGION:ACCOUNT:tunnel/ID`.
pub(crate) fn tunnel_id_of_arn(arn: &str) -> &str {
    arn.rsplit_once('/').map_or("", |(_, id)| id)
}

const TOKEN_PREFIX: &str = "tunnels-before-";

fn next_token(number: u64) -> String {
    format!("{TOKEN_PREFIX}{number}")
}

fn position(token: &str) -> Result<u64, ApiError> {
    let number = token.strip_prefix(TOKEN_PREFIX).and_then(|number| number.parse().ok());
    number.ok_or_else(|| ApiError::validation("Invalid nextToken"))
}
