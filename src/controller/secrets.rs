//! The token Secrets: what is in them, and the writes of step 4.

use super::act::Act;
use super::context::Error;
use super::observe::{Answer, SecretState, data_digest, secret_state};
use super::validate::{Desired, SecretRef};
use crate::crd::{self, ClientMode, MANAGER};
use crate::tunnels::{Side, Tokens, TunnelId};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;

impl Act<'_> {
    pub(super) async fn write_secret(&mut self, index: usize, generation: i64) -> Result<(), Error> {
        let Some(answer) = &self.memory.answer else {
            return Ok(());
        };
        let wanted = &self.desired.secrets[index];
        let data = secret_data(wanted.mode, &answer.tokens, &answer.tunnel.id, self.ctx.aws.region());
        let present = self.secrets.as_ref().and_then(|s| s[index].clone());
        let exists = present.is_some();
        let mut secret = present.unwrap_or_default();
        secret.metadata.name = Some(wanted.name.clone());
        secret.metadata.namespace = Some(self.desired.key.namespace.clone());
        secret.metadata.managed_fields = None;
        secret.metadata.owner_references = self.view.tunnel.controller_owner_ref(&()).map(|o| vec![o]);
        secret.labels_mut().insert(crd::MANAGED_BY_LABEL.into(), MANAGER.into());
        secret.type_ = Some(crd::SECRET_TYPE.into());
        secret.string_data = None;
        secret.data = Some(data);
        let digest = data_digest(&secret);
        for (name, value) in [
            (crd::TUNNEL_ID_ANNOTATION, answer.tunnel.id.to_string()),
            (crd::GENERATION_ANNOTATION, generation.to_string()),
            (crd::DIGEST_ANNOTATION, digest),
        ] {
            secret.annotations_mut().insert(name.into(), value);
        }
        let api: Api<Secret> = Api::namespaced(self.ctx.client.clone(), &self.desired.key.namespace);
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        // An update is conditioned by the resourceVersion that was read, a create by the name being free.
        let written = if exists {
            self.ctx.api("update the Secret", api.replace(&wanted.name, &params, &secret)).await
        } else {
            self.ctx.api("create the Secret", api.create(&params, &secret)).await
        };
        match written {
            Ok(written) => {
                if let Some(secrets) = self.secrets {
                    secrets[index] = Some(written);
                }
            }
            Err(error) if error.is_conflict() || error.is_not_found() => *self.secrets = None,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) async fn delete_secret(&mut self, index: usize) -> Result<(), Error> {
        let Some(secret) = self.secrets.as_ref().and_then(|s| s[index].as_ref()) else {
            return Ok(());
        };
        let preconditions = Preconditions { uid: secret.uid(), resource_version: secret.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api: Api<Secret> = Api::namespaced(self.ctx.client.clone(), &self.desired.key.namespace);
        let name = self.desired.secrets[index].name.clone();
        match self.ctx.api("delete the Secret", api.delete(&name, &params)).await {
            Err(error) if !error.is_conflict() && !error.is_not_found() => return Err(error),
            _ => *self.secrets = None,
        }
        Ok(())
    }
}

/// The wanted Secrets as states.
pub fn states(
    secrets: Option<&[Option<Secret>]>,
    desired: &Desired,
    answer: Option<(&Answer, &str)>,
) -> Vec<SecretState> {
    let secrets = secrets.into_iter().flatten();
    let state = |(secret, wanted): (&Option<Secret>, &SecretRef)| {
        let digest = answer.map(|(a, region)| {
            let data = Some(secret_data(wanted.mode, &a.tokens, &a.tunnel.id, region));
            data_digest(&Secret { data, ..Secret::default() })
        });
        secret_state(secret.as_ref(), &desired.key.uid, digest.as_deref())
    };
    secrets.zip(&desired.secrets).map(state).collect()
}

/// The data of a token Secret. The variables that AWS's local proxy reads are there for one side
/// alone: with both, a Pod's `envFrom` could not say which it is.
fn secret_data(mode: ClientMode, tokens: &Tokens, id: &TunnelId, region: &str) -> BTreeMap<String, ByteString> {
    let source = tokens.source.as_ref().filter(|_| mode.has_source());
    let destination = tokens.destination.as_ref().filter(|_| mode.has_destination());
    let mut data = BTreeMap::new();
    let mut put = |key: &str, value: &str| data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
    put("tunnelId", &id.0);
    put("region", region);
    let mut put_side = |name: &str, side: &Side| {
        put(&format!("{name}AccessToken"), side.access_token.expose());
        put(&format!("{name}ClientToken"), side.client_token.expose());
        if mode != ClientMode::All {
            put("AWSIOT_TUNNEL_ACCESS_TOKEN", side.access_token.expose());
            put("AWSIOT_TUNNEL_CLIENT_TOKEN", side.client_token.expose());
            put("AWSIOT_TUNNEL_REGION", region);
        }
    };
    source.iter().for_each(|side| put_side("source", side));
    destination.iter().for_each(|side| put_side("destination", side));
    data
}
