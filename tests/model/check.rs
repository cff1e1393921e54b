//! What must hold: at every moment, and when nothing goes wrong any more.

use crate::moves::TELLS;
use crate::next::calm;
use crate::rules::Rules;
use crate::search::Fingerprints;
use crate::world::*;
use opentunnel_api::{ClientMode, Reason, ReopenPolicy};

/// More steps than any way to rest has.
const MAX_STEPS: usize = 400;

/// Lets a world come to rest without faults, and says what is wrong then, and how it came to that. `well`: worlds
/// that are known to come to a good end; those on the way are added.
pub fn end(world: &World, rules: &Rules, specs: Specs, well: &mut Fingerprints) -> Result<(), (String, Vec<String>)> {
    let Err(_) = try_end(world, rules, specs, well) else { return Ok(()) };
    TELLS.set(true);
    let told = try_end(world, rules, specs, &mut Fingerprints::default());
    TELLS.set(false);
    told
}

fn try_end(world: &World, rules: &Rules, specs: Specs, well: &mut Fingerprints) -> Result<(), (String, Vec<String>)> {
    let mut world = world.clone();
    let (mut way, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..MAX_STEPS {
        let print = crate::search::fingerprint(&world);
        if well.contains(&print) {
            well.extend(way);
            return Ok(());
        }
        // It is asked again and again whose the tunnel is that somebody has written in; nothing is written.
        if world.forged && way.contains(&print) {
            return at_rest(&world, rules, specs).map_or(Ok(()), |wrong| Err((format!("{wrong}: {world:#?}"), labels)));
        }
        way.push(print);
        let Some(next) = calm(&world, rules, specs) else {
            return match at_rest(&world, rules, specs) {
                None => {
                    well.extend(way);
                    Ok(())
                }
                Some(wrong) => Err((format!("{wrong}: {world:#?}"), labels)),
            };
        };
        labels.push(next.label);
        if let Some(wrong) = next.wrong {
            return Err((wrong.into(), labels));
        }
        world = next.world;
    }
    labels.truncate(60);
    Err(("it never comes to rest".into(), labels))
}

/// Nothing happens any more: is it as it should be?
fn at_rest(world: &World, rules: &Rules, specs: Specs) -> Option<&'static str> {
    let open: Vec<&Tunnel> = world.tunnels.iter().filter(|t| t.open && !t.untagged && t.uid != 0).collect();
    let Some(object) = &world.object else {
        let owned = world.secrets.iter().flatten().any(|s| s.owner.is_some());
        return match open.as_slice() {
            [] if owned => Some("a Secret is left of a Tunnel that is gone"),
            [] => None,
            _ => Some("a tunnel is left that no Tunnel owns"),
        };
    };
    if object.deleted {
        return Some("a deletion hangs");
    }
    // What its Secrets hold is for the tunnel that it had. That nobody else's is touched is seen elsewhere.
    if world.forged {
        return None;
    }
    let spec = &specs[usize::from(object.spec)];
    let wanted = spec.secrets;
    let secret = |name: u8| world.secrets[usize::from(name)].as_ref();
    let conflict = wanted.iter().any(|(name, _)| secret(*name).is_some_and(|s| s.owner.is_none() && !s.leftover));
    let own = open.iter().find(|t| Some(t.id) == object.tunnel);
    let former = (0..3).filter(|n| !wanted.iter().any(|(name, _)| name == n));
    let owned = |name: u8| secret(name).is_some_and(|s| s.owner == Some(object.uid));
    if object.observed != Some(object.spec) {
        return Some("it has not said what becomes of the present spec");
    }
    if spec.suspend {
        return match (open.as_slice(), object.reported) {
            ([_, ..], _) => Some("it is suspended, and a tunnel stays open"),
            (_, Some(Reason::Suspended)) if (0..3).any(owned) => Some("it is suspended, and dead tokens stay"),
            (_, Some(Reason::Suspended)) => None,
            _ => Some("it is not suspended"),
        };
    }
    let reopens = match object.reported {
        Some(Reason::Expired) => rules.reopen != ReopenPolicy::Never,
        _ => rules.reopen == ReopenPolicy::Always,
    };
    match (open.as_slice(), object.reported) {
        ([_, _, ..], _) => Some("two tunnels stay open"),
        ([t], _) if Some(t.id) != object.tunnel => Some("a tunnel stays open that its Tunnel does not name"),
        ([], Some(Reason::Expired | Reason::Closed)) if !world.may_end => Some("it has ended, though nobody ended it"),
        ([], Some(Reason::Expired | Reason::Closed)) if (0..3).any(owned) => Some("it has ended, and dead tokens stay"),
        ([], Some(Reason::Expired | Reason::Closed)) if reopens => Some("it has ended, though another is wanted"),
        ([], Some(Reason::Expired | Reason::Closed)) => None,
        (_, Some(Reason::SecretConflict)) if conflict => None,
        ([], _) => Some("it has no tunnel"),
        (_, Some(Reason::SecretModified)) if world.policy == Policy::On => None,
        (_, reason) if reason != Some(Reason::Open) => Some("it is not Ready"),
        _ if conflict => Some("it is Ready though a Secret is somebody else's"),
        _ if former.into_iter().any(owned) => Some("a Secret stays that the spec does not name"),
        _ if !object.finalizer => Some("it has no finalizer"),
        _ if rules.recreate && own.is_some_and(|t| t.request != spec.request) => {
            Some("its tunnel is not what the spec wants")
        }
        _ if own.is_some_and(|t| t.tag != spec.tag && (t.tag != OTHERS_TAG || spec.tag != 0)) => {
            Some("its tunnel has not the tags that the spec wants")
        }
        _ if object.rotate != object.handled => Some("new tokens were asked for, and not made"),
        _ if own.zip(world.asked).is_some_and(|(t, asked)| has_old_tokens(t, asked, rules.rotates)) => {
            Some("new tokens were asked for, and old ones are live")
        }
        _ => {
            let live = |(name, mode): &(u8, _)| {
                let data = own.map(|t| Data { tunnel: t.id, source: t.source, destination: t.destination }.of(*mode));
                secret(*name).is_some_and(|s| Some(s.data) == data && is_intact(object, *name, s))
            };
            (!wanted.iter().all(live)).then_some("it is Ready, and its Secrets hold dead tokens")
        }
    }
}

/// Whether a tunnel has tokens that were to be made anew.
fn has_old_tokens(t: &Tunnel, asked: Data, mode: ClientMode) -> bool {
    let same = (mode.has_source() && t.source == asked.source)
        || (mode.has_destination() && t.destination == asked.destination);
    t.id == asked.tunnel && same
}

/// Whether a Secret is as it was recorded.
fn is_intact(object: &Object, name: u8, secret: &Secret) -> bool {
    secret.owner == Some(object.uid)
        && secret.sound
        && object.kept.iter().flatten().any(|(kept, data)| *kept == name && *data == secret.data)
}
