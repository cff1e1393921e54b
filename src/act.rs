//! Carries out one step, with exactly one effect, and says what came of it. It decides nothing and remembers nothing.

mod secret;

use crate::clock::Mono;
use crate::context::Context;
use crate::error::Error;
use crate::facts::View;
use crate::memory::CLAIM_LIMIT;
use crate::observe::Secrets;
use crate::pacer::Pacer;
use crate::read::{Object, read};
use crate::record::Change;
use crate::status;
use crate::step::{Identity, Lane, Need, Outcome, Step, Wait};
use crate::surplus::Surplus;
use crate::traces;
use crate::tunnels::{Attempt, CallError, CallErrorKind, Tags, TunnelRef};
use crate::watch::stored;
use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use opentelemetry::trace::SpanKind;
use opentunnel_api::{ClientMode, FINALIZER, GENERATION_TAG, MANAGER, OPENING_ANNOTATION, OWNER_TAG, Tunnel};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// Carries out `step`, which was decided on `view` and `secrets`.
pub async fn act(ctx: &Context, step: &Step, view: &View, secrets: Option<&Secrets>) -> Outcome {
    let secrets = secrets.map_or(&[][..], Vec::as_slice);
    let act = Act { ctx, object: &view.object, read_at: view.read_at, secrets };
    act.act(step).await.unwrap_or_else(Outcome::Failed)
}

struct Act<'a> {
    ctx: &'a Context,
    object: &'a Object,
    read_at: Option<Mono>,
    secrets: &'a [(String, Option<k8s_openapi::api::core::v1::Secret>)],
}

impl Act<'_> {
    async fn act(&self, step: &Step) -> Result<Outcome, Error> {
        let (ctx, key) = (self.ctx, &self.object.key);
        match step {
            Step::Wait(wait) => self.wait(wait),
            Step::Read => return Ok(Outcome::Read(self.read().await?)),
            Step::Queue(lane) => {
                // A deletion that leaves the tunnel does not wait for tags of the Tunnels before it.
                let first = *lane == Lane::Tag && self.object.deleted_at.is_some();
                let place = if first { Timestamp::MIN } else { self.object.created_at };
                ctx.account.pacers.lane(*lane).take(key, place);
            }
            Step::Claim { attempt, .. } => {
                let intent = format!("{}/{attempt}", key.uid);
                let metadata =
                    json!({"finalizers": self.finalizers(true), "annotations": {OPENING_ANNOTATION: intent}});
                return self.patch("claim the opening", metadata, None).await;
            }
            Step::RestoreFinalizer => {
                let metadata = json!({"finalizers": self.finalizers(true)});
                return self.patch("restore its finalizer", metadata, None).await;
            }
            Step::RemoveFinalizer => {
                let metadata = json!({"finalizers": self.finalizers(false)});
                return self.patch("take its finalizer off", metadata, None).await;
            }
            Step::Open { attempt, tags } => return Ok(self.open(attempt, tags).await),
            Step::Identify { tunnel, .. } => return Ok(Outcome::Identified(self.identify(tunnel).await)),
            Step::Rotate { tunnel, mode, .. } => return Ok(self.rotate(tunnel, *mode).await),
            Step::Mark { tunnel, generation } => {
                let mark = Tags::from([(GENERATION_TAG.to_owned(), generation.to_string())]);
                return Ok(tagged("TagResource", ctx.account.aws.tag(&tunnel.arn, &mark).await));
            }
            Step::Tag { tunnel, tags, .. } => {
                let call = ctx.account.aws.tag(&tunnel.arn, tags);
                return Ok(self.in_turn(call).await.map_or(Outcome::Withdrawn, |set| tagged("TagResource", set)));
            }
            Step::TakeTagsOff { tunnel, keys, .. } => {
                let call = ctx.account.aws.untag(&tunnel.arn, keys);
                return Ok(self.in_turn(call).await.map_or(Outcome::Withdrawn, |taken| tagged("UntagResource", taken)));
            }
            Step::Close { tunnel, .. } => {
                let Some(outcome) = ctx.account.close_tunnel(key, &tunnel.id, None, || self.leads()).await else {
                    return Ok(Outcome::Withdrawn);
                };
                return Ok(Outcome::ClosedOrUntagged(told(tunnel, "CloseTunnel", "is closed", outcome)));
            }
            Step::Untag { tunnel, .. } => {
                let own = [OWNER_TAG.to_owned(), GENERATION_TAG.to_owned()];
                let Some(outcome) = self.in_turn(ctx.account.aws.untag(&tunnel.arn, &own)).await else {
                    return Ok(Outcome::Withdrawn);
                };
                return Ok(Outcome::ClosedOrUntagged(told(
                    tunnel,
                    "UntagResource",
                    "stays open, without an owner tag",
                    outcome,
                )));
            }
            Step::WriteSecret { secret, tunnel, tokens, generation } => {
                return self.write_secret(secret, tunnel, tokens, *generation).await;
            }
            Step::DeleteSecret { name } => return self.delete_secret(name).await,
            Step::TryCreate { secret } => return self.try_create(secret).await,
            Step::Record(change) => return self.record(change).await,
            Step::CloseSurplus { tunnel, attempt } => {
                tracing::warn!(tunnel_id = %tunnel.id, "a tunnel is surplus: it is closed in the background");
                let (key, attempt, tunnel) = (key.clone(), attempt.clone(), tunnel.clone());
                ctx.account.close_surplus(Surplus { key, attempt, tunnel });
            }
            Step::Reuse { .. } | Step::Forget | Step::TellUnconnected | Step::TellRival(_) => {}
        }
        Ok(Outcome::Done)
    }

    fn wait(&self, wait: &Wait) {
        let (account, key) = (&self.ctx.account, &self.object.key);
        account.pacers.give_back(key, wait.lane);
        match &wait.need {
            Some(Need::Search(since)) => account.poller.search(key, self.object.opened_after(), *since),
            Some(Need::Describe(id)) => account.poller.describe(key, id),
            None => {}
        }
        for name in &wait.names {
            self.ctx.owned.wait_for((key.namespace.clone(), name.clone()), key);
        }
    }

    /// Makes a call in its turn of the lane for tags. `None`: it has not left.
    async fn in_turn(&self, call: impl Future<Output = Result<(), CallError>>) -> Option<Result<(), CallError>> {
        let (pacer, key) = (self.ctx.account.pacers.lane(Lane::Tag), &self.object.key);
        if !pacer.depart(key, None, || self.leads()).await {
            return None;
        }
        let outcome = call.await;
        pacer.end(key, &outcome);
        Some(outcome)
    }

    /// The Tunnel as it is now; `None`: it is gone.
    async fn read(&self) -> Result<Option<Box<Object>>, Error> {
        let tunnel = match self.ctx.kubernetes.read_tunnel(&self.object.key).await? {
            Some(Ok(tunnel)) => tunnel,
            // What can be read of it is enough for its end.
            Some(Err(u)) if u.readable.metadata.deletion_timestamp.is_some() => u.readable,
            Some(Err(unreadable)) => return Err(Error::Unreadable(unreadable.what)),
            None => return Ok(None),
        };
        Ok(Some(Box::new(read(&tunnel)?)))
    }

    async fn open(&self, attempt: &Attempt, tags: &Tags) -> Outcome {
        let (account, key) = (&self.ctx.account, &self.object.key);
        let owner = account.owner(key, attempt);
        let pacer = account.pacers.lane(Lane::Open);
        if !self.departs(pacer).await {
            return Outcome::Withdrawn;
        }
        let called = self.ctx.clock.mono();
        let generation = self.object.record.token_generation + 1;
        let answer = account.aws.open(&self.object.spec.request, tags, &owner, generation).await;
        pacer.end(key, &answer);
        match &answer {
            Ok((tunnel, _)) => tracing::info!(tunnel_id = %tunnel.id, "opened a tunnel"),
            Err(error) => failed("OpenTunnel", error),
        }
        Outcome::Opened { called, answer }
    }

    async fn rotate(&self, tunnel: &TunnelRef, mode: ClientMode) -> Outcome {
        let (account, key) = (&self.ctx.account, &self.object.key);
        let pacer = account.pacers.lane(Lane::Rotate);
        if !self.departs(pacer).await {
            return Outcome::Withdrawn;
        }
        let called = self.ctx.clock.mono();
        let answer = account.aws.rotate(&tunnel.id, mode, self.object.spec.request.destination.as_ref()).await;
        pacer.end(key, &answer);
        if let Err(error) = &answer {
            failed("RotateTunnelAccessToken", error);
        }
        Outcome::Rotated { called, answer }
    }

    fn leads(&self) -> bool {
        self.ctx.standing().leads_since().is_some()
    }

    /// Waits until the call may leave: as long as what it was claimed with is fresh, and this process leads.
    async fn departs(&self, pacer: &Pacer) -> bool {
        let (ctx, key) = (self.ctx, &self.object.key);
        let _waits = traces::sent("wait for its departure", SpanKind::Internal);
        let fresh = self.read_at.map_or(Duration::ZERO, |at| (at + CLAIM_LIMIT).0.saturating_sub(ctx.clock.mono().0));
        pacer.depart(key, Some(Instant::now() + fresh), || self.leads()).await
    }

    async fn identify(&self, tunnel: &TunnelRef) -> Result<Identity, CallError> {
        let (account, key) = (&self.ctx.account, &self.object.key);
        let described = account.poller.read(&tunnel.id).await.inspect_err(|error| failed("DescribeTunnel", error))?;
        let identity = Identity::of(&tunnel.id, described.description, |owner| account.is_tagged_for(owner, key));
        if identity == Identity::Foreign {
            tracing::warn!(tunnel_id = %tunnel.id, "the status names a tunnel that is not this Tunnel's by its owner tag");
        }
        Ok(identity)
    }

    async fn record(&self, change: &Change) -> Result<Outcome, Error> {
        let (ctx, object) = (self.ctx, self.object);
        let after = object.record.after(change, object.generation, object.spec.lifetime);
        let status = status::render(object, change, &after, Timestamp::now());
        let outcome = self.patch("write its status", json!({}), Some(json!(status))).await?;
        if !matches!(outcome, Outcome::Written(_)) {
            return Ok(outcome);
        }
        if matches!(change, Change::Adopted { .. }) {
            ctx.metrics.adopted();
        }
        if change.ends_search() {
            ctx.account.poller.forget(&object.key);
        }
        if matches!(change, Change::Ended { .. }) {
            ctx.account.pacers.lane(Lane::Open).probe_now();
        }
        Ok(outcome)
    }

    fn finalizers(&self, with: bool) -> Vec<&str> {
        let others = self.object.other_finalizers.iter().map(String::as_str);
        others.chain(with.then_some(FINALIZER)).collect()
    }

    /// A merge patch of the Tunnel, or of its status, conditioned by the UID and resourceVersion that was decided on.
    /// Where somebody else has written meanwhile, the Tunnel is read anew.
    async fn patch(&self, what: &'static str, mut metadata: Value, status: Option<Value>) -> Result<Outcome, Error> {
        let key = &self.object.key;
        metadata["uid"] = json!(key.uid);
        metadata["resourceVersion"] = json!(self.object.resource_version);
        let tunnels = ApiResource::erase::<Tunnel>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.ctx.kubernetes.client.clone(), &key.namespace, &tunnels);
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let patched = match status {
            Some(status) => {
                let body = Patch::Merge(json!({"metadata": metadata, "status": status}));
                self.ctx.kubernetes.request(what, || api.patch_status(&key.name, &params, &body)).await
            }
            None => {
                let body = Patch::Merge(json!({"metadata": metadata}));
                self.ctx.kubernetes.request(what, || api.patch(&key.name, &params, &body)).await
            }
        };
        match patched {
            // It may be one that cannot be read as a whole: it is written all the same.
            Ok(object) => {
                let tunnel = stored::read(object).unwrap_or_else(|unreadable| unreadable.readable);
                Ok(Outcome::Written(Box::new(read(&tunnel)?)))
            }
            Err(error) if error.is_outdated() => Ok(Outcome::Conflict(self.read().await?)),
            Err(error) => Err(error),
        }
    }
}

fn told(tunnel: &TunnelRef, operation: &str, what: &str, outcome: Result<(), CallError>) -> Result<(), CallError> {
    match &outcome {
        Ok(()) => tracing::info!(tunnel_id = %tunnel.id, "the tunnel {what}"),
        Err(error) if error.kind == CallErrorKind::NotFound => {}
        Err(error) => failed(operation, error),
    }
    outcome
}

fn tagged(operation: &str, outcome: Result<(), CallError>) -> Outcome {
    if let Err(error) = &outcome {
        failed(operation, error);
    }
    Outcome::Tagged(outcome)
}

fn failed(operation: &str, error: &CallError) {
    tracing::warn!(operation, %error, kind = ?error.kind, "a call to AWS failed");
}
