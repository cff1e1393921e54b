//! What users and others do to a Tunnel, as the administrator, who meets no weather.

use super::ledger::{Data, Life};
use super::plan::{self, Act, Spec, TAG};
use super::scenario::Scenario;
use crate::support::namespace::main_condition;
use crate::support::promise::{Rule, Violation, dead_tokens};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use opentunnel_api::secret::{self, DIGEST_ANNOTATION, GENERATION_ANNOTATION};
use opentunnel_api::{
    FINALIZER, OPENING_ANNOTATION, ROTATE_AT_ANNOTATION, ROTATE_CLIENT_MODE_ANNOTATION, ReopenPolicy, Tunnel,
};
use opentunnel_operator::secrets::sha256;
use secure_tunneling_emulator::{ConnectionStatus, Connections};
use serde_json::{Value, json};

impl Scenario {
    /// Does something to a Tunnel. `false`: nothing was to be done.
    pub async fn act(&mut self, number: usize, act: Act, spec: Spec) -> bool {
        if self.slots[number].present().is_none() {
            return self.create(number, spec).await;
        }
        let done = match act {
            Act::Create => false,
            Act::Delete => self.delete(number).await,
            Act::EditSecrets(secrets) => {
                self.life(number).spec.secrets = secrets;
                let name = self.slots[number].name.clone();
                self.patch(number, json!({"spec": {"secrets": secrets.json(&name)}})).await
            }
            Act::EditPolicy { retain } => {
                self.life(number).spec.retain = retain;
                self.patch(number, json!({"spec": {"deletionPolicy": if retain { "Retain" } else { "Close" }}})).await
            }
            Act::Replace { anyhow } => self.replace(number, anyhow).await,
            Act::Annotate(value) => {
                let text = value.to_string();
                self.patch(number, json!({"metadata": {"annotations": {"soak": text}, "labels": {"soak": text}}})).await
            }
            Act::LoseSecret => match self.token_secret(number).await {
                Some(secret) => self.secrets(number).delete(&secret.name_any(), &DeleteParams::default()).await.is_ok(),
                None => false,
            },
            Act::EditSecret => {
                self.patch_secret(number, json!({"data": {"mine": "eA==", "sourceAccessToken": "eA=="}})).await
            }
            Act::FreezeSecret => self.patch_secret(number, json!({"immutable": true})).await,
            Act::TakeName { forged } => self.take_name(number, forged).await,
            Act::FreeNames => self.free_names(number).await,
            Act::CloseTunnel { delete } => self.close_tunnel(number, delete),
            Act::Suspend(suspend) if self.life(number).spec.suspend == suspend => false,
            Act::Suspend(suspend) => {
                self.life(number).renewed += usize::from(!suspend);
                self.life(number).spec.suspend = suspend;
                self.patch(number, json!({"spec": {"suspend": suspend}})).await
            }
            Act::Recreate => {
                let name = self.slots[number].name.clone();
                let life = self.life(number);
                life.renewed += 1;
                life.spec.recreate = true;
                life.spec.thing ^= true;
                let destination = life.spec.thing.then(|| plan::destination(&name));
                self.patch(number, json!({"spec": {"updatePolicy": "Recreate", "destination": destination}})).await
            }
            Act::EditReopen(policy) => self.edit_reopen(number, policy).await,
            Act::EditTag(value) => {
                self.life(number).spec.tag = value;
                self.patch(number, json!({"spec": {"tags": plan::tags(value)}})).await
            }
            Act::TakeTag => self.open_tunnel(number).is_some_and(|id| self.world.aws.tag(&id, TAG, None).is_ok()),
            Act::Rotate(mode) => {
                let now = jiff::Timestamp::now().to_string();
                let annotations = json!({ROTATE_AT_ANNOTATION: now, ROTATE_CLIENT_MODE_ANNOTATION: mode});
                self.patch(number, json!({"metadata": {"annotations": annotations}})).await
            }
            Act::Connect(up) => self.connect(number, up),
            Act::Look => self.look(number).await,
        };
        if done {
            self.slots[number].note(&format!("{act:?}"));
            match act {
                Act::Delete => self.counts.deleted.add(),
                Act::Look => self.counts.looked.add(),
                _ => self.counts.changed.add(),
            }
        }
        done
    }

    fn life(&mut self, number: usize) -> &mut Life {
        self.slots[number].present_mut().expect("it is there")
    }

    fn manifest(&self, number: usize, life: &Life) -> Tunnel {
        let name = &self.slots[number].name;
        let manifest = json!({"metadata": {"name": name}, "spec": life.spec.json(name, &life.description)});
        serde_json::from_value(manifest).expect("a Tunnel")
    }

    async fn create(&mut self, number: usize, spec: Spec) -> bool {
        let slot = &self.slots[number];
        let description = format!("soak {}/{}", slot.name, slot.lives.len());
        let mut life = Life::new(String::new(), description, spec);
        let manifest = self.manifest(number, &life);
        // The one before may not be gone yet.
        let Ok(created) = self.tunnels(number).create(&PostParams::default(), &manifest).await else { return false };
        life.uid = created.uid().expect("a UID");
        let slot = &mut self.slots[number];
        slot.note(&format!("created: {spec:?}, {}", life.uid));
        slot.lives.push(life);
        self.counts.created.add();
        true
    }

    async fn delete(&mut self, number: usize) -> bool {
        let Some(tunnel) = self.tunnel(number).await else { return false };
        // One whose finalizer was replaced away goes at once, and its tunnel stays behind: documented.
        let opened = tunnel.annotations().contains_key(OPENING_ANNOTATION) || id(&tunnel).is_some();
        let held = tunnel.finalizers().iter().any(|f| f == FINALIZER);
        if !held && (opened || self.life(number).replaced_opening > 0) {
            return false;
        }
        let params = DeleteParams::default()
            .preconditions(kube::api::Preconditions { resource_version: tunnel.resource_version(), uid: tunnel.uid() });
        let deleted = self.tunnels(number).delete(&self.slots[number].name, &params).await.is_ok();
        self.life(number).deleted = deleted;
        deleted
    }

    async fn patch(&self, number: usize, patch: Value) -> bool {
        let name = &self.slots[number].name;
        let patched = self.tunnels(number).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.is_ok_and(|tunnel| tunnel.metadata.deletion_timestamp.is_none())
    }

    /// Conditioned by the resourceVersion, so that it is known what was replaced.
    async fn replace(&mut self, number: usize, anyhow: bool) -> bool {
        let Some(tunnel) = self.tunnel(number).await else { return false };
        let claimed = tunnel.annotations().contains_key(OPENING_ANNOTATION);
        let opening = claimed && id(&tunnel).is_none();
        if opening && !anyhow {
            return false;
        }
        let life = self.slots[number].present().expect("it is there");
        let mut manifest = self.manifest(number, life);
        manifest.metadata.resource_version = tunnel.resource_version();
        let name = &self.slots[number].name;
        let replaced = self.tunnels(number).replace(name, &PostParams::default(), &manifest).await.is_ok();
        if replaced && opening {
            self.life(number).replaced_opening += 1;
            self.counts.replaced_opening.add();
            self.slots[number].note("its claim is gone while it is being opened");
        }
        replaced
    }

    /// One of its token Secrets that is there.
    async fn token_secret(&self, number: usize) -> Option<Secret> {
        let slot = &self.slots[number];
        let mut names = slot.present()?.spec.secrets.of(&slot.name);
        names.retain(|(name, _)| !slot.foreign.contains_key(name));
        let (name, _) = names.last()?;
        self.secrets(number).get_opt(name).await.expect("the API server answers")
    }

    async fn patch_secret(&self, number: usize, patch: Value) -> bool {
        let Some(secret) = self.token_secret(number).await else { return false };
        let patch = Patch::Merge(patch);
        self.secrets(number).patch(&secret.name_any(), &PatchParams::default(), &patch).await.is_ok()
    }

    async fn take_name(&mut self, number: usize, forged: bool) -> bool {
        let slot = &self.slots[number];
        let names = slot.present().map(|life| life.spec.secrets.of(&slot.name)).unwrap_or_default();
        let Some((name, _)) = names.into_iter().find(|(name, _)| !slot.foreign.contains_key(name)) else {
            return false;
        };
        let data: Data = [("theirs".to_owned(), ByteString(name.clone().into_bytes()))].into();
        let mut secret = Secret { data: Some(data.clone()), ..Secret::default() };
        secret.metadata.name = Some(name.clone());
        if forged {
            secret.type_ = Some(secret::TYPE.into());
            secret.labels_mut().extend(secret::LABELS.map(|(key, value)| (key.to_owned(), value.to_owned())));
            secret.annotations_mut().insert(GENERATION_ANNOTATION.into(), "1000000".into());
        }
        let api = self.secrets(number);
        // The operator may be faster.
        for _ in 0..3 {
            let _ = api.delete(&name, &DeleteParams::default()).await;
            if api.create(&PostParams::default(), &secret).await.is_ok() {
                self.slots[number].foreign.insert(name, data);
                return true;
            }
        }
        false
    }

    /// Its user tells the Tunnel too: else it is looked at 60 s later.
    pub async fn free_names(&mut self, number: usize) -> bool {
        self.untouched(number).await;
        let foreign = std::mem::take(&mut self.slots[number].foreign);
        for name in foreign.keys() {
            self.secrets(number).delete(name, &DeleteParams::default()).await.expect("nobody deletes it but we");
        }
        let freed = !foreign.is_empty();
        if freed {
            let now = jiff::Timestamp::now().to_string();
            self.patch(number, json!({"metadata": {"annotations": {"soak-freed": now}}})).await;
        }
        freed
    }

    /// Somebody else's Secrets are as they were.
    pub async fn untouched(&mut self, number: usize) {
        for (name, data) in self.slots[number].foreign.clone() {
            let secret = self.secrets(number).get_opt(&name).await.expect("the API server answers");
            let owners = secret.as_ref().is_some_and(|s| !s.owner_references().is_empty());
            if owners || secret.and_then(|s| s.data) != Some(data) {
                let what = format!("Secret {name} is somebody else's, and not as it was");
                self.violated(number, Violation { rule: Rule::State, what });
            }
        }
    }

    fn close_tunnel(&mut self, number: usize, delete: bool) -> bool {
        let Some(tunnel) = self.open_tunnel(number) else { return false };
        let life = self.life(number);
        life.closed.insert(tunnel.clone());
        life.removed += usize::from(delete);
        let aws = &self.world.aws;
        let closed = if delete { aws.delete(&tunnel) } else { aws.close(&tunnel) };
        closed.is_ok()
    }

    /// AWS's ID of one that is open.
    fn open_tunnel(&self, number: usize) -> Option<String> {
        let life = self.slots[number].present()?;
        let tunnel = self.open().find(|t| t.description.as_deref() == Some(&life.description))?;
        Some(tunnel.tunnel_id)
    }

    /// spec.reopenPolicy is edited.
    pub async fn edit_reopen(&mut self, number: usize, policy: ReopenPolicy) -> bool {
        self.life(number).spec.reopen = policy;
        self.patch(number, json!({"spec": {"reopenPolicy": policy}})).await
    }

    /// Somebody connects to its tunnel, or leaves it.
    pub fn connect(&mut self, number: usize, up: bool) -> bool {
        let Some(tunnel) = self.open_tunnel(number) else { return false };
        let status = if up { ConnectionStatus::Connected } else { ConnectionStatus::Disconnected };
        let connections = Connections { source: Some(status), ..Connections::default() };
        // It may have just ended.
        let done = self.world.aws.set_connections(&tunnel, connections).is_ok();
        if done {
            self.life(number).connected.insert(tunnel, up);
        }
        done
    }

    /// While a Tunnel is Ready and nobody has touched its Secrets, they hold what AWS accepts.
    pub async fn look(&mut self, number: usize) -> bool {
        let Some(before) = self.tunnel(number).await.filter(is_ready) else { return false };
        let slot = &self.slots[number];
        let (Some(life), Some(id)) = (slot.present(), id(&before)) else { return false };
        let wanted = life.spec.secrets.of(&slot.name);
        let generation = before.status.as_ref().and_then(|s| s.token_generation).unwrap_or_default().to_string();
        for (name, _) in &wanted {
            let secret = self.secrets(number).get_opt(name).await.expect("the API server answers");
            let as_written = secret.is_some_and(|s| {
                s.annotations().get(DIGEST_ANNOTATION) == s.data.as_ref().map(sha256).as_ref()
                    && s.annotations().get(GENERATION_ANNOTATION) == Some(&generation)
            });
            if !as_written {
                return false;
            }
        }
        let wanted: Vec<_> = wanted.iter().map(|(name, mode)| (name.as_str(), *mode)).collect();
        let dead = match self.world.aws.live_tokens(id) {
            Some(_) => dead_tokens(self.namespace(number), &self.world.aws, id, &wanted).await,
            None => return false,
        };
        let after = self.tunnel(number).await;
        // It may have expired under way.
        if self.world.aws.live_tokens(id).is_none()
            || after.and_then(|t| t.resource_version()) != before.resource_version()
        {
            return false;
        }
        for violation in dead {
            self.violated(number, violation);
        }
        true
    }
}

/// AWS's ID of a Tunnel's tunnel.
pub fn id(tunnel: &Tunnel) -> Option<&str> {
    tunnel.status.as_ref()?.tunnel_id.as_deref()
}

/// Whether it is Ready, by its present spec.
pub fn is_ready(tunnel: &Tunnel) -> bool {
    let observed = tunnel.status.as_ref().and_then(|s| s.observed_generation);
    observed == tunnel.metadata.generation
        && main_condition(tunnel).is_some_and(|c| (c.type_.as_str(), c.status.as_str()) == ("Ready", "True"))
}
