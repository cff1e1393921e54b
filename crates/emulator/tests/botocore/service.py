"""The emulator's program, and a botocore client whose every answer is checked against the model."""

import http.client
import json
import os
import re
import subprocess
import unittest

import boto3
import botocore.config
import model
from botocore import xform_name
from botocore.exceptions import ClientError

PROGRAM = os.environ.get("EMULATOR", "target/debug/secure-tunneling-emulator")
REGION = "eu-central-1"


class Service:
    """A running emulator without quotas."""

    calls = 0

    def __init__(self):
        free_ports = ["--listen", "127.0.0.1:0", "--data-listen", "127.0.0.1:0"]
        command = [PROGRAM, *free_ports, "--quotas", "none", "--region", REGION]
        self.program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.program.stdout.readline()
        self.endpoint = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)[1]
        self.answer = None
        self.request_ids = set()

    def close(self):
        self.program.terminate()
        self.program.wait()
        self.program.stdout.close()

    def client(self, region=REGION, **config):
        """A client that leaves all checks to the service and tries nothing twice."""
        settings = {"parameter_validation": False, "retries": {"total_max_attempts": 1}, "proxies": {}} | config
        # The user's environment and files have no say.
        session = boto3.session.Session("AKIAIOSFODNN7EXAMPLE", "nobody-checks-this", region_name=region)
        client = session.client(
            "iotsecuretunneling", endpoint_url=self.endpoint, config=botocore.config.Config(**settings)
        )
        client.meta.events.register("response-received.iotsecuretunneling", self.check)
        return client

    def check(self, event_name, response_dict, **_):
        """Every answer is AWS JSON 1.1 and has the model's shape."""
        operation = event_name.rsplit(".", 1)[-1]
        Service.calls += 1
        if response_dict is None:
            return
        headers, body = response_dict["headers"], json.loads(response_dict["body"])
        self.answer = (response_dict["status_code"], headers, body)
        assert headers["content-type"] == "application/x-amz-json-1.1", headers
        request_id = headers["x-amzn-requestid"]
        assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", request_id), request_id
        assert request_id not in self.request_ids, "a request ID comes twice"
        self.request_ids.add(request_id)
        if response_dict["status_code"] == 200:
            wrong = model.unlike(model.shape_of(operation, "output"), body)
            assert not wrong, f"{operation}: {wrong}"
            return
        assert sorted(body) == ["__type", "message"], body
        assert isinstance(body["message"], str), body
        assert headers["x-amzn-errortype"] == body["__type"], headers
        foreign = model.modelled_errors() - model.errors_of(operation)
        assert body["__type"] not in foreign, f"the model does not give {operation} a {body['__type']}"

    def control(self, method, path, body=None):
        """A call of the emulator's own API."""
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"))
        connection.request(method, f"/_emulator/{path}", None if body is None else json.dumps(body))
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.status == 200, text
        return json.loads(text)

    def raw(self, operation, body):
        """A call without botocore, for what it cannot send: the status and the body."""
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"))
        headers = {"X-Amz-Target": f"IoTSecuredTunneling.{operation}", "Content-Type": "application/x-amz-json-1.1"}
        connection.request("POST", "/", json.dumps(body), headers)
        answer = connection.getresponse()
        status, text = answer.status, answer.read()
        connection.close()
        return status, json.loads(text)


def call(client, operation, request):
    """Calls an operation by its AWS name."""
    return getattr(client, xform_name(operation))(**request)


class ServiceTest(unittest.TestCase):
    """Tests on an emulator of their class's own, empty at the start of each."""

    @classmethod
    def setUpClass(cls):
        cls.service = Service()
        cls.addClassCleanup(cls.service.close)
        cls.client = cls.service.client()
        cls.addClassCleanup(cls.client.close)

    def setUp(self):
        self.service.control("POST", "reset")

    def opened(self, **request):
        """Opens a tunnel: its context for `model.example`."""
        tunnel = self.client.open_tunnel(**request)
        return {"TunnelId": tunnel["tunnelId"], "AmazonResourceName": tunnel["tunnelArn"]}

    def refused(self, operation, request, client=None):
        """The ClientError that a call ends with."""
        with self.assertRaises(ClientError) as caught:
            call(client or self.client, operation, request)
        return caught.exception
