//! Looks at everything that a decision depends on beside what is remembered. Only the Secrets are read; the rest is what
//! the poller and the pacers have at hand.

use crate::context::Context;
use crate::error::Error;
use crate::facts::{Facts, View};
use crate::memory::Memory;
use crate::secrets::{self, SecretFacts};
use crate::tunnels::{Attempt, InAccount};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

/// The Secrets that concern a Tunnel, by name, as they were read or written last.
pub type Secrets = Vec<(String, Option<Secret>)>;

/// Looks. `secrets`: those that this reconcile has read. They are read again when other names concern the Tunnel, and
/// not at all (they stay `None`) where the watch shows that nobody has touched them since they were recorded, unless they
/// are `needed`.
///
/// # Errors
/// A Secret cannot be read.
pub async fn observe(
    ctx: &Context,
    view: &View,
    memory: &Memory,
    trouble: Option<&str>,
    needed: bool,
    secrets: &mut Option<Secrets>,
) -> Result<Facts, Error> {
    let (object, account) = (&view.object, &ctx.account);
    let key = &object.key;
    let names = secrets::names(object, ctx.owned.names(key));
    let untouched = || secrets::as_recorded(object, &names, |recorded| ctx.owned.is_as_recorded(key, recorded));
    let recorded_secrets = (!needed && secrets.is_none() && memory.answer.is_none()).then(untouched).flatten();
    let secrets = match (recorded_secrets, secrets) {
        (Some(recorded), _) => recorded,
        (None, Some(read)) if read.iter().map(|(name, _)| name).eq(&names) => all_facts(ctx, view, memory, read),
        (None, secrets) => {
            all_facts(ctx, view, memory, secrets.insert(read_secrets(ctx, &key.namespace, names).await?))
        }
    };
    let recorded = object.record.tunnel.as_ref();
    let search = account.poller.found(key);
    let found = search.iter().flat_map(|search| &search.found).map(|found| &found.tunnel);
    let known = recorded.map(|t| &t.reference).into_iter().chain(&memory.owned).chain(found);
    let described = known.filter_map(|t| Some((t.id.clone(), account.poller.described(&t.id)?))).collect();
    Ok(Facts {
        fresh_attempt: Attempt::random(),
        secrets,
        search,
        in_account: recorded.map_or(InAccount::Yes, |t| account.aws.has(&t.reference.arn)),
        described,
        reads_fail: account.poller.failing(key),
        turns: account.pacers.turns(key),
        gate: account.pacers.lane(crate::step::Lane::Open).gate(),
        trouble: trouble.map(str::to_owned),
        tags: object.spec.tags(&account.default_tags),
        rival: ctx.things.rival(object),
        takes_secrets: ctx.takes_secrets.in_namespace(&key.namespace, ctx.clock.mono()),
    })
}

async fn read_secrets(ctx: &Context, namespace: &str, names: Vec<String>) -> Result<Secrets, Error> {
    let api: Api<Secret> = Api::namespaced(ctx.kubernetes.client.clone(), namespace);
    let mut read = Vec::with_capacity(names.len());
    for name in names {
        let secret = ctx.kubernetes.request("read the Secret", || api.get_opt(&name)).await?;
        read.push((name, secret));
    }
    Ok(read)
}

fn all_facts(ctx: &Context, view: &View, memory: &Memory, read: &Secrets) -> Vec<SecretFacts> {
    read.iter().map(|(name, secret)| facts(ctx, view, memory, name, secret.as_ref())).collect()
}

fn facts(ctx: &Context, view: &View, memory: &Memory, name: &str, secret: Option<&Secret>) -> SecretFacts {
    let wanted = view.object.spec.secrets.iter().find(|s| s.name == name);
    let sha256_of_answer = memory.answer.as_ref().zip(wanted).map(|(answer, wanted)| {
        let data = secrets::data(wanted.mode, &answer.tokens, &answer.tunnel.id, ctx.account.aws.region());
        secrets::sha256(&data)
    });
    let found = secret.map(|s| secrets::found(s, &view.object.key, wanted));
    let generation = view.object.record.token_generation;
    let whole = |f: &&secrets::FoundSecret| f.sound && f.labelled && !f.terminating && f.generation == generation;
    if let Some(found) = found.as_ref().filter(whole) {
        let name = (view.object.key.namespace.clone(), name.to_owned());
        ctx.owned.have_read(&name, found.version.as_deref(), &found.sha256);
    }
    SecretFacts { name: name.to_owned(), found, sha256_of_answer }
}
