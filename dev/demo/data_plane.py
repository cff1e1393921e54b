"""Both ends of a tunnel: a device with a service, and what a Pod has, the Secret in a directory and a proxy."""

import base64
import http.server
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request

from screen import Failed, block, check, say

# What the tunnel of pump-7 was opened with; here both lead to the same service.
SERVICES = ("SSH", "HTTPS")


class Service(http.server.BaseHTTPRequestHandler):
    """What the device serves."""

    def do_GET(self):
        page = b"pump 7: 4.2 bar\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


class Volume:
    """A Secret as a kubelet mounts it: each version in a directory of its own, and a link that is changed at once."""

    def __init__(self, path):
        self.path = path
        path.mkdir(mode=0o700)

    def write(self, data):
        version = self.path / f"..{time.time_ns()}"
        version.mkdir()
        for key, value in data.items():
            (version / key).write_bytes(base64.b64decode(value))
            if not (self.path / key).is_symlink():
                (self.path / key).symlink_to(f"..data/{key}")
        link = self.path / "..data_tmp"
        link.symlink_to(version.name)
        os.replace(link, self.path / "..data")


class Ends:
    """The device, and the Pod's proxy."""

    def __init__(self, processes, program, endpoint, certificate, directory):
        self.processes, self.program, self.directory = processes, program, directory
        self.endpoint, self.environment = endpoint, {"SSL_CERT_FILE": certificate}
        self.volume = Volume(directory / "pump-7-source")
        self.logs = {end: directory / f"{end}.log" for end in ("device", "pod")}
        self.starts = 0

    def start_device(self, published):
        """`published`: what AWS sent to the device by MQTT. Returns once it is connected: until then AWS refuses clients."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        targets = ",".join(f"{service}=127.0.0.1:{server.server_port}" for service in SERVICES)
        self.device = self.processes.start(
            "the device's proxy", [self.program, f"-e={self.endpoint}", f"-d={targets}"], self.logs["device"],
            AWSIOT_TUNNEL_ACCESS_TOKEN=published["clientAccessToken"], **self.environment)
        self.processes.wait_until("the device's proxy is connected", lambda: " connected " in self.logs["device"].read_text())

    def start_pod(self):
        """Returns once it listens."""
        self.starts += 1
        listening = self.directory / f"pod-{self.starts}.json"
        ports = ",".join(f"{service}=0" for service in SERVICES)
        command = [self.program, f"--token-dir={self.volume.path}", f"-e={self.endpoint}", f"-s={ports}",
                   "--http-addr=127.0.0.1:0", "--format=json"]
        self.pod = self.processes.start("the Pod's proxy", command, self.logs["pod"], stdout=listening, **self.environment)
        line = self.processes.wait_until("the Pod's proxy listens", lambda: re.match(r".*\n", listening.read_text()))
        told = json.loads(line[0])
        self.http = told["http"]
        self.address = next(l["address"] for l in told["listening"] if l["service"] == "HTTPS")

    def kill_pod(self):
        self.processes.watched.pop("the Pod's proxy")
        self.pod.kill()
        self.pod.wait()

    def request(self):
        """A request through the tunnel."""
        say(f"  $ curl http://{self.address}/")
        with self._open(f"http://{self.address}/") as answer:
            text = answer.read().decode()
        block(text)
        check(text == "pump 7: 4.2 bar\n", "the device has answered through the tunnel")

    def may_end(self):
        """The tunnel is about to be closed."""
        self.processes.watched.pop("the device's proxy")

    def see_end(self):
        """The tunnel is closed: both ends notice."""
        self.processes.wait_until("the device's proxy ends", lambda: self.device.poll() is not None)
        words = self.logs["device"].read_text()
        check(self.device.returncode == 3 and "Tunnel is closed" in words, "the device's proxy has ended, and says why")
        self.processes.wait_until("the Pod's proxy is not ready", lambda: not self._ready())
        check(True, "the Pod's proxy is not ready, and waits for a Secret with other tokens")

    def log(self):
        return "".join(log.read_text() for log in self.logs.values())

    def _ready(self):
        try:
            with self._open(f"http://{self.http}/readyz") as answer:
                return answer.status == 200
        except urllib.error.HTTPError:
            return False

    @staticmethod
    def _open(url):
        try:
            return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20)
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            raise Failed(f"{url}: {error}") from error
