"""How many requests an attach waits for, one after the other, and what it believes of what it read beside them."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.device.worker.geometry import measure
from blobfuse_dysk.errors import LeasedError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.lease.holdername import is_signed
from blobfuse_dysk.store.stack import Stack
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse
from blobfuse_dysk.vhd import footer
from tests.simulation.stacks import DATA, LEASE, SIZE, Node, attached, held, refused

SECOND = Fate(before_s=0.5, after_s=0.5)  # each request takes a second, and is done in the middle of it


async def ready(stack: Stack) -> int:
    """The size that the device will have: all that the worker asks before it serves (device/worker/worker.py)."""
    return (await measure(stack.store, AttachOptions(), stack.last_page)).size


def with_footer(blob: SimBlob) -> None:
    write(blob, SIZE - 512, footer(SIZE - 512))


def write(blob: SimBlob, offset: int, data: bytes) -> None:
    blob.put("before", offset, data, len(data), None, None)


@pytest.mark.parametrize("vhd", [False, True])
async def test_an_attach_waits_for_three_requests_one_after_the_other(
    vhd: bool, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    if vhd:
        with_footer(blob)
    client.fate = lambda name: SECOND
    async with attached(client, named=False) as stack:
        assert await ready(stack) == SIZE - (512 if vhd else 0)
        assert trio.current_time() == 3
        assert client.sent[0] == "properties"
        assert set(client.sent) == {"properties", "acquire", "raise", "list", *(["get"] if vhd else [])}


async def test_a_first_read_and_a_first_write_wait_for_no_map_and_one_name(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    client.fate = lambda name: SECOND
    async with attached(client, named=False) as stack:
        await ready(stack)
        assert bytes(await stack.store.read(0, 512)) == bytes(512)
        assert trio.current_time() == 3
        await stack.store.write(0, DATA)
        assert trio.current_time() == 5
        assert client.sent[-2:] == ["metadata", "put"]
        assert blob.metadata["dysk_node"] == "here"


async def test_a_flush_right_after_the_attach_is_proved_by_the_raise(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """Setting up a loop device flushes."""
    async with attached(client, named=False) as stack:
        await stack.store.flush()
        assert "renew" not in client.sent
        await trio.sleep(6)
        await stack.store.flush()
        assert "renew" in client.sent


async def test_a_raise_whose_answer_was_lost_proves_nothing(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    client.fate = lambda name: Fate(lost_s=0.0) if name == "raise" and client.sent.count("raise") == 1 else Fate()
    async with attached(client, named=False) as stack:
        assert client.sent.count("raise") == 2
        await stack.store.flush()
        assert "renew" in client.sent


async def test_what_was_read_beside_the_claim_is_the_disk_that_was_claimed(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    write(blob, 4096, DATA)
    async with attached(client, cache="none") as stack:
        assert await stack.store.extents(0, SIZE) == [(4096, 512)]
        assert bytes(await stack.store.read(4096, 512)) == DATA
        assert client.sent.count("list") == 1


@pytest.mark.parametrize("before", ["acquire", "raise"])
async def test_a_write_between_the_look_and_the_raise_makes_what_was_read_worthless(
    before: str, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """A straggler of the last holder: the map that was read before it calls its page free."""

    def straggle(name: str) -> Fate:
        if name == before and not blob.allocated:
            held = blob.lease_id if blob.lease_state == "leased" else None
            blob.put("before", SIZE - 512, footer(SIZE - 512), 512, held, None)
        return Fate(after_s=0.5) if name == before else Fate()

    client.fate = straggle
    async with attached(client, named=False) as stack:
        assert stack.last_page is None
        assert await ready(stack) == SIZE - 512
        assert await stack.store.extents(0, SIZE) == [(SIZE - 512, 512)]


async def test_a_disk_that_was_looked_at_twice_is_read_when_it_is_ours(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """Each look but the first is later than what was read, and what came between is not known."""

    def change(name: str) -> Fate:
        if name == "acquire" and not blob.allocated:
            write(blob, SIZE - 512, footer(SIZE - 512))
        return Fate()

    client.fate = change
    async with attached(client, named=False) as stack:
        assert client.sent.count("properties") == 2
        assert stack.last_page is None
        assert await ready(stack) == SIZE - 512


async def test_a_raise_that_rests_on_a_last_moment_makes_what_was_read_worthless(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """The blob may change up to that moment, though each look before showed the same ETag."""
    client = node("late", acquire=[Fate(error=refuse(409, "LeaseAlreadyPresent"))] * 5)
    before = client.fate

    def straggle(name: str) -> Fate:
        if name == "raise" and not blob.allocated:
            blob.put("before", SIZE - 512, footer(SIZE - 512), 512, blob.lease_id, None)
        return before(name)

    client.fate = straggle
    async with attached(client, named=False, break_lease=True) as stack:
        assert client.sent.count("properties") > 4
        assert stack.last_page is None
        assert await ready(stack) == SIZE - 512


async def test_a_new_worker_writes_at_once_and_no_name(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client) as stack:
        resume = held(stack)
    client.sent.clear()
    async with attached(client, named=False, resume=resume) as stack:
        await stack.store.write(0, DATA)
        await trio.sleep(5)
        assert "metadata" not in client.sent


async def test_a_new_worker_writes_the_name_that_is_not_there(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """The worker before it was killed when the disk was attached and the name on its way."""
    client.fate = lambda name: Fate(unsent=True) if name == "metadata" else Fate()
    async with attached(client) as stack:
        resume = held(stack)
    assert "dysk_node" not in blob.metadata
    client.fate = lambda name: Fate()
    async with attached(client, named=False, resume=resume) as stack:
        await stack.store.write(0, DATA)
        assert blob.metadata["dysk_node"] == "here"
        assert client.sent[-2:] == ["metadata", "put"]


async def test_after_a_lapse_the_disk_is_read_again(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """The lease was over before the raise was answered: somebody may have written, though nobody attached the disk."""

    def fate(name: str) -> Fate:
        if name == "raise" and client.sent.count("raise") == 1:
            return Fate(lost_s=0.0)
        return Fate(unsent=True) if name == "properties" and 0 < trio.current_time() < 3.5 else Fate()

    client.fate = fate
    async with attached(client, named=False, lease_s=3.0) as stack:
        assert "renew" in client.sent
        assert stack.last_page is None


@pytest.mark.parametrize("kind", ["list", "get"])
@pytest.mark.parametrize(
    "fate", [Fate(error=refuse(503, "ServerBusy")), Fate(lost_s=0.0), Fate(unsent=True), Fate(before_s=60.0)]
)
async def test_what_cannot_be_read_beside_the_claim_is_read_after_it(
    kind: str, fate: Fate, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    write(blob, SIZE - 512, footer(SIZE - 512))
    client.fate = lambda name: fate if name == kind and client.sent.count(kind) == 1 else Fate()
    async with attached(client, named=False) as stack:
        assert trio.current_time() < 1  # nobody waited for it
        assert stack.last_page is None
        assert await ready(stack) == SIZE - 512


async def test_a_list_in_pieces_is_not_taken_for_all_of_it(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    blob.list_most = 1
    write(blob, 0, DATA)
    write(blob, SIZE - 512, footer(SIZE - 512))
    async with attached(client, named=False) as stack:
        assert stack.last_page is None
        assert await ready(stack) == SIZE - 512
        assert await stack.store.extents(0, SIZE) == [(0, 512), (SIZE - 512, 512)]


@pytest.mark.parametrize("how", ["lost", "refused", "late"])
async def test_no_write_leaves_before_it_is_known_whether_the_name_could_be_written(
    how: str, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    fates = {"lost": Fate(lost_s=0.0), "refused": Fate(error=refuse(403, "No")), "late": Fate(before_s=5.0)}
    client.fate = lambda name: fates[how] if name == "metadata" else Fate()
    async with attached(client, named=False) as stack:
        assert stack.state == "attached"
        await stack.store.write(0, DATA)
        assert client.sent.index("put") > client.sent.index("metadata")
        if how != "lost":  # which it may be before or after it was done
            assert ("dysk_node" in blob.metadata) == (how == "late")
        assert int(trio.current_time()) == (5 if how == "late" else 0)
    assert bytes(blob.store.peek(0, 512)) == DATA


async def test_a_disk_that_is_given_up_while_its_name_is_written_is_given_up(
    blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    client.fate = lambda name: Fate(before_s=5.0) if name == "metadata" and "dysk_node" not in blob.metadata else Fate()
    async with attached(client, named=False, lease_id=LEASE) as stack:
        await stack.release()
    assert blob.lease_state == "available"
    async with attached(SimClient(blob, nursery), lease_id=LEASE, node="next") as stack:
        await stack.store.write(0, DATA)
        await trio.sleep(20)
        assert blob.metadata["dysk_node"] == "next"


async def test_a_name_that_waits_does_not_keep_reads_waiting(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    client.fate = lambda name: Fate(before_s=5.0) if name == "metadata" else Fate()
    write(blob, 0, DATA)
    async with attached(client, named=False) as stack:
        assert bytes(await stack.store.read(0, 512)) == DATA
        assert trio.current_time() < 1


async def test_a_read_only_disk_is_asked_for_its_end_only(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client, read_only=True) as stack:
        await ready(stack)
        assert client.sent == ["properties", "get"]


async def test_refused_is_refused_at_once(blob: SimBlob, client: SimClient, autojump_clock: MockClock) -> None:
    blob.acquire(60, "2" + LEASE[1:], None)
    await refused(client, LeasedError)
    assert "acquire" not in client.sent
    assert trio.current_time() < 1


async def test_the_name_of_this_nodes_last_life_is_written_anew(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """Beside it stands the tag of the numbers, by which it is told whether the name is the holder's."""
    async with attached(client):
        pass
    await trio.sleep(61)
    async with attached(client, seed=2):
        assert is_signed(blob.properties(), "here")
