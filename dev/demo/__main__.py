"""The operator at work on a real Kubernetes API server; an emulator stands in for AWS.

`make demo` builds what this needs and runs it. It checks what it shows: the exit code is 0 only if
everything happened as told. With KEEP=1 all goes on running afterwards, until Ctrl-C.

Whatever ends this program, nothing of it stays: `cluster` (dev/cluster) ends with its stdin, a pipe
from here, and takes with it all processes that it was told to adopt and the one directory.
"""

import base64
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.request

from data_plane import Ends
from emulator import AWS_QUOTAS, Emulator
from kubectl import Kubectl
from processes import ROOT, Processes, interruption
from screen import Failed, block, check, say, step, table

EXAMPLES = ROOT / "deploy/examples"
NAMESPACE = "edge"
MAX_OPEN_TUNNELS = 2


def http_ok(url):
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


# Of the operator's log.
SERVING = re.compile(r"address=([\d.:]+)\n")


def start(processes):
    """Control plane, emulator, operator."""
    metadata = ["cargo", "metadata", "--format-version=1", "--no-deps"]
    target = json.loads(subprocess.run(metadata, cwd=ROOT, check=True, capture_output=True).stdout)["target_directory"]
    programs = pathlib.Path(target) / "debug"

    step("A Kubernetes control plane: etcd, kube-apiserver, kube-controller-manager")
    serving = processes.start_cluster(os.environ["OPENTUNNEL_CLUSTER_BIN"], "--crds", ROOT / "crds")
    directory = pathlib.Path(serving["dir"]) / "demo"
    directory.mkdir(mode=0o700)
    kubectl = Kubectl(processes, serving, directory, NAMESPACE)
    say(f"    {serving['server']}, RBAC on; CustomResourceDefinition tunnels.opentunnel.dev installed")

    step(f"AWS IoT Secure Tunneling, emulated: AWS's quotas, and at most {MAX_OPEN_TUNNELS} open tunnels")
    log = directory / "emulator.log"
    flags = ["--listen=127.0.0.1:0", "--data-listen=127.0.0.1:0", "--data-tls=self-signed"]
    processes.start("the emulator", [programs / "secure-tunneling-emulator", *flags], log, TMPDIR=str(directory))
    lines = re.compile(r"listening on (\S+)\ndata plane on (\S+)\ndata plane's CA certificate in (.+)\n")
    said = processes.wait_until("the emulator listens", lambda: lines.search(log.read_text()))
    aws = Emulator(said[1])
    ends = Ends(processes, programs / "opentunnel-proxy", said[2], said[3], directory)
    aws("PUT", "quotas", AWS_QUOTAS | {"maxOpenTunnels": MAX_OPEN_TUNNELS})
    say(f"    {aws.endpoint}, 1 OpenTunnel and 1 CloseTunnel a second")

    step("deploy/ is applied. There are no nodes: the operator runs here, as its ServiceAccount and with its rights")
    kubectl("apply", "-k", str(ROOT / "deploy"))
    kubectl("create", "namespace", NAMESPACE)
    log = directory / "operator.log"
    processes.start(
        "the operator", [programs / "opentunnel-operator", "run", "--http-addr=127.0.0.1:0"], log,
        KUBECONFIG=service_account_kubeconfig(kubectl, directory), POD_NAMESPACE="opentunnel-system",
        AWS_ENDPOINT_URL_IOTSECURETUNNELING=aws.endpoint,
        AWS_REGION="us-east-1", AWS_ACCESS_KEY_ID="demo", AWS_SECRET_ACCESS_KEY="demo", AWS_EC2_METADATA_DISABLED="true",
        AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)
    said = processes.wait_until("the operator serves /readyz", lambda: SERVING.search(log.read_text()))
    processes.wait_until("the operator is ready", lambda: http_ok(f"http://{said[1]}/readyz"))
    say("    ready: its watches are synced")
    return serving, kubectl, aws, ends, log


def service_account_kubeconfig(kubectl, directory):
    """A kubeconfig of the operator's ServiceAccount."""
    account = next(o for o in kubectl.json("get", "-k", str(ROOT / "deploy"))["items"]
                   if o["kind"] == "ServiceAccount")["metadata"]
    token = kubectl("create", "token", account["name"], "-n", account["namespace"], "--duration=24h").strip()
    config = kubectl.json("config", "view", "--raw")
    config["users"][0]["user"] = {"token": token}
    path = directory / "operator.kubeconfig"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(config, file)
    return str(path)


def apply(kubectl, name):
    say(f"  $ kubectl apply -f deploy/examples/{name}.yaml")
    block(kubectl("apply", "-f", str(EXAMPLES / f"{name}.yaml")))


def demo(kubectl, aws, ends, operator_log):
    step("Two Tunnels: a plain one, and one with thing, services, tags and a SOURCE Secret")
    kubectl.watch("get", "tun", "--watch", "--output-watch-events")
    apply(kubectl, "plain")
    apply(kubectl, "pump-7")
    kubectl.wait("tun/plain", "tun/pump-7", "--for=condition=Ready")
    kubectl.shown("plain", "Open")
    kubectl.shown("pump-7", "Open")

    step("Their tokens are in Secrets")
    kubectl.show("describe", "secrets", "plain-tokens", "pump-7-source")
    tokens = access_tokens(kubectl)
    check({n: len(t) for n, t in tokens.items()} == {"plain-tokens": 2, "pump-7-source": 1},
          "an access token for each side that was asked for")

    step("A Pod has the Secret of pump-7 mounted, and a proxy; the pump has the token that AWS published, and a service")
    ends.start_device(aws("GET", "things/pump-7/notifications")[-1])
    ends.volume.write(secret_data(kubectl, "pump-7-source"))
    ends.start_pod()
    ends.request()

    step("A Secret is deleted: it comes back with new tokens of its side, and no second tunnel is opened")
    kubectl.show("delete", "secret", "pump-7-source")
    kubectl.wait("tun/pump-7", "--for=jsonpath={.status.tokenGeneration}=2")
    kubectl.wait("tun/pump-7", "--for=condition=Ready")
    renewed = access_tokens(kubectl)
    check(len(renewed["pump-7-source"]) == 1 and renewed["pump-7-source"] != tokens["pump-7-source"],
          "the Secret is there, with another token")
    check(len(opened(aws)) == 2, "two tunnels are open in AWS")

    step("The Pod sees the new token, its proxy is killed and comes back with it")
    ends.request()
    ends.volume.write(secret_data(kubectl, "pump-7-source"))
    ends.kill_pod()
    ends.start_pod()
    ends.request()

    step(f"A third Tunnel meets AWS's limit of {MAX_OPEN_TUNNELS} open tunnels")
    apply(kubectl, "sensor-42")
    kubectl.wait("tun/sensor-42", "--for=jsonpath={.status.conditions[0].reason}=LimitExceeded")
    kubectl.shown("sensor-42", "LimitExceeded")
    kubectl.show("get", "tun", "sensor-42", "-o=jsonpath={.status.conditions[0].message}")
    check(len(opened(aws)) == MAX_OPEN_TUNNELS, f"{MAX_OPEN_TUNNELS} tunnels are open in AWS")

    step("The first one is deleted: AWS closes its tunnel, and the third gets one")
    kubectl.show("delete", "tun", "plain")
    kubectl.wait("tun/sensor-42", "--for=condition=Ready")
    kubectl.shown("sensor-42", "Open")
    kubectl.wait("secret/plain-tokens", "--for=delete")
    kubectl.show("events", "--for=tun/sensor-42")
    check({t["thingName"] for t in opened(aws)} == {"pump-7", "sensor-42"}, "two tunnels are open in AWS, the other two")
    secret = {token for tokens in (tokens, renewed, access_tokens(kubectl)) for some in tokens.values() for token in some}

    step("The others are deleted, too")
    ends.may_end()
    kubectl.show("delete", "tun", "--all")
    kubectl.wait("secrets", "--selector=opentunnel.dev/secret=tokens", "--for=delete")
    ends.see_end()

    step("What AWS saw")
    calls, tunnels = aws("GET", "calls"), aws("GET", "tunnels")
    reads = [c for c in calls if c["operation"] not in ("OpenTunnel", "RotateTunnelAccessToken", "CloseTunnel")]
    rows = [(c["at"][11:23], c["operation"], c["outcome"], c["tunnelId"] or "") for c in calls if c not in reads]
    table([("TIME", "OPERATION", "OUTCOME", "TUNNEL"), *rows])
    say(f"    and {len(reads)} calls that only read\n")
    owner = "opentunnel.dev/owner"
    table([("TUNNEL", "STATUS", "THING", "SERVICES", "TAGS, LESS " + owner), *(
        (t["tunnelId"], t["status"], t["thingName"] or "", ",".join(t["services"] or []),
         ",".join(f"{k}={v}" for k, v in t["tags"].items() if k != owner)) for t in reversed(tunnels))])

    step("Was it as promised?")
    ids = sorted(t["tunnelId"] for t in tunnels)
    done = {o: sorted(c["tunnelId"] for c in calls if c["operation"] == o and c["outcome"] == "ok")
            for o in ("OpenTunnel", "CloseTunnel")}
    limited = [c for c in calls if c["outcome"] == "LimitExceededException"]
    owners = {t["tags"][owner].split("/")[2] for t in tunnels}
    check(len(ids) == 3 and len(owners) == 3 and done["OpenTunnel"] == ids, "three Tunnels, each opened exactly once")
    check(limited and len(calls) == len(limited) + len(reads) + 7, "AWS refused nothing else than openings beyond its limit")
    check(done["CloseTunnel"] == ids, "each closed exactly once")
    check(all(t["status"] == "CLOSED" for t in tunnels), "no tunnel is open")
    issued = {t["thingName"]: (t["sourceTokensIssued"], t["destinationTokensIssued"]) for t in tunnels}
    check(issued == {None: (1, 1), "pump-7": (2, 1), "sensor-42": (1, 1)}, "no tokens were asked for a second time but the lost ones")
    check(not kubectl.json("get", "tun,secrets", "-n", NAMESPACE)["items"], "no Tunnel and no Secret is left")
    told = operator_log.read_text() + ends.log() + kubectl("get", "events", "-A", "-o=yaml") + "".join(kubectl.seen)
    check(len(secret) == 6 and not any(token in told for token in secret), "no token stands in a log or in an event")


def opened(aws):
    return [t for t in aws("GET", "tunnels") if t["status"] == "OPEN"]


def access_tokens(kubectl):
    """All access tokens, by Secret. They are never printed."""
    secrets = kubectl.json("get", "secrets", "-n", NAMESPACE, "--selector=opentunnel.dev/secret=tokens")
    return {s["metadata"]["name"]: [base64.b64decode(v).decode() for k, v in s["data"].items() if k.endswith("AccessToken")]
            for s in secrets["items"]}


def secret_data(kubectl, name):
    """As the API server has it: keys, and values in base64."""
    return kubectl.json("get", "secret", name, "-n", NAMESPACE)["data"]


def keep(processes, serving, aws, ends, operator_log):
    """Says how to play with it, and waits."""
    aws("PUT", "quotas", AWS_QUOTAS)
    probes = SERVING.search(operator_log.read_text())[1]
    step("All goes on running, with no limit of open tunnels. Ctrl-C ends and removes it")
    say(f"""
  In another terminal:

    export KUBECONFIG={serving['kubeconfig']} PATH={serving['bin']}:$PATH
    kubectl apply -f deploy/examples/sensor-42.yaml
    kubectl get tun -n {NAMESPACE} --watch

  The operator's log:     {operator_log}
  Its metrics:            http://{probes}/metrics
  The emulator's state:   {aws.endpoint}/_emulator/tunnels
  and how to break it:    crates/emulator/README.md
  For a proxy of yours:   export SSL_CERT_FILE={ends.environment['SSL_CERT_FILE']}
                          opentunnel-proxy -e {ends.endpoint} ... (docs/demo.md#a-request-of-your-own)
""")
    while True:
        processes.must_run()
        time.sleep(1)


def main():
    if "OPENTUNNEL_CLUSTER_BIN" not in os.environ:
        sys.exit("dev/demo is run by `make demo`, which builds what it needs")
    begin, processes, serving, succeeded = time.monotonic(), Processes(), None, False
    try:
        serving, kubectl, aws, ends, operator_log = start(processes)
        try:
            demo(kubectl, aws, ends, operator_log)
        except Failed:
            with contextlib.suppress(Failed):
                kubectl.show("get", "tun", "-o=wide")
            raise
        succeeded = True
        if os.environ.get("KEEP"):
            keep(processes, serving, aws, ends, operator_log)
    except KeyboardInterrupt:
        say("" if succeeded else "\ninterrupted")
    except BrokenPipeError:  # whoever read this has gone
        succeeded, sys.stdout = False, open(os.devnull, "w")
    except (Failed, OSError, subprocess.CalledProcessError) as failure:
        succeeded = False
        processes.tell_logs()
        say(f"\nFAILED: {failure}")
    finally:
        interruption.ignore()
        processes.end()
    if succeeded:
        say(f"\nThe demo succeeded, in {time.monotonic() - begin:.0f} s. Its processes have ended, {serving['dir']} is removed.")
    sys.exit(0 if succeeded else 130 if interruption.came else 1)


main()
