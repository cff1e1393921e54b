"""The ways in which users install the operator. Each is gone as docs/install.md says; the settings are those of this
cluster: the images, and the emulator in AWS's place."""

import json
import os
import subprocess

from processes import ENVIRONMENT, ROOT
from screen import check

ENDPOINT = "http://10.96.0.70:4570"
SETTINGS = {"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL_IOTSECURETUNNELING": ENDPOINT}
KEYS = {"AWS_ACCESS_KEY_ID": "e2e", "AWS_SECRET_ACCESS_KEY": "e2e"}


class Way:
    """`name` is for people; `namespace` is the operator's."""

    def __init__(self, world):
        self.world, self.kubectl = world, world.kubectl

    def kustomization(self, name, base, **more):
        """Writes a Kustomization that has a folder of the repository as its base, and returns its path."""
        path = self.world.directory / name
        path.mkdir()
        (path / "kustomization.yaml").write_text(json.dumps(
            {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
             "resources": [os.path.relpath(ROOT / base, path)]} | more))
        return str(path)

    def overlay(self, name, base, settings, **more):
        """The Kustomization of README: image, settings, and credentials in a Secret."""
        there = {} if "namespace" in more else {"namespace": self.namespace}
        path = self.kustomization(
            name, base, images=[{"name": "opentunnel-operator", "newTag": "e2e"}],
            configMapGenerator=[there | {"name": "opentunnel-operator", "behavior": "merge", "literals": words(settings)}],
            secretGenerator=[there | {"name": "aws-credentials", "literals": words(KEYS)}],
            patches=[{"target": {"kind": "Deployment", "name": "opentunnel-operator"}, "patch": json.dumps(
                [{"op": "add", "path": "/spec/template/spec/containers/0/envFrom/-",
                  "value": {"secretRef": {"name": "aws-credentials"}}}])}], **more)
        return path

    def cluster_id(self):
        return self.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")

    def still_there(self):
        """The namespace was somebody else's before."""
        status = self.kubectl.json("get", "namespace", self.namespace)["status"]
        check(status["phase"] == "Active", f"namespace {self.namespace}, which was there before, is there")
        self.kubectl("delete", "namespace", self.namespace, "--timeout=90s")


class Deploy(Way):
    name = "kubectl apply -k, everything by one command"
    namespace = "opentunnel-system"

    def install(self):
        self.path = self.overlay("opentunnel", "deploy", SETTINGS)
        self.kubectl("apply", "-k", self.path)

    def uninstall(self):
        self.kubectl("delete", "-k", self.path, "--timeout=90s")


class Base(Way):
    name = "deploy/base, into a namespace that is there"
    namespace = "team-a"

    def install(self):
        self.world.namespace(self.namespace)
        self.kubectl("apply", "-k", str(ROOT / "crds"))
        self.path = self.overlay("base", "deploy/base", SETTINGS, namespace=self.namespace)
        self.kubectl("apply", "-k", self.path)

    def uninstall(self):
        self.kubectl("delete", "-k", self.path, "--timeout=90s")
        self.kubectl("delete", "-k", str(ROOT / "crds"), "--timeout=90s")
        self.still_there()


class Namespaced(Way):
    name = "deploy/namespaced, for two namespaces, without a ClusterRole"
    namespace = "team-b"

    def install(self):
        self.world.namespace(self.namespace)
        self.world.namespace("edge")
        self.kubectl("apply", "-k", str(ROOT / "crds"))
        settings = SETTINGS | {"OPENTUNNEL_CLUSTER_ID": self.cluster_id(), "OPENTUNNEL_WATCH_NAMESPACE": "team-b,edge"}
        # The rights first: an operator that lacks them in a namespace that it is to watch ends, and is started anew.
        self.paths = [
            self.kustomization("watched", "deploy/watched", namespace="edge", patches=[{
                "target": {"kind": "RoleBinding", "name": "opentunnel-operator-watched"},
                "patch": json.dumps([{"op": "replace", "path": "/subjects/0/namespace", "value": self.namespace}])}]),
            self.overlay("namespaced", "deploy/namespaced", settings, namespace=self.namespace)]
        for path in self.paths:
            self.kubectl("apply", "-k", path)

    def uninstall(self):
        for path in reversed(self.paths):
            self.kubectl("delete", "-k", path, "--timeout=90s")
        self.kubectl("delete", "-k", str(ROOT / "crds"), "--timeout=90s")
        self.still_there()


class Helm(Way):
    name = "helm install"
    namespace = "opentunnel-system"

    def helm(self, *words):
        program, config, _ = self.kubectl.command
        subprocess.run([os.environ["OPENTUNNEL_HELM"], *words, config, "--namespace", self.namespace], check=True,
                       stdout=subprocess.DEVNULL, env=ENVIRONMENT | {"HOME": str(self.world.directory)})

    def install(self):
        self.world.namespace(self.namespace)
        self.world.apply({"apiVersion": "v1", "kind": "Secret", "stringData": KEYS,
                          "metadata": {"name": "aws-credentials", "namespace": self.namespace}})
        self.helm("install", "opentunnel-operator", str(ROOT / "deploy/chart"), "--set", "aws.region=eu-central-1",
                  "--set", f"aws.endpoint_url={ENDPOINT}", "--set", "image.tag=e2e",
                  "--set", "extraEnvFrom[0].secretRef.name=aws-credentials")

    def uninstall(self):
        self.helm("uninstall", "opentunnel-operator", "--wait")
        crds = self.kubectl("get", "customresourcedefinitions", "-o", "name")
        check("tunnels.opentunnel.dev" in crds, "helm has left the CRD, as the chart says")
        self.kubectl("delete", "-k", str(ROOT / "crds"), "--timeout=90s")
        self.still_there()


def words(settings):
    return [f"{key}={value}" for key, value in settings.items()]


# The first is gone with everything that can be shown; the others are installed, open a tunnel and are removed.
WAYS = (Deploy, Base, Namespaced, Helm)
