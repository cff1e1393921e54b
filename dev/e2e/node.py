"""A node: containerd, and the kubelet, for the control plane of dev/cluster. All of it is in namespaces of its own."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

# Of directory and cgroup, before the number of the process that is in charge of them.
PREFIX = "opentunnel-e2e-"
ADDRESS = "10.88.0.1"
CGROUPS = pathlib.Path("/sys/fs/cgroup")
PLUGINS = next((p for p in ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni") if pathlib.Path(p, "bridge").exists()), None)
PAUSE = "docker.io/library/pause:e2e"

# As root of this machine kubelet and containerd would write here. They write to what is this process' own.
HIDDEN = ("/run", "/var/log", "/var/lib")
# What kubelet sets for the whole machine: it may set a file.
SYSCTLS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")

CONTAINERD = """version = 2
root = "{directory}/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""

CNI = {
    "cniVersion": "0.4.0", "name": "pods",
    "plugins": [{
        "type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "hairpinMode": True,
        "ipam": {"type": "host-local", "dataDir": "/run/cni",
                 "ranges": [[{"subnet": "10.88.0.0/16", "rangeStart": "10.88.1.1", "gateway": ADDRESS}]]},
    }],
}

# JSON is YAML. A changed Secret reaches a volume within syncFrequency (kubelet's own default: a minute).
KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs", "failCgroupV1": False, "failSwapOn": False,
    "makeIPTablesUtilChains": False, "resolvConf": "", "oomScoreAdj": 0,
    "evictionHard": {"memory.available": "1%", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
    "imageGCHighThresholdPercent": 100,  # what is not in use could not be had again
    "syncFrequency": "5s", "nodeStatusUpdateFrequency": "5s",
}


def run(*command):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def hide(directory):
    """Own mounts, and an address: before anything is started."""
    for path in HIDDEN:
        own = directory / path.strip("/").replace("/", "-")
        own.mkdir()
        run("mount", "--bind", own, path)
    for name in SYSCTLS:
        own = directory / name.replace("/", "-")
        own.write_text(pathlib.Path("/proc/sys", name).read_text())
        run("mount", "--bind", own, f"/proc/sys/{name}")
    pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "cni0", "type", "bridge")
    run("ip", "address", "add", f"{ADDRESS}/16", "dev", "cni0")
    run("ip", "link", "set", "cni0", "up")
    # Where there is no way to go kube-proxy's rules are not asked.
    run("ip", "route", "add", "10.96.0.0/16", "dev", "cni0")


def hierarchies():
    """The directories under which a cgroup has to be made: one, or with cgroup v1 one for each controller."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists() and not path.is_symlink()]


def make_cgroup(name):
    """What is to be in it is what Pods get their share of."""
    for parent in hierarchies():
        own = parent / name
        own.mkdir()
        if (parent / "cgroup.subtree_control").exists() and parent == CGROUPS:
            for directory in (parent, own):
                (directory / "cgroup.subtree_control").write_text("+cpu +cpuset +memory +pids")
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (parent / setting).exists():
                (own / setting).write_text((parent / setting).read_text())


def remove_cgroup(name):
    """Once its processes are gone: they were killed a moment ago, at the latest."""
    for parent in hierarchies():
        for attempt in range(100):
            try:
                for path, *_ in os.walk(parent / name, topdown=False):
                    os.rmdir(path)
                break
            except OSError:
                if attempt == 99:
                    raise
                time.sleep(0.1)


def remove_stale():
    """What runs that were killed by SIGKILL have left."""
    for path in [*pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"), *CGROUPS.glob(f"{PREFIX}*"), *CGROUPS.glob(f"*/{PREFIX}*")]:
        number = path.name.removeprefix(PREFIX).split("-")[0]
        if number.isdigit() and not pathlib.Path("/proc", number).exists():
            remove_cgroup(PREFIX + number)
            if CGROUPS not in path.parents:
                shutil.rmtree(path)


def start(processes, serving, directory, cgroup, images):
    """Returns once kubelet serves."""
    (directory / "cni").mkdir()
    (directory / "cni/pods.conflist").write_text(json.dumps(CNI))
    config = directory / "containerd.toml"
    config.write_text(CONTAINERD.format(directory=directory, pause=PAUSE, plugins=PLUGINS))
    processes.start("containerd", ["containerd", "--config", config], directory / "containerd.log")
    ctr = ["ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"]
    processes.wait_until("containerd serves", lambda: subprocess.run([*ctr, "version"], capture_output=True).returncode == 0)
    for image in images:
        run(*ctr, "images", "import", image)
    config = directory / "kubelet.json"
    config.write_text(json.dumps(KUBELET | {
        "cgroupRoot": f"/{cgroup}", "podLogsDir": "/var/log/pods", "volumePluginDir": str(directory / "plugins")}))
    command = [f"{serving['bin']}/kubelet", f"--config={config}", f"--kubeconfig={serving['dir']}/kubelet.kubeconfig",
               "--hostname-override=node", f"--node-ip={ADDRESS}", f"--root-dir={directory}/kubelet",
               f"--cert-dir={directory}/kubelet-pki"]
    processes.start("kubelet", command, directory / "kubelet.log")
