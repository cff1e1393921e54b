"""The ways in which users install the operator. Each is gone as its page of docs/ says; the settings are those of this
cluster: the images, and the emulator in AWS's place."""

import os

from processes import ROOT

NAMESPACE = "opentunnel-system"
SETTINGS = {"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL_IOTSECURETUNNELING": "http://10.96.0.70:4570"}

OVERLAY = """apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - {deploy}
images:
  - {{name: opentunnel-operator, newTag: e2e}}
configMapGenerator:
  - name: opentunnel-operator
    namespace: opentunnel-system
    behavior: merge
    literals: [{literals}]
patches:
  - target: {{kind: Deployment, name: opentunnel-operator}}
    patch: |
      - {{op: add, path: /spec/template/spec/containers/0/envFrom/-, value: {{secretRef: {{name: aws-credentials}}}}}}
"""


class Kustomize:
    """README's: `kubectl apply -k` of an overlay, and credentials in a Secret, as docs/aws.md says."""

    name = "kubectl apply -k, an overlay of deploy/"

    def __init__(self, kubectl, directory):
        self.kubectl, self.overlay = kubectl, directory / "opentunnel"

    def install(self):
        self.overlay.mkdir()
        (self.overlay / "kustomization.yaml").write_text(OVERLAY.format(
            deploy=os.path.relpath(ROOT / "deploy", self.overlay), literals=", ".join(f"{k}={v}" for k, v in SETTINGS.items())))
        self.kubectl("apply", "-k", str(self.overlay))
        self.kubectl("create", "secret", "generic", "aws-credentials", "-n", NAMESPACE,
                     "--from-literal=AWS_ACCESS_KEY_ID=e2e", "--from-literal=AWS_SECRET_ACCESS_KEY=e2e")

    def uninstall(self):
        self.kubectl("delete", "-k", str(self.overlay), "--timeout=90s")


# The first is gone with everything that can be shown; the others are installed, open a tunnel and are removed.
WAYS = (Kustomize,)
