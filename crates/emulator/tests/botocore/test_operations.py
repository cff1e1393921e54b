"""The 8 operations on a tunnel's way from its opening to its end."""

import datetime
import json

from service import REGION, ServiceTest


class Operations(ServiceTest):
    def test_a_tunnel_is_described_as_it_was_opened(self):
        request = {
            "description": "ssh to sensor 42 😀",
            "tags": [{"key": "site", "value": "Zürich"}, {"key": "team", "value": ""}],
            "destinationConfig": {"thingName": "sensor-42", "services": ["SSH", "HTTP"]},
            "timeoutConfig": {"maxLifetimeTimeoutMinutes": 60},
        }
        before = datetime.datetime.now(datetime.timezone.utc)
        opened = self.client.open_tunnel(**request)
        self.assertEqual(opened["tunnelArn"], f"arn:aws:iot:{REGION}:123456789012:tunnel/{opened['tunnelId']}")
        self.assertNotEqual(opened["sourceAccessToken"], opened["destinationAccessToken"])
        tunnel = self.client.describe_tunnel(tunnelId=opened["tunnelId"])["tunnel"]
        self.assertEqual({key: tunnel[key] for key in request}, request)
        self.assertEqual((tunnel["tunnelId"], tunnel["status"]), (opened["tunnelId"], "OPEN"))
        # Epoch seconds, with milliseconds, on the wire; a time with its zone for the caller.
        self.assertIsInstance(self.service.answer[2]["tunnel"]["createdAt"], float)
        self.assertLess(abs(tunnel["createdAt"] - before), datetime.timedelta(seconds=60))
        self.assertEqual(tunnel["lastUpdatedAt"], tunnel["createdAt"])
        for side in ("source", "destination"):
            state = tunnel[f"{side}ConnectionState"]
            self.assertEqual(state, {"status": "DISCONNECTED", "lastUpdatedAt": tunnel["createdAt"]})
        self.assertEqual(self.client.list_tags_for_resource(resourceArn=opened["tunnelArn"])["tags"], request["tags"])

    def test_what_was_not_given_is_not_described(self):
        opened = self.opened()
        tunnel = self.client.describe_tunnel(tunnelId=opened["TunnelId"])["tunnel"]
        for member in ("description", "destinationConfig", "tags"):
            self.assertNotIn(member, tunnel)
        self.assertEqual(tunnel["timeoutConfig"], {"maxLifetimeTimeoutMinutes": 720})
        self.assertEqual(self.client.list_tags_for_resource(resourceArn=opened["AmazonResourceName"])["tags"], [])

    def test_rotation_gives_new_tokens_for_the_sides_that_are_named(self):
        tunnel = self.client.open_tunnel(destinationConfig={"services": ["SSH"]})
        tokens = {tunnel["sourceAccessToken"], tunnel["destinationAccessToken"]}
        sides = {"SOURCE": {"source"}, "DESTINATION": {"destination"}, "ALL": {"source", "destination"}}
        for mode, of in sides.items():
            rotated = self.client.rotate_tunnel_access_token(tunnelId=tunnel["tunnelId"], clientMode=mode)
            self.assertEqual(rotated["tunnelArn"], tunnel["tunnelArn"])
            for side in ("source", "destination"):
                token = rotated.get(f"{side}AccessToken")
                self.assertEqual(token is not None, side in of, mode)
                self.assertFalse(token in tokens, "an old token comes again")
                tokens |= {token} - {None}

    def test_tags_are_set_overwritten_and_removed(self):
        arn = self.opened(tags=[{"key": "a", "value": "1"}])["AmazonResourceName"]
        self.client.tag_resource(resourceArn=arn, tags=[{"key": "a", "value": "2"}, {"key": "b", "value": "3"}])
        tags = self.client.list_tags_for_resource(resourceArn=arn)["tags"]
        self.assertEqual(tags, [{"key": "a", "value": "2"}, {"key": "b", "value": "3"}])
        self.client.untag_resource(resourceArn=arn, tagKeys=["a", "never there"])
        tags = self.client.list_tags_for_resource(resourceArn=arn)["tags"]
        self.assertEqual(tags, [{"key": "b", "value": "3"}])

    def test_a_tunnel_is_closed_by_hand_or_by_its_lifetime_and_deleted_at_once_if_asked(self):
        by_hand, deleted = self.opened()["TunnelId"], self.opened()["TunnelId"]
        by_time = self.opened(timeoutConfig={"maxLifetimeTimeoutMinutes": 1})["TunnelId"]
        self.client.close_tunnel(tunnelId=by_hand)
        self.client.close_tunnel(tunnelId=deleted, delete=True)
        self.service.control("POST", "clock", {"advanceSeconds": 61})
        tunnels = {t["tunnelId"]: t for t in self.client.list_tunnels()["tunnelSummaries"]}
        self.assertEqual({id: t["status"] for id, t in tunnels.items()}, {by_hand: "CLOSED", by_time: "CLOSED"})
        lived = tunnels[by_time]["lastUpdatedAt"] - tunnels[by_time]["createdAt"]
        self.assertEqual(lived, datetime.timedelta(minutes=1))
        with self.assertRaises(self.client.exceptions.ResourceNotFoundException):
            self.client.describe_tunnel(tunnelId=deleted)

    def test_a_connection_is_told_with_its_time(self):
        id = self.opened()["TunnelId"]
        self.service.control("POST", f"tunnels/{id}/connections", {"source": "CONNECTED"})
        tunnel = self.client.describe_tunnel(tunnelId=id)["tunnel"]
        self.assertEqual(tunnel["sourceConnectionState"]["status"], "CONNECTED")
        self.assertGreaterEqual(tunnel["sourceConnectionState"]["lastUpdatedAt"], tunnel["createdAt"])
        self.assertEqual(tunnel["destinationConnectionState"]["status"], "DISCONNECTED")

    def test_the_client_s_region_is_the_tunnel_s(self):
        elsewhere = self.service.client(region="us-west-2")
        self.addCleanup(elsewhere.close)
        opened = elsewhere.open_tunnel()
        self.assertIn(":us-west-2:", opened["tunnelArn"])
        self.assertEqual(self.client.list_tunnels()["tunnelSummaries"], [])
        with self.assertRaises(self.client.exceptions.ResourceNotFoundException):
            self.client.describe_tunnel(tunnelId=opened["tunnelId"])

    def test_no_token_is_told_twice(self):
        opened = self.client.open_tunnel()
        told = [
            self.client.describe_tunnel(tunnelId=opened["tunnelId"]),
            self.client.list_tunnels(),
            self.service.control("GET", "tunnels"),
            self.service.control("GET", "calls"),
        ]
        for answer in told:
            text = json.dumps(answer, default=str)
            self.assertFalse(opened["sourceAccessToken"] in text or opened["destinationAccessToken"] in text)
