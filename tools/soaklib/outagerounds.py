"""Rounds in which the service is away for a while: a pause, and nothing else."""

from __future__ import annotations

import time

from tools.soaklib.devicerounds import attach_options, end_well, finished, read_device, set_up, start_load
from tools.soaklib.history import History
from tools.soaklib.report import Round

__all__ = ["outage_round"]


def outage_round(this: Round) -> None:
    """The service is silent, refuses connections, or answers everything with 503, for up to 3 s, several times."""
    options = attach_options(this)
    size = this.draw("size", 1 << 20, 4 << 20, 16 << 20)
    disk = set_up(this, size)
    server = this.place.server
    node = this.place.nodes[0]
    device = node.attach(disk, **options)
    journal, child = start_load(this, device, size, 1)
    for _ in range(this.draw("outages", 1, 2, 3)):
        child.wait_ticks(this.random.randint(1, 20), time.monotonic() + this.random.uniform(0.02, 0.5))
        kind = this.draw("outage", "silent", "refuse", "503")
        fault = server.fault("error", status=503, code="ServerBusy") if kind == "503" else None
        if fault is None:
            server.outage(kind)
        time.sleep(this.random.uniform(0.05, 3.0))
        if fault is None:
            server.outage(None)
        else:
            server.clear_faults(fault)
        this.count(f"outage: {kind}")
    child.wait_ticks(1000, time.monotonic() + this.random.uniform(0.0, 0.5))
    child.stop()
    history = History()
    history.follow(finished(this, child, journal))
    this.report.take(history)
    found = read_device(this, device, size)
    this.report.findings += history.check(found, float("inf"), "after the outages")
    end_well(this, node, disk, options, history, device, size)
