//! What is there when Prometheus asks: read off the watches and the pacers.

use super::{ByReason, Queue, Snapshot};
use crate::context::Context;
use crate::status::main_condition;
use crate::step::Lane;
use crate::watch::Watch;
use opentunnel_api::{Connection, ConnectionStatus};

/// What the operator has now.
pub fn snapshot(ctx: &Context, watches: &[Watch]) -> Snapshot {
    let mut tunnels = ByReason::default();
    let is = |connection: &Option<Connection>| {
        u64::from(connection.as_ref().is_some_and(|c| c.status == ConnectionStatus::Connected))
    };
    let (mut sources, mut destinations) = (0, 0);
    for tunnel in watches.iter().flat_map(Watch::tunnels) {
        if let Some(status) = &tunnel.status {
            sources += is(&status.source_connection);
            destinations += is(&status.destination_connection);
        }
        let conditions = tunnel.status.as_ref().and_then(|status| status.conditions.as_deref());
        tunnels.add(conditions.and_then(main_condition).map(|main| main.reason.as_str()));
    }
    let queue = |lane: Lane| {
        let pacer = ctx.account.pacers.lane(lane);
        let shut = pacer.gate().map(|gate| gate.cause);
        Queue { operation: lane.operation(), rate: pacer.rate(), depth: pacer.depth(), shut }
    };
    Snapshot { tunnels, sources, destinations, queues: Lane::ALL.map(queue), leads: ctx.leader.leads() }
}
