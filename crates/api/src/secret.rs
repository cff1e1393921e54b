//! A token Secret: its type, labels and annotations, and the keys of its data.

use crate::{ClientMode, MANAGER};

/// Its `type`.
pub const TYPE: &str = "opentunnel.dev/tunnel-tokens";
/// Its label, with the value [`LABEL_VALUE`]: what the operator's watch selects Secrets by.
pub const LABEL: &str = "opentunnel.dev/secret";
/// The value of [`LABEL`].
pub const LABEL_VALUE: &str = "tokens";
/// Its label for people. A policy may stamp another value on it: that is no edit.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Its label for Velero: a backup has no live tokens.
pub const NO_BACKUP_LABEL: &str = "velero.io/exclude-from-backup";
/// Its annotation: the AWS tunnel whose tokens it holds.
pub const TUNNEL_ID_ANNOTATION: &str = "opentunnel.dev/tunnel-id";
/// Its annotation: the generation of its tokens, see [`TunnelStatus::token_generation`](crate::TunnelStatus).
pub const GENERATION_ANNOTATION: &str = "opentunnel.dev/token-generation";
/// Its annotation: SHA-256 of the operator's own keys and their values, in hexadecimal.
pub const DIGEST_ANNOTATION: &str = "opentunnel.dev/data-sha256";

/// Its labels, each with its value.
pub const LABELS: [(&str, &str); 3] = [(LABEL, LABEL_VALUE), (MANAGED_BY_LABEL, MANAGER), (NO_BACKUP_LABEL, "true")];

/// Key: AWS's ID of the tunnel.
pub const TUNNEL_ID: &str = "tunnelId";
/// Key: the AWS region of the tunnel.
pub const REGION: &str = "region";
/// Key: what the client connects to the source's side with.
pub const SOURCE_ACCESS_TOKEN: &str = "sourceAccessToken";
/// Key: with it a restarted local proxy may use the access token again.
pub const SOURCE_CLIENT_TOKEN: &str = "sourceClientToken";
/// Key: what the device connects to the destination's side with.
pub const DESTINATION_ACCESS_TOKEN: &str = "destinationAccessToken";
/// Key: with it a restarted local proxy may use the access token again.
pub const DESTINATION_CLIENT_TOKEN: &str = "destinationClientToken";
/// Key, of one side alone: the variable that AWS's local proxy reads its access token from.
pub const PROXY_ACCESS_TOKEN: &str = "AWSIOT_TUNNEL_ACCESS_TOKEN";
/// Key, of one side alone: the variable that AWS's local proxy reads its client token from.
pub const PROXY_CLIENT_TOKEN: &str = "AWSIOT_TUNNEL_CLIENT_TOKEN";
/// Key, of one side alone: the variable that AWS's local proxy reads its region from.
pub const PROXY_REGION: &str = "AWSIOT_TUNNEL_REGION";

/// The keys that are the operator's. Any other key is somebody else's: it is kept, and is no edit.
pub const KEYS: [&str; 9] = [
    TUNNEL_ID,
    REGION,
    SOURCE_ACCESS_TOKEN,
    SOURCE_CLIENT_TOKEN,
    DESTINATION_ACCESS_TOKEN,
    DESTINATION_CLIENT_TOKEN,
    PROXY_ACCESS_TOKEN,
    PROXY_CLIENT_TOKEN,
    PROXY_REGION,
];

/// Whether a key of a token Secret is the operator's.
pub fn is_own_key(key: &str) -> bool {
    KEYS.contains(&key)
}

/// The keys of the tokens of a mode.
pub fn token_keys(mode: ClientMode) -> &'static [&'static str] {
    const ALL: [&str; 4] =
        [SOURCE_ACCESS_TOKEN, SOURCE_CLIENT_TOKEN, DESTINATION_ACCESS_TOKEN, DESTINATION_CLIENT_TOKEN];
    match mode {
        ClientMode::Source => &ALL[..2],
        ClientMode::Destination => &ALL[2..],
        ClientMode::All => &ALL,
    }
}
