//! How much of AWS's quota for OpenTunnel is used while Tunnels wait, with an API server and an AWS that answer late.
//! OPENTUNNEL_OPERATOR_BIN measures another build than `release`.

#[allow(dead_code)] // The tests need more of it.
#[path = "../tests/cluster/support/mod.rs"]
mod support;

use axum::body::Body;
use axum::http::Response;
use futures::future::join_all;
use kube::api::PostParams;
use opentunnel_api::{Tunnel, TunnelSpec};
use secure_tunneling_emulator::{Call, Fault, FaultKind, Operation, Quotas};
use std::sync::Arc;
use std::time::Duration;
use support::World;
use support::api_proxy::{Cut, Request};
use support::weather::{Answer, Weather};

/// An API server that is far away.
struct Far(Duration);

impl Weather for Far {
    fn pass<'a>(&'a self, _: &'a Request, forward: Answer<'a>) -> Answer<'a> {
        Box::pin(async {
            tokio::time::sleep(self.0).await;
            let answer: Result<Response<Body>, Cut> = forward.await;
            answer
        })
    }
}

/// Opens so many tunnels, and says what share of the quota that took, from the first call to the last.
async fn measure(rate: f64, tunnels: usize, api: Duration, aws: Duration) {
    let world = World::new().await;
    world.aws.set_quotas(&Quotas::aws().rate(Operation::OpenTunnel, rate));
    if !aws.is_zero() {
        let delay = u64::try_from(aws.as_millis()).expect("short");
        world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::Delay).delay_ms(delay)]);
    }
    let proxy = world.api_proxy().await;
    proxy.meets(Arc::new(Far(api)));
    let settings = world.settings().via(&proxy).flag("--open-rate", &rate.to_string());
    let _operator = world.operator_with(&settings.flag("--log-filter", "info")).await;
    let names: Vec<String> = (0..tunnels).map(|n| format!("t{n}")).collect();
    let create = |name: &String| {
        let tunnel = Tunnel::new(name, TunnelSpec::default());
        let api = world.tunnels();
        async move { api.create(&PostParams::default(), &tunnel).await.map(drop) }
    };
    for created in join_all(names.iter().map(create)).await {
        created.expect("it is accepted");
    }
    join_all(names.iter().map(|name| world.wait_ready(name))).await;
    let calls: Vec<Call> = world.aws.calls().into_iter().filter(|c| c.operation == "OpenTunnel").collect();
    let opened: Vec<_> = calls.iter().filter(|c| c.succeeded()).map(|c| c.at).collect();
    assert_eq!(opened.len(), tunnels, "OpenTunnel is called once for each");
    let (Some(first), Some(last)) = (opened.iter().min(), opened.iter().max()) else { return };
    let used = (tunnels - 1) as f64 / last.duration_since(*first).as_secs_f64() / rate;
    let refused = calls.len() - tunnels;
    println!(
        "{rate} a second, the API server answers after {api:?} more, AWS after {aws:?}: {:.1} % of the quota used, {refused} of {} calls refused",
        used * 100.0,
        calls.len()
    );
}

#[tokio::main]
async fn main() {
    let ms = Duration::from_millis;
    for api in [5, 100] {
        for aws in [0, 400, 2000] {
            measure(1.0, 30, ms(api), ms(aws)).await;
        }
    }
    measure(50.0, 500, ms(5), ms(400)).await;
}
