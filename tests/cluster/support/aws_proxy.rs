//! A proxy between an operator and AWS: plain HTTP, AWS JSON 1.1. It knows operations, and does what
//! the one in front of the API server does.

use super::api_proxy::Proxy;
use super::tap::Tap;
use kube::{Client, Config};
use secure_tunneling_emulator::Emulator;
use std::ops::Deref;
use std::sync::Arc;

/// A running proxy in front of AWS.
pub struct AwsProxy(Proxy);

impl AwsProxy {
    /// Starts one. A `tap` counts what goes through.
    pub async fn start(aws: &Emulator, tap: Option<Arc<Tap>>) -> Self {
        // A client of Kubernetes' without a cluster is a client of HTTP.
        let mut config = Config::new(aws.endpoint().parse().expect("a URL"));
        config.default_retry = false;
        Self(Proxy::start(Client::try_from(config).expect("a client"), tap).await)
    }

    /// See [`Proxy::next_door`].
    pub async fn next_door(&self) -> Self {
        Self(self.0.next_door().await)
    }

    /// The URL to give to an operator.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.0.address)
    }
}

impl Deref for AwsProxy {
    type Target = Proxy;
    fn deref(&self) -> &Proxy {
        &self.0
    }
}
