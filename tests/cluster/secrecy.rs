//! Tokens are secrets: they stand in Secrets, and nowhere else.

use crate::support::World;
use kube::api::{Api, ListParams};
use secure_tunneling_emulator::{Fault, FaultKind, Operation};

/// Opens (and loses the answer), rotates, meets errors, and ends, with everything logged.
#[tokio::test]
async fn with_everything_logged_no_token_stands_anywhere_but_in_the_secret() {
    let world = World::new().await;
    world.aws.set_faults([
        Fault::new(Operation::OpenTunnel, FaultKind::DropAfter).times(1),
        Fault::new(Operation::RotateTunnelAccessToken, FaultKind::InternalError).times(1),
    ]);
    let settings = world.settings().flag("--log-filter", "trace");
    let operator = world.operator_with(&settings).await;
    world.apply("{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}").await;
    let tunnel = world.wait_ready("plain").await;
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    let log = operator.log();
    assert!(
        log.lines().any(|line| line.contains("resolving endpoint")),
        "the filter has an effect: the AWS SDK is logged"
    );
    let events: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(world.client.clone(), &world.name);
    let events = events.list(&ListParams::default()).await.expect("they can be listed").items;
    let places = [
        ("the log", log),
        ("the Tunnel", format!("{tunnel:?}")),
        ("the Events", format!("{events:?}")),
        ("AWS's tags", format!("{:?}", world.aws.tunnels()[0].tags)),
    ];
    for key in ["sourceAccessToken", "sourceClientToken", "destinationAccessToken", "destinationClientToken"] {
        for (place, text) in &places {
            assert!(!text.contains(&data[key]), "{key} stands in {place}");
        }
    }
}
