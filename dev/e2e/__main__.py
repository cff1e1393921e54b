"""The operator on a real node: its image, kubelet, Pods that use tunnels; the emulator stands in for AWS.

`make e2e` builds what this needs and runs it, as root, with containerd. It checks what it shows: the exit code is 0
only if everything happened as told, and 77 where this machine lacks what it takes.

All of it runs in PID, mount and network namespaces of its own, whose first process is this program, started again: when
that ends, however it ends, the kernel ends all others, takes down the mounts and the network. What is left then is one
directory and one cgroup, which the outer one of the two removes.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "demo"))

import images  # noqa: E402
import node  # noqa: E402

SKIPPED = 77
TOOLS = {"containerd": "containerd", "ctr": "containerd", "runc": "runc", "iptables": "iptables", "ip": "iproute2",
         "busybox": "busybox-static", "curl": "curl", "openssl": "openssl",
         "unshare": "util-linux", "setpriv": "util-linux"}


def lacking():
    """What this takes and the machine has not, in words."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root, for a kubelet and containers"
    packages = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
    packages |= {"busybox-static"} if images.libraries("/bin/busybox") else set()
    packages |= set() if node.PLUGINS else {"containernetworking-plugins"}
    if packages:
        return f"on Debian, first: apt-get install --no-install-recommends {' '.join(sorted(packages))}"
    return None


def prepare(directory):
    """The images: of what cargo has built (else in E2E_PROGRAMS), or the archives in E2E_IMAGES, PROGRAM.tar, by `docker
    save`, `podman save` or `buildah push docker-archive:`."""
    archives = directory / "images"
    archives.mkdir()
    images.tools(archives / "pause.tar", "pause:e2e", ["sleep", "2147483647"])
    images.tools(archives / "tools.tar", "tools:e2e")
    if "E2E_IMAGES" in os.environ:
        for program in images.DOCKERFILES:
            images.retag(pathlib.Path(os.environ["E2E_IMAGES"], f"{program}.tar"), archives / f"{program}.tar", f"{program}:e2e")
        return
    programs = os.environ.get("E2E_PROGRAMS")
    if not programs:
        metadata = ["cargo", "metadata", "--format-version=1", "--no-deps"]
        told = subprocess.run(metadata, cwd=images.ROOT, check=True, capture_output=True).stdout
        programs = f"{json.loads(told)['target_directory']}/debug"
    for program in images.DOCKERFILES:
        images.assemble(pathlib.Path(programs, program), archives / f"{program}.tar", f"{program}:e2e")


def outer():
    """Makes the namespaces and what is outside of them, and removes it."""
    if reason := lacking():
        print(f"e2e: SKIPPED, nothing was tried: {reason}")
        return SKIPPED
    if sys.argv[1:] == ["check"]:
        return 0

    def stop(number, _):
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        signal.signal(number, stop)
    node.remove_stale()
    name, inner = f"{node.PREFIX}{os.getpid()}", None
    directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-"))
    try:
        prepare(directory)
        node.make_cgroup(name)
        # setpriv: unshare ends with this process, however it ends; with unshare ends all that is inside.
        inner = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child=KILL",
             "--mount-proc", sys.executable, "-B", str(pathlib.Path(__file__).parent), "inside", directory, name])
        return inner.wait()
    finally:
        if inner:
            inner.kill()
            inner.wait()
        node.remove_cgroup(name)
        shutil.rmtree(directory)


def inside(directory, cgroup):
    """The first process of the namespaces."""
    from scenario import go  # what it imports looks at the environment, and takes over signals
    node.hide(directory)
    return go(directory, cgroup)


if sys.argv[1:2] == ["inside"]:
    sys.exit(inside(pathlib.Path(sys.argv[2]), sys.argv[3]))
sys.exit(outer())
