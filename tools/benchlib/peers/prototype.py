"""A peer: the plain prototype that one would write first: pyfuse3, trio, httptools, and a ranged GET for each read.

One process, read-only: no lease, no epoch, no cache, no retry, no limit, no signature (the URL has a SAS, of the
benchmark's own server, so it may stand in a command line). Nothing of this project's code is on its path, so it says
what the language and the libraries cost on this machine at this moment: a number of microseconds means little without.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import pyfuse3
import trio

from blobfuse_dysk.device.kernel.fuse import connection, set_background
from tools.benchlib.peers.start import LIMIT_S, loop_device, start, wait_for

__all__ = ["NAME", "prototype_device"]

NAME = "plain prototype"
_FILE = "disk"
_INODE = pyfuse3.InodeT(pyfuse3.ROOT_INODE + 1)


@contextlib.contextmanager
def prototype_device(url: str, size: int, directory: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A loop device that shows the `size` bytes of `url`, and the id of the process behind it."""
    mount, log = directory / "prototype", directory / "prototype.log"
    mount.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        process = start(stack, [sys.executable, "-m", __name__, url, str(size), str(mount)], log)
        stack.callback(process.wait, LIMIT_S)  # it ends when its mount is gone
        stack.callback(subprocess.run, ["umount", "--lazy", str(mount)], check=False)
        wait_for(mount / _FILE, process, log)
        if (number := connection(str(mount))) is not None:
            set_background(number)
        device = stack.enter_context(loop_device(mount / _FILE, read_only=True))
        yield device, (process.pid,)


class _Answer:
    """What httptools calls with the parts of an answer."""

    def __init__(self) -> None:
        self.body: list[bytes] = []
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.complete = True


class _Disk(pyfuse3.Operations):
    """A root directory with one file."""

    def __init__(self, url: str, size: int) -> None:
        super().__init__()
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._head = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nx-ms-version: 2021-12-02\r\n"
        self._size = size
        self._idle: list[trio.SocketStream] = []

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        del ctx
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o400 if inode == _INODE else stat.S_IFDIR | 0o500)
        entry.st_size = self._size if inode == _INODE else 0
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        del parent_inode
        if os.fsdecode(name) != _FILE:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_INODE, ctx)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        del flags, ctx
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        del fh
        stream = self._idle.pop() if self._idle else await trio.open_tcp_stream(*self._address)
        await stream.send_all(f"{self._head}Range: bytes={off}-{off + size - 1}\r\n\r\n".encode())
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        while not answer.complete:
            parser.feed_data(await stream.receive_some(65536))
        if parser.get_status_code() != 206:
            raise pyfuse3.FUSEError(errno.EIO)
        self._idle.append(stream)
        return b"".join(answer.body)


def main() -> None:
    """Serve URL SIZE MOUNTPOINT until the mount is gone."""
    url, size, mount = sys.argv[1:]
    pyfuse3.init(_Disk(url, int(size)), mount, {"ro", "fsname=prototype"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
