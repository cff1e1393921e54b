//! The loop: what a Tunnel shows is remembered, what there is is looked at, one step is decided and carried out, and what
//! it came to is remembered; again and again, until there is nothing to do for now.

use crate::act::act;
use crate::clock::Mono;
use crate::context::Context;
use crate::decide::decide;
use crate::error::Error;
use crate::event;
use crate::facts::{Standing, View};
use crate::kubernetes::reference;
use crate::memory::store::Kept;
use crate::metrics::ReconcileError;
use crate::observe::{Secrets, observe};
use crate::read::{Key, Object, read};
use crate::step::{Outcome, Step, Wait};
use crate::traces::{self, Opening};
use futures::FutureExt;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use opentunnel_api::Tunnel;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// More steps than any way through [`decide`] has: a loop is a bug, and is ended as an error.
const MAX_STEPS: usize = 64;
/// The longest pause after a reconcile that failed.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// One reconcile. What is kept of a Tunnel is taken out meanwhile: there is one reconcile of it at a time.
async fn reconcile(tunnel: Arc<Tunnel>, ctx: Arc<Context>) -> Result<Action, Error> {
    let object = read(&tunnel)?;
    let key = object.key.clone();
    let mut kept = ctx.memories.take(&key, ctx.clock.mono());
    let outcome = steps(object, &ctx, &mut kept).await;
    kept.trouble = outcome.as_ref().err().map(ToString::to_string);
    if outcome.is_err() {
        kept.opening.iter_mut().for_each(|opening| opening.backs_off());
        ctx.account.pacers.give_back(&key, None);
    }
    if let Some(memory) = ctx.memories.put_back(&key, kept, outcome.is_err()) {
        ctx.gone(&key, Some(memory));
    }
    outcome
}

async fn steps(watched: Object, ctx: &Context, kept: &mut Kept) -> Result<Action, Error> {
    let key = watched.key.clone();
    let mut wiped = ctx.memories.take_wiped(&key);
    forget_written(kept, wiped);
    let mut sight = Sight::new(watched, kept);
    let mut last = None;
    for _ in 0..MAX_STEPS {
        let standing = ctx.standing();
        sight.view.wiped = wiped;
        if ctx.memories.take_edited(&key) {
            sight.view.read_at = None;
        }
        kept.memory.see(&sight.view, standing, ctx.clock.now());
        traces::follow(&mut kept.opening, &kept.memory, &sight.view, standing, ctx.clock);
        // A replica that does not lead reads no Secrets for what it will not do anyhow.
        if standing == Standing::Finishes && !kept.memory.is_in_hand(&sight.view.object) {
            act(ctx, &Step::Wait(Wait::default()), &sight.view, None).await;
            return Ok(Action::await_change());
        }
        let trouble = kept.trouble.as_deref();
        let facts = Opening::around(
            kept.opening.as_deref(),
            pin!(observe(ctx, &sight.view, &kept.memory, trouble, sight.needs_secrets, &mut sight.secrets)),
        )
        .await?;
        // The lead may have passed on, or something been wiped, while this was found out.
        wiped = ctx.memories.take_wiped(&key);
        forget_written(kept, wiped);
        if wiped || ctx.standing() != standing {
            continue;
        }
        let step = decide(&sight.view, &facts, &kept.memory, standing, &ctx.limits, ctx.clock.now());
        // That the Secrets are as they were recorded is enough for doing nothing, and for nothing else.
        if sight.secrets.is_none() && !matches!(step, Step::Wait(_)) {
            sight.needs_secrets = true;
            continue;
        }
        tracing::debug!(?step);
        let began = ctx.clock.mono();
        if let Some(opening) = &mut kept.opening {
            match &step {
                Step::Wait(wait) => opening.waits(wait, &kept.memory, facts.gate.as_ref()),
                _ => opening.goes_on(),
            }
        }
        let opening = kept.opening.as_deref();
        let outcome = Opening::around(opening, pin!(act(ctx, &step, &sight.view, sight.secrets.as_ref()))).await;
        if let Outcome::Written(object) = &outcome {
            traces::written(&mut kept.opening, &kept.memory, object);
        }
        kept.memory.learn(&step, &outcome, &sight.view.object, &ctx.limits, ctx.clock.now());
        if let Some(notice) = event::after(&step, &outcome, &sight.view.object) {
            ctx.kubernetes.publish(reference(&key.namespace, Some(&key.name), &key.uid), notice).await;
        }
        if let Step::Wait(wait) = &step {
            let until = wait.until.map(|until| until.0.saturating_sub(ctx.clock.mono().0));
            return Ok(until.map_or_else(Action::await_change, Action::requeue));
        }
        sight.take(&step, outcome, began, kept)?;
        last = Some(step);
    }
    if wiped {
        ctx.memories.wipe(&key);
    }
    Err(Error::Endless(MAX_STEPS, format!("{last:?}")))
}

/// What this reconcile has read.
struct Sight {
    view: View,
    /// `None`: they are to be read (again).
    secrets: Option<Secrets>,
    /// They are read, whatever the watch shows of them.
    needs_secrets: bool,
}

impl Sight {
    fn new(watched: Object, kept: &mut Kept) -> Self {
        let view = View { object: newest(watched, kept), read_at: None, gone: false, wiped: false };
        Self { view, secrets: None, needs_secrets: false }
    }

    /// Takes over what a step, which began at `began`, has read and written.
    fn take(&mut self, step: &Step, outcome: Outcome, began: Mono, kept: &mut Kept) -> Result<(), Error> {
        let outdated = outcome.outdates();
        match outcome {
            Outcome::Failed(error) => return Err(error),
            Outcome::Written(object) | Outcome::Read(Some(object)) | Outcome::Conflict(Some(object)) => {
                kept.written = Some(object.clone());
                self.view = View { object: *object, read_at: Some(began), gone: false, wiped: false };
            }
            Outcome::Read(None) | Outcome::Conflict(None) => self.view.gone = true,
            Outcome::SecretWritten(Some(written)) => {
                let read = self.secrets.iter_mut().flatten();
                if let Some((_, secret)) = read.into_iter().find(|(name, _)| step.secret() == Some(name)) {
                    *secret = Some(*written);
                }
            }
            _ => {}
        }
        if outdated.secrets {
            self.secrets = None;
        }
        if outdated.tunnel {
            self.view.read_at = None;
        }
        Ok(())
    }
}

/// Whatever was written may be gone since: wiped, or forgotten by an etcd that was restored from an older state.
fn forget_written(kept: &mut Kept, wiped: bool) {
    if wiped {
        kept.written = None;
    }
}

/// The watch may lag behind what this process has written.
fn newest(watched: Object, kept: &mut Kept) -> Object {
    let version = |object: &Object| object.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
    match kept.written.take() {
        // The write that takes the last finalizer off is answered with the resourceVersion before it: without
        // this, the finalizer would be taken off once more.
        Some(written) if version(&written) > version(&watched) || written.is_released() => {
            kept.written = Some(written.clone());
            *written
        }
        _ => watched,
    }
}

/// What is done about a reconcile that failed.
pub fn error_policy(tunnel: Arc<Tunnel>, error: &Error, ctx: Arc<Context>) -> Action {
    let errors = Key::of(&tunnel.metadata).map_or(1, |key| ctx.memories.errors(&key));
    let pause = Duration::from_millis(100).saturating_mul(1 << errors.min(16)).min(MAX_BACKOFF);
    tracing::warn!(
        namespace = tunnel.namespace().unwrap_or_default(),
        tunnel = tunnel.name_any(),
        %error,
        "reconcile failed; trying again in {pause:.1?}"
    );
    Action::requeue(pause.mul_f64(0.5 + 0.5 * fastrand::f64()))
}

/// A panic is the end of one reconcile, not of the operator: what it knew of its Tunnel is forgotten, as in a
/// crash, and found again as after one.
async fn contained(tunnel: Arc<Tunnel>, ctx: Arc<Context>) -> Result<Action, Error> {
    // In a box, which is made when it begins: at a start, a list or a shut gate all Tunnels are to be reconciled at once.
    let outcome = caught(Box::pin(reconcile(tunnel.clone(), ctx.clone()))).await;
    if let (Err(Error::Panic), Ok(key)) = (&outcome, Key::of(&tunnel.metadata)) {
        ctx.account.pacers.give_back(&key, None);
        ctx.memories.put_back(&key, Box::new(Kept::new(false, ctx.clock.mono())), true);
    }
    outcome
}

/// The panic's own words are dropped: nobody knows what is in them. The hook has logged where it was.
async fn caught<T>(reconcile: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    AssertUnwindSafe(reconcile).catch_unwind().await.unwrap_or(Err(Error::Panic))
}

/// One reconcile, in a span of its own, counted, and with its panics contained.
pub async fn traced(tunnel: Arc<Tunnel>, ctx: Arc<Context>) -> Result<Action, Error> {
    use tracing::Instrument;
    let span = tracing::info_span!(
        "reconcile",
        namespace = tunnel.namespace().unwrap_or_default(),
        tunnel = tunnel.name_any()
    );
    let begun = Instant::now();
    let outcome = contained(tunnel, ctx.clone()).instrument(span).await;
    ctx.metrics.reconciled(begun.elapsed(), outcome.as_ref().err().map(kind));
    outcome
}

/// What kind of failure the metrics count.
fn kind(error: &Error) -> ReconcileError {
    match error {
        Error::Api { source: kube::Error::Api(status), .. } if status.code >= 500 => ReconcileError::Api5xx,
        Error::Api { source: kube::Error::Api(_), .. } => ReconcileError::Api4xx,
        Error::Api { .. } => ReconcileError::ApiNoAnswer,
        Error::Timeout(_) => ReconcileError::ApiTimeout,
        Error::Incomplete(_) | Error::Unreadable(_) => ReconcileError::Incomplete,
        Error::Endless(..) | Error::Panic => ReconcileError::Bug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(version: &str, deleted: bool, finalizers: &[&str]) -> Object {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let metadata = json!({
            "namespace": "edge", "name": "sensor", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
            "resourceVersion": version, "deletionTimestamp": deleted, "finalizers": finalizers,
        });
        let tunnel: Tunnel = serde_json::from_value(json!({"metadata": metadata, "spec": {}})).expect("a Tunnel");
        read(&tunnel).expect("complete")
    }

    fn seen(watched: &Object, written: &Object) -> Object {
        let mut kept = Kept { written: Some(Box::new(written.clone())), ..Kept::new(false, Mono::default()) };
        newest(watched.clone(), &mut kept)
    }

    #[tokio::test]
    async fn a_panic_in_a_reconcile_is_an_error_of_that_reconcile_without_its_words() {
        let panics = async {
            tokio::task::yield_now().await;
            if true {
                panic!("the token is {}", "s3cret");
            }
            Ok(())
        };
        let error = caught(panics).await.unwrap_err();
        assert!(matches!(kind(&error), ReconcileError::Bug));
        assert!(!format!("{error} {error:?}").contains("s3cret"));
        assert!(caught(async { Ok(7) }).await.is_ok_and(|seven| seven == 7));
    }

    #[test]
    fn what_was_written_is_not_forgotten_while_the_watch_lags_behind() {
        let (old, new) = (object("9", false, &["f"]), object("10", false, &["f"]));
        assert_eq!(seen(&old, &new).resource_version, new.resource_version);
        assert_eq!(seen(&new, &old).resource_version, new.resource_version);
        // As the API server answers the write that takes the last finalizer off.
        let (deleted, released) = (object("11", true, &["f"]), object("11", true, &[]));
        assert!(seen(&deleted, &released).is_released(), "it is not taken off again");
    }
}
