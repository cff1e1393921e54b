//! The writes of token Secrets: each conditioned by what was read.

use super::Act;
use crate::controller::context::Error;
use crate::controller::observe::{Refusal, Trial};
use crate::controller::secrets::{data_digest, secret_data};
use crate::controller::validate::SecretRef;
use crate::crd::{self, MANAGER};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Resource, ResourceExt};

impl Act<'_> {
    pub(super) async fn write_secret(&mut self, index: usize, generation: i64) -> Result<(), Error> {
        let Some(answer) = &self.memory.answer else {
            return Ok(());
        };
        let wanted = &self.desired.secrets[index];
        let data = secret_data(wanted.mode, &answer.tokens, &answer.tunnel.id, self.ctx.aws.region());
        let present = self.read_secret(index).cloned();
        let exists = present.is_some();
        let mut secret = self.secret(wanted, present.unwrap_or_default());
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
                if let Some((_, secret)) = self.secrets.as_mut().and_then(|s| s.get_mut(index)) {
                    *secret = Some(written);
                }
            }
            Err(error) if error.is_conflict() || error.is_not_found() => self.read_anew(),
            Err(error) if error.is_namespace_ending() => self.tried(Some(Refusal::NamespaceEnds)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn tried(&mut self, refused: Option<Refusal>) {
        self.memory.trial = Some(Trial { at: self.ctx.mono(), refused });
    }

    /// A Secret as this Tunnel's, but for its data.
    fn secret(&self, wanted: &SecretRef, mut secret: Secret) -> Secret {
        secret.metadata.name = Some(wanted.name.clone());
        secret.metadata.namespace = Some(self.desired.key.namespace.clone());
        secret.metadata.managed_fields = None;
        let owner = self.view.tunnel.controller_owner_ref(&());
        // As Kubernetes' own controllers set it; OpenShift then asks for rights on tunnels/finalizers.
        let owner = owner.map(|o| OwnerReference { block_owner_deletion: Some(true), ..o });
        secret.metadata.owner_references = owner.map(|o| vec![o]);
        secret.labels_mut().insert(crd::MANAGED_BY_LABEL.into(), MANAGER.into());
        secret.type_ = Some(crd::SECRET_TYPE.into());
        secret.string_data = None;
        secret
    }

    /// Asks whether a Secret would be taken (`dryRun`).
    pub(super) async fn try_create(&mut self, index: usize) -> Result<(), Error> {
        let secret = self.secret(&self.desired.secrets[index], Secret::default());
        let api: Api<Secret> = Api::namespaced(self.ctx.client.clone(), &self.desired.key.namespace);
        let params = PostParams { dry_run: true, field_manager: Some(MANAGER.into()) };
        match self.ctx.api("try whether the Secret would be taken", api.create(&params, &secret)).await {
            Ok(_) => self.tried(None),
            Err(error) if error.is_conflict() => *self.secrets = None,
            Err(error) if error.is_namespace_ending() => self.tried(Some(Refusal::NamespaceEnds)),
            Err(error) if error.is_refusal() => self.tried(Some(Refusal::Told(error.to_string()))),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn read_secret(&self, index: usize) -> Option<&Secret> {
        self.secrets.as_ref()?.get(index)?.1.as_ref()
    }

    pub(super) async fn delete_secret(&mut self, index: usize) -> Result<(), Error> {
        let Some(secret) = self.read_secret(index) else {
            return Ok(());
        };
        let preconditions = Preconditions { uid: secret.uid(), resource_version: secret.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api: Api<Secret> = Api::namespaced(self.ctx.client.clone(), &self.desired.key.namespace);
        match self.ctx.api("delete the Secret", api.delete(&secret.name_any(), &params)).await {
            Ok(_) => *self.secrets = None,
            Err(error) if error.is_conflict() || error.is_not_found() => self.read_anew(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Who has written a Secret meanwhile did so for a Tunnel that may have changed as well.
    fn read_anew(&mut self) {
        *self.secrets = None;
        self.view.read_at = None;
    }
}
