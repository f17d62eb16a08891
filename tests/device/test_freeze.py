"""Nothing stays frozen, whoever dies when, and nothing is called clean that was not frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blobfuse_dysk.device.attacher import freezing
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.disks.snapshot import create_snapshot, list_snapshots
from blobfuse_dysk.options import AttachOptions
from tests.device.conftest import MIB, Node, wait_for
from tests.device.freezesteps import freezers
from tests.device.mounted import Mounted, mounted, run, service_is_back
from tests.device.test_service import Manager, manager

__all__ = ["manager", "mounted"]

OPTIONS = AttachOptions()
ROOT = Path(__file__).resolve().parents[2]


SOME = [pytest.param(whom, marks=pytest.mark.long) for whom in ("c", "g", "cg", "fg")]


def snapshot_with_deaths(whom: str, at: int) -> tuple[int, list[str]]:
    """Exit status and lines of freezesteps.py."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.device.freezesteps", whom, str(at)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("whom", ["f", "cf", *SOME])
def test_nothing_stays_frozen_whoever_is_killed_at_whichever_step(mounted: Callable[..., Mounted], whom: str) -> None:
    there = mounted()
    at, names = 0, [""]
    while True:
        at += 1
        code, lines = snapshot_with_deaths(whom, at)
        names = [line for line in lines if line[0].isdigit()]
        there.assert_thaws()
        if len(names) < at:
            break
        assert (code == -signal.SIGKILL) is ("c" in whom), lines
        if "c" not in whom and "f" in whom and names[at - 1].split()[1:] == ["expect", "frozen"]:
            assert lines[-1].startswith("crash"), lines
    assert at > 10
    assert lines[-1].startswith("file-system"), lines


@pytest.fixture
def slow_to_freeze(node: Node, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mounted], None]:
    """To be called with what is mounted: from then on freezing it waits for the service, which is away from then on.

    `node.server.clear_faults()` and `release()` end that.
    """
    order = freezing._Process.order

    def use(there: Mounted) -> None:
        def hooked(self: freezing._Process, word: str) -> None:
            if word == "freeze":
                node.server.fault("delay", operation="write")
                (there.directory / "dirty").write_bytes(os.urandom(MIB))
            order(self, word)

        monkeypatch.setattr(freezing._Process, "order", hooked)

    return use


def test_a_freeze_that_takes_longer_than_its_bound_is_thawed_at_once(
    node: Node, mounted: Callable[..., Mounted], slow_to_freeze: Callable[..., None]
) -> None:
    there = mounted(cache="none", io_timeout_s=40.0)
    slow_to_freeze(there)
    made = create_snapshot("data", OPTIONS, freeze_s=1.0)
    assert (made.consistent, made.why) == ("crash", "it was not frozen within 1 s")
    assert not there.is_over()  # it is on its way into the freeze still
    assert not there.can_write(0.5)
    service_is_back(node)
    there.assert_thaws()
    assert (there.directory / "dirty").stat().st_size == MIB


def test_a_freezer_that_is_killed_while_the_kernel_freezes(
    node: Node, mounted: Callable[..., Mounted], slow_to_freeze: Callable[..., None]
) -> None:
    there = mounted(cache="none", io_timeout_s=40.0)
    slow_to_freeze(there)
    assert create_snapshot("data", OPTIONS, freeze_s=1.0).consistent == "crash"
    (freezer,) = freezers(there.record)
    os.kill(freezer, signal.SIGKILL)
    assert not there.can_write(0.5)
    assert freezers(there.record) == [freezer]  # it cannot die before it has frozen
    service_is_back(node)
    there.assert_thaws()
    assert freezers(there.record) == []


def test_a_freezer_that_is_stopped_has_its_freeze_thawed_by_the_guard(
    mounted: Callable[..., Mounted], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = mounted()
    monkeypatch.setattr(freezing, "_START_S", 1.0)
    check = freezing.Freezing.check
    stopped: list[int] = []

    def hooked(self: freezing.Freezing) -> None:
        stopped.extend(freezers(there.record))
        os.kill(stopped[0], signal.SIGSTOP)
        check(self)

    monkeypatch.setattr(freezing.Freezing, "check", hooked)
    try:
        made = create_snapshot("data", OPTIONS, freeze_s=1.0)
        assert made.consistent == "crash"
        wait_for(lambda: not there.is_frozen(), "the guard's thaw", 15)
        assert there.can_write(5)
    finally:
        os.kill(stopped[0], signal.SIGCONT)
    there.assert_thaws()


def test_what_is_thawed_by_somebody_else_is_not_called_clean(
    mounted: Callable[..., Mounted], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = mounted()
    ask = Control.ask

    def hooked(self: Control, op: str, **arguments: object) -> dict[str, object]:
        answer = ask(self, op, **arguments)
        if op == "barrier":
            run("fsfreeze", "-u", there.directory)
        return answer

    monkeypatch.setattr(Control, "ask", hooked)
    made = create_snapshot("data", OPTIONS)
    assert (made.consistent, made.why) == ("crash", "somebody thawed it meanwhile")
    there.assert_thaws()


def test_what_is_written_after_the_barrier_has_no_clean_snapshot(
    node: Node, mounted: Callable[..., Mounted], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = mounted(cache="none")
    ask = Control.ask

    def hooked(self: Control, op: str, **arguments: object) -> dict[str, object]:
        if op == "snapshot" and arguments["etag"]:
            run("fsfreeze", "-u", there.directory)  # between the check and the request
            path = there.directory / "late"
            path.write_bytes(b"late")
            run("sync", path)
        return ask(self, op, **arguments)

    monkeypatch.setattr(Control, "ask", hooked)
    made = create_snapshot("data", OPTIONS)
    assert made.consistent == "crash" and made.why.startswith("somebody thawed it")
    assert list_snapshots(made.disk, OPTIONS) == [made]
    there.assert_thaws()


def test_the_next_holder_thaws_what_all_that_died_at_once_left(
    node: Node, manager: Manager, mounted: Callable[..., Mounted]
) -> None:
    there = mounted()
    names = [line.split(maxsplit=1)[1].strip() for line in snapshot_with_deaths("", 0)[1][:-1]]
    for name in ("order freeze", "expect frozen", "ask barrier", "ask snapshot"):
        before = node.state("data")["holder"]
        code, _ = snapshot_with_deaths("cfgh", names.index(name) + 1)
        assert code == -signal.SIGKILL
        there.assert_thaws(10)
        assert node.state("data")["holder"] != before
