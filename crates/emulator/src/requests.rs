//! The requests of the 8 operations, read and checked.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::constraints::{DESCRIPTION, NAME, NEXT_TOKEN, RESOURCE_ARN, TAG_KEY, TAG_VALUE, TUNNEL_ID, Violations};
use crate::error::ApiError;
use crate::members::Members;

/// The model allows 1 to 720 minutes; a tunnel lives 720 where none are given.
pub(crate) const MAX_LIFETIME_MINUTES: i32 = 720;
/// Tags in one request, and of one tunnel.
pub(crate) const MAX_TAGS: usize = 200;

pub(crate) type Tags = BTreeMap<String, String>;

#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) thing_name: Option<String>,
    pub(crate) services: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct OpenTunnel {
    pub(crate) description: Option<String>,
    pub(crate) tags: Tags,
    pub(crate) destination: Option<Destination>,
    pub(crate) lifetime_minutes: i32,
}

impl OpenTunnel {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let members = Members::of(body)?;
        let mut violations = Violations::default();
        let description = members.text("description")?;
        violations.optional("description", description, &DESCRIPTION);
        let tags = read_tags(&members, &mut violations)?;
        let destination = read_destination(&members, &mut violations)?;
        let lifetime = match members.structure("timeoutConfig")? {
            Some(timeout) => timeout.integer("maxLifetimeTimeoutMinutes")?,
            None => None,
        };
        let lifetime_minutes = lifetime.unwrap_or(MAX_LIFETIME_MINUTES);
        let path = "timeoutConfig.maxLifetimeTimeoutMinutes";
        violations.range(path, lifetime_minutes, 1, MAX_LIFETIME_MINUTES);
        violations.none()?;
        Ok(Self {
            description: description.map(str::to_owned),
            tags: tags.map(checked_tags).transpose()?.unwrap_or_default(),
            destination,
            lifetime_minutes,
        })
    }
}

#[derive(Debug)]
pub(crate) struct CloseTunnel {
    pub(crate) tunnel_id: String,
    pub(crate) delete: bool,
}

impl CloseTunnel {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let members = Members::of(body)?;
        let mut violations = Violations::default();
        let tunnel_id = violations.required("tunnelId", members.text("tunnelId")?, &TUNNEL_ID);
        let delete = members.boolean("delete")?.unwrap_or(false);
        violations.none()?;
        Ok(Self { tunnel_id, delete })
    }
}

#[derive(Debug)]
pub(crate) struct DescribeTunnel {
    pub(crate) tunnel_id: String,
}

impl DescribeTunnel {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let members = Members::of(body)?;
        let mut violations = Violations::default();
        let tunnel_id = violations.required("tunnelId", members.text("tunnelId")?, &TUNNEL_ID);
        violations.none()?;
        Ok(Self { tunnel_id })
    }
}

#[derive(Debug)]
pub(crate) struct ListTunnels {
    pub(crate) thing_name: Option<String>,
    pub(crate) max_results: usize,
    pub(crate) next_token: Option<String>,
}

impl ListTunnels {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let members = Members::of(body)?;
        let mut violations = Violations::default();
        let thing_name = members.text("thingName")?;
        violations.optional("thingName", thing_name, &NAME);
        // How many AWS sends unasked is not documented; the most it may.
        let max_results = members.integer("maxResults")?.unwrap_or(100);
        violations.range("maxResults", max_results, 1, 100);
        let next_token = members.text("nextToken")?;
        violations.optional("nextToken", next_token, &NEXT_TOKEN);
        violations.none()?;
        Ok(Self {
            thing_name: thing_name.map(str::to_owned),
            max_results: usize::try_from(max_results).unwrap_or(1),
            next_token: next_token.map(str::to_owned),
        })
    }
}

#[derive(Debug)]
pub(crate) struct RotateTunnelAccessToken {
    pub(crate) tunnel_id: String,
    pub(crate) source: bool,
    pub(crate) destination: bool,
    /// Whom to tell the destination's new token, instead of whom the tunnel was opened for.
    pub(crate) config: Option<Destination>,
}

impl RotateTunnelAccessToken {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let members = Members::of(body)?;
        let mut violations = Violations::default();
        let tunnel_id = violations.required("tunnelId", members.text("tunnelId")?, &TUNNEL_ID);
        let (source, destination) = match members.text("clientMode")? {
            Some("SOURCE") => (true, false),
            Some("DESTINATION") => (false, true),
            Some("ALL") => (true, true),
            Some(other) => {
                violations.not_one_of("clientMode", other, &["SOURCE", "DESTINATION", "ALL"]);
                (false, false)
            }
            None => {
                violations.missing("clientMode");
                (false, false)
            }
        };
        let config = read_destination(&members, &mut violations)?;
        violations.none()?;
        if config.is_some() && !destination {
            return Err(ApiError::validation("You can not use DestinationConfig with source clientMode."));
        }
        Ok(Self { tunnel_id, source, destination, config })
    }
}

#[derive(Debug)]
pub(crate) struct TagResource {
    pub(crate) resource_arn: String,
    pub(crate) tags: Tags,
}

impl TagResource {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let members = Members::of(body)?;
        let mut violations = Violations::default();
        let resource_arn = read_arn(&members, &mut violations)?;
        let tags = read_tags(&members, &mut violations)?;
        if tags.is_none() {
            violations.missing("tags");
        }
        violations.none()?;
        Ok(Self { resource_arn, tags: checked_tags(tags.unwrap_or_default())? })
    }
}

#[derive(Debug)]
pub(crate) struct UntagResource {
    pub(crate) resource_arn: String,
    pub(crate) tag_keys: Vec<String>,
}

impl UntagResource {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let members = Members::of(body)?;
        let mut violations = Violations::default();
        let resource_arn = read_arn(&members, &mut violations)?;
        let tag_keys = members.texts("tagKeys")?;
        match &tag_keys {
            Some(keys) => violations.texts("tagKeys", keys, 0, MAX_TAGS, &TAG_KEY),
            None => violations.missing("tagKeys"),
        }
        violations.none()?;
        let tag_keys = tag_keys.unwrap_or_default().into_iter().map(str::to_owned).collect();
        Ok(Self { resource_arn, tag_keys })
    }
}

#[derive(Debug)]
pub(crate) struct ListTagsForResource {
    pub(crate) resource_arn: String,
}

impl ListTagsForResource {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let members = Members::of(body)?;
        let mut violations = Violations::default();
        let resource_arn = read_arn(&members, &mut violations)?;
        violations.none()?;
        Ok(Self { resource_arn })
    }
}

fn read_arn(members: &Members, violations: &mut Violations) -> Result<String, ApiError> {
    Ok(violations.required("resourceArn", members.text("resourceArn")?, &RESOURCE_ARN))
}

fn read_destination(members: &Members, violations: &mut Violations) -> Result<Option<Destination>, ApiError> {
    let Some(config) = members.structure("destinationConfig")? else {
        return Ok(None);
    };
    let thing_name = config.text("thingName")?;
    violations.optional("destinationConfig.thingName", thing_name, &NAME);
    let services = config.texts("services")?;
    match &services {
        // The model sets no upper limit.
        Some(names) => violations.texts("destinationConfig.services", names, 1, usize::MAX, &NAME),
        None => violations.missing("destinationConfig.services"),
    }
    let services = services.unwrap_or_default().into_iter().map(str::to_owned).collect();
    Ok(Some(Destination { thing_name: thing_name.map(str::to_owned), services }))
}

/// The tags as they were sent; `checked_tags` follows when the model is satisfied.
fn read_tags(members: &Members, violations: &mut Violations) -> Result<Option<Vec<(String, String)>>, ApiError> {
    let Some(list) = members.structures("tags")? else {
        return Ok(None);
    };
    let mut tags = Vec::with_capacity(list.len());
    for (index, tag) in list.iter().enumerate() {
        let at = index + 1;
        let key = tag.text("key")?;
        let key = violations.required(&format!("tags.{at}.member.key"), key, &TAG_KEY);
        let value = tag.text("value")?;
        let value = violations.required(&format!("tags.{at}.member.value"), value, &TAG_VALUE);
        tags.push((key, value));
    }
    let shown: Vec<_> = tags.iter().map(|(k, v)| format!("Tag(key={k}, value={v})")).collect();
    violations.length("tags", &format!("'[{}]'", shown.join(", ")), tags.len(), 1, MAX_TAGS);
    Ok(Some(tags))
}

/// What the model does not say of tags, and AWS refuses everywhere.
fn checked_tags(tags: Vec<(String, String)>) -> Result<Tags, ApiError> {
    let mut checked = Tags::new();
    for (key, value) in tags {
        if key.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("aws:")) {
            return Err(ApiError::validation(format!(
                "aws: prefixed tag key names are not allowed for external use: '{key}'"
            )));
        }
        if let Some((twice, _)) = checked.get_key_value(&key) {
            return Err(ApiError::validation(format!("Duplicate tag key found: '{twice}'")));
        }
        checked.insert(key, value);
    }
    Ok(checked)
}
