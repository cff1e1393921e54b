//! Step 4: carries out one decision, with exactly one effect, and notes what came of it.

mod owner;
mod secret;

use super::context::{Context, Error, View};
use super::decide::failure_reason;
use super::decision::{Change, Decision, Need, Wait};
use super::observe::{Answer, AnswerOf, Failure, Memory};
use super::secrets;
use super::status::{self, Note};
use super::validate::Desired;
use crate::clock::{Mono, Now};
use crate::crd::{ClientMode, FINALIZER, MANAGER, OPENING_ANNOTATION, Reason, Tunnel};
use crate::tunnels::{Attempt, CallError, CallErrorKind, Owner, Tokens, TunnelId, TunnelRef};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use owner::Owned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The first pause after a failed AWS call; it doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause where AWS does not answer.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(30);
/// The longest pause where AWS refuses: a person has to do something, but then it shall go on.
const REFUSED_RETRY: Duration = Duration::from_secs(300);

/// What a step needs: the shared parts, and the Tunnel's own.
pub struct Act<'a> {
    /// Shared.
    pub ctx: &'a Context,
    /// What the object says.
    pub desired: &'a Desired,
    /// The object.
    pub view: &'a mut View,
    /// The Secrets that concern it; `None`: they are to be read again.
    pub secrets: &'a mut Option<secrets::Read>,
    /// What is remembered.
    pub memory: &'a mut Memory,
    /// When it was decided.
    pub now: Now,
}

impl Act<'_> {
    /// Carries out `decision`. `Some`: the reconcile ends and waits.
    pub async fn act(&mut self, decision: Decision) -> Result<Option<Wait>, Error> {
        match decision {
            Decision::Wait(wait) => return Ok(Some(self.wait(wait))),
            Decision::Read => self.read().await?,
            Decision::Queue(lane) => self.ctx.lane(lane).take(&self.desired.key, self.desired.created_at),
            Decision::Claim(attempt) => self.claim(attempt).await?,
            Decision::RestoreFinalizer => {
                let finalizers = self.finalizers(true);
                self.patch("restore its finalizer", json!({"finalizers": finalizers}), None).await?;
            }
            Decision::Open => self.open().await,
            Decision::Rotate { tunnel, mode, generation } => self.rotate(&tunnel, mode, generation).await,
            Decision::Close { tunnel, opened_at } => self.close(&tunnel, opened_at).await,
            Decision::Disown { tunnel, opened_at } => self.disown(&tunnel, opened_at).await,
            Decision::WriteSecret { index, generation } => self.write_secret(index, generation).await?,
            Decision::DeleteSecret { index } => self.delete_secret(index).await?,
            Decision::TryCreate { index } => self.try_create(index).await?,
            Decision::Reuse => self.reuse(),
            Decision::Record(change) => self.record(&change).await?,
            Decision::Release => {
                let finalizers = self.finalizers(false);
                self.patch("take its finalizer off", json!({"finalizers": finalizers}), None).await?;
                self.memory.answer = None;
            }
            Decision::Forget => self.memory.drop_answer(),
            Decision::Abandon(tunnel) => {
                tracing::warn!(tunnel_id = %tunnel.id, "closing a tunnel that was opened in vain");
                let _ = self.ctx.abandoned.send((self.desired.key.clone(), tunnel));
                self.memory.answer = None;
            }
        }
        Ok(None)
    }

    fn wait(&mut self, wait: Wait) -> Wait {
        self.ctx.give_back(&self.desired.key, wait.lane);
        let key = &self.desired.key;
        match (wait.need, &self.desired.record.tunnel) {
            (Some(Need::Search(since)), _) => self.ctx.poller.search(key, self.desired.created_at, since),
            (Some(Need::Describe), Some(t)) => self.ctx.poller.describe(key, &t.tunnel.id),
            _ => {}
        }
        wait
    }

    async fn read(&mut self) -> Result<(), Error> {
        let at = self.ctx.mono();
        match self.ctx.read_tunnel(&self.desired.key).await? {
            Some(Ok(tunnel)) => self.see(tunnel, at),
            // What can be read of it is enough for its end.
            Some(Err(u)) if u.readable.metadata.deletion_timestamp.is_some() => self.see(u.readable, at),
            Some(Err(unreadable)) => return Err(Error::Unreadable(unreadable.what)),
            None => self.view.gone = true,
        }
        Ok(())
    }

    fn see(&mut self, tunnel: Tunnel, at: Mono) {
        let tunnel = Arc::new(tunnel);
        self.memory.written = Some(tunnel.clone());
        *self.view = View { tunnel, read_at: Some(at), gone: false };
    }

    async fn claim(&mut self, given: Option<Attempt>) -> Result<(), Error> {
        let new = given.is_none();
        let attempt = given.unwrap_or_else(Attempt::random);
        self.memory.claiming(attempt.clone());
        let intent = format!("{}/{attempt}", self.desired.key.uid);
        let metadata = json!({"finalizers": self.finalizers(true), "annotations": {OPENING_ANNOTATION: intent}});
        if self.patch("claim the opening", metadata, None).await? {
            self.memory.claimed(new);
        }
        Ok(())
    }

    async fn open(&mut self) {
        let Some(attempt) = self.memory.attempt.clone() else {
            return;
        };
        let key = &self.desired.key;
        let owner = Owner {
            cluster: self.ctx.cluster.clone(),
            namespace: key.namespace.clone(),
            uid: key.uid.clone(),
            attempt: attempt.clone(),
        };
        self.memory.opening(self.ctx.mono());
        self.ctx.open.begin(key);
        let outcome = self.ctx.aws.open(&self.desired.request, &owner).await;
        self.ctx.open.end(key, &outcome);
        match outcome {
            Ok((tunnel, tokens)) => {
                tracing::info!(tunnel_id = %tunnel.id, "opened a tunnel");
                self.ctx.ours.note(key, &tunnel);
                self.answered(AnswerOf::Open(attempt), tunnel, tokens);
            }
            Err(error) => {
                self.memory.open_failed(error.kind);
                self.failed("OpenTunnel", error);
            }
        }
    }

    async fn rotate(&mut self, tunnel: &TunnelId, mode: ClientMode, generation: i64) {
        match self.owned(tunnel).await {
            Ok(Owned::Yes(_)) => {}
            Ok(Owned::Learnt) => return,
            Ok(Owned::No) => return self.failed("RotateTunnelAccessToken", Self::foreign(tunnel)),
            Err(error) => return self.failed("DescribeTunnel", error),
        }
        let others_live = self.memory.rotating(generation, mode, self.ctx.mono());
        self.ctx.rotate.begin(&self.desired.key);
        let outcome = self.ctx.aws.rotate(tunnel, mode, self.desired.request.destination.as_ref()).await;
        self.ctx.rotate.end(&self.desired.key, &outcome);
        let failed = outcome.as_ref().err().map(|error| error.kind);
        self.memory.rotate_ended(failed, &self.ctx.limits, self.ctx.mono());
        match (outcome, &self.desired.record.tunnel) {
            (Ok(tokens), Some(recorded)) => {
                let tunnel = recorded.tunnel.clone();
                let tokens = if others_live { tokens.or(self.kept_tokens()) } else { tokens };
                self.answered(AnswerOf::Rotate(generation), tunnel, tokens);
            }
            (Ok(_), None) => {}
            (Err(error), _) => self.failed("RotateTunnelAccessToken", error),
        }
    }

    /// The tokens that the Secrets of a Ready Tunnel hold.
    fn kept_tokens(&self) -> Tokens {
        let read = self.secrets.as_deref().unwrap_or_default();
        secrets::kept_tokens(read, &secrets::states(read, self.desired, None))
    }

    fn reuse(&mut self) {
        if let Some(recorded) = &self.desired.record.tunnel {
            let (tunnel, tokens) = (recorded.tunnel.clone(), self.kept_tokens());
            self.answered(AnswerOf::Secrets(self.desired.record.token_generation), tunnel, tokens);
        }
    }

    fn answered(&mut self, of: AnswerOf, tunnel: TunnelRef, tokens: Tokens) {
        self.memory.answered(Answer { of, tunnel, tokens, at: self.ctx.mono(), wall: Timestamp::now() });
    }

    async fn close(&mut self, tunnel: &TunnelRef, opened_at: Timestamp) {
        match self.owned(&tunnel.id).await {
            Ok(Owned::Yes(_)) => {}
            Ok(Owned::Learnt) => return,
            Ok(Owned::No) => return self.leave(&tunnel.id).await,
            Err(error) => return self.parted(tunnel, opened_at, Err(error), "DescribeTunnel", "", "").await,
        }
        let outcome = self.ctx.close_tunnel(&self.desired.key, &tunnel.id).await;
        self.parted(tunnel, opened_at, outcome, "CloseTunnel", "Closed", "is closed").await;
    }

    async fn disown(&mut self, tunnel: &TunnelRef, opened_at: Timestamp) {
        let outcome = match self.owned(&tunnel.id).await {
            // The ARN that AWS told: the status may name another one.
            Ok(Owned::Yes(ours)) => self.ctx.aws.disown(&ours.arn).await,
            Ok(Owned::Learnt) => return,
            // After a crash, its tag is off already.
            Ok(Owned::No) => return self.leave(&tunnel.id).await,
            Err(error) => return self.parted(tunnel, opened_at, Err(error), "DescribeTunnel", "", "").await,
        };
        self.parted(tunnel, opened_at, outcome, "UntagResource", "Retained", "stays open, without an owner").await;
    }

    /// The Tunnel has parted from a tunnel, or has not.
    async fn parted(
        &mut self,
        tunnel: &TunnelRef,
        opened_at: Timestamp,
        outcome: Result<(), CallError>,
        operation: &str,
        reason: &str,
        what: &str,
    ) {
        let grace = SignedDuration::try_from(self.ctx.limits.recovery_grace).unwrap_or(SignedDuration::MAX);
        match outcome {
            // Not-found may be told of a tunnel that was opened a moment ago.
            Err(e) if e.kind == CallErrorKind::NotFound && Timestamp::now().duration_since(opened_at) > grace => {
                self.memory.closed.push(tunnel.id.clone());
            }
            Err(e) if e.kind == CallErrorKind::NotFound => {
                self.failed(operation, CallError { kind: CallErrorKind::Doubt, ..e });
            }
            Err(e) => self.failed(operation, e),
            Ok(()) => {
                tracing::info!(tunnel_id = %tunnel.id, "the tunnel {what}");
                self.memory.parted(&tunnel.id);
                let note = Note { warning: false, reason: reason.into(), note: format!("tunnel {} {what}", tunnel.id) };
                self.ctx.event(&self.view.tunnel, note).await;
            }
        }
    }

    /// Notes a failed call. A limit is the pacer's business: the Tunnel keeps its place in the queue.
    fn failed(&mut self, operation: &str, error: CallError) {
        tracing::warn!(operation, error = %error, kind = ?error.kind, "a call to AWS failed");
        let paced = operation != "UntagResource" && operation != "DescribeTunnel";
        if matches!(error.kind, CallErrorKind::LimitExceeded | CallErrorKind::Throttled) && paced {
            self.memory.failure = None;
            return;
        }
        let times = self.memory.failure.as_ref().map_or(0, |f| f.times);
        let reason = failure_reason(error.kind);
        let told = self.memory.failure.as_ref().is_some_and(|f| f.told && f.reason == reason);
        let (first, limit) = match reason {
            Reason::AwsUnavailable => (FIRST_RETRY, UNAVAILABLE_RETRY),
            _ => (FIRST_RETRY * 5, REFUSED_RETRY),
        };
        let pause = first.saturating_mul(1 << times.min(16)).min(limit).mul_f64(0.75 + 0.25 * fastrand::f64());
        let at = self.ctx.mono();
        let message = format!("{operation}: {error}");
        self.memory.failure = Some(Failure { reason, message, at, retry_at: at + pause, times: times + 1, told });
    }

    async fn record(&mut self, change: &Change) -> Result<(), Error> {
        let before = self.view.tunnel.status.clone().unwrap_or_default();
        let states = secrets::states(self.secrets.as_deref().unwrap_or_default(), self.desired, None);
        let wanted = states.get(..self.desired.secrets.len()).unwrap_or_default();
        let after = status::after(&before, change, self.desired, wanted, self.memory, self.now);
        if !self.patch("write its status", json!({}), Some(status::patch(&after))).await? {
            return Ok(());
        }
        if matches!(change, Change::Adopted { .. }) {
            self.ctx.metrics.adopted();
        }
        self.memory.recorded(change, &self.desired.record, self.desired.client_mode());
        if matches!(change, Change::Opened { .. } | Change::Rotated | Change::Arranged | Change::Ended { .. }) {
            self.ctx.poller.forget(&self.desired.key);
        }
        if matches!(change, Change::Ended { .. }) {
            self.ctx.open.probe_now();
        }
        if let Some(note) = status::event(change, &after) {
            self.ctx.event(&self.view.tunnel, note).await;
        }
        Ok(())
    }

    fn finalizers(&self, with: bool) -> Vec<String> {
        let others = self.view.tunnel.finalizers().iter().filter(|f| *f != FINALIZER).cloned();
        others.chain(with.then(|| FINALIZER.to_owned())).collect()
    }

    fn tunnels(&self) -> Api<Tunnel> {
        Api::namespaced(self.ctx.client.clone(), &self.desired.key.namespace)
    }

    /// A merge patch of the Tunnel, or of its status, conditioned by the UID and resourceVersion that
    /// was decided on. `false`: somebody else has written meanwhile, and it was read anew.
    async fn patch(&mut self, what: &'static str, mut metadata: Value, status: Option<Value>) -> Result<bool, Error> {
        metadata["uid"] = json!(self.desired.key.uid);
        metadata["resourceVersion"] = json!(self.view.tunnel.resource_version());
        let (at, api, name) = (self.ctx.mono(), self.tunnels(), &self.desired.key.name);
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let patched = match status {
            Some(status) => {
                let body = Patch::Merge(json!({"metadata": metadata, "status": status}));
                self.ctx.api(what, api.patch_status(name, &params, &body)).await
            }
            None => self.ctx.api(what, api.patch(name, &params, &Patch::Merge(json!({"metadata": metadata})))).await,
        };
        match patched {
            Ok(tunnel) => {
                self.see(tunnel, at);
                Ok(true)
            }
            Err(error) if error.is_conflict() || error.is_not_found() => {
                self.read().await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
