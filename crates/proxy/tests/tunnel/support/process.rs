//! A program that runs: what it prints, signals, its end.

use super::{PATIENCE, until};
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

pub struct Process {
    child: Child,
    id: u32,
    stdout: watch::Receiver<String>,
    stderr: watch::Receiver<String>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("a program that can be started");
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        Self { id: child.id().expect("running"), child, stdout, stderr }
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    /// All that it has printed up to now.
    pub fn output(&self) -> String {
        format!("{}{}", *self.stdout.borrow(), *self.stderr.borrow())
    }

    /// The first line of standard output of which something can be made.
    pub async fn announced<T>(&self, read: impl Fn(&str) -> Option<T>) -> T {
        self.first(self.stdout.clone(), "standard output", read).await
    }

    /// Waits until a line of standard error has this.
    pub async fn logged(&self, text: &str) {
        self.first(self.stderr.clone(), text, |line| line.contains(text).then_some(())).await;
    }

    /// The first line of either of which something can be made.
    pub async fn read_output<T>(&self, what: &str, read: impl Fn(&str) -> Option<T>) -> T {
        let mut found = None;
        let look = async || {
            found = self.output().lines().find_map(&read);
            found.is_some()
        };
        until(what, look).await;
        found.expect("found")
    }

    /// The first line of standard error of which something can be made.
    pub async fn read_log<T>(&self, what: &str, read: impl Fn(&str) -> Option<T>) -> T {
        self.first(self.stderr.clone(), what, read).await
    }

    async fn first<T>(&self, mut lines: watch::Receiver<String>, what: &str, read: impl Fn(&str) -> Option<T>) -> T {
        let found = lines.wait_for(|text| text.lines().any(|line| read(line).is_some()));
        match timeout(PATIENCE, found).await {
            Ok(Ok(text)) => text.lines().find_map(read).expect("found"),
            Ok(Err(_)) => panic!("{what}: it ended without it: {}", self.output()),
            Err(_) => panic!("{what}: it does not come: {}", self.output()),
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM.
    pub async fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.id.to_string()]).status().await.expect("kill");
        assert!(status.success());
    }

    /// Its end, and all that it has printed.
    pub async fn ended(&mut self) -> (ExitStatus, String) {
        let Ok(status) = timeout(PATIENCE, self.child.wait()).await else {
            panic!("it does not end: {}", self.output());
        };
        // Whoever has the other end of the pipes has ended.
        for output in [&mut self.stdout, &mut self.stderr] {
            while output.changed().await.is_ok() {}
        }
        (status.expect("an end"), self.output())
    }

    /// Exit status and output of one that ends by itself.
    pub async fn exited(&mut self) -> (Option<i32>, String) {
        let (status, output) = self.ended().await;
        (status.code(), output)
    }

    /// Memory that it has now, in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id)).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// A file of /proc/PID, as text.
    pub fn proc(&self, name: &str) -> String {
        let bytes = std::fs::read(format!("/proc/{}/{name}", self.id)).expect("a running process");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = match self.child.try_wait() {
                Ok(Some(status)) => format!("which has ended ({status}),"),
                _ => "which runs,".to_owned(),
            };
            println!("process {}, {state} has printed:\n{}", self.id, self.output());
        }
    }
}

/// Its lines, as they come. Whoever reads no more would stop it at its next line.
fn collect(output: impl AsyncRead + Send + Unpin + 'static) -> watch::Receiver<String> {
    let (sender, receiver) = watch::channel(String::new());
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            sender.send_modify(|text| {
                text.push_str(&line);
                text.push('\n');
            });
        }
    });
    receiver
}
