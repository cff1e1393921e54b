//! What is there when Prometheus asks: read off the watches and the pacers.

use super::context::Context;
use super::watch::Watch;
use crate::metrics::{ByReason, Queue, Snapshot};
use crate::pacer::Pacer;
use crate::tunnels::Operation;

/// What the operator has now.
pub fn snapshot(ctx: &Context, watches: &[Watch]) -> Snapshot {
    let mut tunnels = ByReason::default();
    for tunnel in watches.iter().flat_map(Watch::tunnels) {
        let conditions = tunnel.status.as_ref().and_then(|status| status.conditions.as_ref());
        tunnels.add(conditions.and_then(|c| c.first()).map(|main| main.reason.as_str()));
    }
    let queue =
        |operation, pacer: &Pacer| Queue { operation, depth: pacer.depth(), shut: pacer.gate().map(|gate| gate.cause) };
    let queues = [
        queue(Operation::OpenTunnel, &ctx.open),
        queue(Operation::CloseTunnel, &ctx.close),
        queue(Operation::RotateTunnelAccessToken, &ctx.rotate),
    ];
    Snapshot { tunnels, queues, leads: ctx.leader.leads() }
}
