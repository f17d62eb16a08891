"""What something on the way answers in the service's place, for seconds: no disk ends of it, no write lands late."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import GatewayError, NotFoundError, ServiceError
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from tests.simulation.stacks import DATA, attached, refused


@pytest.mark.parametrize("status", [200, 302, 307, 400, 404, 412])
async def test_seconds_of_a_gateways_own_answers_end_neither_attach_nor_disk(
    status: int, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """What it says of a request is nobody's word: each may have been done, or not, and is asked again."""
    says = Fate(error=GatewayError("nginx", status=status))
    hands_on = Fate(done_error=GatewayError("nginx", status=status))
    random, until = Random(status), 5.0
    client.fate = lambda name: random.choice((says, hands_on)) if trio.current_time() < until else Fate()
    async with attached(client, io_timeout_s=60.0) as stack:
        assert blob.lease_state == "leased"
        assert stack.epoch == blob.number
        until = trio.current_time() + 25.0  # a renewal is due within
        async with trio.open_nursery() as nursery:
            for page in range(8):
                nursery.start_soon(stack.store.write, page * 512, DATA)
            nursery.start_soon(stack.store.read, 0, 512)
            nursery.start_soon(stack.store.zero, 1 << 19, 512)
        await stack.store.flush()
        assert trio.current_time() >= until
        await stack.store.write(4096, DATA)
        await trio.sleep(10.0)  # the page list, too, is asked for again after a pause
        assert stack.state == "attached"
        assert stack.epoch == blob.number
        assert bytes(await stack.store.read(0, 4608)) == DATA * 9
        raises = stack.status()["epoch_raises"]
        assert isinstance(raises, int)
        assert raises > 0, "what may have been handed on must not land later"
        await stack.release()
    assert blob.lease_state == "available"


async def test_a_refusal_of_the_service_itself_ends_the_attach_at_once(
    client: SimClient, autojump_clock: MockClock
) -> None:
    client.fate = lambda name: Fate(error=ServiceError("no", status=404, code="BlobNotFound"))
    await refused(client, NotFoundError)
    assert trio.current_time() < 1.0
