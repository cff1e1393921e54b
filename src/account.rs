//! What belongs to one AWS account and region: its client, its quotas, what it has, and what is swept there. The
//! controller is handed one.

use crate::aws::Aws;
use crate::clock::Clock;
use crate::context::Context;
use crate::metrics::Metrics;
use crate::orphans::sweep::Sweep;
use crate::pacer::lanes::Pacers;
use crate::poller::{Poller, Rounds};
use crate::read::Key;
use crate::step::Lane;
use crate::surplus::Surplus;
use crate::tunnels::{Attempt, CallError, Owner, Tags, TunnelId};
use crate::watch::{Watch, watched};
use crate::whose::is_tagged_for;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// One account and region.
pub struct Account {
    /// The client.
    pub aws: Aws,
    /// The cluster's ID, in every owner tag.
    pub cluster: String,
    /// Tags of every tunnel, unless its Tunnel has another value.
    pub default_tags: Tags,
    /// The quotas.
    pub pacers: Pacers,
    /// What there is.
    pub poller: Poller,
    /// What no Tunnel owns.
    pub sweep: Sweep,
    surplus: mpsc::UnboundedSender<Surplus>,
}

/// How an account is used.
pub struct Use {
    /// The cluster's ID.
    pub cluster: String,
    /// `--default-tag`.
    pub default_tags: Tags,
    /// OpenTunnel calls per second.
    pub open_rate: f64,
    /// CloseTunnel calls per second.
    pub close_rate: f64,
    /// How it is polled.
    pub rounds: Rounds,
    /// What is swept.
    pub sweep: Sweep,
}

impl Account {
    /// An account, and the surplus tunnels that are to be closed there (see [`surplus`](crate::surplus)).
    pub fn new(
        aws: Aws,
        settings: Use,
        clock: Clock,
        metrics: &Arc<Metrics>,
        wake: &mpsc::UnboundedSender<Key>,
    ) -> (Self, mpsc::UnboundedReceiver<Surplus>) {
        let (surplus, to_close) = mpsc::unbounded_channel();
        let Use { cluster, default_tags, open_rate, close_rate, rounds, sweep } = settings;
        let account = Self {
            pacers: Pacers::new(open_rate, close_rate, metrics, wake),
            poller: Poller::new(aws.clone(), cluster.clone(), default_tags.clone(), rounds, clock, wake.clone()),
            aws,
            cluster,
            default_tags,
            sweep,
            surplus,
        };
        (account, to_close)
    }

    /// The owner tag of an attempt to open for a Tunnel.
    pub fn owner(&self, key: &Key, attempt: &Attempt) -> Owner {
        Owner {
            cluster: self.cluster.clone(),
            namespace: key.namespace.clone(),
            uid: key.uid.clone(),
            attempt: attempt.clone(),
        }
    }

    /// Whether an owner tag says that a tunnel was opened for this Tunnel.
    pub fn is_tagged_for(&self, owner: &Owner, key: &Key) -> bool {
        is_tagged_for(owner, &self.cluster, key)
    }

    /// CloseTunnel, whose turn `ticket` has. It leaves at the latest then, and if it still may. `None`: it has not left.
    ///
    /// # Errors
    /// AWS refused, or did not answer.
    pub async fn close_tunnel(
        &self,
        ticket: &Key,
        id: &TunnelId,
        latest: Option<Instant>,
        may: impl Fn() -> bool,
    ) -> Option<Result<(), CallError>> {
        let pacer = self.pacers.lane(Lane::Close);
        if !pacer.depart(ticket, latest, may).await {
            return None;
        }
        let outcome = self.aws.close(id).await;
        pacer.end(ticket, &outcome);
        if outcome.is_ok() {
            self.pacers.lane(Lane::Open).probe_now();
        }
        Some(outcome)
    }

    /// Has a surplus tunnel closed in the background.
    pub fn close_surplus(&self, surplus: Surplus) {
        let _ = self.surplus.send(surplus);
    }

    /// A Tunnel is gone.
    pub fn forget(&self, key: &Key) {
        self.pacers.give_back(key, None);
        self.poller.forget(key);
    }

    /// What goes on whether this process leads or not: turns to close and to rotate, for what it has in hand.
    pub async fn run(&self) {
        tokio::join!(self.pacers.lane(Lane::Close).run(), self.pacers.lane(Lane::Rotate).run());
    }

    /// What only the leader does: it asks AWS what there is, sweeps, and gives turns to open and to tag.
    pub async fn lead(&self, ctx: &Context, watches: &[Watch]) {
        // The sweep comes after a round of the poller's, and at no other time.
        let poll = self.poller.run(|| watched(ctx, watches), || ctx.memories.owned());
        let lane = |lane| self.pacers.lane(lane).run();
        tokio::join!(poll, self.sweep.run(ctx, watches), lane(Lane::Open), lane(Lane::Tag));
    }

    /// This process leads no more: another may open, close and untag from now on.
    pub fn step_down(&self) {
        self.poller.forget_all();
        self.pacers.open_gates();
    }
}
