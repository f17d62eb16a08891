"""What went wrong while attaching, in the words of who typed the command."""

from __future__ import annotations

import pytest

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError, Kind, NotFoundError, ServiceError, StoreError
from blobfuse_dysk.store.admit import errors_for_people

DISK = DiskAddress.parse("mystore/disks/data")


def said(error: StoreError, cause: Exception | None) -> DyskError:
    with pytest.raises(DyskError) as caught, errors_for_people(DISK, None, read_only=False):
        raise error from cause
    return caught.value


def test_a_refusal_is_explained() -> None:
    error = StoreError("asking for it", Kind.GONE)
    assert isinstance(said(error, ServiceError("no", status=404, code="BlobNotFound")), NotFoundError)


def test_what_nobody_knows_better_stays_as_it_is() -> None:
    error = StoreError("asking for it", Kind.TIMEOUT)
    assert said(error, None) is error


def test_that_another_node_has_the_disk_is_not_said_as_the_refusal_that_brought_it_to_light() -> None:
    error = StoreError("another node has it", Kind.FENCED)
    assert said(error, ServiceError("no", status=404, code="BlobNotFound")) is error
