"""Fixtures shared by all tests: the two services, and directories of a test's own with a check for leaks.

A test that cannot run on this machine is skipped with the reason. Under CI, where everything is to be there, the same
is a failure.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol, cast

import pytest
import trio

from blobfuse_dysk.azure.plain import NATIVE
from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.azurite import Azurite
from tests.leaks import RunDirs, end_templates, find_leaks, remove_leaks, wait_for_leaks
from tests.namespaces import separate_mounts

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts jobs in the background like this, and what tests start, and then interrupt, would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST_SIMULATED_S = 20_000.0  # of a test on simulated time
SIMULATED = {"autojump_clock", "jumping_clock"}  # the fixtures that say so


class Service(Protocol):
    """What a test needs to know of a blob service, whichever of the two it is."""

    @property
    def endpoint(self) -> str: ...
    @property
    def connection_string(self) -> str: ...

    account: str
    key: str


def pytest_addoption(parser: pytest.Parser) -> None:
    """`tools/test --long` runs everything."""
    parser.addoption("--long", action="store_true", help="also run the tests that take long")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the mounts of tests that run side by side apart."""
    if hasattr(config, "workerinput"):
        separate_mounts()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `long`, unless they are asked for; put an end to simulated waits."""
    for item in items:
        if isinstance(item, pytest.Function) and SIMULATED.intersection(item.fixturenames):
            end_simulated_waits(item)
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def end_simulated_waits(item: pytest.Function) -> None:
    """Let a test on simulated time fail once it has waited for longer than it may: LONGEST_SIMULATED_S.

    When all its tasks wait for each other the clock jumps there, so that it fails at once and with the place; in real
    time it would stand still until pytest's timeout.
    """

    def ending(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        @functools.wraps(test)
        async def run(*args: object, **kwargs: object) -> None:
            with trio.fail_after(LONGEST_SIMULATED_S):
                await test(*args, **kwargs)

        return run

    hypothesis = getattr(item.obj, "hypothesis", None)
    if hypothesis is not None:
        hypothesis.inner_test = ending(hypothesis.inner_test)
    else:
        item.obj = ending(item.obj)


def need(present: object, reason: str) -> None:
    """Skip the test unless `present`, saying why; under CI fail it, since there nothing may be missing."""
    if present:
        return
    if os.environ.get("CI"):
        pytest.fail(f"not possible on this machine: {reason}")
    pytest.skip(reason)


def need_mount_helpers() -> None:
    """The helpers that mount(8) and umount(8) find must be those of the environment that runs the tests."""
    for name in ("mount.dysk", "umount.dysk"):
        own = Path(sys.executable).parent / name
        need(Path("/sbin", name).resolve() == own.resolve(), f"/sbin/{name} is not {own}; tools/setup links it")


@pytest.fixture(params=["C", "Python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs twice: with the exchange of data in C (azure/plain.py), and without it; in its processes, too."""
    choose_way(request.param, monkeypatch)
    return str(request.param)


def choose_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For `way` and for what is like it but of a larger scope."""
    need(NATIVE or way == "Python", "the module in C is not built; tools/setup builds it")
    monkeypatch.setenv("DYSK_NATIVE", "yes" if way == "C" else "no")


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """Azurite, one for the whole run; tests keep apart by containers of their own."""
    with Azurite() as running:
        yield running


@pytest.fixture
def server() -> Iterator[PageBlobServer]:
    """A page blob server of the test's own: its faults and its counts are the test's."""
    with PageBlobServer() as running:
        yield running


@pytest.fixture(scope="session")
def shared_server() -> Iterator[PageBlobServer]:
    """A page blob server for the whole run, for tests that neither set faults nor look at counts."""
    with PageBlobServer() as running:
        yield running


@pytest.fixture(params=["azurite", "shared_server"])
def service(request: pytest.FixtureRequest) -> Service:
    """The test runs twice: against Azurite, and against the project's own server."""
    return cast(Service, request.getfixturevalue(request.param))


@pytest.fixture
def container() -> str:
    """The name of a container that no other test uses. It is not created."""
    return f"t-{uuid.uuid4().hex[:12]}"


def entries(run: Path) -> list[Path]:
    """What is in a run directory but for the file of its lock and the sockets of templates, which stay."""
    stay = (".lock", ".template-", ".dyskctl-")
    return sorted(path for path in run.iterdir() if not path.name.startswith(stay))


@pytest.fixture
def run_dirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirs]:
    """Directories of the test's own, set in the environment; see make_run_dirs."""
    yield from make_run_dirs(monkeypatch)


def make_run_dirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirs]:
    """Run, configuration, log and device directories of a test's own, set in the environment.

    After the test no process, loop device or mount of these directories may be left: that fails the test. The paths
    are short, since a Unix socket's name has at most 107 bytes, and on a tmpfs where this machine has one.
    """
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    need(Path("/dev/fuse").exists(), "there is no /dev/fuse")
    root = Path(tempfile.mkdtemp(prefix="dyskt-", dir="/run"))
    dirs = RunDirs(root, root / "run", root / "config", root / "log", Path("/dev", root.name))
    for directory in (dirs.run, dirs.config, dirs.log, dirs.dev):
        directory.mkdir(mode=0o700)
    for name, value in dirs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(root)  # programs such as fio write to where they are
    yield dirs
    end_templates(dirs)
    leaks = wait_for_leaks(dirs)
    left = sorted(str(path) for path in (*entries(dirs.run), *dirs.dev.iterdir()))
    if leaks:
        remove_leaks(dirs)
    if not find_leaks(dirs):
        shutil.rmtree(dirs.root)
        shutil.rmtree(dirs.dev)
    if leaks or left:
        pytest.fail("the test left behind:\n" + "\n".join([str(leaks), *left]).strip())
