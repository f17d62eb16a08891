"""native/heads.c: what it makes is what wire.py and signing.py make, byte for byte, or nothing."""

from __future__ import annotations

import base64
import random
from typing import TYPE_CHECKING

import pytest

from blobfuse_dysk.azure import plain
from blobfuse_dysk.azure.plainway import heads_for
from blobfuse_dysk.azure.signing import (
    AnonymousSigner,
    BearerSigner,
    DatedSigner,
    SasSigner,
    ServiceClock,
    SharedKeySigner,
    Signer,
)
from blobfuse_dysk.azure.wire import BlobRequests
from blobfuse_dysk.disk import DiskAddress, Endpoint
from tests.conftest import need

if TYPE_CHECKING:
    from blobfuse_dysk.azure.native._exchange import Heads

DATE = "Mon, 30 Nov 2026 15:00:00 GMT"
LEASE = "11111111-2222-3333-4444-555555555555"
KEYS = [base64.b64encode(random.Random(n).randbytes(n)).decode() for n in (1, 63, 64, 65, 200)]


class _Then(ServiceClock):
    """Always the same moment."""

    def date(self) -> str:
        return DATE


SIGNERS: list[Signer] = [
    *(SharedKeySigner("acc", key, _Then()) for key in KEYS),
    SasSigner("sv=2021-12-02&sp=rw&sig=a%2Fb%3D"),
    BearerSigner("eyJ0." + "x" * 2000, _Then()),
    AnonymousSigner(),
]
ADDRESSES = [
    DiskAddress("acc", "disks", "data", None, Endpoint.parse("https://acc.blob.core.windows.net")),
    DiskAddress("acc", "disks", "a b/\xe4%", None, Endpoint.parse("http://127.0.0.1:10000/acc")),
    DiskAddress("acc", "$root", "x", "2026-01-31T12:00:00.0000000Z", Endpoint.parse("http://h/acc")),
]


@pytest.fixture(autouse=True)
def _native() -> None:
    need(plain.NATIVE, "the module in C is not built")


def heads_of(requests: BlobRequests, signer: Signer) -> Heads:
    found = heads_for(requests, signer)
    assert found is not None
    return found


@pytest.mark.parametrize("signer", SIGNERS, ids=lambda signer: repr(signer)[:40])
@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_heads_are_those_of_python(address: DiskAddress, signer: Signer) -> None:
    requests, rng = BlobRequests(address), random.Random(1)
    heads, means = heads_of(requests, signer), signer.means()
    date = DATE if means and means.clock else None
    ranges = [(0, 512), (512, 4096), ((8 << 40) - 512, 512), ((1 << 63) - 512, 512)]
    ranges += [(rng.randrange(1 << rng.randrange(10, 54)), rng.randrange(1, 4 << 20)) for _ in range(100)]
    for offset, length in ranges:
        assert heads.get(date, offset, length) == signer.head(requests.get_range(offset, length))
        lease = rng.choice([None, LEASE, "~!x", "y" * 256])
        epoch = rng.choice([None, 0, 7, (1 << 63) - 1, rng.randrange(1 << 63)])
        data = bytes(rng.randrange(1, 5000))
        expected = signer.head(requests.put_pages(offset, data, lease_id=lease, epoch=epoch))
        assert heads.put(date, offset, len(data), lease, epoch) == expected


@pytest.mark.parametrize("lease", ["", "a\rb", "a\nb", "a\0b", "a\x7fb", "\xe4", "\ud800", "y" * 257])
def test_a_lease_id_that_no_header_can_hold_is_left_to_python(lease: str) -> None:
    heads = heads_of(BlobRequests(ADDRESSES[0]), SIGNERS[0])
    assert heads.put(DATE, 0, 512, lease, 7) is None
    assert heads.put(lease, 0, 512, LEASE, 7) is None
    assert heads.get(lease, 0, 512) is None


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (1 << 63, 512), (0, 1 << 63)])
def test_a_range_that_is_none_is_left_to_python(offset: int, length: int) -> None:
    heads = heads_of(BlobRequests(ADDRESSES[0]), SIGNERS[0])
    assert heads.get(DATE, offset, length) is None
    assert heads.put(DATE, offset, length, LEASE, 7) is None


@pytest.mark.parametrize("size", range(7900, 8300, 7))
def test_a_head_that_does_not_fit_is_left_to_python(size: int) -> None:
    requests = BlobRequests(ADDRESSES[0])
    for signer in (BearerSigner("x" * size, _Then()), SasSigner("sig=" + "x" * size)):
        found = heads_of(requests, signer).get(DATE if isinstance(signer, BearerSigner) else None, 0, 512)
        expected = signer.head(requests.get_range(0, 512))
        assert found == (expected if len(expected) <= 8192 else None)


def test_what_has_other_characters_or_is_signed_each_time_is_left_to_python() -> None:
    assert heads_for(BlobRequests(ADDRESSES[0]), SasSigner("sig=\xe4")) is None
    assert heads_for(BlobRequests(ADDRESSES[0]), DatedSigner(SIGNERS[0], ServiceClock(), 100.0)) is None


def test_secrets_are_not_shown() -> None:
    for signer in SIGNERS:
        assert "sig=" not in repr(signer.means())
        assert "eyJ" not in repr(signer.means())
