"""The programs in the background, and their end."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import time

from screen import Failed, block, say

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Many times what any of the waits takes, in seconds. A probe of AWS's limit comes within a minute.
LIMIT = 90


def clean_environment():
    """The user's environment less what would lead the programs elsewhere: AWS's and the operator's
    settings, proxies (everything is on this machine), kubectl's preferences."""
    foreign = re.compile(r"AWS_|OPENTUNNEL_|SECURE_TUNNELING_|KUBECONFIG|KUBERNETES_|RUST_LOG|\w+_PROXY$", re.I)
    return {k: v for k, v in os.environ.items() if not foreign.match(k)} | {"KUBERC": "off"}


ENVIRONMENT = clean_environment()


class Interruption:
    """SIGINT, SIGTERM and SIGHUP end the demo, once. Not between the start of a program and the moment
    when somebody is in charge of its end."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self):
        self.held = self.came = False
        for number in self.SIGNALS:
            signal.signal(number, self.handle)

    def handle(self, *_):
        self.ignore()  # a second one must not disturb the end
        self.came = True
        if not self.held:
            raise KeyboardInterrupt

    def ignore(self):
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def __enter__(self):
        self.held = True

    def __exit__(self, *_):
        self.held = False
        if self.came:
            raise KeyboardInterrupt


interruption = Interruption()


class Processes:
    """The programs in the background. They are in sessions of their own: a Ctrl-C reaches this program
    alone, which ends them in order."""

    def __init__(self):
        self.supervisor = None
        self.watched = {}  # what must go on running: name -> (process, log)

    def start_cluster(self, program, *flags):
        with interruption:
            self.supervisor = subprocess.Popen([program, "up", *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                               env=os.environ | ENVIRONMENT, text=True, start_new_session=True)
        line = self.supervisor.stdout.readline()
        if not line:
            raise Failed("the control plane did not start; why is told above")
        self.watched["the control plane"] = (self.supervisor, None)
        return json.loads(line)

    def start(self, name, command, log, stdout=None, **environment):
        """A program that has to go on running, with its log in a file, and what it prints there or in another one."""
        with open(log, "a") as err, open(stdout or log, "a") as out:
            process = self.adopt(command, stdout=out, stderr=err, env=ENVIRONMENT | environment)
        self.watched[name] = (process, log)
        return process

    def adopt(self, command, **options):
        """A program that ends with the control plane, at the latest."""
        with interruption:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
            self.tell(f"adopt {process.pid}")
        return process

    def tell(self, line):
        self.supervisor.stdin.write(f"{line}\n")
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
