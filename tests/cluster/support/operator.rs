//! The operator's real program, as a process of its own.

use super::api_proxy::ApiProxy;
use super::control_plane::ControlPlane;
use super::world::Identity;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// Far more than a start or an end takes.
const LIMIT: Duration = Duration::from_secs(30);

/// How an operator is to run. Later flags and variables win over earlier ones.
#[derive(Clone)]
pub struct Settings {
    /// The program; OPENTUNNEL_OPERATOR_BIN: another build's, as the image's.
    pub program: PathBuf,
    flags: Vec<(String, String)>,
    env: Vec<(String, OsString)>,
}

impl Settings {
    /// Quick ones: no waiting for AWS's quotas, short time limits, a poll every second; and no leader election, so
    /// that whoever follows one that was killed need not wait for its lease to run out.
    pub fn quick(kubeconfig: &Path, namespace: &str, aws_endpoint: &str) -> Self {
        let built = || env!("CARGO_BIN_EXE_opentunnel-operator").into();
        let program = env::var_os("OPENTUNNEL_OPERATOR_BIN").unwrap_or_else(built).into();
        let settings = Self { program, flags: Vec::new(), env: Vec::new() };
        settings
            .flag("--watch-namespace", namespace)
            .flag("--http-addr", "127.0.0.1:0")
            .flag("--open-rate", "1000")
            .flag("--close-rate", "1000")
            .flag("--aws-timeout", "900ms")
            .flag("--recovery-grace", "6s")
            .flag("--poll-interval", "1s")
            .flag("--leader-elect", "false")
            .flag("--log-filter", "info,opentunnel_operator=debug")
            .env("KUBECONFIG", kubeconfig)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "nobody-checks-this")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL", aws_endpoint)
            .env("RUST_BACKTRACE", "1")
    }

    /// Goes to the API server through a proxy.
    pub fn via(self, proxy: &ApiProxy) -> Self {
        self.env("KUBECONFIG", proxy.kubeconfig())
    }

    /// Has a credential of its own.
    pub fn with_identity(self, identity: &Identity) -> Self {
        self.env("KUBECONFIG", &identity.kubeconfig)
    }

    /// Sets a flag of `run`.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.retain(|(n, _)| n != name);
        self.flags.push((name.into(), value.into()));
        self
    }

    /// Leaves a flag of `run` out.
    pub fn without_flag(mut self, name: &str) -> Self {
        self.flags.retain(|(n, _)| n != name);
        self
    }

    /// Sets a variable of the environment, which has nothing else in it.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.into(), value.into()));
        self
    }

    /// Leaves a variable out.
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(n, _)| n != name);
        self
    }

    /// The command line, and the environment.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("run").env_clear().envs(self.env.iter().map(|(n, v)| (n, v)));
        command.args(self.flags.iter().map(|(name, value)| format!("{name}={value}")));
        command.stdin(Stdio::null());
        command
    }
}

/// A running operator. Dropping it kills it.
pub struct Operator {
    process: Child,
    pid: u32,
    log: PathBuf,
}

impl Operator {
    /// Starts one that writes its log to the file `log`.
    pub fn spawn(settings: &Settings, log: PathBuf) -> Self {
        let file = File::create(&log).expect("the log can be written");
        let other = file.try_clone().expect("a file can be opened twice");
        let process = settings.command().stdout(file).stderr(other).spawn().expect("the operator can be run");
        let pid = process.id().expect("it was not waited for");
        ControlPlane::get().adopt(pid);
        Self { process, pid, log }
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log can be read")
    }

    /// Where it serves its probes. Panics when it ends before it does.
    pub async fn address(&mut self) -> SocketAddr {
        let deadline = Instant::now() + LIMIT;
        loop {
            let log = self.log();
            let line = log.lines().find(|line| line.contains("serving /healthz and /readyz"));
            if let Some(address) = line.and_then(|line| line.split("address=").nth(1)) {
                let address = address.split_whitespace().next().unwrap_or_default();
                return address.parse().expect("an address");
            }
            self.must_run();
            assert!(Instant::now() < deadline, "no probes after {LIMIT:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns once `/readyz` says 200. Panics when the operator ends before.
    pub async fn ready(&mut self) {
        let address = self.address().await;
        let deadline = Instant::now() + LIMIT;
        while http_status(address, "/readyz").await != Some(200) {
            self.must_run();
            assert!(Instant::now() < deadline, "not ready after {LIMIT:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it has not ended by itself.
    pub fn runs(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    fn must_run(&mut self) {
        if let Ok(Some(status)) = self.process.try_wait() {
            panic!("the operator has ended: {status}");
        }
    }

    /// Sends it a signal, as `STOP`.
    pub fn signal(&self, name: &str) {
        let kill = std::process::Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(kill.expect("there is a kill").success(), "the operator had ended before");
    }

    /// SIGKILL: returns once it is no more.
    pub fn kill(self) {}

    /// SIGTERM: returns once it has ended by itself.
    pub async fn terminate(mut self) -> ExitStatus {
        self.signal("TERM");
        self.end().await
    }

    /// Returns once it has ended by itself.
    pub async fn end(&mut self) -> ExitStatus {
        let status = timeout(LIMIT, self.process.wait()).await.expect("the operator ends");
        let status = status.expect("it can be waited for");
        assert_eq!(status.signal(), None, "it ended by itself");
        status
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        // Until it is reaped it may still write to its log.
        while let Ok(None) = self.process.try_wait() {
            std::thread::sleep(Duration::from_millis(1));
        }
        ControlPlane::get().forget(self.pid());
    }
}

/// The status of an HTTP GET; `None` while nobody answers.
pub async fn http_status(address: SocketAddr, path: &str) -> Option<u16> {
    http_get(address, path).await?.split(' ').nth(1)?.parse().ok()
}

/// The answer to an HTTP GET, as it came; `None` while nobody answers.
pub async fn http_get(address: SocketAddr, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    timeout(LIMIT, connection.read_to_string(&mut answer)).await.ok()?.ok()?;
    Some(answer)
}
