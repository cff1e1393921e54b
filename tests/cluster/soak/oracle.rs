//! What the promise (docs/protocol.md) says of all Tunnels of a soak, once nothing goes wrong any more.

use super::acts::{id, is_ready};
use super::ledger::{Life, Slot};
use super::plan::TAG;
use super::scenario::Scenario;
use crate::support::namespace::main_condition;
use crate::support::promise::{Rule, Violation, dead_tokens};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::ListParams;
use opentunnel_api::ConnectionStatus::Connected;
use opentunnel_api::{FINALIZER, OWNER_TAG, ROTATE_AT_ANNOTATION, Tunnel};
use secure_tunneling_emulator::{TunnelInfo, TunnelStatus};
use std::collections::{HashMap, HashSet};

/// What there is, in Kubernetes and in AWS.
pub struct Seen {
    tunnels: HashMap<(String, String), Tunnel>,
    secrets: Vec<Secret>,
    aws: Vec<TunnelInfo>,
}

impl Seen {
    /// What there is now.
    pub async fn now(scenario: &Scenario) -> Self {
        let (mut tunnels, mut secrets) = (HashMap::new(), Vec::new());
        for namespace in scenario.all() {
            let list = namespace.tunnels().list(&ListParams::default()).await.expect("the API server answers");
            tunnels.extend(list.items.into_iter().map(|t| ((t.namespace().unwrap_or_default(), t.name_any()), t)));
            let list = namespace.secrets().list(&ListParams::default()).await.expect("the API server answers");
            secrets.extend(list.items);
        }
        Self { tunnels, secrets, aws: scenario.world.aws.tunnels() }
    }

    fn tunnel(&self, scenario: &Scenario, number: usize) -> Option<&Tunnel> {
        let key = (scenario.namespace(number).name.clone(), scenario.slots[number].name.clone());
        self.tunnels.get(&key)
    }

    fn of_aws<'a>(&'a self, life: &'a Life) -> impl Iterator<Item = &'a TunnelInfo> {
        self.aws.iter().filter(|t| t.description.as_deref() == Some(&life.description))
    }

    fn open<'a>(&'a self, life: &'a Life) -> impl Iterator<Item = &'a TunnelInfo> {
        self.of_aws(life).filter(|t| t.status == TunnelStatus::Open)
    }

    /// Tunnels with our owner tag that no Tunnel owns.
    pub fn orphans(&self) -> usize {
        let owned: HashSet<&str> = self.tunnels.values().filter_map(id).collect();
        let open = self.aws.iter().filter(|t| t.status == TunnelStatus::Open && t.tags.contains_key(OWNER_TAG));
        open.filter(|t| !owned.contains(t.tunnel_id.as_str())).count()
    }

    /// Why a Tunnel is not yet as it should be in the end. `for_good`: a tunnel of a short lifetime has ended too.
    pub fn unsettled(&self, scenario: &Scenario, number: usize, for_good: bool) -> Option<String> {
        let slot = &scenario.slots[number];
        let tunnel = self.tunnel(scenario, number);
        let Some(life) = slot.present() else {
            return tunnel.map(|_| "it was deleted, and is still there".into());
        };
        let Some(tunnel) = tunnel.filter(|t| t.uid().as_ref() == Some(&life.uid)) else {
            return Some("it is not there".into());
        };
        let main = main_condition(tunnel).map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str()));
        let wanted: Vec<String> = life.spec.secrets.of(&slot.name).into_iter().map(|(name, _)| name).collect();
        let conflict = wanted.iter().any(|name| slot.foreign.contains_key(name));
        let known = id(tunnel).and_then(|id| self.of_aws(life).find(|t| t.tunnel_id == id));
        let open = known.is_some_and(|t| t.status == TunnelStatus::Open);
        let own = self.secrets.iter().filter(|s| s.owner_references().iter().any(|o| o.uid == life.uid));
        let mut own: Vec<String> = own.map(ResourceExt::name_any).collect();
        let expected = match main {
            Some(("Ended", "True", reason)) => {
                let ended = match (reason, id(tunnel)) {
                    ("Suspended", _) => life.spec.suspend && !open,
                    _ if life.spec.suspend => false,
                    ("Closed", Some(id)) => life.closed.contains(id),
                    ("Expired", Some(id)) => {
                        let recorded = tunnel.status.as_ref().and_then(|status| status.expires_at);
                        // AWS says nothing of one that somebody has removed: by then its lifetime may be over.
                        let removed = recorded.filter(|_| life.closed.contains(id));
                        known.map(|t| t.expires_at).or(removed).is_some_and(|at| at <= scenario.world.aws.now())
                    }
                    _ => false,
                };
                ended && own.is_empty()
            }
            _ if life.spec.suspend => false,
            Some(("Ready", "False", "SecretConflict")) => {
                conflict && (id(tunnel).is_none() || open || life.renewed > 0 || life.is_reopened())
            }
            Some(("Ready", "True", "Open")) => {
                // All that follows the spec, the annotations and AWS on an open tunnel.
                let status = tunnel.status.as_ref();
                let asked = tunnel.annotations().get(ROTATE_AT_ANNOTATION);
                let rotated = asked.is_none_or(|at| status.and_then(|s| s.last_handled_rotate_at.as_ref()) == Some(at));
                let follows = known.is_some_and(|t| {
                    let connected = status.and_then(|s| s.source_connection.as_ref()).map(|c| c.status == Connected);
                    t.thing_name.is_some() == life.spec.thing
                        && t.tags.get(TAG) == Some(&life.spec.tag.to_string())
                        && life.connected.get(&t.tunnel_id).is_none_or(|up| connected == Some(*up))
                });
                own.sort_unstable();
                let mut wanted = wanted;
                wanted.sort_unstable();
                let held = tunnel.finalizers().iter().any(|f| f == FINALIZER);
                !conflict && open && is_ready(tunnel) && held && own == wanted && rotated && follows
            }
            _ => false,
        };
        // Else a write is to come.
        let observed = tunnel.status.as_ref().and_then(|status| status.observed_generation);
        let expected = expected && observed == tunnel.metadata.generation;
        if !expected || (for_good && life.spec.is_short() && open) {
            let aws = known.map(|t| t.status);
            return Some(format!("{main:?} of {observed:?}, conflict {conflict}, Secrets {own:?}, in AWS {aws:?}"));
        }
        None
    }

    /// What is wrong with a Tunnel, and with all that had its name before.
    pub async fn judge(&self, scenario: &Scenario, number: usize) -> Vec<Violation> {
        let slot = &scenario.slots[number];
        let tunnel = self.tunnel(scenario, number);
        let mut violations = Vec::new();
        if let Some(what) = self.unsettled(scenario, number, true) {
            violations.push(Violation { rule: Rule::State, what });
        }
        for life in &slot.lives {
            violations.extend(self.of_a_life(
                life,
                scenario.bounds.is_swept(),
                tunnel.filter(|t| t.uid().as_ref() == Some(&life.uid)),
            ));
        }
        if let (Some(life), Some(tunnel)) = (slot.present(), tunnel.filter(|t| is_ready(t))) {
            violations.extend(self.tokens(scenario, number, slot, life, tunnel).await);
        }
        violations
    }

    fn of_a_life(&self, life: &Life, swept: bool, tunnel: Option<&Tunnel>) -> Vec<Violation> {
        let mut violations = Vec::new();
        // What a replaced claim may leave behind goes with the sweep.
        let left = life.replaced_opening > 0 && !swept;
        let mut violated = |rule, what| violations.push(Violation { rule, what });
        let known = tunnel.and_then(id);
        let open = self.open(life).count();
        if open > 1 && !left {
            violated(Rule::OneTunnel, format!("{open} tunnels of {} are open", life.description));
        }
        for t in self.open(life).filter(|t| known != Some(&t.tunnel_id)) {
            let marked = t.tags.contains_key(OWNER_TAG);
            let retained = life.deleted && life.spec.retain && !marked;
            if !retained && !left {
                let what = format!("tunnel {} of {} is open, and no Tunnel's", t.tunnel_id, life.description);
                violated(Rule::NoOrphan, what);
            }
        }
        if let Some(t) = self.open(life).find(|t| known == Some(&t.tunnel_id) && !t.tags.contains_key(OWNER_TAG)) {
            violated(Rule::NoOrphan, format!("tunnel {} has no owner tag", t.tunnel_id));
        }
        // Again only where the one before is gone.
        let opened = self.of_aws(life).count() + life.removed;
        let gone = self.of_aws(life).filter(|t| life.closed.contains(&t.tunnel_id)).count() + life.removed;
        let expired = self.of_aws(life).filter(|t| life.spec.is_short() && t.status == TunnelStatus::Closed).count();
        if opened > 1 + gone.max(expired) + life.renewed + life.replaced_opening {
            violated(Rule::OpenedOnce, format!("OpenTunnel was carried out {opened} times for {}", life.description));
        }
        violations
    }

    async fn tokens(
        &self,
        scenario: &Scenario,
        number: usize,
        slot: &Slot,
        life: &Life,
        tunnel: &Tunnel,
    ) -> Vec<Violation> {
        let wanted = life.spec.secrets.of(&slot.name);
        let wanted: Vec<_> = wanted.iter().map(|(name, mode)| (name.as_str(), *mode)).collect();
        let id = id(tunnel).unwrap_or_default();
        dead_tokens(scenario.namespace(number), &scenario.world.aws, id, &wanted).await
    }
}
