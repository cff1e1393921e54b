//! Whose an AWS tunnel is, as far as this process knows it from AWS: it opened the tunnel, or has seen its owner
//! tag. A Tunnel's status is no proof: it may have been copied, restored from a backup or written by somebody.

use crate::pacer::Key;
use crate::tunnels::{TunnelId, TunnelRef};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tunnels that are known to be a Tunnel's.
#[derive(Default)]
pub struct Ours(Mutex<HashMap<Key, Vec<TunnelRef>>>);

impl Ours {
    /// This tunnel is `key`'s.
    pub fn note(&self, key: &Key, tunnel: &TunnelRef) {
        let mut ours = self.lock();
        let tunnels = ours.entry(key.clone()).or_default();
        if !tunnels.contains(tunnel) {
            tunnels.push(tunnel.clone());
        }
    }

    /// The tunnel of this ID, with the ARN that AWS told, if it is known to be `key`'s.
    pub fn find(&self, key: &Key, id: &TunnelId) -> Option<TunnelRef> {
        self.lock().get(key)?.iter().find(|tunnel| tunnel.id == *id).cloned()
    }

    /// The tunnels that are known to be `key`'s, but for this one.
    pub fn others(&self, key: &Key, id: &TunnelId) -> Vec<TunnelRef> {
        self.lock().get(key).into_iter().flatten().filter(|tunnel| tunnel.id != *id).cloned().collect()
    }

    /// The Tunnel is gone.
    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<TunnelRef>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
