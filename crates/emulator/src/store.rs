//! All tunnels of the account, in the order of their opening.

use std::collections::{BTreeMap, HashMap};

use crate::clock::Millis;
use crate::data::Side;
use crate::tunnel::Tunnel;

/// Tunnels by the number of their opening, which is also the position that a page of
/// ListTunnels ends at: what is opened later never shifts a page.
#[derive(Debug, Default)]
pub(crate) struct Store {
    tunnels: BTreeMap<u64, Tunnel>,
    numbers: HashMap<String, u64>,
    opened: u64,
}

impl Store {
    pub(crate) fn insert(&mut self, tunnel: Tunnel) {
        self.opened += 1;
        self.numbers.insert(tunnel.id.clone(), self.opened);
        self.tunnels.insert(self.opened, tunnel);
    }

    pub(crate) fn remove(&mut self, id: &str) {
        if let Some(number) = self.numbers.remove(id) {
            self.tunnels.remove(&number);
        }
    }

    /// A visible tunnel.
    pub(crate) fn get_mut(&mut self, id: &str, now: Millis) -> Option<&mut Tunnel> {
        let number = self.numbers.get(id)?;
        self.tunnels.get_mut(number).filter(|tunnel| tunnel.is_visible(now))
    }

    /// Forgets the tunnels whose retention is over.
    pub(crate) fn forget_invisible(&mut self, now: Millis) {
        self.tunnels.retain(|_, tunnel| {
            let visible = tunnel.is_visible(now);
            if !visible {
                self.numbers.remove(&tunnel.id);
            }
            visible
        });
    }

    /// The visible tunnels opened before number `before`, newest first.
    pub(crate) fn newest_first(&self, before: u64, now: Millis) -> impl Iterator<Item = (u64, &Tunnel)> {
        let older = self.tunnels.range(..before).rev().map(|(number, tunnel)| (*number, tunnel));
        older.filter(move |(_, tunnel)| tunnel.is_visible(now))
    }

    /// All tunnels that are held, oldest first.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Tunnel> {
        self.tunnels.values_mut()
    }

    /// The visible tunnel that an access token belongs to, and its side.
    pub(crate) fn by_token(&mut self, access_token: &str, now: Millis) -> Option<(&mut Tunnel, Side)> {
        self.tunnels
            .values_mut()
            .filter(|tunnel| tunnel.is_visible(now))
            .find_map(|tunnel| tunnel.side_of(access_token).map(|side| (tunnel, side)))
    }

    pub(crate) fn open_tunnels(&self, now: Millis) -> u64 {
        self.tunnels.values().map(|tunnel| u64::from(tunnel.is_open(now))).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::clock::Clock;
    use crate::requests::OpenTunnel;

    #[test]
    fn a_tunnel_past_its_retention_leaves_nothing_behind() {
        let (mut store, mut clock) = (Store::default(), Clock::new());
        let open = |now| {
            let request = OpenTunnel::read(&json!({})).expect("a valid request");
            Tunnel::open(request, "us-east-1", "123456789012", now)
        };
        store.insert(open(clock.now()));
        clock.advance(Duration::from_secs(14 * 3600));
        store.insert(open(clock.now()));
        store.forget_invisible(clock.now());
        assert_eq!((store.tunnels.len(), store.numbers.len()), (2, 2));
        clock.advance(Duration::from_secs(3600));
        store.forget_invisible(clock.now());
        assert_eq!((store.tunnels.len(), store.numbers.len()), (1, 1));
        assert_eq!(store.open_tunnels(clock.now()), 1);
    }
}
