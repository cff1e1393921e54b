//! Before a tunnel that a status names is rotated, closed or disowned, AWS is asked whose it is: who could write a
//! status would otherwise get tokens of any tunnel, or have it closed.

use super::Act;
use crate::controller::status::Note;
use crate::crd::DeletionPolicy;
use crate::tunnels::{CallError, CallErrorKind, Description, TunnelId, TunnelRef};

/// Whether a tunnel is this Tunnel's.
pub(super) enum Owned {
    /// It is, with the ARN that AWS told.
    Yes(TunnelRef),
    /// It is: AWS was asked just now. What was decided may be too old to act on.
    Learnt,
    /// It is somebody else's.
    No,
}

impl Act<'_> {
    /// Whether `id` is this Tunnel's, by its owner tag. Asked once in the life of a process, and never of what it
    /// opened or found.
    pub(super) async fn owned(&self, id: &TunnelId) -> Result<Owned, CallError> {
        let key = &self.desired.key;
        let found = || self.ctx.poller.found(key)?.found.into_iter().map(|f| f.tunnel).find(|t| t.id == *id);
        if let Some(tunnel) = self.ctx.ours.find(key, id).or_else(found) {
            return Ok(Owned::Yes(tunnel));
        }
        let Description { owner, tunnel, .. } = self.ctx.aws.describe(id).await?;
        let Some(tunnel) = tunnel else {
            let message = format!("AWS does not know tunnel {id}");
            return Err(CallError { kind: CallErrorKind::NotFound, message });
        };
        let ours =
            owner.is_some_and(|o| o.cluster == self.ctx.cluster && o.namespace == key.namespace && o.uid == key.uid);
        // What AWS describes is what was asked for, or nothing is learnt from it.
        if !ours || tunnel.id != *id {
            return Ok(Owned::No);
        }
        self.ctx.ours.note(key, &tunnel);
        Ok(Owned::Learnt)
    }

    /// Why a tunnel that is somebody else's gets no new tokens. Whose it is, is nobody's business.
    pub(super) fn foreign(id: &TunnelId) -> CallError {
        let message = format!(
            "tunnel {id}, which the status names, is not this Tunnel's by its owner tag, so it is left alone: delete the Tunnel and apply it again"
        );
        CallError { kind: CallErrorKind::InvalidRequest, message }
    }

    /// The Tunnel goes without it: it is left as it is.
    pub(super) async fn leave(&mut self, id: &TunnelId) {
        let note =
            format!("tunnel {id}, which the status names, is not this Tunnel's by its owner tag: it is left alone");
        tracing::warn!("{note}");
        self.memory.closed.push(id.clone());
        // Its own, which the status has hidden, is not left behind.
        let own = self.ctx.ours.others(&self.desired.key, id);
        let own = own.into_iter().filter(|t| !self.memory.closed.contains(&t.id));
        for tunnel in own.filter(|_| self.desired.deletion_policy == DeletionPolicy::Close) {
            let _ = self.ctx.abandoned.send((self.desired.key.clone(), tunnel));
        }
        self.ctx.close.give_back(&self.desired.key);
        self.ctx.event(&self.view.tunnel, Note { warning: true, reason: "NotOwned".into(), note }).await;
    }
}
