"""What is tried, step by step, each with its time."""

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
from datetime import datetime

import node
from emulator import AWS_QUOTAS, Emulator
from kubectl import Kubectl
from processes import ROOT, Processes, interruption
from screen import Failed, block, check, say, step
from ways import ENDPOINT, WAYS

MANIFESTS = pathlib.Path(__file__).parent / "manifests"
EXAMPLES = ROOT / "deploy/examples"
EDGE = "edge"
OPERATOR = "app.kubernetes.io/name=opentunnel-operator"
# Tunnels that are opened during the rollout, and once more while the leader is killed: a second each.
LOAD = int(os.environ.get("E2E_TUNNELS", "20"))


@contextlib.contextmanager
def timed(title):
    step(title)
    begin = time.monotonic()
    yield
    say(f"    [{time.monotonic() - begin:.1f} s]")


class World:
    """The cluster, AWS, and what the steps ask of them."""

    def __init__(self, processes, kubectl, directory):
        self.processes, self.kubectl, self.directory = processes, kubectl, directory
        self.aws = Emulator(ENDPOINT)
        self.system = None  # the operator's namespace
        self.secret = set()  # all tokens seen; they are never printed
        self.logs = []

    def until(self, what, condition):
        return self.processes.wait_until(what, condition)

    def apply(self, *objects):
        path = self.directory / "applied.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        self.kubectl("apply", "-f", str(path))

    def namespace(self, name):
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})

    def certificate(self, namespace):
        self.kubectl("create", "secret", "tls", "tls", "-n", namespace, f"--cert={self.directory}/tls.crt",
                     f"--key={self.directory}/tls.key")

    def tokens(self, name, namespace=EDGE):
        """The data of a token Secret."""
        data = self.kubectl.json("get", "secret", name, "-n", namespace)["data"]
        data = {key: base64.b64decode(value).decode() for key, value in data.items()}
        self.secret |= {value for key, value in data.items() if re.search("(?i)token", key)} - {data["tunnelId"]}
        return data

    def pods(self):
        """The operator's, those that are ready."""
        pods = self.kubectl.json("get", "pods", "-n", self.system, "-l", OPERATOR)["items"]
        return [p for p in pods if "deletionTimestamp" not in p["metadata"] and any(
            c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", ()))]

    def leader(self):
        """The Lease's holder: the name of a Pod."""
        holder = self.kubectl.json("get", "lease", "opentunnel-operator", "-n", self.system)["spec"].get("holderIdentity") or ""
        names = [p["metadata"]["name"] for p in self.kubectl.json("get", "pods", "-n", self.system, "-l", OPERATOR)["items"]]
        return next((name for name in names if holder.startswith(name)), None)

    def waiting(self, pod):
        """Why the Pod's container does not run, or none."""
        status = self.kubectl.json("get", "pod", pod, "-n", EDGE)["status"].get("containerStatuses", [{}])
        return status[0].get("state", {}).get("waiting", {}).get("reason")

    def running(self, pod, namespace=EDGE):
        self.kubectl("wait", f"pod/{pod}", "-n", namespace, "--for=condition=Ready", "--timeout=90s")

    def aws_answers(self):
        with contextlib.suppress(OSError):
            return self.aws("GET", "calls") == []

    def opened(self):
        return [c for c in self.aws("GET", "calls") if c["operation"] == "OpenTunnel" and c["outcome"] == "ok"]

    def ready(self, namespace):
        tunnels = self.kubectl.json("get", "tunnels", "-n", namespace)["items"]
        return sum(any(c["type"] == "Ready" and c["status"] == "True" for c in t.get("status", {}).get("conditions", ()))
                   for t in tunnels)

    def keep_log(self, namespace, *what):
        self.logs.append(self.kubectl("logs", "-n", namespace, *what))


def certificates(directory):
    """An authority, and by it a certificate of the emulator's Service."""
    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=e2e")
    openssl("req", *key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=emulator")
    (directory / "san").write_text("subjectAltName=IP:10.96.0.70\n")
    openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "san", "-out", "tls.crt")


def start_node(processes, directory, cgroup):
    with timed("A control plane and a node: etcd, kube-apiserver, controllers, scheduler, kube-proxy, containerd, kubelet"):
        serving = processes.start_cluster(os.environ["OPENTUNNEL_CLUSTER_BIN"], "--node", node.ADDRESS, "--dir",
                                          directory / "cluster")
        node.start(processes, serving, directory, cgroup, sorted((directory / "images").iterdir()))
        kubectl = Kubectl(processes, serving, directory, EDGE)
        processes.wait_until("the node is there", lambda: kubectl.json("get", "nodes")["items"])
        kubectl("wait", "node/node", "--for=condition=Ready", "--timeout=90s")
        block(kubectl("get", "nodes", "-o", "wide"))
    return kubectl


def start_aws(world):
    with timed("AWS IoT Secure Tunneling: the emulator's image, as a Deployment with a Service; its data plane with TLS"):
        certificates(world.directory)
        world.namespace("aws")
        world.certificate("aws")
        world.kubectl("apply", "-f", str(MANIFESTS / "emulator.yaml"))
        world.kubectl("rollout", "status", "deployment/emulator", "-n", "aws", "--timeout=90s")
        world.until("its Service leads to it", world.aws_answers)
        world.aws("PUT", "quotas", AWS_QUOTAS)


def install(world, way):
    with timed(f"Installed: {way.name}"):
        world.system = way.namespace
        way.install()
        world.kubectl("rollout", "status", "deployment/opentunnel-operator", "-n", way.namespace, "--timeout=90s")
        block(world.kubectl("get", "pods", "-n", way.namespace))
        labels = world.kubectl.json("get", "namespace", way.namespace)["metadata"]["labels"]
        check(labels.get("pod-security.kubernetes.io/enforce") == "restricted", "its namespace enforces `restricted`")
        check(len(world.pods()) == 2, "two replicas are ready")


def read_tokens(world):
    with timed("Pods that read tokens are there before their Tunnels: they wait"):
        world.kubectl("apply", "-f", str(MANIFESTS / "readers.yaml"))
        reasons = {"by-file": "ContainerCreating", "by-env": "CreateContainerConfigError", "by-env-from": "CreateContainerConfigError"}
        for pod, reason in reasons.items():
            world.until(f"{pod} says {reason}", lambda: world.waiting(pod) == reason)
            check(True, f"{pod}: {reason}")
    with timed("The Tunnels are applied: the Pods start, each with the right token"):
        world.kubectl("apply", "-f", str(EXAMPLES / "sensor-42.yaml"), "-f", str(EXAMPLES / "pump-7.yaml"))
        begin = time.monotonic()
        world.kubectl("wait", "tunnel/sensor-42", "tunnel/pump-7", "-n", EDGE, "--for=condition=Ready", "--timeout=90s")
        say(f"    both Tunnels are Ready after {time.monotonic() - begin:.1f} s")
        sensor, pump = world.tokens("sensor-42-tokens"), world.tokens("pump-7-source")
        for pod, token in {"by-env": sensor["sourceAccessToken"], "by-env-from": pump["AWSIOT_TUNNEL_ACCESS_TOKEN"]}.items():
            world.running(pod)
            check(world.kubectl("logs", pod, "-n", EDGE).split()[0] == digest(token), f"{pod}: after {time.monotonic() - begin:.0f} s")
        world.running("by-file")
        check(files(world) == {key: digest(value) for key, value in sensor.items()},
              f"by-file: after {time.monotonic() - begin:.0f} s, all {len(sensor)} keys of the Secret")


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def files(world):
    """What the Pod has in its volume: digests by name."""
    told = world.kubectl("exec", "by-file", "-n", EDGE, "--", "sh", "-c", "cd /run/tunnel && sha256sum *")
    return {name: number for number, name in (line.split() for line in told.splitlines())}


def rotate(world):
    with timed("A rotation reaches the volume (this kubelet looks every 5 s; by default every minute)"):
        old = world.tokens("sensor-42-tokens")
        begin = time.monotonic()
        world.kubectl("annotate", "tunnel/sensor-42", "-n", EDGE, "opentunnel.dev/rotate-at=now")
        world.kubectl("wait", "tunnel/sensor-42", "-n", EDGE, "--for=jsonpath={.status.lastHandledRotateAt}=now", "--timeout=90s")
        world.kubectl("wait", "tunnel/sensor-42", "-n", EDGE, "--for=condition=Ready", "--timeout=90s")
        new = world.tokens("sensor-42-tokens")
        say(f"    rotated after {time.monotonic() - begin:.1f} s")
        check(all(new[key] != old[key] for key in old if key.endswith("Token")), "the Secret has four other tokens")
        expected = {key: digest(value) for key, value in new.items()}
        world.until("the files are the new ones", lambda: files(world) == expected)
        check(True, f"the Pod has them after {time.monotonic() - begin:.0f} s, without a restart")


def reach_device(world):
    with timed("The device connects, with the token that AWS has published for it"):
        world.namespace("device")
        world.certificate("device")
        published = world.aws("GET", "things/pump-7/notifications")[-1]["clientAccessToken"]
        world.secret.add(published)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "published", "namespace": "device"},
                  "stringData": {"token": published}}
        authority = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authority", "namespace": namespace},
                      "data": {"ca.crt": (world.directory / "ca.crt").read_text()}} for namespace in ("device", EDGE)]
        world.apply(secret, *authority)
        world.kubectl("apply", "-f", str(MANIFESTS / "device.yaml"))
        world.running("pump-7", "device")
    with timed("deploy/examples/pump-7-pod.yaml: the proxy is a native sidecar, the container reaches the device on localhost"):
        overlay = world.directory / "client"
        overlay.mkdir()
        (overlay / "kustomization.yaml").write_text(json.dumps({
            "resources": ["pump-7-pod.yaml"], "patches": [{"path": "client-patch.yaml"}],
            "images": [{"name": "opentunnel-proxy", "newTag": "e2e"},
                       {"name": "docker.io/curlimages/curl", "newName": "tools", "newTag": "e2e"}]}))
        for path in (EXAMPLES / "pump-7-pod.yaml", MANIFESTS / "client-patch.yaml"):
            (overlay / path.name).write_text(path.read_text())
        world.kubectl("apply", "-k", str(overlay))
        world.running("pump-7-client")
        world.until("the client has an answer",
                    lambda: "pump 7: 4.2 bar\n" in world.kubectl("logs", "pump-7-client", "-n", EDGE, "-c", "client"))
        block(world.kubectl("get", "pods", "-n", EDGE))
        check(True, "the device has answered through the tunnel: pump 7: 4.2 bar")


def leave_device(world):
    with timed("After a round of the operator's poller the status tells who is connected. The Pod is deleted"):
        def connected():
            status = world.kubectl.json("get", "tunnel", "pump-7", "-n", EDGE)["status"]
            return [status.get(f"{side}Connection", {}).get("status") for side in ("source", "destination")] == ["CONNECTED"] * 2
        world.until("pump-7 says that both sides are connected", connected)
        check(True, "source and destination: CONNECTED")
        world.keep_log(EDGE, "pump-7-client", "-c", "tunnel")
        begin = time.monotonic()
        world.kubectl("delete", "pod", "pump-7-client", "-n", EDGE, "--timeout=60s")
        say(f"    the Pod is gone after {time.monotonic() - begin:.0f} s")


def tunnels(namespace, numbers):
    return [{"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel",
             "metadata": {"name": f"load-{number:02}", "namespace": namespace}} for number in numbers]


def load(world):
    """Tunnels are being opened, one a second, while the operator is rolled out, and its leader is killed."""
    world.namespace("load")
    before = len(world.opened())
    follow(world)

    def progress(count):
        world.until(f"{count} tunnels are open", lambda: len(world.opened()) - before >= count)

    with timed(f"{LOAD} Tunnels; a rollout while they are opened, one a second"):
        world.apply(*tunnels("load", range(LOAD)))
        progress(5)
        say(f"    {world.leader()} leads")
        world.kubectl("rollout", "restart", "deployment/opentunnel-operator", "-n", world.system)
        world.kubectl("rollout", "status", "deployment/opentunnel-operator", "-n", world.system, "--timeout=90s")
        world.until("all are Ready", lambda: world.ready("load") == LOAD)
        say(f"    now leads {world.leader()}; the longest pauses between two openings: {pauses(world, before)}")
        check(len(world.opened()) - before == LOAD, f"{LOAD} Tunnels are Ready, {LOAD} tunnels were opened")
    with timed(f"{LOAD} more; the leader is killed (SIGKILL) while they are opened"):
        count, follower = len(world.opened()), len(world.pods())
        check(follower == 2, "two replicas are ready")
        world.apply(*tunnels("load", range(LOAD, 2 * LOAD)))
        progress(LOAD + 5)
        leader = world.leader()
        os.kill(process_of(world, leader), signal.SIGKILL)
        killed = len(world.opened())
        say(f"    killed: {leader}")
        begin = time.monotonic()
        progress(killed - before + 1)
        say(f"    the next tunnel is opened after {time.monotonic() - begin:.1f} s")
        world.until("all are Ready", lambda: world.ready("load") == 2 * LOAD)
        say(f"    now leads {world.leader()}; the longest pauses between two openings: {pauses(world, count)}")
        check(len(world.opened()) - before == 2 * LOAD, f"{2 * LOAD} Tunnels are Ready, {2 * LOAD} tunnels were opened")
        world.until("two replicas are ready", lambda: len(world.pods()) == 2)
        secrets = world.kubectl.json("get", "secrets", "-n", "load", "-l", "opentunnel.dev/secret=tokens")["items"]
        check(len(secrets) == 2 * LOAD, f"{2 * LOAD} Secrets hold their tokens")


def pauses(world, first):
    """Of the openings from that one on. A Tunnel that was claimed by a leader who is gone waits for --recovery-grace."""
    at = [datetime.fromisoformat(call["at"].replace("Z", "+00:00")).timestamp() for call in world.opened()[first:]]
    longest = sorted((b - a for a, b in zip(at, at[1:])), reverse=True)[:2]
    return " and ".join(f"{seconds:.1f} s" for seconds in longest)


def process_of(world, pod):
    """The number of the process in the operator's container."""
    uid = world.kubectl.json("get", "pod", pod, "-n", world.system)["metadata"]["uid"]
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(path / "exe").endswith("opentunnel-operator") and uid in (path / "cgroup").read_text():
                return int(path.name)
    raise Failed(f"no process of {pod}")


def follow(world):
    """Keeps the logs of all the operator's Pods, those that end, too."""
    path = world.directory / "operator.log"

    def run():
        texts = {}
        while True:
            for log in pathlib.Path("/var/log/pods").glob(f"{world.system}_*/operator/*.log"):
                with contextlib.suppress(OSError):
                    texts[log] = log.read_text()
            path.write_text("".join(texts.values()))
            time.sleep(1)
    if not path.exists():
        threading.Thread(target=run, daemon=True).start()


def drain(world):
    with timed("The node is drained. It is the only one: the budget keeps the second replica, and the operator works"):
        drain = ["drain", "node", f"--pod-selector={OPERATOR}", "--delete-emptydir-data", "--timeout=15s"]
        try:
            world.kubectl(*drain)
            raise Failed("expected: the drain does not get the last replica")
        except Failed as failure:
            check("disruption budget" in str(failure), "refused: the disruption budget")
        world.until("one replica is left, another waits for a node", lambda: len(world.pods()) == 1)
        world.apply(*tunnels("load", [2 * LOAD]))
        begin = time.monotonic()
        world.kubectl("wait", f"tunnel/load-{2 * LOAD:02}", "-n", "load", "--for=condition=Ready", "--timeout=90s")
        check(True, f"a Tunnel that is applied meanwhile is Ready after {time.monotonic() - begin:.1f} s")
    with timed("With `replicas: 1` it is drained; uncordoned, and with two again, both are ready"):
        world.kubectl("scale", "deployment/opentunnel-operator", "-n", world.system, "--replicas=1")
        world.kubectl(*drain)
        check(not world.pods(), "no replica is left")
        world.kubectl("uncordon", "node")
        world.kubectl("scale", "deployment/opentunnel-operator", "-n", world.system, "--replicas=2")
        world.kubectl("rollout", "status", "deployment/opentunnel-operator", "-n", world.system, "--timeout=90s")
        check(len(world.pods()) == 2, "two replicas are ready")


def uninstall(world, way):
    with timed(f"Uninstalled: the Tunnels first, so that AWS closes their tunnels; then the operator ({way.name})"):
        begin = time.monotonic()
        world.kubectl("delete", "tunnels", "--all", "-A", "--wait=false")
        world.until("no Tunnel is left", lambda: not world.kubectl.json("get", "tunnels", "-A")["items"])
        say(f"    all Tunnels are gone after {time.monotonic() - begin:.1f} s")
        check(not [t for t in world.aws("GET", "tunnels") if t["status"] == "OPEN"], "no tunnel is open in AWS")
        world.until("no token Secret is left", lambda: not world.kubectl.json(
            "get", "secrets", "-A", "-l", "opentunnel.dev/secret=tokens")["items"])
        way.uninstall()
        world.kubectl("delete", "namespace", EDGE, "load", "device", "--ignore-not-found", "--timeout=90s")
        left = [kind for kind in ("namespaces", "customresourcedefinitions", "clusterroles", "clusterrolebindings")
                for item in world.kubectl.json("get", kind)["items"] if "opentunnel" in item["metadata"]["name"]]
        check(not left, "nothing of it is left in the cluster")


def everything(world, way):
    install(world, way)
    world.namespace(EDGE)
    read_tokens(world)
    rotate(world)
    reach_device(world)
    load(world)
    leave_device(world)
    drain(world)
    with timed("What was logged"):
        world.keep_log("aws", "deployment/emulator")
        world.keep_log("device", "pump-7", "-c", "proxy")
        world.logs += [(world.directory / "operator.log").read_text(), world.kubectl("get", "events", "-A", "-o", "yaml")]
        check("Opened" in world.logs[-1] and "INFO" in world.logs[-2], "the operator has logged, and told Events")
        check(not any(token in text for text in world.logs for token in world.secret), "no token is in a log or an Event")


def briefly(world, way):
    install(world, way)
    with timed("A Tunnel"):
        world.namespace(EDGE)
        opened = len(world.opened())
        world.kubectl("apply", "-f", str(EXAMPLES / "sensor-42.yaml"))
        world.kubectl("wait", "tunnel/sensor-42", "-n", EDGE, "--for=condition=Ready", "--timeout=90s")
        world.tokens("sensor-42-tokens")
        check(len(world.opened()) == opened + 1, "it is Ready, and has its Secret")
    uninstall(world, way)


def go(directory, cgroup):
    """The exit code."""
    begin, processes = time.monotonic(), Processes()
    kubectl = None
    try:
        kubectl = start_node(processes, directory, cgroup)
        world = World(processes, kubectl, directory)
        start_aws(world)
        first, *others = (way(world) for way in WAYS)
        everything(world, first)
        if os.environ.get("KEEP"):
            keep(processes, kubectl)
        uninstall(world, first)
        for way in others:
            briefly(world, way)
        say(f"\ne2e succeeded, in {time.monotonic() - begin:.0f} s.")
        return 0
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    except (Failed, OSError, subprocess.CalledProcessError) as failure:
        interruption.ignore()
        if kubectl:
            tell_state(kubectl)
        processes.tell_logs()
        say(f"\nFAILED: {failure}")
        return 1


def keep(processes, kubectl):
    """Says how to get in, and waits."""
    step("All goes on running. Ctrl-C ends and removes it")
    program, config, _ = kubectl.command
    say(f"""
  In another terminal, as root:

    nsenter --target $(pgrep -nf 'e2e inside') --mount --pid --net
    export {config.strip('-').replace('kubeconfig', 'KUBECONFIG')} PATH={pathlib.Path(program).parent}:$PATH
    kubectl get tunnels,pods -A
""")
    while True:
        processes.must_run()
        time.sleep(1)


def tell_state(kubectl):
    with contextlib.suppress(Failed):
        for what in (["get", "pods,tunnels", "-A", "-o", "wide"], ["get", "events", "-A", "--sort-by=.lastTimestamp"]):
            say(f"\n  $ kubectl {' '.join(what)}")
            block("\n".join(kubectl(*what).splitlines()[-40:]))
    for log in pathlib.Path("/var/log/pods").glob("*/*/*.log"):
        say(f"\nthe end of {log}:")
        block("\n".join(line[:300] for line in log.read_text(errors="replace").splitlines()[-20:]))
