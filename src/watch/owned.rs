//! Which Secrets are whose, as a watch by label shows them: who owns each, and its version. Nothing of
//! what they hold is kept.

use crate::read::Key;
use opentunnel_api::SecretStatus;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A Secret's namespace and name.
pub type SecretName = (String, String);

/// The Secrets that carry the operator's label. Empty where they are not watched.
#[derive(Default)]
pub struct OwnedSecrets(Mutex<Index>);

#[derive(Default)]
struct Index {
    secrets: HashMap<SecretName, Secret>,
    /// Names of Secrets, sorted, by their Tunnel's namespace and UID: an ownerReference to a Tunnel of another
    /// namespace does not count.
    names: HashMap<(String, String), Vec<String>>,
    /// Tunnels that wait until a Secret of somebody else's is gone.
    waiting: HashMap<SecretName, HashSet<Key>>,
    /// Watches (by namespace; `None`: of all) that have failed, or are being listed: what they showed proves nothing.
    behind: HashSet<Option<String>>,
}

struct Secret {
    owner: Option<Key>,
    version: Option<String>,
    /// This version was read, and the operator's keys in it had this SHA-256.
    read: Option<String>,
}

impl OwnedSecrets {
    /// A Secret stands there, in this version. Returns the Tunnels that have to look at it: whose it was,
    /// and whose it is.
    pub fn see(&self, name: SecretName, owner: Option<Key>, version: Option<String>) -> Vec<Key> {
        let mut known = self.lock();
        let before = known.remove(&name);
        if let Some(owner) = &owner {
            let names = known.names.entry(of(owner)).or_default();
            if let Err(place) = names.binary_search(&name.1) {
                names.reserve_exact(1);
                names.insert(place, name.1.clone());
            }
        }
        let changed = before.as_ref().is_none_or(|before| before.version != version);
        let before_read = before.as_ref().and_then(|before| before.read.clone());
        let woken = [before.and_then(|before| before.owner), owner.clone()];
        let mut woken: Vec<Key> = woken.into_iter().flatten().filter(|_| changed).collect();
        if changed {
            woken.extend(known.waiting.remove(&name).into_iter().flatten());
        }
        let read = before_read.filter(|_| !changed);
        known.secrets.insert(name, Secret { owner, version, read });
        drop(known);
        woken.dedup();
        woken
    }

    /// A Secret was read in this version, and the operator's keys in it have this SHA-256.
    pub fn have_read(&self, name: &SecretName, version: Option<&str>, sha256: &str) {
        if let Some(secret) = self.lock().secrets.get_mut(name)
            && secret.version.as_deref() == version
            && secret.read.as_deref() != Some(sha256)
        {
            secret.read = Some(sha256.to_owned());
        }
    }

    /// Whether a Tunnel's Secret is as its status has it, as far as the watch shows: in the version that is recorded, or
    /// in one that was read since and had the recorded content.
    pub fn is_as_recorded(&self, owner: &Key, recorded: &SecretStatus) -> bool {
        let known = self.lock();
        if known.behind.contains(&None) || known.behind.contains(&Some(owner.namespace.clone())) {
            return false;
        }
        let secret = known.secrets.get(&(owner.namespace.clone(), recorded.name.clone()));
        secret.is_some_and(|secret| {
            let same = secret.version.is_some() && secret.version == recorded.resource_version;
            secret.owner.as_ref() == Some(owner) && (same || secret.read.as_ref() == Some(&recorded.sha256))
        })
    }

    /// A watch has failed, or begins anew with a list: until that is done, what it showed proves nothing. What was read
    /// proves nothing any more, because an etcd that was restored gives out resourceVersions anew.
    pub fn fall_behind(&self, watch: &Option<String>) {
        let mut known = self.lock();
        known.behind.insert(watch.clone());
        known.secrets.values_mut().for_each(|secret| secret.read = None);
    }

    /// A watch shows all that there is.
    pub fn catch_up(&self, watch: &Option<String>) {
        self.lock().behind.remove(watch);
    }

    /// A Tunnel waits until a Secret of somebody else's is gone, or changes.
    pub fn wait_for(&self, name: SecretName, key: &Key) {
        self.lock().waiting.entry(name).or_default().insert(key.clone());
    }

    /// It is gone, or has lost its label. Returns the Tunnels that have to look: whose it was, and those that wait for
    /// its name.
    pub fn lose(&self, name: &SecretName) -> Vec<Key> {
        let mut known = self.lock();
        let owner = known.remove(name).and_then(|secret| secret.owner);
        owner.into_iter().chain(known.waiting.remove(name).into_iter().flatten()).collect()
    }

    /// Those that are covered, but not there any more.
    pub fn missing(&self, covered: impl Fn(&SecretName) -> bool, there: &HashSet<SecretName>) -> Vec<SecretName> {
        self.lock().secrets.keys().filter(|name| covered(name) && !there.contains(*name)).cloned().collect()
    }

    /// The names of a Tunnel's own Secrets.
    pub fn names(&self, key: &Key) -> Vec<String> {
        self.lock().names.get(&of(key)).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of(owner: &Key) -> (String, String) {
    (owner.namespace.clone(), owner.uid.clone())
}

impl Index {
    fn remove(&mut self, name: &SecretName) -> Option<Secret> {
        let secret = self.secrets.remove(name)?;
        if let Some(owner) = &secret.owner
            && let Some(names) = self.names.get_mut(&of(owner))
        {
            names.retain(|owned| *owned != name.1);
            if names.is_empty() {
                self.names.remove(&of(owner));
            }
        }
        Some(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uid: &str) -> Key {
        Key { namespace: "edge".into(), name: "sensor".into(), uid: uid.into() }
    }

    fn secret(name: &str) -> SecretName {
        ("edge".into(), name.into())
    }

    fn see(owned: &OwnedSecrets, owner: Option<Key>, version: &str) -> Vec<Key> {
        owned.see(secret("tokens"), owner, Some(version.into()))
    }

    #[test]
    fn a_change_wakes_whose_the_secret_is_and_whose_it_was() {
        let owned = OwnedSecrets::default();
        assert_eq!(see(&owned, Some(key("a")), "1"), [key("a")]);
        assert_eq!(see(&owned, Some(key("a")), "1"), []);
        assert_eq!(see(&owned, Some(key("a")), "2"), [key("a")]);
        assert_eq!(owned.names(&key("a")), ["tokens"]);
        assert_eq!(see(&owned, None, "3"), [key("a")], "its ownerReference was taken away");
        assert_eq!(owned.names(&key("a")), [""; 0]);
        assert_eq!(see(&owned, Some(key("b")), "4"), [key("b")]);
        assert_eq!(owned.lose(&secret("tokens")), [key("b")]);
        assert_eq!(owned.lose(&secret("tokens")), []);
    }

    #[test]
    fn a_secret_is_as_recorded_in_the_version_that_was_recorded_or_read_since() {
        let owned = OwnedSecrets::default();
        let recorded = |version: Option<&str>| SecretStatus {
            name: "tokens".into(),
            sha256: "abc".into(),
            resource_version: version.map(str::to_owned),
        };
        let is = |key: &Key, version| owned.is_as_recorded(key, &recorded(version));
        assert!(!is(&key("a"), Some("1")), "it is not there");
        see(&owned, Some(key("a")), "1");
        assert!(is(&key("a"), Some("1")) && !is(&key("a"), Some("0")) && !is(&key("a"), None));
        assert!(!is(&key("b"), Some("1")), "it is another's");
        see(&owned, Some(key("a")), "2");
        assert!(!is(&key("a"), Some("1")), "somebody has written it");
        owned.have_read(&secret("tokens"), Some("1"), "abc");
        assert!(!is(&key("a"), Some("1")), "an older version was read");
        owned.have_read(&secret("tokens"), Some("2"), "edited");
        assert!(!is(&key("a"), Some("1")));
        owned.have_read(&secret("tokens"), Some("2"), "abc");
        assert!(is(&key("a"), Some("1")) && !is(&key("b"), Some("1")));
        see(&owned, Some(key("a")), "2");
        assert!(is(&key("a"), Some("1")), "a list shows it again");
        for watch in [None, Some("edge".to_owned())] {
            owned.fall_behind(&watch);
            assert!(!is(&key("a"), Some("2")), "a watch that has failed shows nothing");
            owned.catch_up(&watch);
        }
        owned.fall_behind(&Some("other".into()));
        assert!(!is(&key("a"), Some("1")) && is(&key("a"), Some("2")));
        owned.lose(&secret("tokens"));
        assert!(!is(&key("a"), Some("2")));
        owned.see(secret("tokens"), Some(key("a")), None);
        assert!(!is(&key("a"), None), "no version proves nothing");
    }

    #[test]
    fn a_secret_of_another_namespace_is_none_of_a_tunnels() {
        let owned = OwnedSecrets::default();
        see(&owned, Some(key("a")), "1");
        let elsewhere = ("other".to_owned(), "tokens".to_owned());
        owned.see(elsewhere.clone(), Some(Key { namespace: "other".into(), ..key("a") }), None);
        owned.see(("other".into(), "more".into()), Some(Key { namespace: "other".into(), ..key("a") }), None);
        owned.lose(&elsewhere);
        assert_eq!(owned.names(&key("a")), ["tokens"]);
    }

    #[test]
    fn what_a_new_list_has_no_more_is_missing() {
        let owned = OwnedSecrets::default();
        see(&owned, Some(key("a")), "1");
        owned.see(secret("other"), Some(key("a")), None);
        assert_eq!(owned.missing(|_| true, &HashSet::from([secret("other")])), [secret("tokens")]);
        assert_eq!(owned.missing(|(namespace, _)| namespace == "x", &HashSet::new()), []);
    }

    #[test]
    fn who_waits_for_a_name_is_woken_once_when_its_secret_changes_or_goes() {
        let owned = OwnedSecrets::default();
        see(&owned, Some(key("a")), "1");
        owned.wait_for(secret("tokens"), &key("b"));
        owned.wait_for(secret("tokens"), &key("b"));
        assert_eq!(see(&owned, Some(key("a")), "1"), [], "nothing has changed");
        assert_eq!(see(&owned, Some(key("a")), "2"), [key("a"), key("b")]);
        assert_eq!(see(&owned, Some(key("a")), "3"), [key("a")], "it was woken, and asks again");
        owned.wait_for(secret("tokens"), &key("b"));
        owned.wait_for(secret("other"), &key("c"));
        assert_eq!(owned.lose(&secret("tokens")), [key("a"), key("b")]);
        assert_eq!(owned.lose(&secret("other")), [key("c")], "a name that the watch has not shown");
        assert_eq!(owned.lose(&secret("other")), []);
    }
}
