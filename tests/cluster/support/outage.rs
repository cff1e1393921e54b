//! Outages of an API server, and an etcd that is restored from an older state: on a control plane of their own.

use super::LIMIT;
use super::control_plane::ControlPlane;
use super::namespace::client;
use axum::http;
use kube::Client;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout};

const API_SERVER: &str = "kube-apiserver";
/// It is ready before it can list what a CustomResourceDefinition defines.
const ANSWERS: [&str; 3] = ["/readyz", "/apis/opentunnel.dev/v1alpha1/tunnels?limit=1", "/api/v1/secrets?limit=1"];

/// How an API server is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// It takes connections, and says nothing.
    Paused,
    /// It refuses connections.
    Stopped,
}

/// A turn to have the control plane for outages to oneself.
pub struct Outage {
    /// The control plane.
    pub plane: &'static ControlPlane,
    admin: Client,
    _turn: MutexGuard<'static, ()>,
}

impl Outage {
    /// Waits for a turn.
    pub async fn take() -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let plane = ControlPlane::for_outages();
        Self { plane, admin: client(&plane.kubeconfig).await, _turn: turn }
    }

    /// Returns once nobody gets an answer.
    pub async fn begin(&self, away: Away) {
        self.plane.order(if away == Away::Paused { "pause" } else { "stop" }, API_SERVER);
        self.until(false).await;
    }

    /// Returns once it answers again.
    pub async fn end(&self, away: Away) {
        self.plane.order(if away == Away::Paused { "resume" } else { "start" }, API_SERVER);
        self.until(true).await;
    }

    /// What etcd knows, as a copy of its files.
    pub async fn snapshot(&self) -> PathBuf {
        let copy = self.plane.dir.join(format!("etcd-{}", uuid::Uuid::new_v4()));
        self.with_etcd_stopped(|etcd| copy_dir(etcd, &copy)).await;
        copy
    }

    /// Has etcd know what it knew. Those that keep a picture of the cluster are started anew, as Kubernetes asks for
    /// (<https://kubernetes.io/docs/tasks/administer-cluster/configure-upgrade-etcd/#restoring-an-etcd-cluster>),
    /// but for the operators. `meanwhile`: before the API server answers.
    pub async fn restore(&self, snapshot: &Path, meanwhile: impl FnOnce()) {
        self.plane.order("stop", "kube-controller-manager");
        self.with_etcd_stopped(|etcd| {
            meanwhile();
            fs::remove_dir_all(etcd).expect("etcd's files");
            copy_dir(snapshot, etcd);
        })
        .await;
        self.plane.order("start", "kube-controller-manager");
    }

    async fn with_etcd_stopped(&self, what: impl FnOnce(&Path)) {
        self.plane.order("stop", API_SERVER);
        self.plane.order("stop", "etcd");
        self.until(false).await;
        // Its lock goes with it.
        let deadline = Instant::now() + LIMIT;
        while fs::File::open(self.plane.etcd.join("member/snap/db")).expect("etcd's file").try_lock().is_err() {
            assert!(Instant::now() < deadline, "etcd does not stop");
            sleep(Duration::from_millis(10)).await;
        }
        what(&self.plane.etcd);
        self.plane.order("start", "etcd");
        self.plane.order("start", API_SERVER);
        self.until(true).await;
    }

    async fn until(&self, answers: bool) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut all = true;
            for path in ANSWERS {
                let get = http::Request::get(path).body(Vec::new()).expect("a request");
                let answer = timeout(Duration::from_secs(1), self.admin.request_text(get)).await;
                all &= matches!(answer, Ok(Ok(_)));
            }
            if all == answers {
                return;
            }
            assert!(Instant::now() < deadline, "the API server answers: not {answers}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        // The next one finds it as this one did.
        if std::thread::panicking() {
            for (order, program) in
                [("resume", API_SERVER), ("start", API_SERVER), ("resume", "kube-controller-manager")]
            {
                self.plane.order(order, program);
            }
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).expect("a file can be copied");
        }
    }
    fs::set_permissions(to, fs::metadata(from).expect("a directory").permissions()).expect("they can be set");
}
