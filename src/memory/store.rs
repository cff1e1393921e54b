//! What this process keeps of each Tunnel that is there.

use super::Memory;
use crate::clock::Mono;
use crate::read::{Key, Object};
use crate::traces::Opening;
use crate::tunnels::TunnelId;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The memories. A reconcile takes one out and puts it back: there is one reconcile of a Tunnel at a time.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<Key, Entry>>);

/// A Tunnel that is there.
struct Entry {
    /// `None`: a reconcile has it. In a box: the map has room for twice as many entries as there are Tunnels.
    kept: Option<Box<Kept>>,
    /// Something may have been wiped from it unseen, since a reconcile last looked.
    wiped: bool,
    /// It was edited or deleted since a reconcile last looked.
    edited: bool,
    errors: u32,
}

/// What is kept between two reconciles.
pub struct Kept {
    /// What the protocol remembers.
    pub memory: Memory,
    /// The object as it was last written, until the watch shows it.
    pub written: Option<Box<Object>>,
    /// What the last reconcile failed with, if it failed.
    pub trouble: Option<String>,
    /// The trace of its opening, while one is under way.
    pub opening: Option<Box<Opening>>,
}

impl Kept {
    /// Of a Tunnel that is seen for the first time.
    pub fn new(saw_creation: bool, now: Mono) -> Self {
        Self { memory: Memory::new(saw_creation, now), written: None, trouble: None, opening: None }
    }
}

impl Memories {
    /// A Tunnel is there. `untouched`: it was created just now, and nobody has done anything for it yet.
    pub fn add(&self, key: Key, untouched: bool, now: Mono) {
        self.lock().entry(key).or_insert_with(|| Entry {
            kept: Some(Box::new(Kept::new(untouched, now))),
            wiped: false,
            edited: false,
            errors: 0,
        });
    }

    /// Something was wiped from it.
    pub fn wipe(&self, key: &Key) {
        if let Some(entry) = self.lock().get_mut(key) {
            entry.wiped = true;
        }
    }

    /// Somebody has edited or deleted it: what a reconcile has read of it is old.
    pub fn edit(&self, key: &Key) {
        if let Some(entry) = self.lock().get_mut(key) {
            entry.edited = true;
        }
    }

    /// Whether it was edited or deleted since this was last asked.
    pub fn take_edited(&self, key: &Key) -> bool {
        self.lock().get_mut(key).is_some_and(|entry| std::mem::take(&mut entry.edited))
    }

    /// The watch was interrupted: whatever was written to these Tunnels meanwhile may be wiped again.
    pub fn wipe_all(&self, covered: impl Fn(&Key) -> bool) {
        self.lock().iter_mut().filter(|(key, _)| covered(key)).for_each(|(_, entry)| entry.wiped = true);
    }

    /// Whether something was wiped since this was last asked.
    pub fn take_wiped(&self, key: &Key) -> bool {
        self.lock().get_mut(key).is_some_and(|entry| std::mem::take(&mut entry.wiped))
    }

    /// A reconcile begins.
    pub fn take(&self, key: &Key, now: Mono) -> Box<Kept> {
        let taken = self.lock().get_mut(key).and_then(|entry| entry.kept.take());
        taken.unwrap_or_else(|| Box::new(Kept::new(false, now)))
    }

    /// It has ended. `Some`: the Tunnel is gone meanwhile.
    pub fn put_back(&self, key: &Key, kept: Box<Kept>, failed: bool) -> Option<Memory> {
        match self.lock().get_mut(key) {
            Some(entry) => {
                entry.errors = if failed { entry.errors + 1 } else { 0 };
                entry.kept = Some(kept);
                None
            }
            None => Some(kept.memory),
        }
    }

    /// Reconciles of it that failed, one after the other.
    pub fn errors(&self, key: &Key) -> u32 {
        self.lock().get(key).map_or(0, |entry| entry.errors)
    }

    /// It is gone. `None`: a reconcile has its memory still.
    pub fn remove(&self, key: &Key) -> Option<Memory> {
        self.lock().remove(key)?.kept.map(|kept| kept.memory)
    }

    /// Ends the traces of openings that are under way: the process ends.
    pub fn stop_traces(&self) {
        let mut memories = self.lock();
        for kept in memories.values_mut().filter_map(|entry| entry.kept.as_mut()) {
            kept.opening.take().into_iter().for_each(|opening| opening.stop(&kept.memory));
        }
    }

    /// The tunnels whose owner is known, because this process has opened them or has read their owner tag. (Not those of
    /// Tunnels that a reconcile has.)
    pub fn owned(&self) -> HashMap<TunnelId, Key> {
        let memories = self.lock();
        let kept = memories.iter().filter_map(|(key, entry)| Some((key, entry.kept.as_ref()?)));
        kept.flat_map(|(key, kept)| kept.memory.owned.iter().map(|tunnel| (tunnel.id.clone(), key.clone()))).collect()
    }

    /// Those that are covered, but not there any more.
    pub fn missing(&self, covered: impl Fn(&Key) -> bool, there: &HashSet<Key>) -> Vec<Key> {
        self.lock().keys().filter(|key| covered(key) && !there.contains(key)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
