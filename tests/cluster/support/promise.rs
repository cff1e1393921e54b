//! The rules of the promise (docs/protocol.md), and how one of them is looked at: whether the tokens in
//! the Secrets are those that AWS accepts.

use super::namespace::Namespace;
use opentunnel_api::ClientMode;
use secure_tunneling_emulator::Emulator;
use std::fmt;

/// A rule of the promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// 1: never two open AWS tunnels that stay.
    OneTunnel,
    /// 1: no tunnel with our owner tag stays that no Tunnel owns.
    NoOrphan,
    /// 2: a Ready Tunnel's Secrets hold tokens that AWS accepts.
    LiveTokens,
    /// 3: OpenTunnel is called once per opening.
    OpenedOnce,
    /// 4: every Tunnel reaches its state.
    State,
    /// 4: then nothing writes any more.
    Silence,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneTunnel => "1a",
            Self::NoOrphan => "1b",
            Self::LiveTokens => "2",
            Self::OpenedOnce => "3",
            Self::State => "4a",
            Self::Silence => "4b",
        })
    }
}

/// A rule that was broken. Displayed as `3: OpenTunnel was carried out 2 times`.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// What is wrong with the Secrets of a Ready Tunnel, whose tunnel this is.
pub async fn dead_tokens(
    namespace: &Namespace,
    aws: &Emulator,
    tunnel_id: &str,
    secrets: &[(&str, ClientMode)],
) -> Vec<Violation> {
    let dead = |what: String| Violation { rule: Rule::LiveTokens, what };
    let Some(live) = aws.live_tokens(tunnel_id) else {
        return vec![dead("it is Ready, and its tunnel is not open".into())];
    };
    let mut violations = Vec::new();
    for (name, mode) in secrets {
        let Some(data) = namespace.secret_data(name).await else {
            violations.push(dead(format!("it is Ready, and there is no Secret {name}")));
            continue;
        };
        let alone = *mode != ClientMode::All;
        let mut keys = vec![("tunnelId", tunnel_id)];
        if mode.has_source() {
            keys.push(("sourceAccessToken", live.source.as_str()));
        }
        if mode.has_destination() {
            keys.push(("destinationAccessToken", live.destination.as_str()));
        }
        if alone {
            let token = if mode.has_source() { &live.source } else { &live.destination };
            keys.push(("AWSIOT_TUNNEL_ACCESS_TOKEN", token));
        }
        for (key, wanted) in keys {
            if data.get(key).map(String::as_str) != Some(wanted) {
                violations.push(dead(format!("{key} in Secret {name} is not what AWS accepts")));
            }
        }
    }
    violations
}
