//! The writes of token Secrets: each conditioned by what was read.

use super::Act;
use crate::error::Error;
use crate::read::SecretSpec;
use crate::secrets::{self, prepared};
use crate::step::{Outcome, Refusal};
use crate::tunnels::{Tokens, TunnelId};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use opentunnel_api::MANAGER;

impl Act<'_> {
    pub(super) async fn write_secret(
        &self,
        wanted: &SecretSpec,
        tunnel: &TunnelId,
        tokens: &Tokens,
        generation: i64,
    ) -> Result<Outcome, Error> {
        let present = self.present(&wanted.name).cloned();
        let exists = present.is_some();
        let mut secret = prepared(self.object, wanted, present.unwrap_or_default());
        let own = secrets::data(wanted.mode, tokens, tunnel, self.ctx.account.aws.region());
        secrets::fill(&mut secret, own, tunnel, generation);
        let (api, params) = (self.secrets_api(), params(false));
        // An update is conditioned by the resourceVersion that was read, a create by the name being free.
        let written = if exists {
            self.ctx.kubernetes.request("update the Secret", || api.replace(&wanted.name, &params, &secret)).await
        } else {
            self.ctx.kubernetes.request("create the Secret", || api.create(&params, &secret)).await
        };
        self.taken(written.is_ok(), written.as_ref().is_err_and(Error::is_refusal));
        match written {
            Ok(written) => Ok(Outcome::SecretWritten(Some(Box::new(written)))),
            Err(error) if error.is_outdated() => Ok(Outcome::SecretConflict),
            Err(error) if error.is_namespace_ending() => Ok(Outcome::Tried(Some(Refusal::NamespaceEnds))),
            Err(error) => Err(error),
        }
    }

    /// Asks whether a Secret would be taken (`dryRun`). Before an opening, one answer counts for all Tunnels of the
    /// namespace: of those that come at once, the first asks, and if it is refused, each of the others for itself.
    pub(super) async fn try_create(&self, wanted: &SecretSpec) -> Result<Outcome, Error> {
        let (takes, namespace) = (&self.ctx.takes_secrets, &self.object.key.namespace);
        let opening = !self.object.record.phase().is_open();
        let _first = if opening { takes.ask(namespace).await } else { None };
        // Another one's answer may also have come since this was decided.
        if opening && takes.in_namespace(namespace, self.ctx.clock.mono()) {
            return Ok(Outcome::Tried(None));
        }
        let secret = prepared(self.object, wanted, Secret::default());
        let (api, params) = (self.secrets_api(), params(true));
        let tried =
            self.ctx.kubernetes.request("try whether the Secret would be taken", || api.create(&params, &secret)).await;
        self.taken(tried.is_ok(), tried.as_ref().is_err_and(Error::is_refusal));
        Ok(match tried {
            Ok(_) => Outcome::Tried(None),
            Err(error) if error.code() == Some(409) => Outcome::NameTaken,
            Err(error) if error.is_namespace_ending() => Outcome::Tried(Some(Refusal::NamespaceEnds)),
            Err(error) if error.is_refusal() => Outcome::Tried(Some(Refusal::Told(error.to_string()))),
            Err(error) => return Err(error),
        })
    }

    pub(super) async fn delete_secret(&self, name: &str) -> Result<Outcome, Error> {
        let Some(secret) = self.present(name) else {
            return Ok(Outcome::SecretConflict);
        };
        let preconditions = Preconditions { uid: secret.uid(), resource_version: secret.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api = self.secrets_api();
        match self.ctx.kubernetes.request("delete the Secret", || api.delete(name, &params)).await {
            Ok(_) => Ok(Outcome::SecretWritten(None)),
            Err(error) if error.is_outdated() => Ok(Outcome::SecretConflict),
            Err(error) => Err(error),
        }
    }

    /// Whether the API server takes token Secrets in the namespace, for all Tunnels of it.
    fn taken(&self, is: bool, refused: bool) {
        if is || refused {
            self.ctx.takes_secrets.tell(&self.object.key.namespace, is, self.ctx.clock.mono());
        }
    }

    fn present(&self, name: &str) -> Option<&Secret> {
        self.secrets.iter().find(|(read, _)| read == name)?.1.as_ref()
    }

    fn secrets_api(&self) -> Api<Secret> {
        Api::namespaced(self.ctx.kubernetes.client.clone(), &self.object.key.namespace)
    }
}

fn params(dry_run: bool) -> PostParams {
    PostParams { dry_run, field_manager: Some(MANAGER.into()) }
}
