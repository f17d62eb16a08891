"""What a node says of its volumes, in Kubernetes' words."""

from __future__ import annotations

from dataclasses import replace

from blobfuse_dysk.kubernetes.condition import condition_of
from tests.unit.cli_fakes import EXAMPLE

WELL = replace(EXAMPLE, state="attached", detail=None, restarts=0)


def test_of_one_that_is_well_nothing_is_said_but_where_it_is() -> None:
    found = condition_of(WELL)
    assert (found.kind, found.message) == (None, f"attached as {WELL.device}")


def test_what_is_lost_says_how_it_comes_back() -> None:
    failed = replace(WELL, state="failed", detail="the worker died")
    found = condition_of(failed, lost="whatever else")
    assert (found.kind, found.reason) == ("inaccessible", "failed")
    assert "the worker died" in found.message and "delete the pod" in found.message


def test_a_lost_write_is_told_although_the_disk_goes_on() -> None:
    found = condition_of(replace(WELL, detail="an earlier write was lost"), lost="no space")
    assert (found.kind, found.reason) == ("data loss", "write-lost")


def test_a_worker_that_was_started_again_is_counted_and_is_no_trouble() -> None:
    found = condition_of(replace(WELL, restarts=2))
    assert found.kind is None
    assert "worker restarts: 2" in found.message


def test_one_that_waits_for_its_service_is_degraded() -> None:
    found = condition_of(replace(WELL, state="recovering", detail="the worker died (SIGKILL)"))
    assert (found.kind, found.reason) == ("degraded", "recovering")
