"""What the kernel gets of a store, and what is remembered of what it did not take."""

from __future__ import annotations

import errno
import stat
from random import Random
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from blobfuse_dysk.device.worker.blockfile import DISK_INODE, BlockFile
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import MAX_WRITE, PAGE, Buffer
from blobfuse_dysk.store.passage import NO, Lane, Owner, Passage
from blobfuse_dysk.testing import MemoryStore, RecordingStore

SIZE = 64 << 20
HANDLE = DISK_INODE
ROOT = pyfuse3.ROOT_INODE
NOBODY = cast(pyfuse3.RequestContext, None)


class Failing(MemoryStore):
    """Fails every call with an error that can be changed."""

    error: Exception = StoreError("refused", Kind.REJECTED)

    async def read(self, offset: int, length: int) -> Buffer:
        raise self.error

    async def write(self, offset: int, data: Buffer) -> None:
        raise self.error

    async def flush(self) -> None:
        raise self.error


class Disk:
    """A block file, and what it told."""

    def __init__(self, store: Any = None, *, size: int = SIZE, read_only: bool = False) -> None:
        self.told: list[str] = []
        self.file = BlockFile(
            size,
            read_only=read_only,
            on_init=lambda: self.told.append("init"),
            on_release=lambda: self.told.append("release"),
            on_loss=lambda error: self.told.append(f"loss: {error}"),
        )
        if store is not None:
            self.file.provide(store)

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(await self.file.read(HANDLE, offset, length))

    async def write(self, offset: int, data: bytes) -> int:
        return await self.file.write(HANDLE, offset, data)

    async def fsync(self) -> None:
        await self.file.fsync(HANDLE, False)


async def refused(call: Any, number: int = errno.EIO) -> None:
    """The call fails with that errno."""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await call
    assert caught.value.errno == number


def pattern(length: int) -> bytes:
    return Random(length).randbytes(length)


async def test_every_byte_is_where_it_was_written() -> None:
    store = RecordingStore(MemoryStore(SIZE))
    disk = Disk(store)
    data = pattern(64 << 10)
    assert await disk.write(PAGE, data) == len(data)
    assert await disk.read(PAGE, len(data)) == data
    store.calls.clear()
    for offset, length in ((PAGE, PAGE), (PAGE + 1, 1), (PAGE + 7, 3 * PAGE), (2 * PAGE - 1, 2), (PAGE, PAGE - 1)):
        assert await disk.read(offset, length) == data[offset - PAGE : offset - PAGE + length]
    assert [call.what for call in store.calls] == [
        ("read", PAGE, PAGE),
        ("read", PAGE, PAGE),
        ("read", PAGE, 4 * PAGE),
        ("read", PAGE, 2 * PAGE),
        ("read", PAGE, PAGE),
    ]


async def test_reads_end_where_the_disk_does() -> None:
    store = MemoryStore(SIZE)
    disk = Disk(store, size=SIZE - PAGE)
    await store.write(SIZE - 2 * PAGE, b"d" * PAGE + b"f" * PAGE)
    assert await disk.read(SIZE - 2 * PAGE, 4 * PAGE) == b"d" * PAGE
    assert await disk.read(SIZE - PAGE - 1, 2) == b"d"
    assert await disk.read(SIZE - PAGE, PAGE) == b""
    assert await disk.read(SIZE, PAGE) == b""


@pytest.mark.parametrize("length", [PAGE, MAX_WRITE - PAGE, MAX_WRITE, MAX_WRITE + PAGE, 4 * MAX_WRITE, 0])
async def test_large_writes_are_cut_into_what_a_store_takes(length: int) -> None:
    store = RecordingStore(MemoryStore(SIZE))
    disk = Disk(store)
    data = pattern(length)
    assert await disk.write(PAGE, data) == length
    assert await disk.read(PAGE, length) == data
    writes = [call for call in store.calls if call.name == "write"]
    assert all(0 < call.length <= MAX_WRITE for call in writes)
    assert len(writes) == -(-length // MAX_WRITE)


@pytest.mark.parametrize(
    ("offset", "length", "number"),
    [
        (1, PAGE, errno.EINVAL),
        (PAGE, PAGE - 1, errno.EINVAL),
        (SIZE - PAGE, PAGE, errno.ENOSPC),
        (SIZE - 2 * PAGE, 2 * PAGE, errno.ENOSPC),
        (SIZE, PAGE, errno.ENOSPC),
    ],
)
async def test_writes_that_fit_no_page_or_not_the_disk(offset: int, length: int, number: int) -> None:
    """The last page of the store, a VHD's footer, is not the disk's."""
    store = RecordingStore(MemoryStore(SIZE))
    disk = Disk(store, size=SIZE - PAGE)
    await refused(disk.write(offset, bytes(length)), number)
    assert store.calls == []
    assert disk.file.lost is None
    assert await disk.write(SIZE - 2 * PAGE, bytes(PAGE)) == PAGE


async def test_a_read_only_disk() -> None:
    store = RecordingStore(MemoryStore(SIZE))
    disk = Disk(store, read_only=True)
    await refused(disk.write(0, bytes(PAGE)), errno.EROFS)
    await disk.fsync()
    assert store.calls == []
    assert await disk.read(0, PAGE) == bytes(PAGE)


async def test_a_flush_is_the_stores_and_waits_for_it(autojump_clock: trio.testing.MockClock) -> None:
    class Slow(MemoryStore):
        async def flush(self) -> None:
            await trio.sleep(7)

    disk = Disk(Slow(SIZE))
    await disk.fsync()
    assert trio.current_time() == 7
    await disk.file.flush(HANDLE)
    assert trio.current_time() == 7, "close promises nothing"


@pytest.mark.parametrize(
    "error", [StoreError("refused", Kind.REJECTED), RuntimeError("a bug"), ExceptionGroup("", [OSError(5, "EIO")])]
)
@pytest.mark.parametrize("what", ["write", "large write", "flush"])
async def test_what_was_not_taken_is_remembered_whatever_the_reason(what: str, error: Exception) -> None:
    """The page cache may have nobody to tell it."""
    store = Failing(SIZE)
    store.error = error
    disk = Disk(store)
    call = disk.fsync() if what == "flush" else disk.write(0, bytes(PAGE if what == "write" else 2 * MAX_WRITE))
    await refused(call)
    assert disk.file.lost is error
    assert disk.told == [f"loss: {error}"]


async def test_the_first_loss_is_the_one_that_is_remembered_and_told() -> None:
    store = Failing(SIZE)
    disk = Disk(store)
    await refused(disk.read(0, PAGE))
    assert disk.file.lost is None, "what could not be read is not lost"
    first = store.error
    await refused(disk.write(0, bytes(PAGE)))
    store.error = StoreError("later", Kind.GONE)
    await refused(disk.fsync())
    assert disk.file.lost is first
    assert disk.told == ["loss: refused"]


async def test_what_was_refused_is_remembered_until_it_is_written() -> None:
    disk = Disk(Failing(SIZE))
    for offset in (0, PAGE, 4 * PAGE):
        await refused(disk.write(offset, bytes(PAGE)))
    assert disk.file.refused == [(0, 2 * PAGE), (4 * PAGE, PAGE)]
    disk.file.provide(MemoryStore(SIZE))
    await disk.write(PAGE, bytes(PAGE))
    assert disk.file.refused == [(0, PAGE), (4 * PAGE, PAGE)]
    await disk.write(0, bytes(2 * MAX_WRITE))
    assert disk.file.refused == []


async def test_requests_wait_for_the_store() -> None:
    disk = Disk()
    store = MemoryStore(SIZE)
    results: list[Any] = []

    async def ask(call: Any) -> None:
        results.append(await call)

    async with trio.open_nursery() as nursery:
        for call in (disk.write(0, b"w" * PAGE), disk.read(PAGE, PAGE), disk.fsync()):
            nursery.start_soon(ask, call)
        await trio.testing.wait_all_tasks_blocked()
        assert results == []
        disk.file.provide(store)
    assert len(results) == 3
    assert await disk.read(0, PAGE) == b"w" * PAGE


async def test_requests_that_waited_are_refused_until_there_is_a_store() -> None:
    disk = Disk()
    reason = StoreError("within io-timeout", Kind.TIMEOUT)
    async with trio.open_nursery() as nursery:
        for call in (disk.write(0, b"w" * PAGE), disk.read(0, PAGE), disk.fsync()):
            nursery.start_soon(refused, call)
        await trio.testing.wait_all_tasks_blocked()
        disk.file.refuse(reason)
    assert disk.file.lost is reason
    await refused(disk.read(0, PAGE))
    disk.file.provide(MemoryStore(SIZE))
    assert await disk.read(0, PAGE) == bytes(PAGE)


async def test_a_store_that_comes_right_behind_the_refusal_serves_who_waits() -> None:
    disk = Disk()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.write, 0, b"w" * PAGE)
        await trio.testing.wait_all_tasks_blocked()
        disk.file.refuse(StoreError("within io-timeout", Kind.TIMEOUT))
        disk.file.provide(MemoryStore(SIZE))
    assert await disk.read(0, PAGE) == b"w" * PAGE
    assert disk.file.lost is None


async def test_one_file_and_its_attributes() -> None:
    disk = Disk(MemoryStore(SIZE), size=SIZE - PAGE)
    found = await disk.file.lookup(ROOT, b"disk", NOBODY)
    assert (found.st_ino, found.st_size, found.st_mode) == (DISK_INODE, SIZE - PAGE, stat.S_IFREG | 0o600)
    assert stat.S_ISDIR((await disk.file.getattr(ROOT, NOBODY)).st_mode)
    assert (await Disk(read_only=True).file.getattr(found.st_ino, NOBODY)).st_mode & 0o777 == 0o400
    await refused(disk.file.lookup(ROOT, b"other", NOBODY), errno.ENOENT)
    await refused(disk.file.lookup(found.st_ino, b"disk", NOBODY), errno.ENOENT)
    await refused(disk.file.getattr(3, NOBODY), errno.ENOENT)
    await refused(disk.file.statfs(NOBODY), errno.EACCES)
    opened = await disk.file.open(found.st_ino, 0, NOBODY)
    assert opened.direct_io, "the kernel would cache what the loop device caches"
    assert not opened.keep_cache
    assert await disk.file.opendir(ROOT, NOBODY) == ROOT
    disk.file.init()
    await disk.file.release(opened.fh)
    await disk.file.forget([])
    assert disk.told == ["init", "release"]


async def test_a_file_that_grows_serves_its_new_end() -> None:
    store = MemoryStore(SIZE)
    disk = Disk(store)
    await store.grow(SIZE + 4096)
    await refused(disk.write(SIZE, pattern(4096)), errno.ENOSPC)
    assert await disk.read(SIZE, 4096) == b""
    disk.file.grow(SIZE + 4096)
    assert (await disk.file.getattr(DISK_INODE, NOBODY)).st_size == SIZE + 4096
    assert await disk.write(SIZE, pattern(4096)) == 4096
    assert await disk.read(SIZE - 512, 8192) == bytes(512) + pattern(4096)
    await refused(disk.write(SIZE + 4096, pattern(512)), errno.ENOSPC)


class Lanes(MemoryStore):
    """Has lanes, in which nothing begins."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.plain_read, self.plain_write = (Lane(lambda passage: NO) for _ in range(2))


def begun(disk: Disk, offset: int, length: int, data: bytes | None = None) -> Passage | None:
    return disk.file.passage(cast(Owner, None), 7, offset, length, data)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, PAGE), (PAGE, 7 * PAGE), (SIZE - 2 * PAGE, PAGE), (PAGE, MAX_WRITE), (PAGE, 2 * MAX_WRITE)],
)
async def test_whole_pages_of_the_disk_may_go_in_the_plain_lane(offset: int, length: int) -> None:
    """Of a write, as many as one write of the store has."""
    store = Lanes(SIZE)
    disk, shown = Disk(store, size=SIZE - PAGE), Disk(store, size=SIZE - PAGE, read_only=True)
    read, write = begun(disk, offset, length), begun(disk, offset, length, bytes(length))
    assert read is not None
    assert (read.lane, read.tag, read.offset, read.length, read.data) == (store.plain_read, 7, offset, length, None)
    if length > MAX_WRITE:
        assert write is None
    else:
        assert write is not None
        assert (write.lane, write.offset, write.length, write.data) == (
            store.plain_write,
            offset,
            length,
            bytes(length),
        )
    assert begun(shown, offset, length) is not None
    assert begun(shown, offset, length, bytes(length)) is None


@pytest.mark.parametrize(
    ("offset", "length"),
    [(1, PAGE), (PAGE, PAGE - 1), (PAGE, 0), (SIZE - PAGE, PAGE), (SIZE - 2 * PAGE, 2 * PAGE), (SIZE, PAGE)],
)
async def test_what_fits_no_page_or_not_the_disk_goes_in_no_lane(offset: int, length: int) -> None:
    disk = Disk(Lanes(SIZE), size=SIZE - PAGE)
    assert begun(disk, offset, length) is begun(disk, offset, length, bytes(length)) is None


async def test_without_a_store_or_its_lane_there_is_none() -> None:
    for disk in (Disk(), Disk(MemoryStore(SIZE))):
        assert begun(disk, 0, PAGE) is begun(disk, 0, PAGE, bytes(PAGE)) is None


async def test_what_is_left_of_a_call_ends_as_any_call() -> None:
    async def left(error: Exception | None = None) -> Buffer:
        if error is not None:
            raise error
        return b"r" * PAGE

    disk, error = Disk(Lanes(SIZE)), StoreError("refused", Kind.REJECTED)
    read, write = begun(disk, 0, PAGE), begun(disk, 0, PAGE, bytes(PAGE))
    assert read is not None and write is not None
    await refused(disk.file.rest(read, left(error)))
    assert (disk.file.lost, disk.file.refused, disk.told) == (None, [], [])
    await refused(disk.file.rest(write, left(error)))
    assert (disk.file.lost, disk.file.refused, disk.told) == (error, [(0, PAGE)], ["loss: refused"])
    assert await disk.file.rest(read, left()) == b"r" * PAGE
    assert disk.file.refused == [(0, PAGE)]
    await disk.file.rest(write, left())
    assert disk.file.refused == []
