//! An HTTP proxy on the way: HTTPS_PROXY and NO_PROXY, and the CONNECT that asks it through.

use super::exchange::{self, ExchangeError};
use super::{Connection, words};
use crate::config::{Endpoint, Scheme};
use http_body_util::Empty;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Method, Request, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use std::fmt;
use std::net::IpAddr;

/// As AWS's proxy takes it where the URL has none.
const DEFAULT_PORT: u16 = 3128;

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct WebProxy {
    /// Whether it is spoken to by TLS.
    pub(super) scheme: WebProxyScheme,
    /// A name or an IP address, IPv6 without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    authorization: Option<HeaderValue>,
}

/// How an HTTP proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WebProxyScheme {
    Http,
    Https,
}

impl WebProxy {
    /// Reads the value of HTTPS_PROXY. `None`: NO_PROXY (`excluded`) says that this endpoint is connected to directly, or
    /// it is without TLS.
    pub(crate) fn for_endpoint(url: &str, excluded: &str, endpoint: &Endpoint) -> Result<Option<Self>, String> {
        let wrong = || {
            // Never the URL: it may hold a password.
            "this is no URL of an HTTP proxy: write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, special \
             characters of the password as %40 and so on"
                .to_owned()
        };
        let target: Uri = format!("https://{}", endpoint.authority()).parse().map_err(|_| wrong())?;
        let found = Matcher::builder().https(url.trim()).build().intercept(&target).ok_or_else(wrong)?;
        let scheme = match found.uri().scheme_str() {
            Some("http") => WebProxyScheme::Http,
            Some("https") => WebProxyScheme::Https,
            _ => return Err("only proxies that speak HTTP are used: write http:// or https://".to_owned()),
        };
        let host = found.uri().host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = found.uri().port_u16().unwrap_or(DEFAULT_PORT);
        let proxy = Self { scheme, host, port, authorization: found.basic_auth().cloned() };
        if endpoint.scheme == Scheme::Ws || is_excluded(excluded, endpoint, &target) {
            return Ok(None);
        }
        Ok(Some(proxy))
    }

    /// Asks for a connection to the endpoint, on a connection to this proxy.
    pub(super) async fn connect_through(
        &self,
        connection: Box<dyn Connection>,
        endpoint: &Endpoint,
    ) -> Result<Box<dyn Connection>, WebProxyError> {
        let authority = endpoint.authority();
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(&authority)
            .header(HOST, &authority)
            .body(Empty::new())
            .map_err(|error| ExchangeError::Request(error.to_string()))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        let answer = exchange::send(connection, request).await?;
        if !answer.status().is_success() {
            let status = answer.status();
            let text = answer.text().await;
            return Err(WebProxyError::Refused { status: status.as_u16(), words: words(status, None, &text) });
        }
        Ok(answer.upgrade().await?)
    }
}

impl fmt::Debug for WebProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebProxy({self})")
    }
}

/// Without the password.
impl fmt::Display for WebProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            WebProxyScheme::Http => "http",
            WebProxyScheme::Https => "https",
        };
        write!(f, "{scheme}://{}:{}", crate::config::bracketed(&self.host), self.port)
    }
}

/// Why an HTTP proxy does not let through.
#[derive(Debug, thiserror::Error)]
pub enum WebProxyError {
    /// It says no.
    #[error("it answers CONNECT with {status}: {words}")]
    Refused {
        /// HTTP's.
        status: u16,
        /// Why.
        words: String,
    },
    /// It cannot be understood.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

/// Whether a list as in NO_PROXY has the endpoint: hosts, domains (with or without a dot in front), IP addresses,
/// networks, `*`; each with a port, if for that alone.
fn is_excluded(list: &str, endpoint: &Endpoint, target: &Uri) -> bool {
    let entries: Vec<_> = list
        .split([',', ' ', '\t'])
        .filter_map(|entry| {
            let (host, port) = without_port(entry.trim());
            port.is_none_or(|port| port == endpoint.port).then_some(host)
        })
        .map(|host| host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host))
        .collect();
    // The library's rules do not know ports, and do not take `*` for an IP address.
    entries.contains(&"*") || {
        let rules = Matcher::builder().https("http://proxy").no(entries.join(",")).build();
        rules.intercept(target).is_none()
    }
}

fn without_port(entry: &str) -> (&str, Option<u16>) {
    if entry.parse::<IpAddr>().is_ok() {
        return (entry, None);
    }
    match entry.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) if !host.contains(':') || host.starts_with('[') => {
            (host.trim_matches(['[', ']']), Some(port))
        }
        _ => (entry.trim_matches(['[', ']']), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        let (scheme, rest) = text.split_once("://").map_or((Scheme::Wss, text), |(_, rest)| (Scheme::Ws, rest));
        let (host, port) = rest.rsplit_once(':').expect("HOST:PORT");
        Endpoint { scheme, host: host.to_owned(), port: port.parse().expect("a port") }
    }

    #[test]
    fn the_proxys_url_is_read_as_it_is_usually_written() {
        for (url, written, authorization) in [
            ("http://proxy:8080", "http://proxy:8080", None),
            ("proxy:8080", "http://proxy:8080", None),
            ("http://proxy", "http://proxy:3128", None),
            ("https://proxy:8443/", "https://proxy:8443", None),
            ("http://[::1]:8080", "http://[::1]:8080", None),
            // user:pass, user:p@ss:w
            ("http://user:pass@proxy:1", "http://proxy:1", Some("Basic dXNlcjpwYXNz")),
            ("http://user:p%40ss:w@proxy:1", "http://proxy:1", Some("Basic dXNlcjpwQHNzOnc=")),
        ] {
            let proxy = WebProxy::for_endpoint(url, "", &endpoint("host:443")).expect(url).expect("used");
            assert_eq!(proxy.to_string(), written, "{url}");
            assert_eq!(proxy.authorization.as_ref().map(|value| value.to_str().expect("ASCII")), authorization);
            assert!(!format!("{proxy:?}").contains("pass"));
        }
        for url in
            ["socks5://proxy:1", "ftp://proxy", "http://", "http://user:secret@", "http://secret @proxy", "::1:1"]
        {
            let error = WebProxy::for_endpoint(url, "", &endpoint("host:443")).expect_err(url);
            assert!(error.contains("http://") && !error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn no_proxy_names_what_is_connected_to_directly() {
        let aws = "data.tunneling.iot.us-east-1.amazonaws.com:443";
        for (list, target, excluded) in [
            ("", aws, false),
            ("*", aws, true),
            ("*", "10.1.2.3:443", true),
            ("other, *", aws, true),
            ("amazonaws.com", aws, true),
            (".amazonaws.com", aws, true),
            ("*.amazonaws.com", aws, true),
            ("AmazonAWS.com", aws, true),
            ("other.com,.amazonaws.com", aws, true),
            ("other.com .amazonaws.com", aws, true),
            ("zonaws.com", aws, false),
            ("data.tunneling.iot.us-east-1.amazonaws.com", aws, true),
            ("data.tunneling.iot.us-east-1.amazonaws.com:443", aws, true),
            ("data.tunneling.iot.us-east-1.amazonaws.com:8443", aws, false),
            (".amazonaws.com:443", aws, true),
            (".amazonaws.com:444", aws, false),
            ("tunneling.iot.us-east-1.amazonaws.com.cn", aws, false),
            ("localhost,127.0.0.1", "127.0.0.1:4571", true),
            ("localhost,127.0.0.1", "localhost:4571", true),
            ("127.0.0.1:4571", "127.0.0.1:4571", true),
            ("127.0.0.1:4572", "127.0.0.1:4571", false),
            ("10.0.0.0/8", "10.1.2.3:443", true),
            ("10.0.0.0/8", "11.1.2.3:443", false),
            ("10.0.0.0/8", "host:443", false),
            ("::1", "::1:443", true),
            ("[::1]:443", "::1:443", true),
            ("[::1]:444", "::1:443", false),
            ("[::1]", "::1:443", true),
            ("fd00::/8", "fd12::1:443", true),
            ("fd00::/8", "fe80::1:443", false),
        ] {
            let proxy = WebProxy::for_endpoint("http://proxy:1", list, &endpoint(target)).expect("a URL");
            assert_eq!(proxy.is_none(), excluded, "{list:?} and {target}");
        }
        let plain = WebProxy::for_endpoint("http://proxy:1", "", &endpoint("ws://host:80"));
        assert_eq!(plain, Ok(None));
    }
}
