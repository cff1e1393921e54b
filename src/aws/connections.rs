//! The HTTP connections: to AWS, and how long an idle one is kept; and, by the same client, to a collector of traces.

use aws_sdk_iotsecuretunneling::config::SharedHttpClient;
use aws_sdk_iotsecuretunneling::config::http::HttpRequest;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, Connector as SdkConnector};
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpConnector};
use axum::body::Bytes;
use axum::http::Request;
use std::future::Future;
use std::time::Duration;

/// A connection that was idle for longer is not used again. A NAT or a firewall drops an idle connection without a
/// word: AWS's NAT gateway after 350 s, Azure's after 4 min, some firewalls after 60 s. What is sent on such a
/// connection gets no answer, so that an OpenTunnel would be in doubt. The SDK's own limit is 90 s.
const IDLE: Duration = Duration::from_secs(30);

/// The SDK's default client (rustls with aws-lc, HTTP_PROXY, HTTPS_PROXY and NO_PROXY), except for [`IDLE`].
pub fn http_client() -> SharedHttpClient {
    let proxies = ProxyConfig::from_env();
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = SdkConnector::builder().proxy_config(proxies.clone()).pool_idle_timeout(IDLE);
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build()
    })
}

/// Sends to others than AWS, by `http` or `https`.
#[derive(Clone, Debug)]
pub struct Connector(SharedHttpConnector);

impl Connector {
    /// With the environment's proxies, as for AWS.
    pub fn from_env() -> Self {
        let connector = SdkConnector::builder().proxy_config(ProxyConfig::from_env()).pool_idle_timeout(IDLE);
        Self(SharedHttpConnector::new(connector.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build()))
    }

    /// Sends a request; returns the status of the answer, whose body nobody reads.
    ///
    /// # Errors
    /// There is none: why, for people.
    pub fn send(&self, request: Request<Bytes>) -> impl Future<Output = Result<u16, String>> + Send + use<> {
        let connector = self.0.clone();
        async move {
            let request = HttpRequest::try_from(request.map(Into::into)).map_err(|e| super::chain(&e))?;
            let answer = connector.call(request).await.map_err(|e| super::clean(&super::chain(&e)))?;
            Ok(answer.status().as_u16())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_iotsecuretunneling as sdk;
    use axum::serve::ListenerExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::time::{advance, pause, resume};

    #[tokio::test]
    async fn a_connection_is_not_used_again_after_a_pause_that_a_nat_may_not_survive() {
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let listener = listener.tap_io(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let answer = axum::Router::new().fallback(async || r#"{"tunnelSummaries":[]}"#);
        tokio::spawn(async move { axum::serve(listener, answer).await });
        let config = sdk::Config::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .http_client(http_client())
            .region(sdk::config::Region::new("us-east-1"))
            .credentials_provider(aws_credential_types::Credentials::new("key", "secret", None, None, "test"))
            .endpoint_url(url)
            .build();
        let client = sdk::Client::from_conf(config);
        let call = async || drop(client.list_tunnels().send().await.expect("an answer"));

        call().await;
        call().await;
        assert_eq!(connections.load(Ordering::Relaxed), 1, "a second call goes over the same connection");
        pause();
        advance(IDLE + Duration::from_secs(1)).await;
        resume();
        call().await;
        assert_eq!(connections.load(Ordering::Relaxed), 2, "after a pause, over another");
    }
}
