//! What AWS publishes by MQTT for a thing when a tunnel's destination has a token for it.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use crate::requests::Destination;
use crate::tunnel::Tunnel;

/// A message on `$aws/things/{thing}/tunnels/notify`, in the members that the AWS IoT developer guide gives it ("Open a
/// tunnel and start SSH session to remote device"; "Configuring the IoT agent"). Debug prints no token.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// The destination's access token.
    pub client_access_token: String,
    /// `destination`, always.
    pub client_mode: String,
    /// The tunnel's region.
    pub region: String,
    /// The tunnel's services.
    pub services: Vec<String>,
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client_access_token: _, client_mode, region, services } = self;
        f.debug_struct("Notification")
            .field("client_mode", client_mode)
            .field("region", region)
            .field("services", services)
            .finish_non_exhaustive()
    }
}

/// All that was published since the last reset.
#[derive(Debug, Default)]
pub(crate) struct Notifications(HashMap<String, Vec<Notification>>);

impl Notifications {
    /// Publishes the tunnel's destination token for the thing that the destination names, if it names one.
    pub(crate) fn publish(&mut self, tunnel: &Tunnel, destination: Option<&Destination>) {
        let Some((destination, thing)) = destination.and_then(|d| d.thing_name.as_ref().map(|thing| (d, thing))) else {
            return;
        };
        self.0.entry(thing.clone()).or_default().push(Notification {
            client_access_token: tunnel.tokens().destination.clone(),
            client_mode: "destination".to_owned(),
            region: tunnel.region.clone(),
            services: destination.services.clone(),
        });
    }

    /// What was published for a thing, oldest first.
    pub(crate) fn of(&self, thing: &str) -> &[Notification] {
        self.0.get(thing).map_or(&[], Vec::as_slice)
    }
}
