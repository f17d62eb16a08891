"""Loads for devices and file systems, and what they are checked with: fio, digests, the server's counts."""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.kit import Node
from tools.fiojobs import command

__all__ = [
    "FSCK", "MIB", "attached", "blob_digest", "call", "device_digest", "fio", "server_of", "unsafe_writes",
    "used",
]  # fmt: skip

MIB = 1 << 20
FSCK = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"], "btrfs": ["btrfs", "check", "--readonly"]}


def call(*words: str, timeout_s: float = 100.0) -> str:
    """Run a program that must succeed; returns its standard output."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def fio(target: str | Path, **changed: str | int) -> None:
    """Run tools/fio/verify.fio to its end: no I/O error, and nothing read that was not written."""
    call(*command("verify", target, **changed))


def attached(node: Node, name: str = "data", *words: str, size: int = 64 * MIB) -> str:
    """Make a disk on the test's own server and attach it; returns the device."""
    server_of(node).create(node.container, name, size)
    return node.ok("attach", node.disk(name), *words).strip()


def server_of(node: Node) -> PageBlobServer:
    """The node's service, which is the project's own server."""
    assert isinstance(node.service, PageBlobServer)
    return node.service


def device_digest(device: str | Path) -> str:
    """SHA-256 of all that the disk has, past the kernel's caches."""
    digest = hashlib.sha256()
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        for piece in _pieces(fd):
            digest.update(piece)
    finally:
        os.close(fd)
    return digest.hexdigest()


def _pieces(fd: int) -> Iterator[memoryview]:
    with mmap.mmap(-1, MIB) as buffer:
        while length := os.readv(fd, [buffer]):
            with memoryview(buffer) as view, view[:length] as piece:
                yield piece


def blob_digest(node: Node, name: str = "data", length: int | None = None) -> str:
    """SHA-256 of what the service has, fetched by the Azure SDK; length: without what follows (a VHD's footer)."""
    from azure.storage.blob import BlobClient

    url = f"{node.service.endpoint}/{node.container}/{name}"
    key = {"account_name": node.service.account, "account_key": node.service.key}
    digest = hashlib.sha256()
    with BlobClient.from_blob_url(url, credential=key) as blob:
        for piece in blob.download_blob(0, length or blob.get_blob_properties().size).chunks():
            digest.update(piece)
    return digest.hexdigest()


def unsafe_writes(server: PageBlobServer) -> dict[str, Any]:
    """What a single writer never does, as the server counted it; empty if it did not."""
    stats = server.stats()
    names = ("overlapping_writes", "writes_without_lease", "writes_without_epoch")
    found: dict[str, Any] = {name: stats[name] for name in names if stats[name]}
    if found:
        found["examples"] = [*stats["overlap_examples"], *stats["without_examples"]]
    return found


def used(root: Path) -> dict[str, tuple[int, int, str]]:
    """Every file below `root`: {path: (size, links, SHA-256)}."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(root))] = (status.st_size, status.st_nlink, digest)
    return found
