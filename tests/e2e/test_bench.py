"""tools/bench measures what it says and leaves nothing: short runs of its parts, with figures that make sense."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import need
from tools.benchlib import fio, leftovers
from tools.benchlib.bench import OURS, Bench
from tools.benchlib.meter import Meter
from tools.benchlib.peers import nbdfuse, prototype, sdk
from tools.benchlib.place import open_place
from tools.benchlib.plan import TINY
from tools.benchlib.processes import cpu_seconds, pss_bytes, rss_bytes
from tools.benchlib.sections import SECTIONS, attaching

_MIB = 1 << 20


def until(condition: Callable[[], object], what: str, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit_s:g} s: {what}")
        time.sleep(0.05)


def run_section(name: str, earlier: Path | None = None) -> Bench:
    """A section with the smallest plan. Nothing may have failed."""
    bench = Bench(TINY, earlier, say=lambda line: None)
    bench.run(next(section for section in SECTIONS if section.name == name))
    assert bench.report.skipped == []
    return bench


def places() -> set[str]:
    return {path.name for path in leftovers.PARENT.glob(f"{leftovers.PREFIX}*")}


def test_cpu_time_and_memory_of_this_process() -> None:
    before = cpu_seconds([os.getpid()])
    deadline = time.monotonic() + 10
    while cpu_seconds([os.getpid()]) <= before and time.monotonic() < deadline:
        sum(range(10_000))
    assert before < cpu_seconds([os.getpid()]) < before + 10
    assert 5 << 20 < pss_bytes([os.getpid()]) < 1 << 30
    assert rss_bytes([os.getpid()], "RssAnon") < rss_bytes([os.getpid()])


def test_attaching_is_measured_and_leaves_nothing() -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    with open_place(0) as place:
        alone = attaching.one_by_one(place, 1)
        together = attaching.together(place, 2)
        assert place.processes() == []
        fragmented = attaching.fragmented(place, 40)
        assert place.server.blob("bench", "fragmented")["allocated"] == 40 * 512
    assert 0 < alone["attach_s"] == alone["attach_worst_s"]
    assert 10 < alone["pss_mib"] < 100
    assert together["attach_s"] <= together["attach_worst_s"] <= together["attach_all_s"]
    assert 10 < together["pss_mib"] < 100
    assert fragmented["requests"] > 3
    assert not place.root.exists()


def test_io_is_measured_with_its_cost_and_beside_peers() -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    job = fio.Job("randread", 4, 0.3, ramp_s=0.1)
    with open_place(0) as place:
        with place.attached(place.make_disk("io", 4 * _MIB), "--cache", "none") as device:
            fio.fill(device)
            assert place.server.blob("bench", "io")["allocated"] == 4 * _MIB
            assert len(place.processes("worker")) == 1
            own = fio.run(device, job, place.meter(device))
            once, count = fio.run_whole(device, fio.Job("read", 1, 60, block="128k"), place.meter())
        assert own["iops"] > 0
        assert own["mean_us"] <= own["p99_us"]
        assert 0 <= own["cpu_us_per_io"] < 100_000
        assert own["busy_share"] == 0
        assert own["requests_per_s"] > 0
        assert own["device_mbps"] == pytest.approx(own["device_iops"] * 4096 / 1e6)
        assert own["device_iops"] == pytest.approx(own["requests_per_s"], rel=0.2)
        assert once["bytes"] == 4 * _MIB
        assert count.requests("get_blob") >= 32
        assert 4 * _MIB <= count.bytes_read < 5 * _MIB
        calls = sdk.run(lambda: place.blob_client("io"), fio.Job("randwrite", 2, 0.3), 4 * _MIB)
        assert calls["iops"] > 0
        assert calls["mean_us"] <= calls["p99_us"]
        need(shutil.which("nbdkit") and shutil.which("nbdfuse"), "nbdkit or nbdfuse is not installed")
        with nbdfuse.nbdfuse_device(place.url("io"), place.root) as (peer, processes):
            assert Path(f"/sys/block/{Path(peer).name}/loop/dio").read_text().strip() == "1"
            assert fio.run(peer, job, Meter(processes))["iops"] > 0


def test_writes_with_fsync_are_counted() -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    report = run_section("fsync").report
    plain = report.find("fsync", OURS, load="device, direct", fsync=32, cache="none")
    cached = report.find("fsync", OURS, load="device, direct", fsync=32, cache="readwrite")
    assert plain is not None and cached is not None
    assert plain.values["requests_per_write"] == pytest.approx(1, abs=0.1)
    assert cached.values["requests_per_write"] < 0.5
    assert len(report.figures) == 8


def test_contenders_take_turns_on_the_same_blob() -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    need(shutil.which("nbdkit") and shutil.which("nbdfuse"), "nbdkit or nbdfuse is not installed")
    report = run_section("beside").report
    assert [figure.what for figure in report.figures] == [OURS, nbdfuse.NAME, prototype.NAME]
    for figure in report.figures:
        assert 0 < figure.values["least"] <= figure.values["iops"] <= figure.values["most"]
        assert figure.values["cpu_us_per_io"] > 0
        assert figure.values["requests_per_io"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("name", ["mkfs", "streams", "sequential", "memory", "volumes"])
def test_a_section_fills_its_table(name: str) -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    if name == "sequential":
        need(shutil.which("nbdkit") and shutil.which("nbdfuse"), "nbdkit or nbdfuse is not installed")
    bench = run_section(name)
    assert bench.report.figures
    shown = {column.key for column in bench.columns}
    for figure in bench.report.figures:
        assert shown & figure.values.keys()
    # Each column is for some figure at least.
    assert all(any(figure.cell(key) is not None for figure in bench.report.figures) for key in shown)


def test_an_earlier_tree_is_measured_in_turns_with_this_one() -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    report = run_section("earlier", Path(sys.prefix).parent).report
    assert len(report.figures) == 28
    for figure in report.figures:
        now, then = figure.values["now"], figure.values["then"]
        assert now > 0 and then > 0
        assert figure.values["ratio"] == now / then
    # It is the same tree: what does not depend on the moment is the same.
    memory = report.find("earlier", "now / earlier", load="memory of one of 2 (PSS), MiB")
    assert memory is not None
    assert 0.7 < memory.values["ratio"] < 1.4


def test_without_an_earlier_tree_that_section_is_left_out() -> None:
    bench = Bench(TINY, say=lambda line: None)
    bench.run(next(section for section in SECTIONS if section.name == "earlier"))
    assert bench.report.figures == []
    assert [skipped.reason for skipped in bench.report.skipped] == ["none was named"]


def test_ctrl_c_leaves_nothing_and_keeps_what_was_found(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    before = places()
    command = [sys.executable, "-m", "tools.benchlib", "--only", "fsync", "--json", str(tmp_path / "out.json")]
    log = tmp_path / "log"
    with log.open("w") as output:
        bench = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        until(lambda: "device, direct" in log.read_text(), "the first figure")
        mine = places() - before
        assert mine
        os.killpg(bench.pid, signal.SIGINT)  # as a terminal does: to all of the foreground group
        assert bench.wait(60) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            bench.send_signal(signal.SIGTERM)
        bench.wait()
    assert not mine & places()
    assert "taking down what was started" in log.read_text()
    for name in mine:
        assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
        assert not running(name)
    assert json.loads((tmp_path / "out.json").read_text())["figures"]


SUPERVISED = """
import subprocess, sys, time
from tools.benchlib.supervise import supervised

def run():
    program = subprocess.Popen(["sleep", "100"])
    try:
        print("started", flush=True)
        time.sleep(100)
    finally:
        try:
            program.wait(0.5)
            print("ended", flush=True)
        except subprocess.TimeoutExpired:
            print("lives", flush=True)
        program.kill()
        program.wait()

sys.exit(supervised(run))
"""


def test_ctrl_c_leaves_the_programs_of_a_run_to_the_run() -> None:
    command = [sys.executable, "-c", SUPERVISED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == "lives\n"
    assert process.returncode == 130


def running(needle: str) -> list[str]:
    """Command lines of processes that have `needle` in their environment or command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if needle.encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
    return found


KILLED = """
import sys, time
from tools.benchlib.place import open_place
with open_place(0) as place, place.attached(place.make_disk("io", 1 << 20)) as device:
    print(place.root.name, flush=True)
    time.sleep(100)
"""


def test_what_a_killed_run_left_is_taken_down_by_the_next() -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        name = killed.stdout.readline().strip()
        assert name in places()
        leftovers.of_killed_runs()
        assert name in places()  # it lives
        killed.kill()
    leftovers.of_killed_runs()
    assert name not in places()
    until(lambda: not running(name), "the end of holder and worker")
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
