//! The pacers of one account, by lane.

use super::Pacer;
use crate::facts::Turns;
use crate::metrics::Metrics;
use crate::read::Key;
use crate::step::Lane;
use tokio::sync::mpsc;

/// AWS's quota for RotateTunnelAccessToken, TagResource and UntagResource each (Service Quotas: 10 a second).
const OTHERS_RATE: f64 = 10.0;

/// One pacer for each lane.
pub struct Pacers {
    open: Pacer,
    close: Pacer,
    rotate: Pacer,
    tag: Pacer,
}

impl Pacers {
    /// Rates are in calls per second.
    pub fn new(open_rate: f64, close_rate: f64, metrics: &Metrics, wake: &mpsc::UnboundedSender<Key>) -> Self {
        let pacer = |lane: Lane, rate| Pacer::new(rate, metrics.waits(lane.operation()), wake.clone());
        Self {
            open: pacer(Lane::Open, open_rate),
            close: pacer(Lane::Close, close_rate),
            rotate: pacer(Lane::Rotate, OTHERS_RATE),
            tag: pacer(Lane::Tag, OTHERS_RATE),
        }
    }

    /// The one of a lane.
    pub fn lane(&self, lane: Lane) -> &Pacer {
        match lane {
            Lane::Open => &self.open,
            Lane::Close => &self.close,
            Lane::Rotate => &self.rotate,
            Lane::Tag => &self.tag,
        }
    }

    /// Where a Tunnel stands in each.
    pub fn turns(&self, key: &Key) -> Turns {
        let turn = |lane| self.lane(lane).turn(key);
        Turns { open: turn(Lane::Open), close: turn(Lane::Close), rotate: turn(Lane::Rotate), tag: turn(Lane::Tag) }
    }

    /// Gives a Tunnel's tickets back, but for one lane.
    pub fn give_back(&self, key: &Key, keep: Option<Lane>) {
        for lane in Lane::ALL.into_iter().filter(|lane| keep != Some(*lane)) {
            self.lane(lane).give_back(key);
        }
    }

    /// Opens all gates: what AWS said last is long ago.
    pub fn open_gates(&self) {
        Lane::ALL.into_iter().for_each(|lane| self.lane(lane).open_gate());
    }
}
