"""Errors as botocore's callers get them: by class where the model has one, else by code."""

import model
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from service import ServiceTest, call


class Errors(ServiceTest):
    def requests(self):
        """A request of each operation, with what is required, that succeeds."""
        for operation in model.OPERATIONS:
            name = model.shape_of(operation, "input")
            whole = model.example(name, self.opened())
            yield operation, {member: whole[member] for member in model.SHAPES[name].get("required", [])}

    def fault(self, operation, kind, **more):
        self.service.control("PUT", "faults", [{"operation": operation, "kind": kind, "times": 1} | more])

    def test_a_tunnel_that_is_not_there_is_a_resource_not_found_exception(self):
        operations = []
        for operation, request in self.requests():
            for member in {"tunnelId", "resourceArn"} & request.keys():
                error = self.refused(operation, request | {member: request[member][:-1] + "x"})
                self.assertIsInstance(error, self.client.exceptions.ResourceNotFoundException)
                self.assertEqual(error.response["ResponseMetadata"]["HTTPStatusCode"], 400)
                self.assertIn("not found", error.response["message"])
                operations.append(operation)
        having = [o for o in model.OPERATIONS if "ResourceNotFoundException" in model.errors_of(o)]
        self.assertEqual(operations, having)

    def test_limits_are_a_limit_exceeded_exception_of_open_tunnel(self):
        self.service.control("PUT", "quotas", {"maxOpenTunnels": 1})
        id = self.opened()["TunnelId"]
        self.assertIsInstance(self.refused("OpenTunnel", {}), self.client.exceptions.LimitExceededException)
        self.client.close_tunnel(tunnelId=id)
        self.opened()
        self.service.control("PUT", "quotas", {"OpenTunnel": 0.01})
        self.opened()
        self.assertIsInstance(self.refused("OpenTunnel", {}), self.client.exceptions.LimitExceededException)
        self.service.control("PUT", "quotas", {})
        self.fault("OpenTunnel", "LimitExceeded")
        self.assertIsInstance(self.refused("OpenTunnel", {}), self.client.exceptions.LimitExceededException)

    def test_the_other_operations_rates_are_a_throttling_exception(self):
        rates = {operation: 0.01 for operation in model.OPERATIONS if operation != "OpenTunnel"}
        requests = dict(self.requests())
        self.service.control("PUT", "quotas", rates)
        for operation in rates:
            call(self.client, operation, requests[operation])
            error = self.refused(operation, requests[operation])
            self.assertEqual(error.response["Error"]["Code"], "ThrottlingException", operation)

    def test_what_any_service_may_answer_comes_by_its_code(self):
        kinds = {
            "Throttling": ("ThrottlingException", 400),
            "AccessDenied": ("AccessDeniedException", 400),
            "InternalError": ("InternalFailure", 500),
        }
        for kind, (code, status) in kinds.items():
            for operation, request in self.requests():
                self.fault(operation, kind)
                error = self.refused(operation, request)
                self.assertEqual(error.response["Error"]["Code"], code)
                self.assertEqual(error.response["ResponseMetadata"]["HTTPStatusCode"], status)
                # No class of its own: the model has none.
                self.assertIs(type(error), ClientError)
                # The fault is over.
                call(self.client, operation, request)

    def test_a_lost_answer_is_a_lost_connection_and_silence_a_timeout(self):
        hurried = self.service.client(read_timeout=0.5)
        self.addCleanup(hurried.close)
        for kind, error, opened in (
            ("DropBefore", ConnectionClosedError, 0),
            ("DropAfter", ConnectionClosedError, 1),
            ("HangBefore", ReadTimeoutError, 1),
            ("HangAfter", ReadTimeoutError, 2),
        ):
            self.fault("OpenTunnel", kind)
            with self.assertRaises(error):
                hurried.open_tunnel()
            self.assertEqual(len(self.service.control("GET", "tunnels")), opened, kind)

    def test_a_client_s_own_retries_get_over_what_passes(self):
        patient = self.service.client(retries={"mode": "standard", "total_max_attempts": 2})
        self.addCleanup(patient.close)
        for kind in ("Throttling", "InternalError", "DropBefore"):
            self.fault("ListTunnels", kind)
            metadata = patient.list_tunnels()["ResponseMetadata"]
            self.assertEqual(metadata["RetryAttempts"], 1, kind)
