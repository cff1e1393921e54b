//! What a device would be told by MQTT.

use secure_tunneling_emulator::{Notification, Side};
use serde_json::json;

use super::client::Client;
use crate::client::{call, control, emulator};

#[tokio::test]
async fn a_thing_is_told_its_token_when_a_tunnel_is_opened_for_it_and_when_it_is_rotated() {
    let emulator = emulator().await;
    let thing = "sensor:42";
    let path = format!("/things/{thing}/notifications");
    assert_eq!(control(&emulator, "GET", &path, "").await.body, json!([]));
    let body = json!({"destinationConfig": {"thingName": thing, "services": ["SSH", "Web"]}});
    let opened = call(&emulator, "OpenTunnel", body).await.body;
    let id = opened["tunnelId"].as_str().expect("an ID");
    let told = |token: &serde_json::Value| {
        json!({
            "clientAccessToken": token, "clientMode": "destination", "region": "us-east-1", "services": ["SSH", "Web"],
        })
    };
    let first = told(&opened["destinationAccessToken"]);
    assert_eq!(control(&emulator, "GET", &path, "").await.body, json!([first]));

    let rotate =
        |mode: &'static str| call(&emulator, "RotateTunnelAccessToken", json!({"tunnelId": id, "clientMode": mode}));
    rotate("SOURCE").await;
    assert_eq!(emulator.notifications(thing).len(), 1, "the source's token is not the device's");
    let second = told(&rotate("DESTINATION").await.body["destinationAccessToken"]);
    let third = told(&rotate("ALL").await.body["destinationAccessToken"]);
    assert_eq!(control(&emulator, "GET", &path, "").await.body, json!([first, second, third]));

    // The device takes the last one.
    let last: Notification = emulator.notifications(thing).pop().expect("a notification");
    Client::join(&emulator, Side::Destination, &last.client_access_token).await;
    assert!(!format!("{last:?}").contains(&last.client_access_token));

    emulator.reset();
    assert!(emulator.notifications(thing).is_empty());
}

#[tokio::test]
async fn a_rotation_may_name_another_thing_and_without_a_thing_nobody_is_told() {
    let emulator = emulator().await;
    let opened = call(&emulator, "OpenTunnel", json!({"destinationConfig": {"services": ["SSH"]}})).await.body;
    let id = &opened["tunnelId"];
    call(&emulator, "RotateTunnelAccessToken", json!({"tunnelId": id, "clientMode": "ALL"})).await;
    let config = json!({"thingName": "late", "services": ["Web"]});
    let rotate = json!({"tunnelId": id, "clientMode": "DESTINATION", "destinationConfig": config});
    let rotated = call(&emulator, "RotateTunnelAccessToken", rotate).await.body;
    let told = emulator.notifications("late");
    assert_eq!(told.len(), 1);
    assert_eq!(json!(told[0].client_access_token), rotated["destinationAccessToken"]);
    assert_eq!(told[0].services, ["Web"]);
    let wrong = control(&emulator, "PUT", "/things/late/notifications", "").await;
    assert_eq!(wrong.status, 405);
}
