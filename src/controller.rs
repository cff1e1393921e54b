//! Watches Tunnels and reconciles each: the way through the code, as a table of contents.

pub mod abandoned;
pub mod act;
pub mod context;
pub mod decide;
pub mod decision;
pub mod memories;
pub mod memory;
pub mod observe;
pub mod ours;
pub mod owned;
pub mod scrape;
pub mod secrets;
pub mod status;
pub mod validate;
pub mod watch;

use crate::crd::Tunnel;
use crate::metrics::ReconcileError;
use crate::pacer::Key;
use crate::tunnels::Home;
use act::Act;
use context::{Context, Error, View};
use decision::{Change, Decision};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use observe::{Memory, Observed};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// More steps than any way through [`decide`] has: a loop is a bug, and is ended as an error.
const MAX_STEPS: usize = 64;
/// The longest pause after a reconcile that failed.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// One reconcile: five steps, again and again, each time with one effect, until there is nothing to do
/// for now. What is remembered of a Tunnel is taken out meanwhile: there is one reconcile at a time.
async fn reconcile(tunnel: Arc<Tunnel>, ctx: Arc<Context>) -> Result<Action, Error> {
    let key = validate::validate(&tunnel)?.key;
    let mut memory = ctx.memories.take(&key, ctx.mono());
    let outcome = steps(tunnel, &ctx, &mut memory).await;
    memory.trouble = outcome.as_ref().err().map(ToString::to_string);
    if outcome.is_err() {
        ctx.give_back(&key, None);
    }
    if let Some(memory) = ctx.memories.put_back(&key, memory, outcome.is_err()) {
        ctx.gone(&key, Some(memory));
    }
    outcome
}

async fn steps(tunnel: Arc<Tunnel>, ctx: &Context, memory: &mut Memory) -> Result<Action, Error> {
    note_vanished(ctx, &validate::validate(&tunnel)?.key, memory);
    let mut view = View { tunnel: newest(tunnel, memory), read_at: None, gone: false };
    let mut secrets: Option<secrets::Read> = None;
    let mut last = None;
    for _ in 0..MAX_STEPS {
        // 1. What the object says. Needs nobody.
        let desired = validate::validate(&view.tunnel)?;
        // Who does not lead begins nothing, but finishes what it has in hand.
        let term = ctx.term();
        match term {
            Some(since) => memory.led_since(since),
            // It calls nobody for it: what the last call failed with is no reason to wait.
            None if memory.in_hand(&desired) => memory.failure = None,
            None => return Ok(stand_by(ctx, &desired)),
        }
        // 2. What else there is. Reads the Secrets, unless they were read already.
        // A deletion needs none: no trouble with Secrets may hold it up.
        let names = match desired.deleted_at {
            Some(_) => Vec::new(),
            None => secrets::names(&desired, ctx.owned.names(&desired.key)),
        };
        if secrets.as_ref().is_none_or(|read| !read.iter().map(|(name, _)| name).eq(&names)) {
            secrets = Some(read_secrets(ctx, &desired.key.namespace, names).await?);
        }
        let now = ctx.now();
        note_vanished(ctx, &desired.key, memory);
        memory.note(&desired, now);
        let mut observed = observed(ctx, &desired, &view, secrets.as_deref().unwrap_or_default(), memory);
        // What was found before this process led may have been closed by another since.
        observed.search = observed.search.filter(|search| term.is_some_and(|since| search.started >= since));
        // 3. What to do. Needs nobody.
        let decision = decide::decide(&desired, &observed, &ctx.limits, now);
        tracing::debug!(?decision);
        let begins = matches!(
            decision,
            Decision::Claim(None) | Decision::Record(Change::Rotating { .. } | Change::Adopted { .. })
        );
        if begins && ctx.stopping.load(Ordering::Relaxed) {
            return Ok(Action::await_change());
        }
        let decision = match term {
            // It may have passed on while this was found out.
            _ if ctx.term() != term => continue,
            Some(_) => decision,
            None => match memory.without_the_lead(&desired, decision) {
                Some(decision) => decision,
                None => return Ok(stand_by(ctx, &desired)),
            },
        };
        last = Some(decision.clone());
        // 4. Do it: one effect. 5. Where it is a status write, status.rs says what is written.
        let mut act = Act { ctx, desired: &desired, view: &mut view, secrets: &mut secrets, memory, now };
        if let Some(wait) = act.act(decision).await? {
            let until = wait.until.map(|until| until.0.saturating_sub(ctx.mono().0));
            return Ok(until.map_or_else(Action::await_change, Action::requeue));
        }
    }
    Err(Error::Endless(MAX_STEPS, format!("{last:?}")))
}

/// Nothing is done here until this process leads: then all Tunnels are woken.
fn stand_by(ctx: &Context, desired: &validate::Desired) -> Action {
    ctx.give_back(&desired.key, None);
    Action::await_change()
}

/// Whatever was written may be gone since: wiped, or forgotten by an etcd that was restored from an older state.
fn note_vanished(ctx: &Context, key: &Key, memory: &mut Memory) {
    if ctx.memories.has_vanished(key) {
        memory.saw_creation = false;
        memory.written = None;
    }
}

/// The watch may lag behind what this process has written.
fn newest(watched: Arc<Tunnel>, memory: &mut Memory) -> Arc<Tunnel> {
    let version = |t: &Tunnel| t.resource_version().and_then(|v| v.parse::<u64>().ok());
    // The write that takes the last finalizer off is answered with the resourceVersion before it: without
    // this, the finalizer would be taken off once more.
    let released = |t: &Tunnel| t.meta().deletion_timestamp.is_some() && t.finalizers().is_empty();
    match memory.written.take() {
        Some(written) if version(&written) > version(&watched) || released(&written) => {
            memory.written = Some(written.clone());
            written
        }
        _ => watched,
    }
}

async fn read_secrets(ctx: &Context, namespace: &str, names: Vec<String>) -> Result<secrets::Read, Error> {
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
    let mut read = Vec::with_capacity(names.len());
    for name in names {
        let secret = ctx.api("read the Secret", api.get_opt(&name)).await?;
        read.push((name, secret));
    }
    Ok(read)
}

fn observed<'a>(
    ctx: &Context,
    desired: &validate::Desired,
    view: &View,
    read: &[(String, Option<Secret>)],
    memory: &'a Memory,
) -> Observed<'a> {
    let answer = memory.answer.as_ref().map(|a| (a, ctx.aws.region()));
    let mut secrets = secrets::states(read, desired, answer);
    let former = secrets.split_off(desired.secrets.len().min(secrets.len()));
    Observed {
        read_at: view.read_at,
        gone: view.gone,
        secrets,
        former,
        memory,
        search: ctx.poller.found(&desired.key),
        home: desired.record.tunnel.as_ref().map_or(Home::Here, |t| ctx.aws.home(&t.tunnel.arn)),
        heard: desired.record.tunnel.as_ref().and_then(|t| ctx.poller.heard(&t.tunnel.id)),
        reads_fail: ctx.poller.failing(&desired.key),
        open: ctx.open.turn(&desired.key),
        close: ctx.close.turn(&desired.key),
        rotate: ctx.rotate.turn(&desired.key),
        gate: ctx.open.gate(),
    }
}

fn error_policy(tunnel: Arc<Tunnel>, error: &Error, ctx: Arc<Context>) -> Action {
    let errors = validate::validate(&tunnel).map_or(1, |desired| ctx.memories.errors(&desired.key));
    let pause = Duration::from_millis(100).saturating_mul(1 << errors.min(16)).min(MAX_BACKOFF);
    tracing::warn!(
        namespace = tunnel.namespace().unwrap_or_default(),
        name = tunnel.name_any(),
        %error,
        "reconcile failed; trying again in {pause:.1?}"
    );
    Action::requeue(pause.mul_f64(0.5 + 0.5 * fastrand::f64()))
}

/// A panic is the end of one reconcile, not of the operator: what it knew of its Tunnel is forgotten, as in a
/// crash, and found again as after one.
async fn contained(tunnel: Arc<Tunnel>, ctx: Arc<Context>) -> Result<Action, Error> {
    let outcome = caught(reconcile(tunnel.clone(), ctx.clone())).await;
    if let (Err(Error::Panic), Ok(desired)) = (&outcome, validate::validate(&tunnel)) {
        ctx.give_back(&desired.key, None);
        ctx.memories.put_back(&desired.key, Memory::new(false, ctx.mono()), true);
    }
    outcome
}

/// The panic's own words are dropped: nobody knows what is in them. The hook has logged where it was.
async fn caught<T>(reconcile: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    AssertUnwindSafe(reconcile).catch_unwind().await.unwrap_or(Err(Error::Panic))
}

async fn traced(tunnel: Arc<Tunnel>, ctx: Arc<Context>) -> Result<Action, Error> {
    use tracing::Instrument;
    let span =
        tracing::info_span!("reconcile", namespace = tunnel.namespace().unwrap_or_default(), name = tunnel.name_any());
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

    fn tunnel(version: &str, deleted: bool, finalizers: &[&str]) -> Arc<Tunnel> {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let metadata = json!({"resourceVersion": version, "deletionTimestamp": deleted, "finalizers": finalizers});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": {}})).expect("a Tunnel"))
    }

    fn seen(watched: &Arc<Tunnel>, written: &Arc<Tunnel>) -> Arc<Tunnel> {
        let mut memory = Memory { written: Some(written.clone()), ..Memory::default() };
        newest(watched.clone(), &mut memory)
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
        let (old, new) = (tunnel("9", false, &["f"]), tunnel("10", false, &["f"]));
        assert_eq!(seen(&old, &new).resource_version(), new.resource_version());
        assert_eq!(seen(&new, &old).resource_version(), new.resource_version());
        // As the API server answers the write that takes the last finalizer off.
        let (deleted, released) = (tunnel("11", true, &["f"]), tunnel("11", true, &[]));
        assert!(seen(&deleted, &released).finalizers().is_empty(), "it is not taken off again");
    }
}
