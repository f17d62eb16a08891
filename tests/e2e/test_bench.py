"""tools/bench measures what it says: short runs of each part, with figures that must be there and make sense."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from tests.conftest import need
from tools.benchlib import attaching, fio
from tools.benchlib.peer import nbdfuse_device
from tools.benchlib.place import open_place
from tools.benchlib.processes import cpu_seconds, pss_bytes


def test_cpu_time_and_memory_of_this_process() -> None:
    before = cpu_seconds([os.getpid()])
    deadline = time.monotonic() + 10
    while cpu_seconds([os.getpid()]) <= before and time.monotonic() < deadline:
        sum(range(10_000))
    assert before < cpu_seconds([os.getpid()]) < before + 10
    assert 5 << 20 < pss_bytes([os.getpid()]) < 1 << 30


def test_attaching_is_measured_and_leaves_nothing() -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    with open_place(0) as place:
        alone = attaching.one_by_one(place, 1)
        together = attaching.together(place, 2)
        assert place.processes() == []
    assert 0 < alone["attach_median_s"] == alone["attach_worst_s"]
    assert 10 < alone["pss_mib"] < 100
    assert together["count"] == 2
    assert 10 < together["pss_each_mib"] < 100
    assert not place.root.exists()


def test_reads_are_measured_here_and_at_the_peer() -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    job = fio.Job("randread", 4, 0.2)
    with open_place(0) as place:
        device = place.run("attach", place.make_disk("io", 4 << 20), "--name", "io")
        fio.fill(device)
        assert len(place.processes("worker")) == 1
        own = fio.run(device, job, place.processes("worker"))
        place.run("detach", "io")
        assert own["iops"] > 0
        assert own["mean_us"] <= own["p99_us"]
        assert 0 < own["cpu_us_per_io"] < 100_000
        need(shutil.which("nbdkit") and shutil.which("nbdfuse"), "nbdkit or nbdfuse is not installed")
        with nbdfuse_device(place.url("io"), place.root) as (peer, processes):
            name = Path(peer).name
            assert Path(f"/sys/block/{name}/loop/dio").read_text().strip() == "1"
            assert fio.run(peer, job, processes)["iops"] > 0
