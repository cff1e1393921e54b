"""kubectl, run and shown."""

import contextlib
import json
import re
import subprocess
import threading
import time

from processes import ENVIRONMENT, LIMIT
from screen import Failed, block, say


class Kubectl:
    """The cluster's own kubectl, as the administrator."""

    def __init__(self, processes, serving, directory, namespace):
        self.processes, self.namespace = processes, namespace
        self.command = [f"{serving['bin']}/kubectl", f"--kubeconfig={serving['kubeconfig']}",
                        f"--cache-dir={directory / 'kubectl-cache'}"]
        self.seen = []  # the lines of the watch

    def __call__(self, *args):
        """What it prints."""
        process = self.processes.adopt([*self.command, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       env=ENVIRONMENT, text=True)
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
        self.processes.tell(f"forget {process.pid}")
        if process.returncode != 0:
            raise Failed(f"kubectl {' '.join(args)}: {err.strip()}")
        return out

    def json(self, *args):
        return json.loads(self(*args, "-o", "json"))

    def show(self, *args):
        say(f"  $ kubectl {' '.join(args)}")
        block(self(*args, "-n", self.namespace))

    def wait(self, *args):
        """kubectl wait, shown."""
        say(f"  $ kubectl wait {' '.join(args)}")
        start = time.monotonic()
        self("wait", *args, "-n", self.namespace, f"--timeout={LIMIT}s")
        say(f"    after {time.monotonic() - start:.1f} s")

    def watch(self, *args):
        """Prints what kubectl prints, as it comes, until the end."""
        say(f"  $ kubectl {' '.join(args)} &")
        process = self.processes.adopt([*self.command, *args, "-n", self.namespace], stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, env=ENVIRONMENT, text=True)
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
            longer = re.match(r"\S+(?: \S+)*(?: {3}|$)", line)  # than any cell before
            if longer and longer.end() > width:
                width = self.widths[i] = longer.end()
            cells.append(line[:width].strip())
            line = line[width:]
        least = (max(len(n.strip()), self.LEAST.get(n.strip(), 0)) for n in self.names)
        return "   ".join(cell.ljust(width) for cell, width in zip(cells, least)).rstrip()
