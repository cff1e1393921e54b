//! What AWS itself does wrong, at random: the emulator's own faults, and quotas.

use super::plan::{Bounds, within};
use fastrand::Rng;
use secure_tunneling_emulator::{Emulator, Fault, FaultKind, Operation, Quotas, TunnelStatus};
use std::time::Duration;
use tokio::time::sleep;

/// Before the call is carried out. With what the weather adds it stays below `--aws-timeout`.
const LATEST_BEFORE: Duration = Duration::from_millis(300);

/// So long the first faults stand.
const FIRST: Duration = Duration::from_secs(5);

/// AWS's quotas while nothing limits the number of tunnels.
pub fn quotas(bounds: &Bounds) -> Quotas {
    let rate = |quotas: Quotas, operation| {
        let few = matches!(operation, Operation::OpenTunnel | Operation::CloseTunnel);
        quotas.rate(operation, if few { bounds.rate() } else { 10.0 })
    };
    Operation::ALL.into_iter().fold(Quotas::none(), rate)
}

/// Changes faults and quotas now and then, for ever.
pub async fn change(aws: &Emulator, bounds: &Bounds, mut rng: Rng) {
    // However few there are: what matters most happens.
    let lost = |operation, times| Fault::new(operation, FaultKind::DropAfter).times(times);
    aws.set_faults([lost(Operation::OpenTunnel, 3), lost(Operation::RotateTunnelAccessToken, 2)]);
    sleep(FIRST).await;
    loop {
        let faults = (0..rng.usize(..4)).map(|_| fault(&mut rng)).collect::<Vec<_>>();
        aws.set_faults(faults);
        let open = aws.tunnels().iter().filter(|t| t.status == TunnelStatus::Open).count();
        aws.set_quotas(&match rng.u32(..6) {
            // Hardly room for more.
            0 => quotas(bounds).max_open_tunnels(open.max(bounds.tunnels * 3 / 4) as u64 + rng.u64(..2)),
            _ => quotas(bounds),
        });
        sleep(Duration::from_secs(2) + within(&mut rng, Duration::from_secs(4))).await;
    }
}

/// Nothing is wrong any more.
pub fn end(aws: &Emulator, bounds: &Bounds) {
    aws.set_faults([]);
    aws.set_quotas(&quotas(bounds));
}

fn fault(rng: &mut Rng) -> Fault {
    let operation = [
        Operation::OpenTunnel,
        Operation::OpenTunnel,
        Operation::CloseTunnel,
        Operation::RotateTunnelAccessToken,
        Operation::RotateTunnelAccessToken,
        Operation::DescribeTunnel,
        Operation::ListTunnels,
        Operation::UntagResource,
    ][rng.usize(..8)];
    let kind = [
        FaultKind::Throttling,
        FaultKind::InternalError,
        FaultKind::DropBefore,
        FaultKind::DropAfter,
        FaultKind::HangBefore,
        FaultKind::HangAfter,
        FaultKind::Delay,
    ][rng.usize(..7)];
    let delay = match kind {
        FaultKind::Delay => Duration::from_millis(1) + within(rng, Duration::from_secs(3)),
        _ => within(rng, LATEST_BEFORE),
    };
    Fault::new(operation, kind).times(rng.u32(1..4)).delay_ms(delay.as_millis() as u64)
}
