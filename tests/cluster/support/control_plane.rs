//! The control plane that all tests share: a real kube-apiserver with RBAC, garbage collection and an
//! audit log, started by `dev/cluster` once per test process.

use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{env, fs, io};

/// The operator's namespace, see `deploy/`.
pub const SYSTEM_NAMESPACE: &str = "opentunnel-system";
/// The operator's ServiceAccount.
const SERVICE_ACCOUNT: &str = "opentunnel-operator";

/// A running control plane. It ends, with all that it adopted and its directory, when this process
/// ends, whatever it dies of: the supervisor's stdin is closed then.
pub struct ControlPlane {
    /// An administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The kubeconfig of the operator's ServiceAccount.
    pub operator_kubeconfig: PathBuf,
    /// A directory for tests' files, removed at the end.
    pub dir: PathBuf,
    /// Where etcd keeps what it knows.
    pub etcd: PathBuf,
    audit_log: PathBuf,
    kubectl: PathBuf,
    supervisor: Mutex<ChildStdin>,
}

/// What `cluster up` prints once everything serves.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Serving {
    kubeconfig: PathBuf,
    audit_log: PathBuf,
    bin: PathBuf,
    dir: PathBuf,
}

impl ControlPlane {
    /// The control plane. The first caller starts it; if that fails, every test fails with the reason.
    pub fn get() -> &'static Self {
        static PLANE: OnceLock<Result<ControlPlane, String>> = OnceLock::new();
        match PLANE.get_or_init(Self::start) {
            Ok(plane) => plane,
            Err(reason) => panic!("no control plane: {reason}"),
        }
    }

    /// Another one, whose programs may be stopped: see [`Self::order`].
    pub fn for_outages() -> &'static Self {
        static PLANE: OnceLock<Result<ControlPlane, String>> = OnceLock::new();
        PLANE.get_or_init(Self::start).as_ref().unwrap_or_else(|reason| panic!("no control plane: {reason}"))
    }

    /// Another one, from which the CRD and the operator's own objects may be removed.
    pub fn for_removals() -> &'static Self {
        static PLANE: OnceLock<Result<ControlPlane, String>> = OnceLock::new();
        PLANE.get_or_init(Self::start).as_ref().unwrap_or_else(|reason| panic!("no control plane: {reason}"))
    }

    /// Orders `pause`, `resume`, `stop` or `start` of a program of it, as `kube-apiserver`. Returns at once.
    pub fn order(&self, verb: &str, program: &str) {
        self.tell(&format!("{verb} {program}")).expect("the control plane runs");
    }

    fn start() -> Result<Self, String> {
        let program = supervisor_program()?;
        let crds = repository().join("crds");
        let mut supervisor = Command::new(&program)
            .arg("up")
            .arg("--crds")
            .arg(crds)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot run {}: {e}", program.display()))?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (supervisor.stdin.take(), supervisor.stdout.take(), supervisor.stderr.take())
        else {
            unreachable!("all three are pipes");
        };
        // Its words are shown as they come (a first build takes minutes), and kept for the reason.
        let words = Arc::new(Mutex::new(Vec::new()));
        let kept = words.clone();
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("{line}");
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(|e| e.to_string())?;
        let Ok(serving) = serde_json::from_str::<Serving>(&line) else {
            let _ = listener.join();
            let words = words.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
            return Err(format!("`{} up` failed:\n{words}", program.display()));
        };
        let dir = serving.dir.join("tests");
        fs::create_dir(&dir).map_err(|e| e.to_string())?;
        let plane = Self {
            operator_kubeconfig: dir.join("operator.kubeconfig"),
            kubeconfig: serving.kubeconfig,
            dir,
            etcd: serving.dir.join("etcd"),
            audit_log: serving.audit_log,
            kubectl: serving.bin.join("kubectl"),
            supervisor: Mutex::new(stdin),
        };
        plane.grant()?;
        Ok(plane)
    }

    /// Applies `deploy/`, and makes a kubeconfig of the operator's ServiceAccount.
    fn grant(&self) -> Result<(), String> {
        output_of(self.kubectl().args(["apply", "-k"]).arg(repository().join("deploy")))?;
        self.write_operator_kubeconfig(&self.operator_kubeconfig)
    }

    /// Writes a kubeconfig of the operator's ServiceAccount, with a token that nobody else has.
    pub fn write_operator_kubeconfig(&self, path: &Path) -> Result<(), String> {
        self.write_kubeconfig(SYSTEM_NAMESPACE, SERVICE_ACCOUNT, path)
    }

    /// Writes a kubeconfig with a new token of a ServiceAccount.
    pub fn write_kubeconfig(&self, namespace: &str, account: &str, path: &Path) -> Result<(), String> {
        let create = ["create", "token", account, "--duration=24h", "-n", namespace];
        let token = output_of(self.kubectl().args(create))?;
        let view = output_of(self.kubectl().args(["config", "view", "--raw", "-o", "json"]))?;
        let mut kubeconfig: Value = serde_json::from_str(&view).map_err(|e| e.to_string())?;
        kubeconfig["users"][0]["user"] = json!({"token": token.trim()});
        write_private(path, &kubeconfig.to_string()).map_err(|e| e.to_string())
    }

    /// kubectl as the administrator, with no preferences of the user's.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--cache-dir={}", self.dir.join("kubectl-cache").display()))
            .env("KUBERC", "off")
            .stdin(Stdio::null());
        command
    }

    /// From now on this process ends with the control plane, if nobody ends it before.
    pub fn adopt(&self, pid: u32) {
        self.tell(&format!("adopt {pid}")).expect("the control plane runs");
    }

    /// This process is no more.
    pub fn forget(&self, pid: u32) {
        // Where the control plane has ended, it has forgotten.
        let _ = self.tell(&format!("forget {pid}"));
    }

    fn tell(&self, line: &str) -> io::Result<()> {
        let mut supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(supervisor, "{line}")
    }

    /// The audit log from a byte on: a line of JSON for every request that was answered.
    pub fn audit_log_from(&self, byte: u64) -> String {
        let mut log = fs::File::open(&self.audit_log).expect("the audit log can be read");
        let mut bytes = Vec::new();
        let read = log.seek(SeekFrom::Start(byte)).and_then(|_| log.read_to_end(&mut bytes));
        read.expect("the audit log can be read");
        // A character may be half written yet, at the end.
        let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        text.to_owned()
    }
}

/// The root of this repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Writes a file that only this user can read: it holds credentials.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(text.as_bytes())
}

/// The program `cluster`: OPENTUNNEL_CLUSTER_BIN, else built from `dev/cluster`.
fn supervisor_program() -> Result<PathBuf, String> {
    if let Some(program) = env::var_os("OPENTUNNEL_CLUSTER_BIN") {
        return Ok(program.into());
    }
    let dir = |name| env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = dir("OPENTUNNEL_CACHE")
        .or_else(|| Some(dir("XDG_CACHE_HOME")?.join("opentunnel-operator")))
        .or_else(|| Some(dir("HOME")?.join(".cache/opentunnel-operator")))
        .ok_or("HOME is not set")?;
    let program = cache.join("bin/cluster");
    let source = repository().join("dev/cluster");
    output_of(Command::new("go").arg("-C").arg(source).args(["build", "-o"]).arg(&program).arg("."))
        .map_err(|e| format!("cannot build dev/cluster with Go: {e}"))?;
    Ok(program)
}

/// What a command prints. Its errors are text for people.
fn output_of(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
