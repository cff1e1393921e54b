//! A process under measurement: it ends with its value, and says what it costs.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Linux counts a process' time in hundredths of a second in `/proc`, on every architecture (`USER_HZ`).
const TICKS: f64 = 100.0;

/// A running process.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it. All that it says goes to the file `log`, but for its standard output where `answers`.
    pub fn start(command: &mut Command, log: PathBuf, answers: bool) -> io::Result<Self> {
        let file = File::create(&log)?;
        let stdout = if answers { Stdio::piped() } else { Stdio::from(file.try_clone()?) };
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(file).spawn()?;
        Ok(Self { child, log })
    }

    /// Its standard output.
    pub fn stdout(&mut self) -> io::Result<impl io::Read + use<>> {
        self.child.stdout.take().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// Its ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Why it has ended, if it has: its status, and the last that it said.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        Some(format!("it ended with {status}: {}", log.lines().last().unwrap_or("it did not say why")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time that a process has used, in seconds. 0: there is no such process.
pub fn cpu(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // proc(5): the name, in parentheses, may hold anything; behind it utime and stime are the 12th and 13th.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Resident memory of a process, in MiB. 0: there is no such process.
pub fn rss(id: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}
