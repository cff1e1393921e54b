//! Every flag, environment variable and key of a config file: alone, and which of two counts.

use crate::directory::Directory;
use opentunnel_proxy::config::{
    Config, ConfigError, DestinationClientType, Ends, Format, Invocation, ListenAddress, Services, Target,
};
use opentunnel_proxy::connect::HostVerification;
use opentunnel_proxy::tokens::{ClientToken, TokenSource};
use opentunnel_proxy::{Side, log};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

const CLIENT: &str = "2da438cf-9a30-4148-b236-c338182f243c";
const SECRET: &str = "AQGAAXiVzSmRL1VaJ22G7eRb_CrPABsAAgABQQAMOTAwNTgyMDkxNTM4AAFUAANDQVQAAQAHYXdzLWttcwBLYXJuOmF3";

fn invoke(flags: &str, environment: &[(&str, &str)], directory: &Path) -> Result<Invocation, ConfigError> {
    let arguments = std::iter::once("opentunnel-proxy").chain(flags.split_whitespace()).map(OsString::from);
    let environment: HashMap<_, _> = environment.iter().copied().collect();
    Invocation::load(arguments, &|name| environment.get(name).map(OsString::from), directory)
}

fn load_in(flags: &str, environment: &[(&str, &str)], directory: &Path) -> Result<Config, String> {
    match invoke(flags, environment, directory) {
        Ok(Invocation::Run(config)) => Ok(*config),
        Ok(Invocation::ExportDefaultSettings { .. }) => Err("an export".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn load(flags: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    load_in(flags, environment, Path::new("/nonexistent"))
}

/// One option, as text, so that places can be compared.
fn value(config: &Config, option: &str) -> String {
    let tokens = || config.tokens.current().expect("tokens");
    match option {
        "access-token" => tokens().access.reveal().to_owned(),
        "client-token" => tokens().client.as_ref().map(ClientToken::reveal).unwrap_or("-").to_owned(),
        "proxy-endpoint" | "region" => config.endpoint.to_string(),
        "source-listen-port" | "destination-app" | "mode" => ends(&config.ends),
        "local-bind-address" => match &config.ends {
            Ends::Source(_, defaults) => defaults.bind.clone(),
            Ends::Destination { bind, .. } => format!("{bind:?}"),
        },
        "capath" => format!("{:?}", config.trust.additional),
        "no-ssl-host-verify" => format!("{:?}", config.trust.host_verification),
        "verbose" | "log-filter" => config.log_filter.clone(),
        "destination-client-type" => format!("{:?}", config.destination_client_type),
        "http-addr" => format!("{:?}", config.http_addr),
        "stall-timeout" => format!("{:?}", config.stall_timeout),
        "drain" => format!("{:?}", config.drain),
        "format" => format!("{:?}", config.format),
        other => panic!("{other}?"),
    }
}

fn ends(ends: &Ends) -> String {
    fn written<A: std::fmt::Display>(services: &Services<A>) -> String {
        let all = |map: &std::collections::BTreeMap<String, A>| {
            map.iter().map(|(id, address)| format!("{id}={address}")).collect::<Vec<_>>().join(",")
        };
        match services {
            Services::Only(address) => address.to_string(),
            Services::Exactly(map) => format!("exactly {}", all(map)),
            Services::Among(map) => format!("among {}", all(map)),
        }
    }
    match ends {
        Ends::Source(services, _) => format!("source {}", written::<ListenAddress>(services)),
        Ends::Destination { targets, .. } => format!("destination {}", written::<Target>(targets)),
    }
}

/// What every configuration needs, without the option that is tested.
fn base(option: &str) -> String {
    let mut flags = Vec::new();
    if option != "access-token" {
        flags.push("-t base");
    }
    if !["proxy-endpoint", "region"].contains(&option) {
        flags.push("-r us-west-2");
    }
    if !["source-listen-port", "destination-app", "mode"].contains(&option) {
        flags.push("-s 1");
    }
    flags.join(" ")
}

type Tested = (&'static str, &'static str, &'static str, [(&'static str, &'static str); 2]);

/// Option, its letter (or -), its variable (or -), a value and what comes of it, and another one.
#[rustfmt::skip]
const OPTIONS: &[Tested] = &[
    ("access-token", "t", "AWSIOT_TUNNEL_ACCESS_TOKEN", [("first", "first"), ("second", "second")]),
    ("client-token", "i", "AWSIOT_TUNNEL_CLIENT_TOKEN", [(CLIENT, CLIENT), ("00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000")]),
    ("proxy-endpoint", "e", "AWSIOT_TUNNEL_ENDPOINT", [("host:8443", "wss://host:8443"), ("ws://[::1]:1", "ws://[::1]:1")]),
    ("region", "r", "AWSIOT_TUNNEL_REGION", [
        ("us-east-1", "wss://data.tunneling.iot.us-east-1.amazonaws.com:443"),
        ("cn-north-1", "wss://data.tunneling.iot.cn-north-1.amazonaws.com.cn:443"),
    ]),
    ("source-listen-port", "s", "-", [("5555", "source localhost:5555"), ("SSH1=5555,SSH2=0", "source exactly SSH1=localhost:5555,SSH2=localhost:0")]),
    ("destination-app", "d", "-", [("22", "destination 127.0.0.1:22"), ("A=localhost:80,B=/run/b.sock", "destination exactly A=localhost:80,B=/run/b.sock")]),
    ("mode", "m", "-", [("src", "source among "), ("source", "source among ")]),
    ("local-bind-address", "b", "-", [("0.0.0.0", "0.0.0.0"), ("::1", "::1")]),
    ("capath", "c", "-", [("/opt/rootca", "Some(\"/opt/rootca\")"), ("./certs", "Some(\"./certs\")")]),
    ("verbose", "v", "-", [("0", "off"), ("255", "trace")]),
    ("destination-client-type", "y", "-", [("V1", "V1"), ("V2", "V2")]),
    ("log-filter", "-", "-", [("warn", "warn"), ("opentunnel_proxy::link=debug", "opentunnel_proxy::link=debug")]),
    ("http-addr", "-", "-", [("0.0.0.0:8080", "Some(0.0.0.0:8080)"), ("[::]:9090", "Some([::]:9090)")]),
    ("stall-timeout", "-", "-", [("5s", "5s"), ("2m", "120s")]),
    ("drain", "-", "-", [("0", "0ns"), ("25s", "25s")]),
    ("format", "-", "-", [("json", "Json"), ("text", "Text")]),
];

#[test]
fn every_option_is_taken_from_every_place() {
    for &(option, letter, variable, [(first, expected), (second, second_expected)]) in OPTIONS {
        let base = base(option);
        let is = |flags: &str, environment: &[(&str, &str)], expected: &str| {
            let config = load(flags, environment).unwrap_or_else(|error| panic!("{flags} {environment:?}: {error}"));
            assert_eq!(value(&config, option), expected, "{flags} {environment:?}");
        };
        is(&format!("{base} --{option} {first}"), &[], expected);
        is(&format!("{base} --{option}={first}"), &[], expected);
        if letter != "-" {
            is(&format!("{base} -{letter} {first}"), &[], expected);
            is(&format!("{base} -{letter}{second}"), &[], second_expected);
        }
        let files = Directory::new();
        let file = files.write("config.ini", format!("# a comment\n\n {option} = {first} # and another\n"));
        let in_file = format!("{base} --config {file}");
        is(&in_file, &[], expected);
        is(&format!("{in_file} --{option} {second}"), &[], second_expected);
        if variable != "-" {
            is(&base, &[(variable, first)], expected);
            is(&format!("{base} --{option} {second}"), &[(variable, first)], second_expected);
            // As AWS's: the environment is the last.
            is(&in_file, &[(variable, second)], expected);
            // A manifest's way to say that there is none.
            is(&in_file, &[(variable, "")], expected);
        }
    }
}

#[test]
fn the_verification_of_the_host_is_turned_off_by_a_flag_without_a_value() {
    let verification = |flags: &str| load(flags, &[]).map(|config| config.trust.host_verification);
    assert_eq!(verification("-t a -r us-east-1 -s 1"), Ok(HostVerification::On));
    for flag in ["-k", "--no-ssl-host-verify"] {
        assert_eq!(verification(&format!("-t a -r us-east-1 -s 1 {flag}")), Ok(HostVerification::Off));
    }
    let files = Directory::new();
    for (text, expected) in
        [("= true", HostVerification::Off), ("=", HostVerification::Off), ("= no", HostVerification::On)]
    {
        let file = files.write("config", format!("no-ssl-host-verify {text}"));
        assert_eq!(verification(&format!("-t a -r us-east-1 -s 1 --config {file}")), Ok(expected), "{text}");
    }
}

#[test]
fn what_nobody_says_has_a_default() {
    let config = load("-t a -r us-east-1 -s 5555", &[]).expect("a configuration");
    assert_eq!(config.ends.side(), Side::Source);
    assert_eq!(config.destination_client_type, DestinationClientType::V3);
    assert_eq!((config.stall_timeout, config.drain), (Duration::from_secs(30), Duration::from_secs(10)));
    assert_eq!((config.format, &*config.log_filter, config.http_addr), (Format::Text, "info", None));
    assert_eq!(config.keepalive.interval, Duration::from_secs(20));
    assert!(config.web_proxy.is_none() && config.trust.file.is_none() && config.trust.directories.is_empty());
    let config = load("-t a -r us-east-1 -d 22 -b 10.0.0.7", &[]).expect("a configuration");
    // As AWS's: a port alone is one of the address that it connects from.
    assert_eq!((&*ends(&config.ends), config.ends.side()), ("destination 10.0.0.7:22", Side::Destination));
}

/// The examples of AWS's documentation, its program's name aside.
#[test]
fn the_commands_of_awss_documentation_are_taken() {
    let token = [("AWSIOT_TUNNEL_ACCESS_TOKEN", "foobar")];
    for (flags, expected) in [
        ("-r us-east-1 -d localhost:22 -t foobar", "destination localhost:22"),
        ("--region us-east-1 -s 5555 -t foobar", "source localhost:5555"),
        ("-r us-east-1 -d localhost:3389 -t foobar", "destination localhost:3389"),
        ("-r us-east-1 -d HTTP1=80,SSH1=22 -t foobar", "destination exactly HTTP1=127.0.0.1:80,SSH1=127.0.0.1:22"),
        ("-r us-east-1 -s HTTP1=5555,SSH1=3333 -t foobar", "source exactly HTTP1=localhost:5555,SSH1=localhost:3333"),
        ("-s 3333 --destination-client-type V1 -v 6 -r us-east-1", "source localhost:3333"),
        ("-r us-west-2 -s 6000 -t foobar -b ::1 -c /opt/rootca", "source [::1]:6000"),
        ("-r us-east-1 -s 3389 -c ./certs", "source localhost:3389"),
        ("--reg us-east-1 --source-l 5555 --verb 5", "source localhost:5555"),
    ] {
        assert_eq!(load(flags, &token).map(|config| ends(&config.ends)), Ok(expected.to_owned()), "{flags}");
    }
}

#[test]
fn services_come_from_a_directory_where_no_flag_names_them() {
    let files = Directory::with(&[
        ("SSHSource.ini", "; a comment\nSSH1=3333\nSSH2 = 5555\n[section]\nSSH3=1\n"),
        ("sub/more.ini", "# comment\nSSH2=1\nHTTP=10.0.0.1:80\n"),
        ("notes.txt", "this is no INI file\n"),
        ("wrong.ini", "BAD=nowhere\nGOOD=1\n"),
    ]);
    let config = load(&format!("-t a -r us-east-1 --mode dst --config-dir {}", files.text()), &[]).expect("services");
    assert_eq!(
        ends(&config.ends),
        "destination among GOOD=127.0.0.1:1,HTTP=10.0.0.1:80,SSH1=127.0.0.1:3333,SSH2=127.0.0.1:5555"
    );
    let warnings = config.warnings.join("\n");
    assert!(warnings.contains("notes.txt: line 1 is not SERVICE=ADDRESS; the file is left out"), "{warnings}");
    assert!(warnings.contains("wrong.ini: \"nowhere\" has no port"), "{warnings}");
    // A flag counts alone.
    let config = load(&format!("-t a -r us-east-1 -s 1 --config-dir {}", files.text()), &[]).expect("a port");
    assert_eq!(ends(&config.ends), "source localhost:1");
    // The default directory, where the program is started.
    let directory = Directory::with(&[("config/a.ini", "SSH1=7")]);
    let config = load_in("-t a -r us-east-1 --mode src", &[], directory.path()).expect("a port");
    assert_eq!(ends(&config.ends), "source among SSH1=localhost:7");
}

#[test]
fn the_settings_that_have_a_meaning_are_taken() {
    let files = Directory::new();
    let load = |json: &str, flags: &str| {
        let file = files.write("settings.json", json);
        load(&format!("-t a -s 1 --settings-json {file} {flags}"), &[])
    };
    let of = |members: &str| format!(r#"{{"tunneling": {{"proxy": {{{members}}}}}}}"#);
    let config = load(&of(r#""default_bind_address": "127.0.0.2", "unknown": 1"#), "-r us-east-1").expect("taken");
    assert_eq!(ends(&config.ends), "source 127.0.0.2:1");
    let config = load(&of(r#""default_bind_address": "127.0.0.2""#), "-r us-east-1 -b ::1").expect("taken");
    assert_eq!(ends(&config.ends), "source [::1]:1");
    let hosts = of(r#""endpoint_format": "data.%s.example", "region_endpoint_overrides": {"eu-west-1": "other:1"}"#);
    for (region, expected) in [("cn-north-1", "wss://data.cn-north-1.example:443"), ("eu-west-1", "wss://other:1")] {
        let config = load(&hosts, &format!("-r {region}")).expect("taken");
        assert_eq!(config.endpoint.to_string(), expected);
    }
    for period in ["5000", "\"5000\""] {
        let config =
            load(&of(&format!(r#""websocket": {{"ping_period_ms": {period}}}"#)), "-r us-east-1").expect("taken");
        assert_eq!(config.keepalive.interval, Duration::from_secs(5));
    }
    let config = load(&of(r#""tcp": {"connection_retry_count": "5"}, "message": {"max_size": 1}"#), "-r us-east-1");
    let warnings = config.expect("taken").warnings.join("\n");
    assert!(
        warnings.contains("not used") && warnings.contains("message.max_size, tcp.connection_retry_count"),
        "{warnings}"
    );
    for (json, reason) in [
        ("{", "settings.json: EOF"),
        (&*of(r#""default_bind_address": 1"#), "default_bind_address must be a text"),
        (&*of(r#""default_bind_address": "a b""#), "neither the name"),
        (&*of(r#""endpoint_format": "data.example""#), "must have %s"),
        (&*of(r#""websocket": {"ping_period_ms": 1}"#), "from 1000"),
    ] {
        let error = load(json, "-r us-east-1").expect_err(json);
        assert!(error.contains(reason), "{json}: {error}");
    }
    // What is exported is what is taken, and says what is so without it.
    let exported = invoke("--export-default-settings out.json", &[], Path::new("/")).expect("no other flag is needed");
    let Invocation::ExportDefaultSettings { path, json } = exported else { panic!("an export") };
    assert_eq!(path, Path::new("out.json"));
    let (with, without) = (load(&json, "-r cn-north-1").expect("taken"), load("{}", "-r cn-north-1").expect("taken"));
    assert_eq!((&with.ends, &with.endpoint, with.keepalive), (&without.ends, &without.endpoint, without.keepalive));
    assert_eq!(with.warnings, without.warnings);
}

#[test]
fn tokens_and_region_come_from_a_mounted_secret() {
    let secret =
        Directory::with(&[("sourceAccessToken", "S"), ("destinationAccessToken", "D"), ("region", "eu-west-1\n")]);
    let flags = |rest: &str| format!("--token-dir {} {rest}", secret.text());
    for (rest, token) in [("-s 1", "S"), ("-d 1", "D")] {
        let config = load(&flags(rest), &[]).expect("tokens");
        assert_eq!((&*value(&config, "access-token"), config.tokens.may_change()), (token, true));
        assert_eq!(config.endpoint.host, "data.tunneling.iot.eu-west-1.amazonaws.com");
        assert!(config.warnings.is_empty());
    }
    // What is said nearer counts.
    let config = load(&flags("-s 1 -e host:1"), &[("AWSIOT_TUNNEL_ACCESS_TOKEN", "E")]).expect("tokens");
    assert_eq!((&*value(&config, "access-token"), &*config.endpoint.host), ("S", "host"));
    // The data of a token Secret may stand in the environment, with its region, and the endpoint is another all the same.
    let environment = [
        ("AWSIOT_TUNNEL_ACCESS_TOKEN", "E"),
        ("AWSIOT_TUNNEL_REGION", "eu-west-1"),
        ("AWSIOT_TUNNEL_ENDPOINT", "host:2"),
    ];
    let config = load("-s 1", &environment).expect("tokens");
    assert_eq!((config.endpoint.port, config.tokens.may_change()), (2, false));
    // A token may come later, a region may not.
    let empty = Directory::new();
    let config = load(&format!("--token-dir {} -s 1 -r us-east-1", empty.text()), &[]).expect("waits");
    assert!(matches!(config.tokens, TokenSource::Directory(_)) && config.tokens.current().is_err());
}

#[test]
fn the_environment_names_certificates_and_an_http_proxy() {
    let paths = std::env::join_paths(["/a", "/b"]).expect("paths").into_string().expect("UTF-8");
    let environment = [("SSL_CERT_FILE", "/ca.pem"), ("SSL_CERT_DIR", &*paths)];
    let trust = load("-t a -r us-east-1 -s 1", &environment).expect("a configuration").trust;
    assert_eq!((trust.file.as_deref(), trust.directories.len()), (Some(Path::new("/ca.pem")), 2));
    for (environment, expected) in [
        (&[("HTTPS_PROXY", "http://user:pass@proxy:8080")][..], Some("WebProxy(http://proxy:8080)")),
        (&[("https_proxy", "proxy")], Some("WebProxy(http://proxy:3128)")),
        (&[("HTTPS_PROXY", "http://upper"), ("https_proxy", "http://lower")], Some("WebProxy(http://lower:3128)")),
        (&[("HTTPS_PROXY", "http://proxy"), ("NO_PROXY", ".amazonaws.com")], None),
        (&[("HTTPS_PROXY", "http://proxy"), ("no_proxy", "*")], None),
        (&[("HTTPS_PROXY", "")], None),
    ] {
        let config = load("-t a -r us-east-1 -s 1", environment).expect("a configuration");
        assert_eq!(config.web_proxy.map(|proxy| format!("{proxy:?}")).as_deref(), expected, "{environment:?}");
    }
    let error = load("-t a -r us-east-1 -s 1", &[("HTTPS_PROXY", "socks5://user:secret@proxy")]).expect_err("no HTTP");
    assert!(error.starts_with("HTTPS_PROXY: only proxies") && !error.contains("secret"), "{error}");
}

#[test]
fn what_is_wrong_or_missing_is_said() {
    let files = Directory::with(&[
        ("no-value", "region us-east-1"),
        ("unknown", "colour = blue"),
        ("section", "[a]\nregion = us-east-1"),
        ("twice", "region = us-east-1\nregion = us-east-2"),
        ("nested", "config = other"),
        ("number", "verbose = loud"),
        ("boolean", "no-ssl-host-verify = perhaps"),
    ]);
    let file = |name: &str| format!("-t a -r us-east-1 -s 1 --config {}/{name}", files.text());
    for (flags, reason) in [
        ("-r us-east-1 -s 1", "there is no access token: set AWSIOT_TUNNEL_ACCESS_TOKEN"),
        ("-t a -s 1", "say where the tunnel is: -r REGION"),
        ("-t a -r us-east-1", "say which side of the tunnel this is"),
        ("-t a -r us-east-1 -e host -s 1", "-r (--region) and -e (--proxy-endpoint) exclude each other"),
        ("-t a -r us-east-1 -s 1 -d 1", "-s (--source-listen-port) and -d (--destination-app) exclude each other"),
        ("-t a --token-dir /tmp -r us-east-1 -s 1", "-t (--access-token) and --token-dir exclude each other"),
        ("-t a -r us-east-1 -s 1 -m dst", "-s (--source-listen-port) is for the source"),
        ("-t a -r us-east-1 -d 1 -m src", "-d (--destination-app) is for the destination"),
        ("-t a -r us-east-1 -m both", "--mode: write src or dst"),
        ("-t a -r us-east-1 -m dst", "a destination must know where its services are"),
        ("-t a -r US_EAST -s 1", "\"US_EAST\" is no region"),
        ("-t a -e https://host -s 1", "-e (--proxy-endpoint): https:// is not spoken here"),
        ("-t a -r us-east-1 -s http", "-s: \"http\" has no port: write PORT"),
        ("-t a -r us-east-1 -d A=1,2", "-d: \"2\" names no service"),
        ("-t a -r us-east-1 -s 1 -b a/b", "-b: \"a/b\" is neither"),
        ("-t a -i short -r us-east-1 -s 1", "the client token must have 32 to 128"),
        ("-t a\u{e4} -r us-east-1 -s 1", "the access token has a space"),
        ("-t a -r us-east-1 -s 1 -v loud", "invalid value 'loud' for '--verbose"),
        ("-t a -r us-east-1 -s 1 --drain 1y", "a time such as 500ms"),
        ("-t a -r us-east-1 -s 1 --log-filter info=loud", "--log-filter: \"info=loud\" is no filter"),
        ("-t a -r us-east-1 -s 1 --token-di /nonexistent", "exclude each other"),
        ("--token-dir /nonexistent -r us-east-1 -s 1", "--token-dir: /nonexistent is no directory"),
        ("-t a -r us-east-1 -m src --config-dir /nonexistent", "--config-dir: /nonexistent cannot be read"),
        ("-t a -r us-east-1 -s 1 --config /nonexistent", "/nonexistent cannot be read"),
        ("-t a -r us-east-1 -s 1 --settings-json /nonexistent", "/nonexistent cannot be read"),
        (&file("no-value"), "no-value line 1: write NAME = VALUE"),
        (&file("unknown"), "unknown line 1: no flag that may stand in a file has this long name"),
        (&file("section"), "section line 1: write NAME = VALUE"),
        (&file("twice"), "'--region <REGION>' cannot be used multiple times"),
        (&file("nested"), "nested line 1: no flag"),
        (&file("number"), "number: invalid value 'loud' for '--verbose"),
        (&file("boolean"), "boolean line 1: write true or false"),
    ] {
        let error = load(flags, &[]).expect_err(flags);
        assert!(error.contains(reason), "{flags}: {error}");
    }
}

#[test]
fn no_error_and_no_warning_shows_a_token() {
    let files = Directory::new();
    let file = files.write("config", format!("access-token = {SECRET}\naccess-token = {SECRET}\n"));
    let line = files.write("line", format!("{SECRET}\n"));
    let key = files.write("key", format!("{SECRET} = 1\n"));
    for flags in [
        format!("{SECRET} -r us-east-1 -s 1"),
        format!("-t a -r {SECRET} -s 1"),
        format!("-t a -e {SECRET} -s 1"),
        format!("-t a -r us-east-1 -s {SECRET}"),
        format!("-t a -r us-east-1 -d {SECRET}=1,{SECRET}"),
        format!("-t a -r us-east-1 -s 1 -i {SECRET}{SECRET}"),
        format!("-t {SECRET}\u{e4} -r us-east-1 -s 1"),
        format!("-t {SECRET} -t {SECRET} -r us-east-1 -s 1"),
        format!("-r us-east-1 -s 1 --config {file}"),
        format!("-r us-east-1 -s 1 --config {line}"),
        format!("-r us-east-1 -s 1 --config {key}"),
    ] {
        let error = load(&flags, &[]).expect_err(&flags);
        assert!(!error.contains("AQGAAX"), "{error}");
    }
    let config = load(&format!("-t {SECRET} -i {CLIENT} -r us-east-1 -s 1"), &[]).expect("a configuration");
    assert!(config.warnings.join("\n").contains("sees the access token in the list of processes"));
    assert!(!format!("{config:?}").contains("AQGAAX") && !format!("{config:?}").contains(CLIENT));
    let quiet = load("-r us-east-1 -s 1", &[("AWSIOT_TUNNEL_ACCESS_TOKEN", SECRET)]).expect("a configuration");
    assert!(quiet.warnings.is_empty(), "{:?}", quiet.warnings);
}

#[test]
fn what_is_dangerous_or_not_understood_is_warned_of() {
    for (flags, warning) in [
        ("-e ws://host -s 1", "without TLS"),
        ("-r us-east-1 -s 1 -k", "may be for any host"),
        ("-r us-east-1 -s 1 -y V4", "neither V1, V2 nor V3"),
        ("-r us-east-1 -s A=1,A=2", "service A is given twice"),
    ] {
        let config = load(flags, &[("AWSIOT_TUNNEL_ACCESS_TOKEN", "a")]).expect(flags);
        assert!(matches!(&*config.warnings, [one] if one.contains(warning)), "{flags}: {:?}", config.warnings);
        assert!(log::parse(&config.log_filter).is_ok());
    }
}
