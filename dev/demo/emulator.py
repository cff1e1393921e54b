"""The emulator's control API."""

import json
import urllib.request

# AWS's defaults, in calls per second.
AWS_QUOTAS = {"OpenTunnel": 1, "CloseTunnel": 1, "DescribeTunnel": 10, "ListTunnels": 10, "RotateTunnelAccessToken": 10,
              "TagResource": 10, "UntagResource": 10, "ListTagsForResource": 10}


class Emulator:
    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __call__(self, method, what, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/_emulator/{what}", data, method=method)
        with self.opener.open(request, timeout=10) as answer:
            return json.load(answer)
