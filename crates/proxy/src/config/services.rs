//! What `-s` and `-d` say: where each service's connections come from, or go to.

use super::endpoint::{bracketed, host_and_port, port, shown};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Addresses by service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services<A> {
    /// `-s PORT`: one, whatever the tunnel's only service is called.
    Only(A),
    /// `-s A=PORT,B=PORT`: the tunnel must have these services and no other, written just so.
    Exactly(BTreeMap<String, A>),
    /// From `--config-dir`: as many as the tunnel has. A source takes a free port for what does not stand there; a
    /// destination cannot serve it.
    Among(BTreeMap<String, A>),
}

/// Where a source listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// A name or an IP address, an IPv6 address without brackets.
    pub host: String,
    /// 0: a free one.
    pub port: u16,
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
    }
}

/// Where a destination connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By TCP.
    Tcp {
        /// A name or an IP address, an IPv6 address without brackets.
        host: String,
        /// 1-65535.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{}:{port}", bracketed(host)),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Reads the value of `-s` or `-d`. What a warning says goes to `warnings`.
pub(super) fn parse<A>(
    text: &str,
    address: impl Fn(&str) -> Result<A, String>,
    warnings: &mut Vec<String>,
) -> Result<Services<A>, String> {
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    match *items {
        [] => Err("it is empty: write a port, or SERVICE=PORT".to_owned()),
        [item] if !item.contains('=') => address(item).map(Services::Only),
        _ => {
            let mut services = BTreeMap::new();
            for item in items {
                let Some((id, value)) = item.split_once('=') else {
                    return Err(format!("{} names no service: of several, each is written SSH=5555", shown(item)));
                };
                let (id, value) = (service_id(id.trim())?, address(value.trim())?);
                if services.contains_key(id) {
                    // As AWS's does.
                    warnings.push(format!("service {id} is given twice: the first one counts"));
                } else {
                    services.insert(id.to_owned(), value);
                }
            }
            Ok(Services::Exactly(services))
        }
    }
}

/// What AWS may call a service, and some more: AWS's own examples have dots.
pub(super) fn service_id(text: &str) -> Result<&str, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":._-".contains(&byte);
    if (1..=128).contains(&text.len()) && text.bytes().all(fits) {
        Ok(text)
    } else {
        Err(format!("{} is no service: 1 to 128 letters, digits and : . _ -", shown(text)))
    }
}

/// `PORT` or `HOST:PORT`.
pub(super) fn listen_address(text: &str, default_host: &str) -> Result<ListenAddress, String> {
    if text.contains('/') {
        return Err(format!("{} is a path, and this side listens on ports", shown(text)));
    }
    let (host, port) = address(text, default_host)?;
    Ok(ListenAddress { host, port })
}

/// `PORT`, `HOST:PORT`, or a path.
pub(super) fn target(text: &str, default_host: &str) -> Result<Target, String> {
    if text.contains('/') {
        if cfg!(not(unix)) {
            return Err(format!("{} is the path of a Unix socket, which this system does not have", shown(text)));
        }
        return Ok(Target::Unix(text.into()));
    }
    match address(text, default_host)? {
        (_, 0) => Err(format!("{}: port 0 cannot be connected to", shown(text))),
        (host, port) => Ok(Target::Tcp { host, port }),
    }
}

fn address(text: &str, default_host: &str) -> Result<(String, u16), String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok((default_host.to_owned(), port(text)?));
    }
    match host_and_port(text)? {
        (host, Some(port)) => Ok((host, port)),
        (_, None) => Err(format!("{} has no port: write PORT, HOST:PORT or [IPv6]:PORT", shown(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Result<(Services<Target>, usize), String> {
        let mut warnings = Vec::new();
        parse(text, |text| target(text, "127.0.0.1"), &mut warnings).map(|services| (services, warnings.len()))
    }

    fn written(text: &str) -> Result<String, String> {
        targets(text).map(|(services, _)| match services {
            Services::Only(target) => target.to_string(),
            Services::Exactly(services) | Services::Among(services) => {
                services.iter().map(|(id, target)| format!("{id}={target} ")).collect()
            }
        })
    }

    #[test]
    fn a_destination_connects_to_a_port_a_host_or_a_socket() {
        for (text, expected) in [
            ("22", "127.0.0.1:22"),
            (" 22 ", "127.0.0.1:22"),
            ("localhost:3389", "localhost:3389"),
            ("[::1]:22", "[::1]:22"),
            ("/run/app.sock", "/run/app.sock"),
            ("./app.sock", "./app.sock"),
            ("SSH1=22", "SSH1=127.0.0.1:22 "),
            ("HTTP1=80,SSH1=10.0.0.1:22", "HTTP1=127.0.0.1:80 SSH1=10.0.0.1:22 "),
            ("HTTP1 = 80 , SSH1 = 22,", "HTTP1=127.0.0.1:80 SSH1=127.0.0.1:22 "),
            ("ip-172-31-6-23.us-west-2.compute.internal=/a", "ip-172-31-6-23.us-west-2.compute.internal=/a "),
        ] {
            assert_eq!(written(text), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "it is empty"),
            (",", "it is empty"),
            ("22,23", "names no service"),
            ("SSH=22,23", "names no service"),
            ("SSH=", "host is missing"),
            ("=22", "is no service"),
            ("S SH=22", "is no service"),
            ("ssh", "has no port"),
            ("0", "port 0"),
            ("65536", "is no port"),
            ("::1:22", "[IPv6]:PORT"),
            ("SSH==22", "neither the name"),
        ] {
            let error = targets(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(listen_address("/run/app.sock", "localhost").expect_err("a path").contains("ports"));
    }

    #[test]
    fn of_a_service_that_is_given_twice_the_first_counts() {
        let (services, warnings) = targets("A=1,A=2").expect("services");
        let expected = Target::Tcp { host: "127.0.0.1".to_owned(), port: 1 };
        assert_eq!((services, warnings), (Services::Exactly([("A".to_owned(), expected)].into()), 1));
    }

    #[test]
    fn a_source_may_take_a_free_port() {
        let address = |text| listen_address(text, "localhost").map(|address| address.to_string());
        assert_eq!(address("0"), Ok("localhost:0".to_owned()));
        assert_eq!(address("0.0.0.0:5555"), Ok("0.0.0.0:5555".to_owned()));
        assert_eq!(address("[::]:0"), Ok("[::]:0".to_owned()));
    }
}
