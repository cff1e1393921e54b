//! Whose an AWS tunnel is: the one rule, by the owner tag and by what Tunnels record. Pure.

use crate::read::Key;
use crate::tunnels::{Attempt, Owner, TunnelId};

/// A Tunnel, as far as it matters to the question.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimant {
    /// Namespace, name and UID.
    pub key: Key,
    /// It wants no tunnel any more: its way down closes what it has.
    pub down: bool,
    /// The attempt that claims to open for it.
    pub claim: Option<Attempt>,
    /// The tunnel that its status names.
    pub tunnel: Option<Named>,
    /// That has ended, and another is wanted.
    pub reopens: bool,
}

/// The tunnel that a status names.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Which.
    pub id: TunnelId,
    /// The attempt that opened it. `None`: an operator that recorded none.
    pub attempt: Option<Attempt>,
}

/// What a tunnel is to a Tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Its status names the tunnel.
    Named,
    /// It was opened for this Tunnel, which names no other that is open: the Tunnel adopts it (or has just opened it).
    Adoptable,
    /// It was opened for this Tunnel, which names another.
    Surplus,
    /// It was not opened for this Tunnel.
    Foreign,
}

/// What a tunnel with this owner tag is to a Tunnel of `cluster`.
pub fn whose(id: &TunnelId, owner: &Owner, cluster: &str, tunnel: &Claimant) -> Whose {
    match &tunnel.tunnel {
        Some(named) if named.id == *id => Whose::Named,
        _ if !is_tagged_for(owner, cluster, &tunnel.key) => Whose::Foreign,
        None => Whose::Adoptable,
        Some(named) if tunnel.reopens && named.attempt.as_ref() != Some(&owner.attempt) => Whose::Adoptable,
        Some(_) => Whose::Surplus,
    }
}

/// Whether an owner tag says that a tunnel was opened for this Tunnel. (The name is not in the tag: a UID never comes
/// back.)
pub fn is_tagged_for(owner: &Owner, cluster: &str, key: &Key) -> bool {
    owner.cluster == cluster && owner.namespace == key.namespace && owner.uid == key.uid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str, attempt: &str) -> Owner {
        Owner { cluster: "c".into(), namespace: "edge".into(), uid: uid.into(), attempt: Attempt(attempt.into()) }
    }

    /// The tunnel that it names was opened under the attempt "a".
    fn tunnel(named: Option<&str>, claim: &str) -> Claimant {
        Claimant {
            key: Key { namespace: "edge".into(), name: "sensor".into(), uid: "u".into() },
            down: false,
            claim: Some(Attempt(claim.into())),
            tunnel: named.map(|id| Named { id: TunnelId(id.into()), attempt: Some(Attempt("a".into())) }),
            reopens: false,
        }
    }

    fn reopening(claim: &str) -> Claimant {
        Claimant { reopens: true, ..tunnel(Some("s"), claim) }
    }

    #[test]
    fn a_tunnel_is_told_by_name_then_by_tag() {
        let is = |owner: &Owner, claimant: &Claimant| whose(&TunnelId("t".into()), owner, "c", claimant);
        for (owner, claimant, expected) in [
            (owner("u", "a"), tunnel(Some("t"), "a"), Whose::Named),
            (owner("other", "a"), tunnel(Some("t"), "a"), Whose::Named),
            (owner("u", "a"), tunnel(None, "a"), Whose::Adoptable),
            (owner("u", "a"), tunnel(None, "b"), Whose::Adoptable),
            (owner("u", "a"), tunnel(Some("s"), "a"), Whose::Surplus),
            (owner("u", "b"), tunnel(Some("s"), "b"), Whose::Surplus),
            // Where another is wanted, what a later attempt has opened is adopted.
            (owner("u", "b"), reopening("b"), Whose::Adoptable),
            (owner("u", "c"), reopening("b"), Whose::Adoptable),
            (owner("u", "a"), reopening("b"), Whose::Surplus),
            (owner("other", "b"), reopening("b"), Whose::Foreign),
            (owner("other", "a"), tunnel(None, "a"), Whose::Foreign),
        ] {
            assert_eq!(is(&owner, &claimant), expected, "{owner} {claimant:?}");
        }
        let elsewhere = Owner { cluster: "d".into(), ..owner("u", "a") };
        assert_eq!(is(&elsewhere, &tunnel(None, "a")), Whose::Foreign);
        let elsewhere = Owner { namespace: "core".into(), ..owner("u", "a") };
        assert_eq!(is(&elsewhere, &tunnel(None, "a")), Whose::Foreign);
    }
}
