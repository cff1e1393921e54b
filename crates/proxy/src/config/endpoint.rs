//! Where AWS's service is, and how hosts and ports are written.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// With TLS or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Without: for tests.
    Ws,
    /// With.
    Wss,
}

/// Where the service's data plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// With TLS or without.
    pub scheme: Scheme,
    /// A name or an IP address, an IPv6 address without brackets; in lower case.
    pub host: String,
    /// 1-65535.
    pub port: u16,
}

impl Endpoint {
    /// As `-e` has it: `HOST[:PORT]`, `ws://` or `wss://` in front of it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let (scheme, rest) = match lower.split_once("://") {
            None => (Scheme::Wss, &*lower),
            Some(("wss", rest)) => (Scheme::Wss, rest),
            Some(("ws", rest)) => (Scheme::Ws, rest),
            Some((other, _)) => {
                return Err(format!(
                    "{other}:// is not spoken here: write HOST:PORT, or wss:// or ws:// in front of it"
                ));
            }
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('/') {
            return Err("write a host and a port without a path: HOST:PORT".to_owned());
        }
        let (host, port) = host_and_port(rest)?;
        let default = match scheme {
            Scheme::Ws => 80,
            Scheme::Wss => 443,
        };
        let port = port.unwrap_or(default);
        if port == 0 {
            return Err("port 0 cannot be connected to".to_owned());
        }
        Ok(Self { scheme, host, port })
    }

    /// `HOST:PORT`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        format!("{}:{}", bracketed(&self.host), self.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// An IPv6 address needs brackets where a port follows.
pub(crate) fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// `HOST`, `HOST:PORT`, `[IPv6]`, `[IPv6]:PORT`, or an IPv6 address alone.
pub(super) fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
        host.parse::<Ipv6Addr>().map_err(|_| format!("{} is no IPv6 address", shown(host)))?;
        return match after {
            "" => Ok((host.to_owned(), None)),
            _ => {
                Ok((host.to_owned(), Some(port(after.strip_prefix(':').ok_or("only :PORT may follow the bracket")?)?)))
            }
        };
    }
    match text.matches(':').count() {
        0 => Ok((host(text)?, None)),
        1 => {
            let (before, after) = text.split_once(':').unwrap_or((text, ""));
            Ok((host(before)?, Some(port(after)?)))
        }
        _ if text.parse::<Ipv6Addr>().is_ok() => Ok((text.to_owned(), None)),
        _ => Err("write an IPv6 address with a port in brackets: [::1]:443".to_owned()),
    }
}

/// A name or an IP address.
pub(super) fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<IpAddr>().is_ok() {
        return Ok(bare.to_owned());
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match text.len() {
        0 => Err("the host is missing".to_owned()),
        // As DNS has it, RFC 1035, section 2.3.4.
        1..=253 if text.bytes().all(fits) && text.split('.').all(|label| label.len() <= 63) => Ok(text.to_owned()),
        _ => Err(format!("{} is neither the name of a host nor an IP address", shown(text))),
    }
}

/// 0-65535.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| format!("{} is no port: 1 to 65535", shown(text)))
}

/// What was given, in quotes; not what is so long that it may be a token in the wrong place.
pub(super) fn shown(text: &str) -> String {
    if text.chars().count() <= 64 { format!("{text:?}") } else { "what is given (not shown: it is long)".to_owned() }
}

/// As AWS names its regions.
pub(super) fn region(text: &str) -> Result<&str, String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
        Ok(text)
    } else {
        Err(format!("{} is no region: write it as us-east-1", shown(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_perhaps_a_port() {
        for (text, written) in [
            ("data.tunneling.iot.us-east-1.amazonaws.com", "wss://data.tunneling.iot.us-east-1.amazonaws.com:443"),
            ("DATA.example.com:8443", "wss://data.example.com:8443"),
            ("wss://localhost:4571/", "wss://localhost:4571"),
            ("WS://127.0.0.1:4571", "ws://127.0.0.1:4571"),
            ("ws://localhost", "ws://localhost:80"),
            ("[::1]:4571", "wss://[::1]:4571"),
            ("[fe80::1]", "wss://[fe80::1]:443"),
            ("::1", "wss://[::1]:443"),
            ("my_host:1", "wss://my_host:1"),
        ] {
            assert_eq!(Endpoint::parse(text).map(|endpoint| endpoint.to_string()), Ok(written.to_owned()), "{text}");
        }
        for (text, reason) in [
            ("", "host is missing"),
            (":443", "host is missing"),
            ("host:", "no port"),
            ("host:0", "port 0"),
            ("host:65536", "no port"),
            ("host:+1", "no port"),
            ("host:443:1", "in brackets"),
            ("[::1", "not closed"),
            ("[::1]443", ":PORT"),
            ("[host]:1", "no IPv6 address"),
            ("https://host", "wss://"),
            ("host/tunnel", "without a path"),
            ("user@host", "neither the name"),
            ("ho st", "neither the name"),
        ] {
            let error = Endpoint::parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
