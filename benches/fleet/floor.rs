//! The floor: the same requests without an operator.

use super::sight::Sight;
use super::support::namespace::client;
use super::{Phase, Run, percentiles};
use aws_sdk_iotsecuretunneling::Config;
use aws_sdk_iotsecuretunneling::config::{BehaviorVersion, Credentials, Region};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use opentunnel_api::Tunnel;
use serde_json::json;
use std::time::Instant;

impl Run {
    /// The requests that an opening takes, and its creation, made by a plain loop for `count` Tunnels, `at_once` of them at
    /// a time; how long each took to Ready.
    pub async fn floor(&self, name: &'static str, count: usize, at_once: usize) -> Phase {
        let client = client(&self.identity.kubeconfig).await;
        let tunnels: Api<Tunnel> = Api::namespaced(client.clone(), &self.world.name);
        let secrets: Api<Secret> = Api::namespaced(client, &self.world.name);
        let credentials = Credentials::new("any", "any", None, None, "bench");
        let config = Config::builder().behavior_version(BehaviorVersion::latest()).region(Region::new("us-east-1"));
        let config = config.credentials_provider(credentials).endpoint_url(self.world.aws.endpoint()).build();
        let (aws, sight) = (aws_sdk_iotsecuretunneling::Client::from_conf(config), Sight::new(&self.world));
        let (patch, post) = (PatchParams::default(), PostParams::default());
        let open = async |n: usize| {
            let (name, begun) = (format!("floor-{n}"), Instant::now());
            self.create(&name).await;
            let claim =
                json!({"metadata": {"annotations": {"example.com/opening": "0123456789abcdef0123456789abcdef"}}});
            tunnels.patch(&name, &patch, &Patch::Merge(&claim)).await.expect("it may");
            let tunnel = aws.open_tunnel().send().await.expect("it is opened");
            let tokens = json!({
                "metadata": {"name": format!("{name}-tokens")},
                "type": "opentunnel.dev/tunnel-tokens",
                "stringData": {"source": tunnel.source_access_token(), "destination": tunnel.destination_access_token()},
            });
            secrets.create(&post, &serde_json::from_value(tokens).expect("a Secret")).await.expect("it may");
            let condition = json!({
                "type": "Ready", "status": "True", "reason": "Open", "message": "", "lastTransitionTime": Timestamp::now(),
            });
            let status = json!({"status": {"tunnelId": tunnel.tunnel_id, "conditions": [condition]}});
            tunnels.patch_status(&name, &patch, &Patch::Merge(&status)).await.expect("it may");
            let time = sight.until(&name).await - begun;
            (time, name, tunnel.tunnel_id)
        };
        let begun = Instant::now();
        let opened: Vec<_> = stream::iter(0..count).map(open).buffer_unordered(at_once).collect().await;
        let wall = begun.elapsed();
        let mut times = Vec::new();
        for (time, name, tunnel) in opened {
            times.push(time);
            secrets.delete(&format!("{name}-tokens"), &DeleteParams::default()).await.expect("it is there");
            aws.close_tunnel().set_tunnel_id(tunnel).send().await.expect("it is open");
        }
        self.delete_all().await;
        let mut all = percentiles(times);
        all.insert("wall".into(), json!(wall.as_secs_f64()));
        Phase(name, all)
    }
}
