"""The same requests to Azurite and to the project's own server: the answers must agree.

Compared are status, error code, the headers that carry meaning, and bodies in parsed form. Where Azurite answers
otherwise than the service is documented to, a table of deviations has the documented answer and the reason; such an
entry fails once Azurite agrees, so that the table stays true.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.azurite import Azurite
from tests.wire.rest import Reply, Rest

__all__ = ["DATA", "PAGE", "Deviations", "Scenario", "Script", "compare", "observe"]

PAGE = 512
DATA = bytes(range(256)) * 2
COMPARED = (
    "content-range",
    "x-ms-blob-content-length",
    "x-ms-blob-sequence-number",
    "x-ms-blob-type",
    "x-ms-lease-duration",
    "x-ms-lease-id",
    "x-ms-lease-state",
    "x-ms-lease-status",
    "x-ms-lease-time",
)
PRESENT = ("etag", "last-modified", "x-ms-request-id", "x-ms-version", "date", "x-ms-snapshot")


def observe(reply: Reply) -> dict[str, Any]:
    """What is compared of an answer."""
    seen: dict[str, Any] = {"status": reply.status, "code": reply.code}
    if reply.status >= 300:
        return seen
    seen.update({name: reply.headers[name] for name in COMPARED if name in reply.headers})
    seen.update({name: True for name in PRESENT if name in reply.headers})
    seen.update({name: value for name, value in reply.headers.items() if name.startswith("x-ms-meta-")})
    if reply.body.startswith(b"<"):
        seen["xml"] = summary(reply)
    else:
        seen["body"] = reply.body
    return seen


def summary(reply: Reply) -> Any:
    """Page ranges, or the names and stable properties of a list."""
    root = reply.xml
    if root.tag == "PageList":
        return reply.page_ranges()
    found = []
    for item in root.iter():
        if item.tag in ("Blob", "Container", "BlobPrefix"):
            properties = {each.tag: each.text for each in item.iter() if not len(each)}
            kept = ("Name", "Content-Length", "BlobType", "LeaseState", "LeaseStatus", "LeaseDuration")
            entry: dict[str, Any] = {tag: properties[tag] for tag in kept if tag in properties}
            metadata = item.find("Metadata")
            entry["metadata"] = {each.tag: each.text for each in metadata} if metadata is not None else {}
            entry["is snapshot"] = "Snapshot" in properties
            found.append(entry)
    return found


@dataclass
class Script:
    """A run of requests against one server; `note` keeps an answer under a label."""

    server: Azurite | PageBlobServer
    rest: Rest
    container: str
    seen: dict[str, Any] = field(default_factory=dict)

    def blob(self, name: str = "disk", size: int = 64 * PAGE) -> str:
        """A fresh page blob."""
        path = f"{self.container}/{name}"
        assert self.rest.create(path, size).status == 201
        return path

    def note(self, label: str, reply: Reply) -> Reply:
        """Remember."""
        assert label not in self.seen
        self.seen[label] = observe(reply)
        return reply

    def states(self, label: str, path: str) -> None:
        """Remember what Get Blob Properties says now."""
        self.note(label, self.rest("HEAD", path))


Scenario = Callable[[Script], None]
Deviations = Mapping[tuple[str, str], tuple[int, str, str]]
"""(scenario, label): (documented status, documented code, why Azurite differs)."""


def _run(scenario: Scenario, server: Azurite | PageBlobServer, container: str) -> dict[str, Any]:
    """All answers of a scenario from one server."""
    with Rest(server.endpoint, server.account, server.key) as rest:
        assert rest("PUT", container, "restype=container").status == 201
        script = Script(server, rest, container)
        scenario(script)
        assert rest("DELETE", container, "restype=container").status == 202
    return script.seen


def compare(
    name: str, scenario: Scenario, deviations: Deviations, azurite: Azurite, own: PageBlobServer
) -> dict[str, Any]:
    """What differs and is not listed, and what is listed and does not differ as listed; empty when all is well."""
    container = f"t-{uuid.uuid4().hex[:12]}"
    theirs, ours = _run(scenario, azurite, container), _run(scenario, own, container)
    assert ours.keys() == theirs.keys()
    wrong: dict[str, Any] = {
        label: "listed, but there is no such label"
        for scene, label in deviations
        if scene == name and label not in ours
    }
    for label, seen in ours.items():
        listed = deviations.get((name, label))
        if listed is None:
            if seen != theirs[label]:
                wrong[label] = {"ours": seen, "azurite": theirs[label]}
        elif (seen["status"], seen["code"]) != listed[:2] or seen == theirs[label]:
            wrong[label] = {"ours": seen, "azurite": theirs[label], "listed": listed}
    return wrong
