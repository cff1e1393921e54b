"""Every constraint of the model, from both sides."""

import json
import re

import model
from botocore.exceptions import ClientError
from service import ServiceTest, call

#: What a value may run into that the model allows: the emulator's own rules, documented in its README.
BEYOND_THE_MODEL = {
    ("ListTunnels", "nextToken"): "Invalid nextToken",
    ("RotateTunnelAccessToken", "clientMode"): "You can not use DestinationConfig with source clientMode.",
}
#: Members that name a tunnel (which need not be there), and what they are in a context.
NAMES = {"tunnelId": "TunnelId", "resourceArn": "AmazonResourceName"}
#: A value of another JSON type, by the type that the model wants.
WRONG = {"string": 5, "integer": "5", "boolean": "true", "list": "x", "structure": "x"}


class Constraints(ServiceTest):
    #: Cases so far, for the summary.
    count = 0

    def outcome(self, operation, path, request):
        """The paths that the service names as violated."""
        try:
            call(self.client, operation, request)
        except self.client.exceptions.ResourceNotFoundException:
            self.assertIn(path, NAMES)
        except ClientError as error:
            code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
            self.assertEqual(code, "ValidationException", message)
            if message != BEYOND_THE_MODEL.get((operation, path)):
                self.assertRegex(message, r"^\d+ validation errors? detected: Value ")
                return set(re.findall(r" at '([\w.]+)' failed to satisfy constraint: Member must ", message))
        return set()

    def try_all(self, operation):
        """Tries all cases of an operation; returns how many the model accepts."""
        name = model.shape_of(operation, "input")
        forbidding, refused, accepted, count = set(), set(), set(), 0
        context = self.opened()
        self.opened()
        context["NextToken"] = self.client.list_tunnels(maxResults=1)["nextToken"]
        for path, request, forbids in model.cases(name, context):
            # What was accepted before may have changed the tunnel: each case finds one as it was opened.
            request |= {m: context[shape] for m, shape in NAMES.items() if m in request and m != path}
            expected = model.violations(name, request)
            with self.subTest(operation=operation, path=path, request=json.dumps(request)[:300]):
                self.assertEqual(self.outcome(operation, path, request), expected)
            if forbids:
                forbidding.add(path)
            if expected:
                refused.add(path)
            else:
                accepted.add(path)
                count += 1
                context = self.opened()
            Constraints.count += 1
        with self.subTest("each constraint is tried from both sides", operation=operation):
            self.assertEqual(refused, forbidding)
            self.assertLessEqual(forbidding, accepted)
        return count

    def test_what_the_model_forbids_is_refused_by_name_and_all_else_is_accepted(self):
        for operation in model.OPERATIONS:
            self.try_all(operation)

    def test_a_refused_call_opens_nothing(self):
        accepted = self.try_all("OpenTunnel")
        # Two that the cases start with, and one after each that is accepted.
        self.assertEqual(len(self.service.control("GET", "tunnels")), 2 + 2 * accepted)

    def test_what_has_a_wrong_type_is_a_serialization_exception(self):
        for operation in model.OPERATIONS:
            name = model.shape_of(operation, "input")
            for member, target in model.SHAPES[name]["members"].items():
                request = model.example(name, self.opened())
                request[member] = WRONG[model.SHAPES[target["shape"]]["type"]]
                with self.subTest(operation=operation, member=member):
                    status, body = self.service.raw(operation, request)
                    self.assertEqual((status, body["__type"]), (400, "SerializationException"), body)

    def test_null_is_absent(self):
        for operation in model.OPERATIONS:
            name = model.shape_of(operation, "input")
            for member in model.SHAPES[name]["members"]:
                request = model.example(name, self.opened()) | {"nextToken": None, member: None}
                with self.subTest(operation=operation, member=member):
                    status, body = self.service.raw(operation, request)
                    if member in model.SHAPES[name].get("required", []):
                        self.assertEqual((status, body["__type"]), (400, "ValidationException"))
                        self.assertIn(f"Value null at '{member}' failed to satisfy", body["message"])
                    else:
                        self.assertEqual(status, 200, body)
