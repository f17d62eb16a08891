"""Page lists and snapshots, for tests of what changed between them."""

from __future__ import annotations

from tests.wire.rest import Reply, Rest

__all__ = ["ranges", "snapshot"]


def snapshot(rest: Rest, path: str) -> str:
    """Take one; returns its name."""
    reply = rest("PUT", path, "comp=snapshot")
    assert reply.status == 201
    return reply.headers["x-ms-snapshot"]


def ranges(reply: Reply) -> list[tuple[str, int, int]]:
    """(P for PageRange or C for ClearRange, start, end exclusive) in the order of the answer."""
    assert reply.status == 200, reply
    return [
        (each.tag[0], int(each.findtext("Start", "")), int(each.findtext("End", "")) + 1)
        for each in reply.xml
        if each.tag != "NextMarker"
    ]
