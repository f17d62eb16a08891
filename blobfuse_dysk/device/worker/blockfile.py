"""What the kernel sees of a disk: a FUSE file system with one file, `disk`, as large as the device.

Inode and handle numbers are constants, so a worker that takes over from a dead one knows them without being told.

A handler must let no exception but FUSEError out: any other would end the whole mount. So each failure becomes an errno
here, and only here. The block layer above treats every errno alike (an I/O error), but for a read-only disk.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import pyfuse3
import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import MAX_WRITE, PAGE, Buffer, Extent, Store
from blobfuse_dysk.store.parts.extentmap import ExtentMap
from blobfuse_dysk.store.passage import Owner, Passage, Rest

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, InodeT, ReaddirToken, RequestContext

__all__ = ["DISK_INODE", "BlockFile"]

DISK_INODE = 2  # 1 is the root, by FUSE's definition
_NAME = b"disk"
_FOREVER_S = 1e6  # how long the kernel may keep names and attributes: it is told when they change
_MOST_REFUSED = 256  # ranges that are remembered one by one
_log = logging.getLogger(__name__)


class BlockFile(pyfuse3.Operations):
    """Serves the first `size` bytes of a store, which may become more. Any number of requests may run at the same time.

    A worker that takes over answers the kernel before its store is open again; requests wait for `provide` or `refuse`.
    on_init: called in the middle of FUSE_INIT. on_release: called when a handle of the file is
    gone, which is when the loop device may have let go. on_loss: called when a write or flush failed for the first
    time, whatever the reason, which is `lost` from then on: the page cache may have told nobody.
    """

    supports_dot_lookup = False

    def __init__(
        self,
        size: int,
        *,
        read_only: bool,
        on_init: Callable[[], None],
        on_release: Callable[[], object],
        on_loss: Callable[[Exception], object],
    ) -> None:
        super().__init__()
        self._size = size
        self._read_only = read_only
        self._on_init = on_init
        self._on_release = on_release
        self._on_loss = on_loss
        self._store: Store | None = None
        self._refusal: StoreError | None = None
        self._decided = trio.Event()
        self.lost: Exception | None = None
        self._refused = ExtentMap(_MOST_REFUSED)
        self._now = bound_clock()

    @property
    def refused(self) -> list[Extent]:
        """What was to be written, and was not, and was not written again with success."""
        return self._refused.within(0, self._size)

    def provide(self, store: Store) -> None:
        """From now on serve this store."""
        self._store = store
        self._decided.set()

    def refuse(self, reason: StoreError) -> None:
        """From now on fail every request that needs a store, until one is provided."""
        self._refusal = reason
        self._decided.set()

    def grow(self, size: int) -> None:
        """From now on the file has `size` bytes; the kernel is to be told (Requests.tell_size)."""
        self._size = size

    def init(self) -> None:
        """See pyfuse3.Operations; runs while INIT is being handled."""
        self._on_init()

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode != pyfuse3.ROOT_INODE or name != _NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(DISK_INODE)

    async def forget(self, inode_list: object) -> None:
        """Inodes are constants; there is nothing to forget."""

    async def getattr(self, inode: InodeT, ctx: RequestContext | None) -> EntryAttributes:
        return self._attributes(inode)

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return pyfuse3.ROOT_INODE

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        if start_id == 0:
            pyfuse3.readdir_reply(token, _NAME, self._attributes(DISK_INODE), 1)

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        return pyfuse3.FileInfo(fh=DISK_INODE, direct_io=True, keep_cache=False)

    async def statfs(self, ctx: RequestContext) -> NoReturn:
        """Always refused: a loop device over a file system that answers offers discard, which pyfuse3 cannot carry out.

        EACCES is the one error for which df(1) leaves the mount out without a message.
        """
        raise pyfuse3.FUSEError(errno.EACCES)

    async def release(self, fh: FileHandleT) -> None:
        self._on_release()

    async def flush(self, fh: FileHandleT) -> None:
        """close(2) promises nothing about durability; fsync does."""

    async def read(self, fh: FileHandleT, off: int, size: int) -> Buffer:  # type: ignore[override] # it takes any buffer
        """A read that does not fit pages (never one of the loop device's) is widened and cut."""
        end = min(off + size, self._size)
        if off >= end:
            return b""
        start = off - off % PAGE
        stop = min(end + -end % PAGE, self._size)
        try:
            data = await (self._store or await self._provided()).read(start, stop - start)
        except Exception as error:
            raise self._failure(error, "read", off, size) from error
        if start == off and stop == end:
            return data
        return memoryview(data)[off - start : end - start]

    async def write(self, fh: FileHandleT, off: int, buf: Buffer) -> int:
        if self._read_only:
            raise pyfuse3.FUSEError(errno.EROFS)
        if off % PAGE or len(buf) % PAGE:
            raise pyfuse3.FUSEError(errno.EINVAL)
        if off + len(buf) > self._size:
            raise pyfuse3.FUSEError(errno.ENOSPC)

        try:
            store = self._store or await self._provided()
            if 0 < len(buf) <= MAX_WRITE:
                await store.write(off, buf)
            else:
                for start in range(0, len(buf), MAX_WRITE):  # a kernel with raised fs.fuse.max_pages_limit
                    await store.write(off + start, memoryview(buf)[start : start + MAX_WRITE])
        except Exception as error:
            raise self._not_written(error, off, len(buf)) from error
        self.written(off, len(buf))
        return len(buf)

    def passage(self, owner: Owner, tag: int, off: int, size: int, data: Buffer | None) -> Passage | None:
        """A read or write (with data) for the store's plain lane (passage.py); None if that is not for such a one."""
        store = self._store
        if store is None or not size or (off | size) % PAGE or off + size > self._size:
            return None
        lane = store.plain_read if data is None else store.plain_write
        if lane is None or (data is not None and (self._read_only or size > MAX_WRITE)):
            return None
        return Passage(lane, owner, tag, off, size, data, self._now())

    def written(self, off: int, size: int) -> None:
        """A write of this range has succeeded."""
        if self._refused:
            self._refused.remove(off, off + size)

    async def rest(self, passage: Passage, rest: Rest) -> Buffer | None:
        """What is left of a passage; what a read returns. Raises FUSEError, as `read` and `write` do."""
        try:
            result: Buffer | None = await rest
        except Exception as error:
            if passage.data is None:
                raise self._failure(error, "read", passage.offset, passage.length) from error
            raise self._not_written(error, passage.offset, passage.length) from error
        if passage.data is not None:
            self.written(passage.offset, passage.length)
        return result

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if self._read_only:
            return
        try:
            await (self._store or await self._provided()).flush()
        except Exception as error:
            raise self._failure(error, "flush", 0, self._size) from error

    async def _provided(self) -> Store:
        """Wait for the store; raises what it was refused for."""
        await attach()
        await self._decided.wait()
        if self._store is None:
            raise self._refusal or StoreError("no store", Kind.GONE)
        return self._store

    def _not_written(self, error: Exception, off: int, size: int) -> pyfuse3.FUSEError:
        self._refused.add(off, off + size)
        return self._failure(error, "write", off, size)

    def _failure(self, error: Exception, what: str, offset: int, length: int) -> pyfuse3.FUSEError:
        """What the kernel is told of any exception; the log has the rest."""
        unexpected = None if isinstance(error, StoreError) else error
        if what != "read" and self.lost is None:
            self.lost = error
            self._on_loss(error)
        _log.error("%s of %d bytes at %d failed: %s", what, length, offset, error, exc_info=unexpected)
        return pyfuse3.FUSEError(errno.EIO)

    def _attributes(self, inode: InodeT) -> EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.entry_timeout = entry.attr_timeout = _FOREVER_S
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = stat.S_IFDIR | 0o700
            entry.st_nlink = 2
        elif inode == DISK_INODE:
            entry.st_mode = stat.S_IFREG | (0o400 if self._read_only else 0o600)
            entry.st_size = self._size
            entry.st_blocks = -(-self._size // 512)
            entry.st_blksize = 4096
        else:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return entry
