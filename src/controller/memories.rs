//! What this process remembers of each Tunnel that is there.

use super::observe::Memory;
use crate::clock::Mono;
use crate::pacer::Key;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The memories. A reconcile takes one out and puts it back: there is one reconcile of a Tunnel at a time.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<Key, Live>>);

/// A Tunnel that is there.
struct Live {
    /// `None`: a reconcile has it.
    memory: Option<Memory>,
    /// Something may have been wiped from it unseen, since a reconcile last looked.
    vanished: bool,
    errors: u32,
}

impl Memories {
    /// A Tunnel is there. `untouched`: it was created just now, and nobody has done anything for it yet.
    pub fn see(&self, key: Key, untouched: bool, now: Mono) {
        self.lock().entry(key).or_insert_with(|| Live {
            memory: Some(Memory::new(untouched, now)),
            vanished: false,
            errors: 0,
        });
    }

    /// Something was wiped from it.
    pub fn vanish(&self, key: &Key) {
        if let Some(live) = self.lock().get_mut(key) {
            live.vanished = true;
        }
    }

    /// The watch was interrupted: whatever was written to these Tunnels meanwhile may be wiped again.
    pub fn vanish_all(&self, covered: impl Fn(&Key) -> bool) {
        self.lock().iter_mut().filter(|(key, _)| covered(key)).for_each(|(_, live)| live.vanished = true);
    }

    /// Whether something was wiped since this was last asked.
    pub fn has_vanished(&self, key: &Key) -> bool {
        self.lock().get_mut(key).is_some_and(|live| std::mem::take(&mut live.vanished))
    }

    /// A reconcile begins.
    pub fn take(&self, key: &Key, now: Mono) -> Memory {
        let taken = self.lock().get_mut(key).and_then(|live| live.memory.take());
        taken.unwrap_or_else(|| Memory::new(false, now))
    }

    /// It has ended. `Some`: the Tunnel is gone meanwhile.
    pub fn put_back(&self, key: &Key, memory: Memory, failed: bool) -> Option<Memory> {
        match self.lock().get_mut(key) {
            Some(live) => {
                live.errors = if failed { live.errors + 1 } else { 0 };
                live.memory = Some(memory);
                None
            }
            None => Some(memory),
        }
    }

    /// Reconciles of it that failed, one after the other.
    pub fn errors(&self, key: &Key) -> u32 {
        self.lock().get(key).map_or(0, |live| live.errors)
    }

    /// It is gone. `None`: a reconcile has its memory still.
    pub fn forget(&self, key: &Key) -> Option<Memory> {
        self.lock().remove(key)?.memory
    }

    /// Those that are covered, but not there any more.
    pub fn missing(&self, covered: impl Fn(&Key) -> bool, there: &HashSet<Key>) -> Vec<Key> {
        self.lock().keys().filter(|key| covered(key) && !there.contains(key)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Live>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
