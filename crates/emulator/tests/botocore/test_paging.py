"""ListTunnels, page by page: botocore has no paginator for it."""

from service import ServiceTest


class Paging(ServiceTest):
    def pages(self, **request):
        """The IDs on each page."""
        pages, token = [], {}
        while True:
            page = self.client.list_tunnels(**request, **token)
            pages.append([summary["tunnelId"] for summary in page["tunnelSummaries"]])
            self.assertLessEqual(len(pages), 100, "it ends")
            if "nextToken" not in page:
                return pages
            token = {"nextToken": page["nextToken"]}

    def test_all_tunnels_come_once_and_the_newest_first(self):
        self.assertFalse(self.client.can_paginate("list_tunnels"))
        ids = [self.opened()["TunnelId"] for _ in range(12)]
        for size, lengths in ((1, [1] * 12), (5, [5, 5, 2]), (6, [6, 6]), (11, [11, 1]), (12, [12]), (100, [12])):
            pages = self.pages(maxResults=size)
            self.assertEqual([len(page) for page in pages], lengths)
            self.assertEqual([id for page in pages for id in page], ids[::-1])

    def test_without_a_size_a_page_has_100_at_most(self):
        ids = [self.opened()["TunnelId"] for _ in range(101)]
        pages = self.pages()
        self.assertEqual([len(page) for page in pages], [100, 1])
        self.assertEqual([id for page in pages for id in page], ids[::-1])

    def test_what_is_opened_or_closed_between_two_pages_moves_nothing(self):
        ids = [self.opened()["TunnelId"] for _ in range(6)]
        first = self.client.list_tunnels(maxResults=3)
        self.opened()
        self.client.close_tunnel(tunnelId=ids[0])
        self.client.close_tunnel(tunnelId=ids[4], delete=True)
        second = self.client.list_tunnels(maxResults=3, nextToken=first["nextToken"])
        seen = [summary["tunnelId"] for page in (first, second) for summary in page["tunnelSummaries"]]
        self.assertEqual(seen, ids[::-1])
        self.assertNotIn("nextToken", second)

    def test_a_thing_s_tunnels_are_paged_among_themselves(self):
        things = ["a", "b", "a", "a", "b"]
        ids = [self.opened(destinationConfig={"thingName": t, "services": ["SSH"]})["TunnelId"] for t in things]
        self.assertEqual(self.pages(thingName="a", maxResults=2), [[ids[3], ids[2]], [ids[0]]])
        self.assertEqual(self.pages(thingName="c"), [[]])
