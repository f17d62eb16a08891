"""Clones in another account: the same content, as sparse, without a key that leaves this machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.clone import clone
from blobfuse_dysk.disks.ranges import allocated_ranges
from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.vhd import FOOTER_SIZE, footer, parse_footer
from tests.wire.disk_options import named
from tests.wire.rest import Rest
from tests.wire.test_clone import MIB, OPTIONS, PAGE, SIZE, content, fill, metadata, snapshots

OTHER = {"other": "b3RoZXIga2V5"}


@pytest.fixture
def two(container: str) -> Iterator[PageBlobServer]:
    """A server with two accounts; in the first one the disk `data`."""
    from blobfuse_dysk.testing.pageblobserver import DEVELOPMENT_ACCOUNT, DEVELOPMENT_KEY

    with PageBlobServer({DEVELOPMENT_ACCOUNT: DEVELOPMENT_KEY, **OTHER}) as running:
        with Rest(running.endpoint, running.account, running.key) as rest:
            rest("PUT", container, "restype=container")
            fill(rest, f"{container}/data")
        yield running


def elsewhere(server: PageBlobServer, container: str, blob: str = "copy") -> DiskAddress:
    disk = named(server, container, blob)
    assert disk.endpoint is not None
    return replace(disk, account="other", endpoint=replace(disk.endpoint, path="/other"), account_key=OTHER["other"])


def far(server: PageBlobServer) -> Rest:
    return Rest(f"{server.url}/other", "other", OTHER["other"])


def test_a_clone_in_another_account_holds_the_same_and_is_as_sparse(two: PageBlobServer, container: str) -> None:
    drawn = random.Random(6)
    with Rest(two.endpoint, two.account, two.key) as rest, far(two) as other:
        rest.create(f"{container}/large", 64 * MIB)
        for _ in range(60):
            rest.put(f"{container}/large", drawn.randrange(64 * MIB // PAGE - 8) * PAGE, drawn.randbytes(8 * PAGE))
        rest.put(f"{container}/large", 10 * MIB, drawn.randbytes(4 * MIB))
        rest.put(f"{container}/large", 14 * MIB, drawn.randbytes(4 * MIB))
        source, target = named(two, container, "large"), elsewhere(two, container)
        made = clone(source, target, OPTIONS, OPTIONS, size=65 * MIB)
        assert made.complete and made.temporary
        assert content(other, f"{container}/copy", 65 * MIB) == content(rest, f"{container}/large", 64 * MIB) + bytes(
            MIB
        )
        assert list(allocated_ranges(target, OPTIONS)) == list(allocated_ranges(source, OPTIONS))
        assert metadata(other, f"{container}/copy") == {}
    assert snapshots(two, container) == []


def test_a_vhd_in_another_account_grows(two: PageBlobServer, container: str) -> None:
    with Rest(two.endpoint, two.account, two.key) as rest, far(two) as other:
        rest.create(f"{container}/vm", SIZE + FOOTER_SIZE)
        rest.put(f"{container}/vm", SIZE - PAGE, b"y" * PAGE + footer(SIZE))
        clone(named(two, container, "vm"), elsewhere(two, container), OPTIONS, OPTIONS, size=4 * MIB)
        whole = content(other, f"{container}/copy", 4 * MIB + FOOTER_SIZE)
    found = parse_footer(whole[-FOOTER_SIZE:])
    assert found and found.current_size == 4 * MIB
    assert whole[SIZE - PAGE : -FOOTER_SIZE] == b"y" * PAGE + bytes(2 * MIB)
