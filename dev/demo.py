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
import signal
import subprocess
import sys
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "deploy/examples"
NAMESPACE = "edge"
MAX_OPEN_TUNNELS = 2
# AWS's defaults, and its limit of open tunnels made small enough to be met.
AWS_QUOTAS = {"OpenTunnel": 1, "CloseTunnel": 1, "DescribeTunnel": 10, "ListTunnels": 10, "RotateTunnelAccessToken": 10,
              "TagResource": 10, "UntagResource": 10, "ListTagsForResource": 10}
# Many times what any of the waits takes; a probe of AWS's limit comes within a minute.
LIMIT = 90


class Failed(Exception):
    """Something did not happen as told. The text is for people."""


def clean_environment():
    """The user's environment less what would lead the programs elsewhere: AWS's and the operator's
    settings, proxies (everything is on this machine), kubectl's preferences."""
    foreign = re.compile(r"AWS_|OPENTUNNEL_|SECURE_TUNNELING_|KUBECONFIG|KUBERNETES_|RUST_LOG|\w+_PROXY$", re.I)
    return {k: v for k, v in os.environ.items() if not foreign.match(k)} | {"KUBERC": "off"}


ENVIRONMENT = clean_environment()


# ---- What is printed

screen = threading.Lock()
BOLD, PLAIN = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")


def say(text=""):
    with screen:
        print(text, flush=True)


def step(title):
    step.number = getattr(step, "number", 0) + 1
    say(f"\n{BOLD}== {step.number}. {title}{PLAIN}")


def block(text):
    for line in text.rstrip().splitlines():
        say(f"    {line}".rstrip())


def table(rows):
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    block("\n".join("   ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) for row in rows))


def check(truth, text):
    """A promise, and whether it was kept."""
    if not truth:
        raise Failed(f"expected: {text}")
    say(f"    ok  {text}")


# ---- What runs


class Processes:
    """The programs in the background. They are in sessions of their own: a Ctrl-C reaches this program
    alone, which ends them in order."""

    def __init__(self):
        self.supervisor = None
        self.watched = {}  # what must go on running: name -> (process, log)

    def start_cluster(self, program):
        self.supervisor = subprocess.Popen([program, "up", "--crds", ROOT / "crds"], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, env=os.environ | ENVIRONMENT, text=True,
                                           start_new_session=True)
        line = self.supervisor.stdout.readline()
        if not line:
            raise Failed("the control plane did not start; why is told above")
        self.watched["the control plane"] = (self.supervisor, None)
        return json.loads(line)

    def start(self, name, command, log, **environment):
        """A program that has to go on running, with its log in a file."""
        with open(log, "w") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       env=ENVIRONMENT | environment, start_new_session=True)
        self.adopt(process)
        self.watched[name] = (process, log)
        return process

    def adopt(self, process):
        self.supervisor.stdin.write(f"adopt {process.pid}\n")
        self.supervisor.stdin.flush()

    def must_run(self):
        for name, (process, _) in self.watched.items():
            if process.poll() is not None:
                raise Failed(f"{name} has ended (exit code {process.returncode})")

    def wait_until(self, what, condition):
        """Waits until `condition` returns something, and returns it."""
        deadline = time.monotonic() + LIMIT
        while not (result := condition()):
            self.must_run()
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not after {LIMIT} s")
            time.sleep(0.02)
        return result

    def tell_logs(self):
        for name, (_, log) in self.watched.items():
            if log and log.exists():
                say(f"\nthe end of the log of {name}:")
                block("\n".join(log.read_text(errors="replace").splitlines()[-30:]))

    def end(self):
        """The operator as Kubernetes would end it, then the rest."""
        process, _ = self.watched.get("the operator", (None, None))
        if process:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        if self.supervisor:
            with contextlib.suppress(BrokenPipeError):
                self.supervisor.stdin.close()
            try:
                self.supervisor.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.supervisor.terminate()


class Kubectl:
    """The cluster's own kubectl, as the administrator."""

    def __init__(self, processes, serving, directory):
        self.processes = processes
        self.command = [f"{serving['bin']}/kubectl", f"--kubeconfig={serving['kubeconfig']}",
                        f"--cache-dir={directory / 'kubectl-cache'}"]
        self.seen = []  # the lines of the watch

    def __call__(self, *args):
        """What it prints."""
        process = subprocess.Popen([*self.command, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=ENVIRONMENT, text=True)
        deadline = time.monotonic() + LIMIT + 10
        with process:
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        out, err = process.communicate(timeout=0.5)
                        break
                    self.processes.must_run()
                    if time.monotonic() > deadline:
                        raise Failed(f"kubectl {' '.join(args)}: no answer")
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise Failed(f"kubectl {' '.join(args)}: {err.strip()}")
        return out

    def json(self, *args):
        return json.loads(self(*args, "-o", "json"))

    def show(self, *args):
        say(f"  $ kubectl {' '.join(args)}")
        block(self(*args, "-n", NAMESPACE))

    def wait(self, *args):
        """kubectl wait, shown."""
        say(f"  $ kubectl wait {' '.join(args)}")
        start = time.monotonic()
        self("wait", *args, "-n", NAMESPACE, f"--timeout={LIMIT}s")
        say(f"    after {time.monotonic() - start:.1f} s")

    def watch(self, *args):
        """Prints what kubectl prints, as it comes, until the end."""
        say(f"  $ kubectl {' '.join(args)} &")
        process = subprocess.Popen([*self.command, *args, "-n", NAMESPACE], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, text=True,
                                   start_new_session=True)
        self.processes.adopt(process)
        start = time.monotonic()

        def relay():
            rows = Rows()
            with contextlib.suppress(BrokenPipeError):
                for line in process.stdout:
                    say(f"    {time.monotonic() - start:5.1f} s | {rows.aligned(line)}")
                    self.seen.append(line)

        threading.Thread(target=relay, daemon=True).start()

    def shown(self, name, reason):
        """Waits until the watch has shown it, so that what is printed next comes after it."""
        row = re.compile(rf"\w+ +{name} .* {reason} ")
        self.processes.wait_until(f"{name} is shown as {reason}", lambda: any(row.match(line) for line in self.seen))


class Rows:
    """kubectl aligns what it has to print so far: when longer cells come, later rows are shifted. This
    aligns them anew, under columns wide enough for all of them."""

    LEAST = {"EVENT": 8, "NAME": 9, "THING": 9, "REASON": 13, "EXPIRES": 20}

    def __init__(self):
        self.widths = []  # kubectl's, with the three spaces between columns

    def aligned(self, line):
        line = line.rstrip("\n")
        if not self.widths:
            self.names = re.findall(r"\S+ *", line)
            self.widths = [len(name) for name in self.names]
        cells = []
        for i, width in enumerate(self.widths):
            if len(line[:width].rstrip()) > width - 3:  # a longer cell than any before
                width = self.widths[i] = re.match(r"\S+(?: \S+)*(?: {3}|$)", line).end()
            cells.append(line[:width].strip())
            line = line[width:]
        least = (max(len(n.strip()), self.LEAST.get(n.strip(), 0)) for n in self.names)
        return "   ".join(cell.ljust(width) for cell, width in zip(cells, least)).rstrip()


class Emulator:
    """Its control API."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __call__(self, method, what, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/_emulator/{what}", data, method=method)
        with self.opener.open(request, timeout=10) as answer:
            return json.load(answer)


def http_ok(url):
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


# ---- The demo


def start(processes):
    """Control plane, emulator, operator."""
    metadata = ["cargo", "metadata", "--format-version=1", "--no-deps"]
    target = json.loads(subprocess.run(metadata, cwd=ROOT, check=True, capture_output=True).stdout)["target_directory"]
    programs = pathlib.Path(target) / "debug"

    step("A Kubernetes control plane: etcd, kube-apiserver, kube-controller-manager")
    serving = processes.start_cluster(os.environ["OPENTUNNEL_CLUSTER_BIN"])
    directory = pathlib.Path(serving["dir"]) / "demo"
    directory.mkdir(mode=0o700)
    kubectl = Kubectl(processes, serving, directory)
    say(f"    {serving['server']}, RBAC on; CustomResourceDefinition tunnels.opentunnel.dev installed")

    step(f"AWS IoT Secure Tunneling, emulated: AWS's quotas, and at most {MAX_OPEN_TUNNELS} open tunnels")
    log = directory / "emulator.log"
    processes.start("the emulator", [programs / "secure-tunneling-emulator", "--listen=127.0.0.1:0"], log)
    said = processes.wait_until("the emulator listens", lambda: re.search(r"listening on (http://\S+)\n", log.read_text()))
    aws = Emulator(said[1])
    aws("PUT", "quotas", AWS_QUOTAS | {"maxOpenTunnels": MAX_OPEN_TUNNELS})
    say(f"    {aws.endpoint}, 1 OpenTunnel and 1 CloseTunnel a second")

    step("The operator, with the rights of deploy/rbac.yaml and no others")
    kubectl("apply", "-f", str(ROOT / "deploy/rbac.yaml"))
    kubectl("create", "namespace", NAMESPACE)
    log = directory / "operator.log"
    processes.start(
        "the operator", [programs / "opentunnel-operator", "run", "--http-addr=127.0.0.1:0"], log,
        KUBECONFIG=service_account_kubeconfig(kubectl, directory), AWS_ENDPOINT_URL_IOTSECURETUNNELING=aws.endpoint,
        AWS_REGION="us-east-1", AWS_ACCESS_KEY_ID="demo", AWS_SECRET_ACCESS_KEY="demo", AWS_EC2_METADATA_DISABLED="true")
    said = processes.wait_until("the operator serves /readyz", lambda: re.search(r"address=([\d.:]+)\n", log.read_text()))
    processes.wait_until("the operator is ready", lambda: http_ok(f"http://{said[1]}/readyz"))
    say("    ready: its watches are synced")
    return serving, kubectl, aws, log


def service_account_kubeconfig(kubectl, directory):
    """A kubeconfig of the operator's ServiceAccount."""
    account = next(o for o in kubectl.json("get", "-f", str(ROOT / "deploy/rbac.yaml"))["items"]
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


def demo(kubectl, aws, operator_log):
    step("Two Tunnels: a plain one, and one with thing, services, tags and a SOURCE Secret")
    kubectl.watch("get", "tunnels", "--watch", "--output-watch-events")
    apply(kubectl, "plain")
    apply(kubectl, "pump-7")
    kubectl.wait("tunnel/plain", "tunnel/pump-7", "--for=condition=Ready")
    kubectl.shown("plain", "Open")
    kubectl.shown("pump-7", "Open")

    step("Their tokens are in Secrets")
    kubectl.show("describe", "secrets", "plain-tokens", "pump-7-source")
    tokens = access_tokens(kubectl)
    check({n: len(t) for n, t in tokens.items()} == {"plain-tokens": 2, "pump-7-source": 1},
          "an access token for each side that was asked for")

    step(f"A third Tunnel meets AWS's limit of {MAX_OPEN_TUNNELS} open tunnels")
    apply(kubectl, "sensor-42")
    kubectl.wait("tunnel/sensor-42", "--for=jsonpath={.status.conditions[0].reason}=LimitExceeded")
    kubectl.shown("sensor-42", "LimitExceeded")
    kubectl.show("get", "tunnel", "sensor-42", "-o=jsonpath={.status.conditions[0].message}")
    check(len(opened(aws)) == MAX_OPEN_TUNNELS, f"{MAX_OPEN_TUNNELS} tunnels are open in AWS")

    step("The first one is deleted: AWS closes its tunnel, and the third gets one")
    kubectl.show("delete", "tunnel", "plain")
    kubectl.wait("tunnel/sensor-42", "--for=condition=Ready")
    kubectl.shown("sensor-42", "Open")
    kubectl.wait("secret/plain-tokens", "--for=delete")
    kubectl.show("events", "--for=tunnel/sensor-42")
    check({t["thingName"] for t in opened(aws)} == {"pump-7", "sensor-42"}, "two tunnels are open in AWS, the other two")
    tokens |= access_tokens(kubectl)

    step("The others are deleted, too")
    kubectl.show("delete", "tunnels", "--all")
    kubectl.wait("secrets", "--selector=app.kubernetes.io/managed-by=opentunnel-operator", "--for=delete")

    step("What AWS saw")
    calls, tunnels = aws("GET", "calls"), aws("GET", "tunnels")
    reads = [c for c in calls if c["operation"] not in ("OpenTunnel", "CloseTunnel")]
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
    check(limited and len(calls) == len(limited) + len(reads) + 6, "AWS refused nothing else than openings beyond its limit")
    check(done["CloseTunnel"] == ids, "each closed exactly once")
    check(all(t["status"] == "CLOSED" for t in tunnels), "no tunnel is open")
    check(all(t["sourceTokensIssued"] == 1 for t in tunnels), "no tokens were asked for a second time")
    check(not kubectl.json("get", "tunnels,secrets", "-n", NAMESPACE)["items"], "no Tunnel and no Secret is left")
    told = operator_log.read_text() + kubectl("get", "events", "-A", "-o=yaml") + "".join(kubectl.seen)
    secret = [token for tokens in tokens.values() for token in tokens]
    check(len(secret) == 5 and not any(token in told for token in secret), "no token stands in the operator's log or in an event")


def opened(aws):
    return [t for t in aws("GET", "tunnels") if t["status"] == "OPEN"]


def access_tokens(kubectl):
    """All access tokens, by Secret. They are never printed."""
    secrets = kubectl.json("get", "secrets", "-n", NAMESPACE, "--field-selector=type=opentunnel.dev/tunnel-tokens")
    return {s["metadata"]["name"]: [base64.b64decode(v).decode() for k, v in s["data"].items() if k.endswith("AccessToken")]
            for s in secrets["items"]}


def keep(processes, serving, aws, operator_log):
    """Says how to play with it, and waits."""
    aws("PUT", "quotas", AWS_QUOTAS)
    step("All goes on running, with no limit of open tunnels. Ctrl-C ends and removes it")
    say(f"""
  In another terminal:

    export KUBECONFIG={serving['kubeconfig']} PATH={serving['bin']}:$PATH
    kubectl apply -f deploy/examples/sensor-42.yaml
    kubectl get tunnels -n {NAMESPACE} --watch

  The operator's log:     {operator_log}
  The emulator's state:   {aws.endpoint}/_emulator/tunnels
  and how to break it:    emulator/README.md
""")
    while True:
        processes.must_run()
        time.sleep(1)


def main():
    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    if "OPENTUNNEL_CLUSTER_BIN" not in os.environ:
        sys.exit("dev/demo.py is run by `make demo`, which builds what it needs")
    begin = time.monotonic()
    processes = Processes()
    serving, succeeded, code = None, False, 1
    try:
        serving, kubectl, aws, operator_log = start(processes)
        demo(kubectl, aws, operator_log)
        succeeded, code = True, 0
        if os.environ.get("KEEP"):
            keep(processes, serving, aws, operator_log)
    except KeyboardInterrupt:
        code = 0 if succeeded else 130
        say("\ninterrupted" if not succeeded else "")
    except BrokenPipeError:  # whoever read what is said has gone
        sys.stdout = open(os.devnull, "w")
    except (Failed, OSError, subprocess.CalledProcessError) as failure:
        code = 1
        processes.tell_logs()
        say(f"\nFAILED: {failure}")
    finally:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        processes.end()
    if succeeded:
        say(f"\nThe demo succeeded, in {time.monotonic() - begin:.0f} s. Its processes have ended, {serving['dir']} is removed.")
    sys.exit(code)


main()
