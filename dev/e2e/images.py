"""Images without a daemon, laid out as the Dockerfiles say: the program, the libraries that it loads, the CA
certificates, nothing else, and a user who is not root. `ctr images import` takes the archive."""

import hashlib
import io
import json
import pathlib
import platform
import re
import shutil
import subprocess
import tarfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DOCKERFILES = {
    "opentunnel-operator": ROOT / "Dockerfile",
    "opentunnel-proxy": ROOT / "crates/proxy/Dockerfile",
    "secure-tunneling-emulator": ROOT / "crates/emulator/Dockerfile",
}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def libraries(program):
    """The files that the loader takes; none for a static program."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return re.findall(r"/\S+", told)


def assemble(program, archive, tag):
    """The image of a program of ours."""
    files = {f"/{program.name}": program}
    files |= {name: pathlib.Path(name).resolve() for name in [*libraries(program), CERTIFICATES]}
    text = DOCKERFILES[program.name].read_text()
    command = re.search(r"^CMD (.*)$", text, re.M)
    write(archive, tag, files, {}, {
        "User": re.search(r"^USER (.*)$", text, re.M)[1], "Entrypoint": [f"/{program.name}"],
        "Cmd": json.loads(command[1]) if command else [], "Env": re.findall(r"^ENV (SECURE\S+)$", text, re.M)})


def retag(source, archive, tag):
    """An image that docker, podman or buildah has saved, under another name."""
    with tarfile.open(source) as old, tarfile.open(archive, "w") as new:
        for info in old:
            if info.name == "repositories":
                continue
            file = old.extractfile(info) if info.isfile() else None
            if info.name == "manifest.json":
                manifest = json.load(file)
                manifest[0]["RepoTags"] = [f"docker.io/library/{tag}"]
                data = json.dumps(manifest).encode()
                info.size, file = len(data), io.BytesIO(data)
            new.addfile(info, file)


def tools(archive, tag, command=("sh",)):
    """A shell and what it is good for: Debian's static busybox, and this machine's curl and openssl."""
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    links = {f"/bin/{name}": "/bin/busybox" for name in applets if name != "busybox"}
    files = {f"/bin/{name}": pathlib.Path(shutil.which(name)) for name in ("busybox", "curl", "openssl")}
    files |= {name: pathlib.Path(name).resolve() for path in files.values() for name in libraries(path)}
    write(archive, tag, files, links, {"User": "65532:65532", "Cmd": list(command), "Env": ["PATH=/bin"]})


def write(archive, tag, files, links, config):
    layer = archive.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        for name, path in files.items():
            info = tar.gettarinfo(path, name.lstrip("/"))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            with open(path, "rb") as file:
                tar.addfile(info, file)
        for name, target in links.items():
            info = tarfile.TarInfo(name.lstrip("/"))
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    with open(layer, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") \
            else hashlib.sha256(file.read()).hexdigest()
    document = json.dumps({
        "architecture": ARCHITECTURE, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}, "history": [{}]}).encode()
    name = hashlib.sha256(document).hexdigest() + ".json"
    with tarfile.open(archive, "w") as tar:
        tar.add(layer, "layer.tar")
        for name, data in ((name, document), ("manifest.json", json.dumps(
                [{"Config": name, "RepoTags": [f"docker.io/library/{tag}"], "Layers": ["layer.tar"]}]).encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    layer.unlink()
