//! Flags and their twins in the environment.

use crate::memory::CLAIM_LIMIT;
use clap::{ArgAction, Parser, ValueEnum};
use opentunnel_api::PREFIX;
use std::net::SocketAddr;
use std::time::Duration;

/// AWS takes 200 tags of a tunnel, and two are the operator's.
const MAX_TAGS: usize = 198;

/// The commands.
#[derive(Parser, Debug)]
#[command(name = "opentunnel-operator", version, about, max_term_width = 100)]
pub enum Command {
    /// Run the operator.
    ///
    /// AWS is configured as for every AWS program: AWS_REGION, the credentials chain (environment,
    /// profile, IRSA, EKS Pod Identity), AWS_ENDPOINT_URL. Kubernetes: in-cluster, else KUBECONFIG.
    Run(Box<Run>),
    /// Print the CustomResourceDefinition as YAML.
    Crd,
}

/// The flags of `run`.
#[derive(Parser, Debug, Clone)]
pub struct Run {
    /// Namespace to watch; may be given more than once (in the environment: separated by commas)
    /// [default: all namespaces]
    #[arg(long, env = "OPENTUNNEL_WATCH_NAMESPACE", value_delimiter = ',', value_parser = namespace)]
    pub watch_namespace: Vec<String>,
    /// This cluster's ID in the tunnels' owner tag; no other cluster of the account and region may have it:
    /// see --close-orphans. A cluster cloned from a backup must set its own
    /// [default: the UID of namespace kube-system]
    #[arg(long, env = "OPENTUNNEL_CLUSTER_ID", value_parser = cluster_id)]
    pub cluster_id: Option<String>,
    /// Work only while holding the Lease opentunnel-operator, so that several replicas may run: one leads, the
    /// others stand by. It is in the namespace that POD_NAMESPACE names, else the kubeconfig context's (in a Pod:
    /// the ServiceAccount's), else default. false: lead at once, whoever else does
    #[arg(long, env = "OPENTUNNEL_LEADER_ELECT", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub leader_elect: bool,
    /// OpenTunnel calls per second (AWS's default quota)
    #[arg(long, env = "OPENTUNNEL_OPEN_RATE", default_value = "1", value_parser = rate)]
    pub open_rate: f64,
    /// CloseTunnel calls per second (AWS's default quota)
    #[arg(long, env = "OPENTUNNEL_CLOSE_RATE", default_value = "1", value_parser = rate)]
    pub close_rate: f64,
    /// Time limit of one AWS call, e.g. 20s
    #[arg(long, env = "OPENTUNNEL_AWS_TIMEOUT", default_value = "20s", value_parser = duration)]
    pub aws_timeout: Duration,
    /// Time after which a call that another process may have made has ended, e.g. 30s; longer than
    /// 5 s + --aws-timeout
    #[arg(long, env = "OPENTUNNEL_RECOVERY_GRACE", default_value = "30s", value_parser = duration)]
    pub recovery_grace: Duration,
    /// Time between two rounds of ListTunnels, e.g. 60s
    #[arg(long, env = "OPENTUNNEL_POLL_INTERVAL", default_value = "60s", value_parser = duration)]
    pub poll_interval: Duration,
    /// Watch the token Secrets by their label, so that one that is lost or edited comes back at once. It
    /// needs the rights to list and watch Secrets; false: each Tunnel looks at its own at every poll
    #[arg(long, env = "OPENTUNNEL_WATCH_SECRETS", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub watch_secrets: bool,
    /// Close open tunnels that carry this cluster's owner tag, but whose Tunnel in a watched namespace is gone
    /// or has another tunnel, once they are older than 5 min. dry-run: only tell of them, by log, Event and
    /// metric. A cluster cloned from a backup must set its own --cluster-id: with the same one each would close
    /// the other's tunnels
    #[arg(long, env = "OPENTUNNEL_CLOSE_ORPHANS", default_value = "true")]
    pub close_orphans: CloseOrphans,
    /// A tag of every tunnel that is opened, key=value; may be given more than once (in the environment: separated by
    /// commas). A Tunnel's own tag of that key wins
    #[arg(long, env = "OPENTUNNEL_DEFAULT_TAG", value_delimiter = ',', value_parser = default_tag, value_name = "KEY=VALUE")]
    pub default_tag: Vec<(String, String)>,
    /// Address of /healthz, /readyz and /metrics. [::] takes IPv4, too; where the node has no IPv6, it is 0.0.0.0
    #[arg(long, env = "OPENTUNNEL_HTTP_ADDR", default_value = "[::]:8080")]
    pub http_addr: SocketAddr,
    /// Format of the log
    #[arg(long, env = "OPENTUNNEL_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged, as in RUST_LOG, e.g. info or opentunnel_operator=debug
    #[arg(long, env = "OPENTUNNEL_LOG_FILTER", default_value = "info")]
    pub log_filter: String,
}

/// How the log is written.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What is done about tunnels that no Tunnel owns.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseOrphans {
    /// They are closed.
    True,
    /// Nobody looks for them.
    False,
    /// They are told of.
    DryRun,
}

impl Run {
    /// What no single flag can say.
    ///
    /// # Errors
    /// A text for people.
    pub fn check(&self) -> Result<(), String> {
        let mut keys: Vec<&String> = self.default_tag.iter().map(|(key, _)| key).collect();
        keys.sort();
        if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("--default-tag names the key {} twice: AWS takes a key once", twice[0]));
        }
        if keys.len() > MAX_TAGS {
            return Err(format!(
                "--default-tag is given {} times: AWS takes at most {MAX_TAGS} tags beside the operator's two",
                keys.len()
            ));
        }
        // A claim is acted on within that time; after it and the limit of one call, what was claimed has ended.
        if self.recovery_grace <= CLAIM_LIMIT + self.aws_timeout {
            return Err(format!(
                "--recovery-grace ({:?}) must be longer than 5s + --aws-timeout ({:?}): else a tunnel that another process is just opening could be opened twice",
                self.recovery_grace, self.aws_timeout
            ));
        }
        Ok(())
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1000.0).contains(&rate) => Ok(rate),
        _ => Err("calls per second, a number from 0.001 to 1000".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Option<Duration> = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    match parsed {
        Some(duration) if (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&duration) => {
            Ok(duration)
        }
        _ => Err("a time with a unit, such as 500ms, 20s or 1m, from 100ms to 24h".into()),
    }
}

/// A tag that AWS takes, and that is not its own or the operator's.
fn default_tag(text: &str) -> Result<(String, String), String> {
    let allowed = |c: char| c.is_alphanumeric() || c.is_whitespace() && !c.is_control() || "_.:/=+-@".contains(c);
    let fits = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.chars().count()) && part.chars().all(allowed)
    };
    let Some((key, value)) = text.split_once('=') else { return Err("key=value, such as team=edge".into()) };
    if !fits(key, 1..=128) || !fits(value, 0..=256) {
        return Err(
            "a tag that AWS takes: key 1-128 and value 0-256 letters, digits, spaces and _ . : / = + - @".into()
        );
    }
    if key.to_lowercase().starts_with("aws:") || key.starts_with(PREFIX) {
        return Err("keys that begin with aws: are AWS's, those that begin with opentunnel.dev/ the operator's".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn namespace(text: &str) -> Result<String, String> {
    let ok = !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if ok { Ok(text.to_owned()) } else { Err("the name of a namespace: a-z, 0-9 and -, at most 63 characters".into()) }
}

/// The owner tag is `<cluster id>/<namespace>/<uid>/<attempt>` within AWS's 256 characters.
fn cluster_id(text: &str) -> Result<String, String> {
    let ok =
        !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if ok { Ok(text.to_owned()) } else { Err("letters, digits and _ . -, at most 64 characters".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Run, String> {
        let args = ["opentunnel-operator", "run"].iter().chain(args);
        match Command::try_parse_from(args).map_err(|e| e.to_string())? {
            Command::Run(run) => run.check().map(|()| *run),
            Command::Crd => unreachable!(),
        }
    }

    /// docs/flags.md: what the program says of itself.
    fn reference() -> String {
        use clap::CommandFactory;
        let command = Command::command();
        let run = command.find_subcommand("run").expect("run");
        let mut text = String::from(
            "# Flags of `opentunnel-operator run`\n\nEvery flag has a twin in the environment. A test makes this page of the program's \
             own `--help`.\n\n| flag | environment | default | |\n|---|---|---|---|\n",
        );
        for arg in run.get_arguments().filter(|arg| arg.get_id() != "help") {
            let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
            let (help, stated) = match help.split_once("[default: ") {
                Some((help, default)) => (help.to_owned(), Some(default.trim_end_matches(']').to_owned())),
                None => (help, None),
            };
            let values: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
            let default = stated.unwrap_or_else(|| format!("`{}`", values.join(",")));
            let env = arg.get_env().map(|env| env.to_string_lossy().into_owned()).unwrap_or_default();
            let mut words = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
            let possible: Vec<_> = arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
            if !possible.is_empty() && arg.get_action().takes_values() {
                words += &format!(". One of {}", possible.join(", "));
            }
            text += &format!("| `--{}` | `{env}` | {default} | {words} |\n", arg.get_long().unwrap_or_default());
        }
        text
    }

    #[test]
    fn the_flags_in_docs_are_the_programs() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/flags.md");
        let text = reference();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &text).expect("docs/flags.md can be written");
        }
        assert!(std::fs::read_to_string(&path).unwrap_or_default() == text, "docs/flags.md is old: make docs");
    }

    #[test]
    fn a_wrong_flag_is_told_in_words() {
        for (args, words) in [
            (vec!["--open-rate", "0"], "calls per second"),
            (vec!["--aws-timeout", "20"], "a time with a unit"),
            (vec!["--recovery-grace", "25s"], "must be longer than 5s"),
            (vec!["--watch-namespace", "No"], "the name of a namespace"),
            (vec!["--cluster-id", "a/b"], "letters, digits"),
            (vec!["--http-addr", "8080"], "invalid socket address"),
            (vec!["--close-orphans", "maybe"], "true, false, dry-run"),
        ] {
            let told = parse(&args).unwrap_err();
            assert!(told.contains(words), "{args:?}: {told}");
        }
        let run = parse(&["--watch-namespace", "a,b", "--watch-namespace", "c", "--recovery-grace", "26s"]).unwrap();
        assert_eq!(run.watch_namespace, ["a", "b", "c"]);
    }

    #[test]
    fn a_default_tag_is_one_that_aws_takes_and_that_is_nobody_elses() {
        let (long_key, long_value) = ("k".repeat(128), "v".repeat(256));
        for (text, key, value) in [
            ("team=edge", "team", "edge"),
            ("team=", "team", ""),
            ("a=b=c", "a", "b=c"),
            ("Größe=a b", "Größe", "a b"),
            ("a.b:/+-@_=x", "a.b:/+-@_", "x"),
            (&format!("{long_key}={long_value}"), &long_key, &long_value),
        ] {
            assert_eq!(default_tag(text), Ok((key.to_owned(), value.to_owned())));
        }
        for (text, words) in [
            ("team", "key=value"),
            ("", "key=value"),
            ("=edge", "a tag that AWS takes"),
            ("te&m=edge", "a tag that AWS takes"),
            ("team=a\nb", "a tag that AWS takes"),
            (&format!("{long_key}k=v"), "a tag that AWS takes"),
            (&format!("k={long_value}v"), "a tag that AWS takes"),
            ("aws:team=edge", "are AWS's"),
            ("AWS:team=edge", "are AWS's"),
            ("opentunnel.dev/owner=x", "the operator's"),
        ] {
            let told = default_tag(text).unwrap_err();
            assert!(told.contains(words), "{text}: {told}");
        }
    }

    #[test]
    fn default_tags_may_be_many_but_each_key_comes_once() {
        let run = parse(&["--default-tag", "a=1,b=2", "--default-tag", "c=3"]).unwrap();
        let pair = |(key, value): &(String, String)| format!("{key}={value}");
        assert_eq!(run.default_tag.iter().map(pair).collect::<Vec<_>>(), ["a=1", "b=2", "c=3"]);
        assert!(parse(&["--default-tag", "a=1,b=2,a=3"]).unwrap_err().contains("names the key a twice"));
        let many = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        assert!(parse(&["--default-tag", &many(198)]).is_ok());
        assert!(parse(&["--default-tag", &many(199)]).unwrap_err().contains("at most 198 tags"));
    }
}
