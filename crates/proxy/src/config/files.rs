//! The files of AWS's local proxy: `--config`, `--config-dir`, `--settings-json`.

use super::args::Args;
use super::services::service_id;
use clap::{CommandFactory, Parser};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a file that is read, at most: what is larger is something else.
const MAX_FILE: u64 = 1 << 20;

/// Reads the file of `--config`: `NAME = VALUE` a line, with the flags' long names; `#` begins a comment anywhere.
pub(super) fn flags(path: &Path) -> Result<Args, String> {
    let text = text(path)?;
    let command = Args::command();
    let mut arguments = vec!["opentunnel-proxy".to_owned()];
    for (number, line) in text.lines().enumerate() {
        // Never the line itself: it may hold a token.
        let at = |reason: &str| format!("{} line {}: {reason}", path.display(), number + 1);
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| at("write NAME = VALUE"))?;
        let (name, value) = (name.trim(), value.trim());
        let argument = command
            .get_arguments()
            .find(|argument| argument.get_long() == Some(name))
            .filter(|_| !["config", "export-default-settings"].contains(&name))
            .ok_or_else(|| at("no flag that may stand in a file has this long name"))?;
        if argument.get_action().takes_values() {
            arguments.push(format!("--{name}={value}"));
        } else {
            match value.to_ascii_lowercase().as_str() {
                "" | "true" | "yes" | "on" | "1" => arguments.push(format!("--{name}")),
                "false" | "no" | "off" | "0" => {}
                _ => return Err(at("write true or false")),
            }
        }
    }
    Args::try_parse_from(arguments).map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().next().unwrap_or_default();
        format!("{}: {}", path.display(), reason.strip_prefix("error: ").unwrap_or(reason))
    })
}

/// Reads the files of `--config-dir` and of the directories in it: `SERVICE=ADDRESS` a line, as in an INI file without
/// a section. What is no such file is left out and told of in `warnings`. Of a service that is there twice the first
/// counts, the files in the order of their names.
pub(super) fn services<A>(
    directory: &Path,
    address: impl Fn(&str) -> Result<A, String>,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<String, A>, String> {
    let mut services = BTreeMap::new();
    for path in files_below(directory)? {
        let lines =
            match text(&path).and_then(|text| ini(&text).map_err(|error| format!("{}: {error}", path.display()))) {
                Ok(lines) => lines,
                Err(error) => {
                    warnings.push(format!("{error}; the file is left out"));
                    continue;
                }
            };
        for (id, value) in lines {
            match service_id(&id).and_then(|_| address(&value)) {
                Ok(address) => drop(services.entry(id).or_insert(address)),
                Err(error) => warnings.push(format!("{}: {error}; the line is left out", path.display())),
            }
        }
    }
    Ok(services)
}

fn ini(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        match line.chars().next() {
            None | Some(';' | '#') => {}
            // What stands in a section is no service to AWS's proxy.
            Some('[') => break,
            Some(_) => {
                let (id, value) =
                    line.split_once('=').ok_or_else(|| format!("line {} is not SERVICE=ADDRESS", number + 1))?;
                lines.push((id.trim().to_owned(), value.trim().to_owned()));
            }
        }
    }
    Ok(lines)
}

/// Links to directories are not followed, as AWS's proxy does not: of a mounted ConfigMap each file is seen.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("{} cannot be read: {error}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            files.extend(files_below(&path)?);
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What `--settings-json` says, as far as it has a meaning here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// Where a source listens without `-b`.
    pub bind_address: Option<String>,
    /// The service's host, `%s` for the region.
    pub endpoint_format: Option<String>,
    /// The service's host by region.
    pub region_endpoints: BTreeMap<String, String>,
    /// Time between two pings.
    pub ping_interval: Option<Duration>,
}

/// AWS's name for where the region stands in a host's name.
pub(super) const ENDPOINT_FORMAT: &str = "data.tunneling.iot.%s.amazonaws.com";
/// As AWS's proxy.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Settings of AWS's that are known, but that this proxy sees to by itself.
const WITHOUT_MEANING: [&str; 14] = [
    "/message/data_frame_max_size",
    "/message/data_length_size",
    "/message/max_payload_size",
    "/message/max_size",
    "/tcp/connection_retry_count",
    "/tcp/connection_retry_delay_ms",
    "/tcp/max_active_connections",
    "/tcp/read_buffer_size",
    "/tcp/write_buffer_size",
    "/websocket/connect_retry_count",
    "/websocket/max_frame_size",
    "/websocket/reconnect_on_data_error",
    "/websocket/retry_delay_ms",
    "/websocket/subprotocol",
];

impl Settings {
    /// Reads the file. Members that nobody knows are left out, as AWS's proxy does.
    pub(super) fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Self, String> {
        let text = text(path)?;
        let root: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let Some(proxy) = root.pointer("/tunneling/proxy") else { return Ok(Self::default()) };
        let without: Vec<_> = WITHOUT_MEANING.iter().filter(|name| proxy.pointer(name).is_some()).collect();
        if !without.is_empty() {
            let names: Vec<_> = without.iter().map(|name| name[1..].replace('/', ".")).collect();
            warnings.push(format!(
                "{}: these settings are not used, for this proxy sees to sizes, retries and reconnects by itself: {}",
                path.display(),
                names.join(", ")
            ));
        }
        let wrong = |name: &str, reason: &str| format!("{}: tunneling.proxy.{name} {reason}", path.display());
        let string = |name: &str| match proxy.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(wrong(name, "must be a text")),
        };
        let endpoint_format = string("endpoint_format")?;
        if endpoint_format.as_ref().is_some_and(|format| !format.contains("%s")) {
            return Err(wrong("endpoint_format", "must have %s where the region stands"));
        }
        let mut region_endpoints = BTreeMap::new();
        for (region, host) in proxy.get("region_endpoint_overrides").and_then(Value::as_object).into_iter().flatten() {
            let host = host.as_str().ok_or_else(|| wrong("region_endpoint_overrides", "must have texts"))?;
            region_endpoints.insert(region.clone(), host.to_owned());
        }
        // AWS's program writes numbers as texts.
        let ping_interval = match proxy.pointer("/websocket/ping_period_ms") {
            None => None,
            Some(value) => value
                .as_u64()
                .or_else(|| value.as_str()?.trim().parse().ok())
                .filter(|millis| (1000..=3_600_000).contains(millis))
                .map(|millis| Some(Duration::from_millis(millis)))
                .ok_or_else(|| wrong("websocket.ping_period_ms", "must be from 1000 to 3600000"))?,
        };
        Ok(Self { bind_address: string("default_bind_address")?, endpoint_format, region_endpoints, ping_interval })
    }

    /// What `--export-default-settings` writes.
    pub(super) fn defaults() -> String {
        let millis = PING_INTERVAL.as_millis().to_string();
        let settings = json!({ "tunneling": { "proxy": {
            "default_bind_address": super::merged::BIND_ADDRESS,
            "endpoint_format": ENDPOINT_FORMAT,
            "region_endpoint_overrides": {
                "cn-north-1": "data.tunneling.iot.cn-north-1.amazonaws.com.cn",
                "cn-northwest-1": "data.tunneling.iot.cn-northwest-1.amazonaws.com.cn",
            },
            "websocket": { "ping_period_ms": millis },
        }}});
        format!("{settings:#}\n")
    }
}

fn text(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        return Err(format!("{} has {length} bytes: it is no configuration", path.display()));
    }
    fs::read_to_string(path).map_err(failed)
}
