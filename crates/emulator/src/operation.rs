//! The 8 operations of the service.

use serde::{Deserialize, Serialize};

/// An operation of the `IoTSecuredTunneling` service (API version 2018-10-05).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are AWS's own and documented there")]
pub enum Operation {
    OpenTunnel,
    CloseTunnel,
    DescribeTunnel,
    ListTunnels,
    RotateTunnelAccessToken,
    TagResource,
    UntagResource,
    ListTagsForResource,
}

impl Operation {
    /// All 8.
    pub const ALL: [Self; 8] = [
        Self::OpenTunnel,
        Self::CloseTunnel,
        Self::DescribeTunnel,
        Self::ListTunnels,
        Self::RotateTunnelAccessToken,
        Self::TagResource,
        Self::UntagResource,
        Self::ListTagsForResource,
    ];

    /// The name as it stands in `X-Amz-Target` after the dot.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenTunnel => "OpenTunnel",
            Self::CloseTunnel => "CloseTunnel",
            Self::DescribeTunnel => "DescribeTunnel",
            Self::ListTunnels => "ListTunnels",
            Self::RotateTunnelAccessToken => "RotateTunnelAccessToken",
            Self::TagResource => "TagResource",
            Self::UntagResource => "UntagResource",
            Self::ListTagsForResource => "ListTagsForResource",
        }
    }

    /// The operation of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }
}
