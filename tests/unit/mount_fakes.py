"""A machine for the mount helpers' tests: attachments and the system's tools are replaced, nothing is mounted."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.device.kernel.mountinfo import Mount
from blobfuse_dysk.device.kernel.usage import Use
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import NotFoundError
from blobfuse_dysk.imageformat import Found
from blobfuse_dysk.mount import filesystem, tools
from blobfuse_dysk.mount import helper as helpers
from blobfuse_dysk.options import AttachOptions
from tests.unit.cli_fakes import EXAMPLE

__all__ = ["DEVICE", "DISK", "Machine", "machine"]

DISK = DiskAddress.parse(EXAMPLE.disk)
DEVICE = "/dev/loop7"


@dataclass
class Machine:
    """calls: what was asked of the layers below, in order; the first word is the function's or the tool's name.

    blank, probed: what the page map and blkid say of the disk; signatures: if blkid finds more than one. content: what
    else is recognised. journal: whether mkfs makes one. writer: who writes to it. fails: what a call of this name
    raises, or the exit code of the tool. after: raised once the call has done its work, as a signal would be.
    """

    directory: Path
    blank: bool = True
    partitions: list[str] = field(default_factory=list)
    probed: dict[str, str] = field(default_factory=dict)
    signatures: list[str] = field(default_factory=list)
    content: Found | None = None
    journal: bool = True
    writer: str | None = None
    attached: list[Attachment] = field(default_factory=list)
    mounts: list[Mount] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    fails: dict[str, BaseException | int] = field(default_factory=dict)
    after: dict[str, BaseException] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    becomes: dict[str, object] = field(default_factory=dict)  # what an attachment is by the time that it is looked at

    def named(self, *names: str) -> list[tuple[object, ...]]:
        return [call for call in self.calls if call[0] in names]

    def put(self, source: str, fstype: str = "ext4", directory: str | None = None) -> None:
        """Something is mounted."""
        self.mounts.append(Mount("7:7", directory or str(self.directory), fstype, source))

    def have(self, **changes: object) -> Attachment:
        """An attachment is there."""
        found = replace(EXAMPLE, **{"device": DEVICE, "mountpoints": [], **changes})  # type: ignore[arg-type]
        self.attached.append(found)
        return found

    def attach(self, disk: DiskAddress, options: AttachOptions) -> Attachment:
        self._note("attach", str(disk))
        found = self.have(disk=str(disk), read_only=options.read_only, partitions=self.partitions)
        self._after("attach")
        return found

    def detach(
        self, name: str, *, force: bool = False, lose_data: bool = False, timeout_s: float | None = None
    ) -> None:
        self._note("detach force" if force else "detach", name, *(["and lose"] if lose_data else []))

    def let_go(self, name: str) -> None:
        self._note("let_go", name)

    def is_blank(self, name: str) -> bool:
        self._note("is_blank", name)
        return self.blank

    def get(self, target: str) -> Attachment:
        for found in self.attached:
            if target in (found.name, found.device):
                return replace(found, **self.becomes)  # type: ignore[arg-type]
        raise NotFoundError(f"{target} is not attached here")

    @contextlib.contextmanager
    def end_of(self, name: str) -> Iterator[Callable[[], None]]:
        self._note("watch", name)
        yield lambda: self._note("wait", name)

    def probe(self, device: str, only: str | None = None) -> dict[str, str] | None:
        self._note("probe", device, *([only] if only else []))
        if only:
            return {"TYPE": only} if only in self.signatures else {}
        return self.probed if len(self.signatures) < 2 else None

    def make_file_system(self, fstype: str, device: str, options: Sequence[str], held: Sequence[int] = ()) -> None:
        self._note("mkfs", fstype, device)
        self._after("mkfs")

    def run_tool(self, arguments: Sequence[str], waiting: object = None) -> subprocess.CompletedProcess[str]:
        name, *words = arguments
        self._note(name, *words)
        code = self.fails.get(name, 0)
        assert isinstance(code, int)
        if not code and name == "mount":
            self.put(words[-2], words[words.index("-t") + 1], words[-1])
        elif not code and name == "umount":
            self.mounts.remove([each for each in self.mounts if words[-1] in (each.directory, each.source)][-1])
        self._after(name)
        return subprocess.CompletedProcess(arguments, code, "", "it says no" if code else "")

    def _note(self, name: str, *words: object) -> None:
        self.calls.append((name, *words))
        failure = self.fails.get(name)
        if isinstance(failure, BaseException):
            raise failure

    def _after(self, name: str) -> None:
        if name in self.after:
            raise self.after[name]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine with nothing attached and nothing mounted."""
    fake = Machine(tmp_path)
    for name in ("attach", "detach", "let_go", "is_blank", "get", "end_of"):
        monkeypatch.setattr(attachment, name, getattr(fake, name))
    monkeypatch.setattr(attachment, "writer_of", lambda name: fake.writer)
    monkeypatch.setattr(attachment, "attachments", lambda: fake.attached)
    for name in ("probe", "make_file_system"):
        monkeypatch.setattr(filesystem, name, getattr(fake, name))
    monkeypatch.setattr(filesystem, "content", lambda device: fake.content)
    monkeypatch.setattr(filesystem, "lacks_journal", lambda fstype, device: not fake.journal)
    monkeypatch.setattr(tools, "run_tool", fake.run_tool)
    monkeypatch.setattr(tools, "find_tool", lambda name: name)
    monkeypatch.setattr(tools, "mounts", lambda: fake.mounts)
    monkeypatch.setattr(
        helpers,
        "mountpoints",
        lambda device: [each.directory for each in fake.mounts if tools.whole_device(each.source) == device],
    )
    monkeypatch.setattr(helpers, "mounted_elsewhere", lambda device: [Use("mount", text) for text in fake.elsewhere])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return fake
