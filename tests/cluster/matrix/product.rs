//! The product, whole, or broken on purpose: what a product does that leaves a rule out is made of the
//! real one by the proxies in front of AWS and of the API server.

use crate::support::api_proxy::{ApiProxy, Request};
use crate::support::aws_proxy::AwsProxy;
use axum::http::StatusCode;
use opentunnel_api::OWNER_TAG;
use serde_json::{Value, json};
use std::fmt;

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// The product.
    Whole,
    /// One that does not mark its tunnels with the owner tag.
    Unmarked,
    /// One that opens without a search, whoever may have opened before.
    Unsearched,
    /// One that adopts a tunnel, but does not rotate its tokens.
    Unrotated,
    /// One that writes Tunnels whoever has written meanwhile.
    Unconditioned,
}

impl Product {
    /// Breaks the operator behind this proxy.
    pub fn breaks(self, aws: &AwsProxy) {
        match self {
            Self::Whole | Self::Unconditioned => {}
            Self::Unmarked => aws.rewrite(
                |request| request.calls("OpenTunnel"),
                |body| {
                    let tags = body["tags"].as_array_mut().expect("tags");
                    tags.retain(|tag| tag["key"] != OWNER_TAG);
                    // AWS takes no empty list.
                    if tags.is_empty() {
                        body["tags"].take();
                    }
                },
            ),
            Self::Unsearched => {
                aws.answer(StatusCode::OK, json!({"tunnelSummaries": []}), |request| request.calls("ListTunnels"));
            }
            Self::Unrotated => {
                aws.answer(StatusCode::OK, made_up(), |request| request.calls("RotateTunnelAccessToken"));
            }
        }
    }

    /// Breaks the operator behind this proxy.
    pub fn breaks_writes(self, api: &ApiProxy) {
        if self == Self::Unconditioned {
            let writes = |request: &Request| request.method == "PATCH" && request.path.contains("/tunnels/");
            api.rewrite(writes, |body| {
                body["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
            });
        }
    }
}

fn made_up() -> Value {
    json!({"sourceAccessToken": "made-up", "destinationAccessToken": "made-up"})
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "the product",
            Self::Unmarked => "a product that does not mark its tunnels with the owner tag",
            Self::Unsearched => "a product that does not search before it opens",
            Self::Unrotated => "a product that adopts without a rotation",
            Self::Unconditioned => "a product that writes whoever has written meanwhile",
        })
    }
}
