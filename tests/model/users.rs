//! What users and others do to the Tunnel, its Secrets and its tunnel.

use crate::next::{Out, spend};
use crate::world::*;
use opentunnel_api::ClientMode;

/// Users, and a third party.
pub fn users(world: &World, specs: Specs, out: &mut Out) {
    if let Some(object) = world.object.as_ref().filter(|_| world.left.edits > 0) {
        let mut w = world.clone();
        w.left.edits -= 1;
        edit(&w, object, specs, out);
    }
    if let Some(object) = world.object.as_ref().filter(|_| world.left.rotations > 0) {
        let mut w = world.clone();
        w.left.rotations -= 1;
        let open = world.tunnels.iter().find(|t| Some(t.id) == object.tunnel && t.open && !object.closed);
        let now = open.map(|t| Data { tunnel: t.id, source: t.source, destination: t.destination });
        out.push(
            &w,
            || "the user asks for new tokens".into(),
            |w| {
                w.asked = now;
                change(w, |o| o.rotate += 1);
            },
        );
    }
    if world.left.policies > 0 {
        let mut w = world.clone();
        w.left.policies -= 1;
        let (policy, what) = match world.policy {
            Policy::On => (Policy::Off, "ends"),
            _ => (Policy::On, "begins"),
        };
        out.push(&w, || format!("a policy that changes Secrets {what}"), |w| w.policy = policy);
    }
    leftovers(world, specs, out);
    let mut w = world.clone();
    if spend(&mut w, |left| &mut left.user) {
        match &world.object {
            Some(object) => {
                if object.finalizer || object.claim.is_some() {
                    out.push(
                        &w,
                        || "the user replaces the Tunnel: claim and finalizer are wiped".into(),
                        |w| {
                            w.may_double |= object.tunnel.is_none() || object.closed;
                            change(w, |o| (o.claim, o.finalizer) = (None, false));
                        },
                    );
                }
                out.push(&w, || "the user deletes the Tunnel".into(), |w| change(w, |o| o.deleted = true));
                if world.left.edits == 0 {
                    edit(&w, object, specs, out);
                }
            }
            None => {
                out.push(&w, || "the user creates the Tunnel again".into(), |w| w.create(None));
                out.push(
                    &w,
                    || "the user restores the Tunnel from a backup".into(),
                    |w| w.create(Some((w.last.uid, 1))),
                );
            }
        }
    }
    let mut w = world.clone();
    if spend(&mut w, |left| &mut left.secrets) {
        secrets(&w, specs, out);
    }
    let mut w = world.clone();
    if world.object.is_some() && spend(&mut w, |left| &mut left.forge) {
        out.push(
            &w,
            || "somebody writes another's tunnel into the status".into(),
            |w| {
                w.forged = true;
                w.last.tunnel += 1;
                let (id, source, destination) = (w.last.tunnel, w.next_token(), w.next_token());
                let (uid, attempt, age) = (0, 0, OLD);
                let (open, untagged, late, request, tag) = (true, false, w.lifetime_over, 0, 0);
                let opened = Tunnel { id, uid, attempt, open, untagged, late, request, tag, age, source, destination };
                w.tunnels.push(opened);
                change(w, |o| {
                    (o.tunnel, o.opened_late, o.closed) = (Some(id), late, false);
                    (o.end, o.attempt, o.opened_with, o.pause) = (None, None, None, false);
                });
            },
        );
    }
    let mut w = world.clone();
    if !world.lifetime_over && world.tunnels.iter().any(|t| t.open) && spend(&mut w, |left| &mut left.clock) {
        out.push(
            &w,
            || "AWS cannot be asked, and by the local clocks alone the lifetime is over".into(),
            |w| (w.lifetime_over, w.away, w.may_end) = (true, true, true),
        );
    }
    for n in 0..world.tunnels.len() {
        let mut w = world.clone();
        if world.tunnels[n].open && spend(&mut w, |left| &mut left.drift) {
            for tag in [0, OTHERS_TAG].into_iter().filter(|tag| *tag != world.tunnels[n].tag) {
                out.push(&w, || format!("somebody makes the tag of a tunnel {tag}"), |w| w.tunnels[n].tag = tag);
            }
        }
    }
    let mut w = world.clone();
    if spend(&mut w, |left| &mut left.third_party) {
        w.may_end = true;
        for n in (0..world.tunnels.len()).filter(|n| world.tunnels[*n].open && world.tunnels[*n].uid != 0) {
            out.push(&w, || "a third party closes a tunnel".into(), |w| w.tunnels[n].open = false);
        }
        if !world.lifetime_over && world.tunnels.iter().any(|t| t.open) {
            out.push(
                &w,
                || "the lifetime is over".into(),
                |w| {
                    w.lifetime_over = true;
                    w.tunnels.iter_mut().for_each(|t| t.open = false);
                },
            );
        }
    }
}

fn edit(world: &World, object: &Object, specs: Specs, out: &mut Out) {
    let Some(next) = specs.get(usize::from(object.spec) + 1) else { return };
    out.push(world, || format!("the user edits the spec: {next:?}"), |w| change(w, |o| o.spec += 1));
}

fn change(world: &mut World, change: impl FnOnce(&mut Object)) {
    let version = world.next_version();
    let Some(object) = &mut world.object else { return };
    let before = object.clone();
    change(object);
    object.version = version;
    if (before.finalizer && !object.finalizer) || (before.claim.is_some() && object.claim.is_none()) {
        world.operators.iter_mut().for_each(|o| o.wiped = true);
    }
    if object.deleted && !object.finalizer {
        world.object = None;
    }
}

/// Token Secrets that nobody controls.
fn leftovers(world: &World, specs: Specs, out: &mut Out) {
    let mut w = world.clone();
    if !spend(&mut w, |left| &mut left.leftovers) {
        return;
    }
    for (name, mode) in specs[0].secrets.iter().filter(|(name, _)| world.secrets[usize::from(*name)].is_none()) {
        let data = Data { tunnel: 1, source: GARBAGE, destination: GARBAGE }.of(*mode);
        out.push(
            &w,
            || format!("a backup brings back Secret {name}"),
            |w| {
                let (version, owner, leftover, generation) = (w.next_version(), None, true, 7);
                w.secrets[usize::from(*name)] =
                    Some(Secret { version, owner, leftover, generation, data, sound: true });
            },
        );
    }
    if let Some(object) = &world.object {
        let uid = object.uid;
        out.push(
            &w,
            || "the user deletes the Tunnel, and leaves its Secrets".into(),
            |w| {
                for name in 0..3 {
                    let version = w.next_version();
                    let own = w.secrets[name].iter_mut().filter(|s| s.owner == Some(uid));
                    own.for_each(|s| (s.owner, s.leftover, s.version) = (None, true, version));
                }
                change(w, |o| o.deleted = true);
            },
        );
    }
}

fn secrets(world: &World, specs: Specs, out: &mut Out) {
    let uid = world.object.as_ref().map(|o| o.uid);
    let used = specs.iter().flat_map(|spec| spec.secrets).map(|(name, _)| usize::from(*name)).max().unwrap_or_default();
    for name in 0..=used {
        let edit = |out: &mut Out, what: &str, f: &dyn Fn(Option<Secret>, u8) -> Option<Secret>| {
            out.push(
                world,
                || format!("somebody {what} Secret {name}"),
                |w| {
                    let version = w.next_version();
                    w.secrets[name] = f(w.secrets[name].take(), version).map(|s| Secret { version, ..s });
                },
            );
        };
        let garbage = Data { tunnel: 1, source: GARBAGE, destination: GARBAGE };
        match &world.secrets[name] {
            None => edit(out, "puts a foreign", &|_, version| {
                let (owner, leftover, data) = (None, false, garbage.of(ClientMode::Source));
                Some(Secret { version, owner, leftover, generation: 0, data, sound: true })
            }),
            Some(secret) => {
                edit(out, "deletes", &|_, _| None);
                if secret.owner.is_some() && secret.owner == uid {
                    edit(out, "edits", &|s, _| s.map(|s| Secret { data: Data { source: GARBAGE, ..s.data }, ..s }));
                    edit(out, "makes immutable", &|s, _| s.map(|s| Secret { sound: false, ..s }));
                }
            }
        }
    }
}
