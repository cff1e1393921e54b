//! The program itself: exit status, what it prints, signals.

use crate::directory::Directory;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const SECRET: &str = "AQGAAXiVzSmRL1VaJ22G7eRb_CrPABsAAgABQQAMOTAwNTgyMDkxNTM4AAFUAANDQVQAAQAHYXdzLWttcwBLYXJuOmF3";

fn program(flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opentunnel-proxy"));
    command.args(flags.split_whitespace()).env_clear().kill_on_drop(true).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit status, standard output, standard error.
async fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let output = tokio::time::timeout(Duration::from_secs(20), command.output()).await.expect("it hangs");
    let output = output.expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn wrong_usage_is_2_and_help_is_0() {
    for (flags, status, out, err) in [
        ("--help", 0, "--source-listen-port", ""),
        ("-h", 0, "-s, --source-listen-port", ""),
        ("--version", 0, "opentunnel-proxy 0", ""),
        ("-V", 0, "opentunnel-proxy 0", ""),
        ("--colour", 2, "", "unexpected argument '--colour'"),
        ("-r us-east-1 -s 5555", 2, "", "there is no access token"),
        (&format!("{SECRET} -s 1"), 2, "", "belongs to no flag"),
    ] {
        let (found, stdout, stderr) = outcome(&mut program(flags)).await;
        assert_eq!(found, Some(status), "{flags}: {stdout} {stderr}");
        assert!(stdout.contains(out) && stderr.contains(err) && !stderr.contains(SECRET), "{flags}: {stdout} {stderr}");
        assert!(stdout.is_empty() || stderr.is_empty());
    }
}

#[tokio::test]
async fn the_default_settings_are_written_to_a_file() {
    let files = Directory::new();
    let path = files.path().join("settings.json");
    let flags = format!("--export-default-settings {}", path.display());
    assert_eq!(outcome(&mut program(&flags)).await.0, Some(0));
    assert!(std::fs::read_to_string(path).expect("a file").contains("\"ping_period_ms\": \"20000\""));
    let (status, _, stderr) = outcome(&mut program("--export-default-settings /nonexistent/file")).await;
    assert!(status == Some(1) && stderr.contains("/nonexistent/file cannot be written"), "{stderr}");
}

#[tokio::test]
async fn what_cannot_be_started_is_said() {
    let (status, _, stderr) = outcome(&mut program("-t a -e ws://127.0.0.1:1 -s 0 --http-addr 192.0.2.1:1")).await;
    assert!(status == Some(1) && stderr.contains("--http-addr: cannot listen on 192.0.2.1:1"), "{stderr}");
    let mut command = program("-e 127.0.0.1:1 -s 0");
    command.env("AWSIOT_TUNNEL_ACCESS_TOKEN", SECRET).env("SSL_CERT_FILE", "/nonexistent.pem");
    let (status, _, stderr) = outcome(&mut command).await;
    assert!(status == Some(1) && stderr.contains("no CA certificate (PEM) in /nonexistent.pem"), "{stderr}");
}

/// Starts it, and waits until a line of its log has this.
async fn started(command: &mut Command, text: &str) -> (Child, String) {
    let mut child = command.spawn().expect("it runs");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut log = String::new();
    let found = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            log = log.clone() + &line + "\n";
            if line.contains(text) {
                return;
            }
        }
        panic!("it ended: {log}");
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("it hangs");
    // Whoever reads no more lets it stop at its next line.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, log)
}

#[cfg(unix)]
#[tokio::test]
async fn asked_to_stop_it_ends_with_0() {
    for signal in ["TERM", "INT"] {
        let mut command = program("-e ws://127.0.0.1:1 -s 0 --http-addr 127.0.0.1:0 --format json");
        command.env("AWSIOT_TUNNEL_ACCESS_TOKEN", SECRET);
        let (mut child, log) = started(&mut command, "serving /healthz").await;
        assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{log}");
        assert!(!log.contains(SECRET));
        let id = child.id().expect("running").to_string();
        let kill = Command::new("kill").args([&format!("-{signal}"), &*id]).status().await.expect("kill");
        assert!(kill.success());
        let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.expect("it hangs");
        assert_eq!(status.expect("ended").code(), Some(0));
    }
}

#[tokio::test]
async fn a_token_on_the_command_line_is_warned_of_and_not_shown() {
    let flags = format!("-t {SECRET} -e ws://127.0.0.1:1 -s 0 --http-addr 127.0.0.1:0 -v 6");
    let (_child, log) = started(&mut program(&flags), "serving /healthz").await;
    assert!(log.contains("sees the access token in the list of processes") && !log.contains(SECRET), "{log}");
}
