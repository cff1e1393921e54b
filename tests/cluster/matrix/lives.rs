//! The lives of a Tunnel that the matrix goes through: what its user and others do, and how it ends.

use super::place::Place;
use crate::support::api_proxy::Point;
use crate::support::namespace::{main_condition, status};
use crate::support::policy::Mutation;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use opentunnel_api::{ClientMode, Tunnel};
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;

/// The Tunnel's name.
pub const NAME: &str = "life";

/// A life. What comes before it is not counted: another one goes through that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// A Tunnel is applied, and gets Ready.
    Open,
    /// The same with a Secret for each side.
    OpenTwoSecrets,
    /// OpenTunnel is carried out, but its answer is lost: the tunnel is searched for and adopted.
    OpenAnswerLost,
    /// The lifetime runs out.
    Expiry,
    /// Somebody else closes the tunnel.
    ClosedByOthers,
    /// The Tunnel is deleted.
    Delete,
    /// It is deleted while OpenTunnel is in flight.
    DeleteWhileOpening,
    /// It is deleted, and its tunnel is to stay.
    Retain,
    /// The token Secret of a Ready Tunnel is deleted.
    SecretLost,
    /// spec.secrets is edited: others want what the present one holds, which goes.
    SecretsChanged,
    /// spec.secrets is edited: a side is wanted that no Secret holds yet.
    SideAdded,
    /// `suspend` is set on a Ready Tunnel.
    Suspended,
    /// `suspend` is taken off again: a second opening.
    Resumed,
    /// The description is edited, with `updatePolicy: Recreate`.
    Recreated,
    /// The lifetime runs out, with `reopenPolicy: OnExpiry`.
    Reopened,
    /// spec.tags is edited, both ways.
    TagsChanged,
    /// New tokens are asked for by an annotation.
    RotatedOnDemand,
    /// A Secret that a backup has brought back has the name.
    Leftover,
    /// A policy makes each Secret immutable: what is written does not stay.
    Modified,
    /// The Tunnel is replaced by its user's manifest, without claim and finalizer, while OpenTunnel is in flight.
    Replaced,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Ready, by the present spec, with tokens of this generation or a later one, where the life begins with the
    /// first: see [`Place::ending`].
    Ready(i64),
    /// Ended, with this reason.
    Ended(&'static str),
    /// Not Ready, for this reason, until somebody does something about it.
    Stalled(&'static str),
    /// There is no Tunnel any more.
    Gone,
}

impl Life {
    /// All that an operator may be killed in. (A claim that is wiped in the moment of a crash may leave a tunnel
    /// behind: docs/protocol.md says so.)
    pub const KILLED: [Self; 11] = [
        Self::Open,
        Self::OpenTwoSecrets,
        Self::OpenAnswerLost,
        Self::Expiry,
        Self::ClosedByOthers,
        Self::Delete,
        Self::DeleteWhileOpening,
        Self::Retain,
        Self::SecretLost,
        Self::SecretsChanged,
        Self::SideAdded,
    ];

    /// Those that come later in a Tunnel's life, and a start with a leftover.
    pub const LATER: [Self; 8] = [
        Self::Suspended,
        Self::Resumed,
        Self::Recreated,
        Self::Reopened,
        Self::TagsChanged,
        Self::RotatedOnDemand,
        Self::Leftover,
        Self::Modified,
    ];

    /// All of them.
    pub const ALL: [Self; 20] = {
        let [a, b, c, d, e, f, g, h, i, j, k] = Self::KILLED;
        let [l, m, n, o, p, q, r, s] = Self::LATER;
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, Self::Replaced]
    };

    fn spec(self) -> Value {
        match self {
            Self::OpenTwoSecrets => each_side(),
            Self::SideAdded => json!({"secrets": [{"name": "life-source", "clientMode": "SOURCE"}]}),
            Self::Retain => json!({"deletionPolicy": "Retain"}),
            Self::Recreated => json!({"updatePolicy": "Recreate", "description": "before"}),
            Self::Reopened => json!({"reopenPolicy": "OnExpiry", "timeout": {"maxLifetimeTimeoutMinutes": 720}}),
            Self::TagsChanged => json!({"tags": [{"key": "goes", "value": "x"}, {"key": "stays", "value": "x"}]}),
            _ => json!({}),
        }
    }

    /// The Secrets that the Tunnel has at the end, if it is Ready then.
    pub fn secrets(self) -> &'static [(&'static str, ClientMode)] {
        match self {
            Self::OpenTwoSecrets | Self::SecretsChanged | Self::SideAdded => {
                &[("life-destination", ClientMode::Destination), ("life-source", ClientMode::Source)]
            }
            _ => &[("life-tokens", ClientMode::All)],
        }
    }

    /// How it ends.
    pub fn ending(self) -> Ending {
        match self {
            Self::Open | Self::OpenTwoSecrets | Self::OpenAnswerLost | Self::SecretsChanged | Self::Replaced => {
                Ending::Ready(1)
            }
            Self::TagsChanged | Self::Leftover => Ending::Ready(1),
            Self::SecretLost | Self::SideAdded | Self::RotatedOnDemand => Ending::Ready(2),
            Self::Resumed | Self::Recreated | Self::Reopened => Ending::Ready(2),
            Self::Suspended => Ending::Ended("Suspended"),
            Self::Modified => Ending::Stalled("SecretModified"),
            Self::Expiry => Ending::Ended("Expired"),
            Self::ClosedByOthers => Ending::Ended("Closed"),
            Self::Delete | Self::DeleteWhileOpening | Self::Retain => Ending::Gone,
        }
    }

    /// How many tunnels are open in AWS at its end.
    pub fn open_tunnels(self) -> usize {
        usize::from(self == Self::Retain || matches!(self.ending(), Ending::Ready(_) | Ending::Stalled(_)))
    }

    /// How often a tunnel is opened in it, and before it.
    pub fn openings(self) -> usize {
        match self {
            Self::Resumed | Self::Recreated | Self::Reopened => 2,
            _ => 1,
        }
    }

    /// Whether the poller's ListTunnels comes in every run of it: a deletion is faster than the poller.
    pub fn polls(self) -> bool {
        self.ending() != Ending::Gone
    }

    /// What comes before it.
    pub async fn prepare(self, place: &Place) {
        match self {
            Self::Open | Self::OpenTwoSecrets | Self::OpenAnswerLost | Self::DeleteWhileOpening | Self::Replaced => {}
            Self::Modified => place.world.under(Mutation::MakesImmutable).await,
            Self::Leftover => {
                let secret = json!({
                    "type": "opentunnel.dev/tunnel-tokens",
                    "metadata": {
                        "name": "life-tokens", "labels": {"opentunnel.dev/secret": "tokens"},
                        "annotations": {"opentunnel.dev/tunnel-id": "gone", "opentunnel.dev/token-generation": "7"},
                    },
                    "stringData": {"tunnelId": "gone", "sourceAccessToken": "dead"},
                });
                let secret: Secret = serde_json::from_value(secret).expect("a Secret");
                place.world.secrets().create(&Default::default(), &secret).await.expect("the name is free");
            }
            Self::Resumed => {
                self.apply(place).await;
                place.begins_with(&place.world.wait_ready(NAME).await);
                edit(place, json!({"suspend": true})).await;
                place.world.wait_condition(NAME, ("Ended", "True", "Suspended")).await;
                place.tap.quiet(Duration::from_millis(400)).await;
            }
            _ => {
                self.apply(place).await;
                place.begins_with(&place.world.wait_ready(NAME).await);
                // Its Event comes after the status, and a last look.
                place.tap.quiet(Duration::from_millis(400)).await;
            }
        }
    }

    /// What happens in it.
    pub async fn happen(self, place: &Place) {
        let world = &place.world;
        match self {
            Self::Open | Self::OpenTwoSecrets | Self::Leftover | Self::Modified => self.apply(place).await,
            Self::OpenAnswerLost => {
                place.aws.lose_answer(|request| request.calls("OpenTunnel"));
                self.apply(place).await;
            }
            Self::Suspended => edit(place, json!({"suspend": true})).await,
            Self::Resumed => edit(place, json!({"suspend": false})).await,
            Self::Recreated => edit(place, json!({"description": "after"})).await,
            Self::TagsChanged => {
                let tags = json!([{"key": "stays", "value": "y"}, {"key": "comes", "value": "x"}]);
                edit(place, json!({"tags": tags})).await;
            }
            Self::RotatedOnDemand => {
                let patch = json!({"metadata": {"annotations": {"opentunnel.dev/rotate-at": "now"}}});
                let patched = world.tunnels().patch(NAME, &PatchParams::default(), &Patch::Merge(patch)).await;
                patched.expect("it may be annotated");
            }
            Self::Expiry | Self::Reopened => world.aws.advance_clock(Duration::from_secs(12 * 3600 + 1)),
            Self::ClosedByOthers => {
                let tunnels = world.aws.tunnels();
                world.aws.close(&tunnels.first().expect("it is Ready").tunnel_id).expect("it is known");
            }
            Self::Delete | Self::Retain => world.delete(NAME).await,
            Self::DeleteWhileOpening => {
                let mut held = place.aws.hold(Point::BeforeForward, |request| request.calls("OpenTunnel"));
                self.apply(place).await;
                held.reached().await;
                world.delete(NAME).await;
                held.pass();
            }
            Self::Replaced => {
                let mut held = place.aws.hold(Point::BeforeForward, |request| request.calls("OpenTunnel"));
                self.apply(place).await;
                held.reached().await;
                // As `kubectl replace` does, and once more if somebody has written in between.
                let mut tunnel = self.tunnel();
                loop {
                    tunnel.metadata.resource_version = world.tunnel(NAME).await.resource_version();
                    match world.tunnels().replace(NAME, &Default::default(), &tunnel).await {
                        Err(kube::Error::Api(status)) if status.code == 409 => {}
                        replaced => break replaced.map(drop).expect("it can be replaced"),
                    }
                }
                held.pass();
            }
            Self::SecretLost => {
                world.secrets().delete("life-tokens", &DeleteParams::default()).await.expect("it is there");
            }
            Self::SecretsChanged | Self::SideAdded => edit(place, each_side()).await,
        }
    }

    async fn apply(self, place: &Place) {
        place.world.tunnels().create(&Default::default(), &self.tunnel()).await.expect("it can be applied");
    }

    /// As its user wrote it.
    fn tunnel(self) -> Tunnel {
        let tunnel = json!({
            "apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": NAME}, "spec": self.spec()
        });
        serde_json::from_value(tunnel).expect("a Tunnel")
    }
}

/// A user edits the spec.
async fn edit(place: &Place, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    place.world.tunnels().patch(NAME, &PatchParams::default(), &patch).await.expect("it may be edited");
}

fn each_side() -> Value {
    json!({"secrets": [
        {"name": "life-source", "clientMode": "SOURCE"},
        {"name": "life-destination", "clientMode": "DESTINATION"},
    ]})
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::OpenTwoSecrets => "open with two Secrets",
            Self::OpenAnswerLost => "open, and the answer of OpenTunnel is lost",
            Self::Expiry => "expiry",
            Self::ClosedByOthers => "closed by somebody else",
            Self::Delete => "delete",
            Self::DeleteWhileOpening => "delete while OpenTunnel is in flight",
            Self::Retain => "delete with deletionPolicy: Retain",
            Self::SecretLost => "the token Secret is lost",
            Self::SecretsChanged => "spec.secrets is edited: others want the same tokens",
            Self::SideAdded => "spec.secrets is edited: one more side is wanted",
            Self::Suspended => "suspended",
            Self::Resumed => "resumed",
            Self::Recreated => "recreated",
            Self::Reopened => "expiry, and another is opened",
            Self::TagsChanged => "spec.tags is edited",
            Self::RotatedOnDemand => "new tokens are asked for",
            Self::Leftover => "open, where a backup has left a Secret",
            Self::Modified => "open, where a policy makes each Secret immutable",
            Self::Replaced => "replaced by the user's manifest while OpenTunnel is in flight",
        })
    }
}

impl Ending {
    /// Whether a Tunnel is as it should be in the end. `None`: there is none.
    pub fn is_reached(self, tunnel: Option<&Tunnel>) -> bool {
        let main = |tunnel| main_condition(tunnel).map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str()));
        match (self, tunnel) {
            (Self::Gone, tunnel) => tunnel.is_none(),
            (_, None) => false,
            (Self::Ready(generation), Some(tunnel)) => {
                main(tunnel) == Some(("Ready", "True", "Open"))
                    && status(tunnel).observed_generation == tunnel.metadata.generation
                    && status(tunnel).token_generation >= Some(generation)
            }
            (Self::Stalled(reason), Some(tunnel)) => main(tunnel) == Some(("Ready", "False", reason)),
            (Self::Ended(reason), Some(tunnel)) => main(tunnel) == Some(("Ended", "True", reason)),
        }
    }
}
