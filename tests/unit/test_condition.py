"""What a node says of its volumes, in Kubernetes' words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blobfuse_dysk.kubernetes.condition import condition_of
from tests.unit.cli_fakes import EXAMPLE

WELL = replace(EXAMPLE, state="attached", detail=None, restarts=0)


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("5.15.0-1064-azure", True),
        ("6.1.0-50-cloud-amd64", True),
        ("6.8.12", True),
        ("6.9.0", False),
        ("6.12.5+deb13", False),
        ("7.0", False),
    ],
)
def test_what_a_workers_death_will_mean_is_said_where_it_ends_all_io(kernel: str, said: bool) -> None:
    found = condition_of(WELL, kernel=kernel)
    assert found.kind is None
    assert ("all its I/O fails if its worker dies" in found.message) == said


def test_what_is_lost_says_how_it_comes_back() -> None:
    failed = replace(WELL, state="failed", detail="the worker died")
    found = condition_of(failed, lost="whatever else", kernel="6.1")
    assert (found.kind, found.reason) == ("inaccessible", "failed")
    assert "the worker died" in found.message and "delete the pod" in found.message


def test_a_lost_write_is_told_although_the_disk_goes_on() -> None:
    found = condition_of(replace(WELL, detail="an earlier write was lost"), lost="no space", kernel="6.12")
    assert (found.kind, found.reason) == ("data loss", "write-lost")


def test_a_worker_that_was_started_again_is_counted_and_is_no_trouble() -> None:
    found = condition_of(replace(WELL, restarts=2), kernel="6.12")
    assert found.kind is None
    assert "worker restarts: 2" in found.message


def test_one_that_waits_for_its_service_is_degraded() -> None:
    found = condition_of(replace(WELL, state="recovering", detail="the worker died (SIGKILL)"), kernel="6.12")
    assert (found.kind, found.reason) == ("degraded", "recovering")
