"""A peer: the Azure SDK's own calls as the data path, from as many threads as the depth says.

Each thread has a client of its own, so that they share no connection pool: the SDK at its best. There is no kernel in
between (no FUSE, no loop device), which is in its favour too.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from tools.benchlib.fio import Job

__all__ = ["NAME", "run"]

NAME = "azure-storage-blob"
_BLOCK = 4096  # bytes


def run(make_client: Callable[[], Any], job: Job, size: int) -> dict[str, float]:
    """randread or randwrite of 4 KiB on the first `size` bytes of a page blob; make_client is called in each thread."""
    deadline = threading.Event()
    ready = threading.Barrier(job.depth + 1)
    with ThreadPoolExecutor(job.depth) as pool:
        workers = [
            pool.submit(_worker, make_client, job.pattern, size, ready, deadline, seed) for seed in range(job.depth)
        ]
        try:
            ready.wait()
            cpu, start = time.process_time(), time.monotonic()
            time.sleep(job.seconds)
            used, span = time.process_time() - cpu, time.monotonic() - start
        finally:
            deadline.set()
            ready.abort()
        times = [each for worker in workers for each in worker.result()]
    inside = sorted(took for ended, took in times if start <= ended <= start + span)
    iops = len(inside) / span
    return {
        "iops": iops,
        "mbps": iops * _BLOCK / 1e6,
        "mean_us": sum(inside) / max(len(inside), 1) * 1e6,
        "p99_us": (inside[len(inside) * 99 // 100] if inside else 0) * 1e6,
        "cpu_us_per_io": used / max(len(inside), 1) * 1e6,
        "cpu_percent": used / span * 100,
    }


def _worker(
    make_client: Callable[[], Any],
    pattern: str,
    size: int,
    ready: threading.Barrier,
    deadline: threading.Event,
    seed: int,
) -> list[tuple[float, float]]:
    """(when it ended, seconds it took) of each call. The first call, which connects, is not among them."""
    random, data = Random(seed), os.urandom(_BLOCK)
    found = []
    with make_client() as client:

        def call() -> None:
            offset = random.randrange(size // _BLOCK) * _BLOCK
            if pattern == "randread":
                client.download_blob(offset, _BLOCK, max_concurrency=1).readall()
            else:
                client.upload_page(data, offset, _BLOCK)

        try:
            call()
        except BaseException:
            ready.abort()
            raise
        ready.wait()
        while not deadline.is_set():
            start = time.monotonic()
            call()
            end = time.monotonic()
            found.append((end, end - start))
    return found
