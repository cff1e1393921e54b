//! The way to the API server.

use hyper_util::client::proxy::matcher::Matcher;
use kube::Config;
use kube::config::InferConfigError;

/// The configuration that kubectl would use, else the Pod's own, which no proxy has a part in.
///
/// # Errors
/// There is neither.
pub async fn infer() -> Result<Config, InferConfigError> {
    let mut config = Config::infer().await?;
    // kube sends all servers of a kubeconfig through HTTPS_PROXY: it asks NO_PROXY about the proxy, where
    // kubectl asks it about the server. A `proxy-url` in the kubeconfig stays as it is, as with kubectl.
    let from_environment = ["HTTPS_PROXY", "https_proxy"].iter().any(|name| {
        let proxy = std::env::var(name).ok().and_then(|value| value.parse().ok());
        proxy.is_some() && proxy == config.proxy_url
    });
    if from_environment && Matcher::from_env().intercept(&config.cluster_url).is_none() {
        config.proxy_url = None;
    }
    Ok(config)
}
