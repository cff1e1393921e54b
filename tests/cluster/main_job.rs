//! The main job: apply a Tunnel, get its tokens in a Secret.

use crate::support::World;

#[tokio::test]
async fn an_applied_tunnel_is_opened_and_its_tokens_come_into_a_secret() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world
        .apply("apiVersion: opentunnel.dev/v1alpha1\nkind: Tunnel\nmetadata: {name: plain}\n")
        .await;
    let tunnel = world.wait_ready("plain").await;
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    let id = &data["tunnelId"];
    assert_eq!(tunnel.status.and_then(|s| s.tunnel_id).as_ref(), Some(id));
    let live = world.aws.live_tokens(id).expect("an open tunnel");
    assert!(
        data["sourceAccessToken"] == live.source,
        "the source's token is the live one"
    );
    assert!(
        data["destinationAccessToken"] == live.destination,
        "the destination's token is the live one"
    );
}
