//! What a soak knows of each Tunnel: what was done to it, and so what there may be of it.

use super::plan::Spec;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use opentunnel_api::ReopenPolicy;
use std::collections::{BTreeMap, HashSet};

/// A Secret's data.
pub type Data = BTreeMap<String, ByteString>;

/// A place for a Tunnel: a name in a namespace. One may come after the other.
pub struct Slot {
    /// The number of its namespace.
    pub namespace: usize,
    /// The Tunnel's name.
    pub name: String,
    /// All Tunnels that had the name, in order.
    pub lives: Vec<Life>,
    /// Somebody else's Secrets, with their data.
    pub foreign: BTreeMap<String, Data>,
    /// What was done, for people.
    pub history: Vec<String>,
}

/// A Tunnel.
pub struct Life {
    /// Its metadata.uid.
    pub uid: String,
    /// Its description, which its tunnels have too: so they are known for its own, whatever becomes of tags.
    pub description: String,
    /// Its spec at present, or when it was deleted.
    pub spec: Spec,
    /// It was deleted.
    pub deleted: bool,
    /// Its tunnels that somebody else has closed.
    pub closed: HashSet<String>,
    /// Those of them that are removed too.
    pub removed: usize,
    /// So often a spec was applied that wants another tunnel than the one before: it is resumed, or its tunnel is
    /// to be replaced.
    pub renewed: usize,
    /// Whether the source of a tunnel is connected, by the tunnel's ID.
    pub connected: BTreeMap<String, bool>,
    /// So often its metadata was replaced while nobody knew its tunnel yet. What somebody was just opening then
    /// is known to nobody if the opener dies: docs/protocol.md, "Where the promise ends".
    pub replaced_opening: usize,
}

impl Slot {
    /// One with nothing in it.
    pub fn new(namespace: usize, name: String) -> Self {
        Self { namespace, name, lives: Vec::new(), foreign: BTreeMap::new(), history: Vec::new() }
    }

    /// The Tunnel that should be there.
    pub fn present(&self) -> Option<&Life> {
        self.lives.last().filter(|life| !life.deleted)
    }

    /// The same, to note something.
    pub fn present_mut(&mut self) -> Option<&mut Life> {
        self.lives.last_mut().filter(|life| !life.deleted)
    }

    /// Notes something for people.
    pub fn note(&mut self, what: &str) {
        self.history.push(format!("{:.3} {what}", Timestamp::now()));
    }
}

impl Life {
    /// Whether a tunnel of it may have ended, and be followed by another under the reopenPolicy that it has.
    pub fn is_reopened(&self) -> bool {
        match self.spec.reopen {
            ReopenPolicy::Never => false,
            ReopenPolicy::OnExpiry => self.spec.is_short(),
            ReopenPolicy::Always => self.spec.is_short() || !self.closed.is_empty(),
        }
    }

    /// A new one.
    pub fn new(uid: String, description: String, spec: Spec) -> Self {
        Self {
            uid,
            description,
            spec,
            deleted: false,
            closed: HashSet::new(),
            removed: 0,
            renewed: 0,
            connected: BTreeMap::new(),
            replaced_opening: 0,
        }
    }
}
