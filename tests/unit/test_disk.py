"""What a user types: addresses, sizes, durations, options."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfuse_dysk.disk import (
    MAX_SIZE,
    DiskAddress,
    Endpoint,
    check_snapshot,
    format_size,
    parse_duration,
    parse_size,
)
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions


def test_short_form_keeps_slashes_of_the_blob() -> None:
    address = DiskAddress.parse("acct01/disks/team/a.vhd")
    assert (address.account, address.container, address.blob) == ("acct01", "disks", "team/a.vhd")
    assert address.endpoint is None
    assert str(address) == "acct01/disks/team/a.vhd"


def test_url_of_the_public_cloud() -> None:
    address = DiskAddress.parse("https://acct01.blob.core.windows.net/disks/a%20b?sv=2024&sig=x%2By%3D")
    assert address.account == "acct01"
    assert address.blob == "a b"
    assert address.path == "/disks/a%20b"
    assert address.sas == "sv=2024&sig=x%2By%3D", "the signature's own encoding must survive"
    assert address.endpoint == Endpoint("https", "acct01.blob.core.windows.net", 443)


@pytest.mark.parametrize(
    ("blob", "path"),
    [
        ("a b", "a%20b"),
        ("a%20b", "a%2520b"),
        ("a#1", "a%231"),
        ("a+b", "a%2Bb"),
        ("a;b=c&d", "a%3Bb%3Dc%26d"),
        ("a\\b", "a%5Cb"),
        ("~a/b.vhd", "~a/b.vhd"),
        ("ä", "%C3%A4"),
    ],
)
def test_a_name_means_one_blob_however_it_is_written(blob: str, path: str) -> None:
    """What has a meaning in a URL is encoded; else the request would be about another blob."""
    address = DiskAddress.parse(f"acct01/disks/{blob}")
    assert address.blob == blob
    assert address.path == f"/disks/{path}"
    again = DiskAddress.parse(f"https://acct01.blob.core.windows.net{address.path}")
    assert (again.blob, again.path, again.key) == (blob, address.path, address.key)


@pytest.mark.parametrize("host", ["127.0.0.1:10000", "[::1]:10000", "localhost:10000", "azurite:10000"])
def test_emulator_urls_carry_the_account_in_the_path(host: str) -> None:
    address = DiskAddress.parse(f"http://{host}/devstoreaccount1/disks/a")
    assert (address.account, address.container, address.blob) == ("devstoreaccount1", "disks", "a")
    assert address.endpoint is not None
    assert str(address.endpoint) == f"http://{host}/devstoreaccount1"


@pytest.mark.parametrize(
    "base", ["https://acct01-secondary.blob.core.windows.net", "http://127.0.0.1:10000/acct01-secondary"]
)
def test_a_disk_named_at_the_secondary_is_one_of_the_account(base: str) -> None:
    address = DiskAddress.parse(f"{base}/disks/a")
    assert (address.account, address.key, str(address.endpoint)) == ("acct01", "acct01/disks/a", base)
    assert address.is_secondary
    with pytest.raises(UsageError, match="secondary of account acct01, which can only be read") as caught:
        address.refuse_secondary(", or attach it read-only")
    assert "at the primary, or attach" in (caught.value.remedy or "")


def test_another_disk_is_not_at_the_secondary() -> None:
    for text in ("acct01/disks/a", "https://acct01.blob.core.windows.net/disks/a", "http://127.0.0.1:1/acct01/disks/a"):
        address = DiskAddress.parse(text)
        assert not address.is_secondary
        address.refuse_secondary("")


@pytest.mark.parametrize("form", ["acct01/disks/a", "https://acct01.blob.core.windows.net/disks/a"])
def test_snapshot_is_part_of_the_identity(form: str) -> None:
    address = DiskAddress.parse(f"{form}?snapshot=2026-01-31T12:00:00.0000000Z")
    assert address.snapshot == "2026-01-31T12:00:00.0000000Z"
    assert address.key != DiskAddress.parse(form).key


def test_a_sas_never_shows() -> None:
    address = DiskAddress.parse("https://acct01.blob.core.windows.net/disks/a?sig=SECRET")
    assert "SECRET" not in repr(address) + str(address) + address.key


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("", "not complete"),
        ("acct01", "not complete"),
        ("acct01/disks", "not complete"),
        ("acct01/disks/", "blob name"),
        ("Acct01/disks/a", "account"),
        ("ab/disks/a", "account"),
        ("acct01/D/a", "container"),
        ("acct01/a--b/a", "container"),
        ("acct01/disks/a.", "blob name"),
        ("acct01/disks/../a", "'..' between slashes"),
        ("acct01/disks/a/./b", "'.' or"),
        ("https://acct01.blob.core.windows.net/disks/a/%2e%2e/b", "between slashes"),
        ("acct01/disks/\udcff", "not UTF-8"),
        ("acct01/disks/a\nb", "blob name"),
        ("acct01/disks/a?sig=x", "URL form"),
        ("acct01/disks/a?snapshot=", "no time"),
        ("acct01/disks/a?snapshot=yesterday", "not a snapshot's time"),
        ("https://acct01.blob.core.windows.net/disks/a?snapshot=2026-01-31", "not a snapshot's time"),
        ("acct01/disks/a?snapsot=1", "snapsot"),
        ("acct01/disks/a?snapshot=2026-01-31T12:00:00Z&snapshot=2026-01-31T13:00:00Z", "more than one"),
        ("https://acct01.blob.core.windows.net/disks/a#1", "'#'"),
        ("https://acct01.blob.core.windows.net/disks/a#?sig=x", "'#'"),
        ("https://acct01.blob.core.windows.net/disks/a\nb", "control"),
        ("https://acct01.blob.core.windows.net/disks/a\tb", "control"),
        ("https://acct01.blob.core.windows.net/disks/a%0Ab", "blob name"),
        ("ftp://acct01/disks/a", "not an http"),
        ("https://acct01.blob.core.windows.net:99999/disks/a", "port|Port"),
    ],
)
def test_bad_addresses_say_what_is_wrong(text: str, about: str) -> None:
    with pytest.raises(UsageError, match=about) as caught:
        DiskAddress.parse(text)
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("1KiB", 1024),
        ("1k", 1024),
        ("32GiB", 32 << 30),
        ("32G", 32 << 30),
        ("1.5TiB", 3 << 39),
        ("8TiB", MAX_SIZE),
        ("512B", 512),
        ("64MB", 64_000_000),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("0", "zero"),
        ("0GiB", "zero"),
        ("513", "multiple of 512"),
        ("0.3KiB", "multiple of 512"),
        ("1KB", "multiple of 512"),
        ("8193GiB", "above 8 TiB"),
        ("-1GiB", "not a number"),
        ("ten", "not a number"),
        ("", "not a number"),
        ("1PiB", "above 8 TiB"),
        ("1EB", "above 8 TiB"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused_with_the_reason(text: str, about: str) -> None:
    with pytest.raises(UsageError, match=about):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "unit", "asks"),
    [("5", "GiB", "do you mean 5GiB?"), ("1", "MiB", "do you mean 1MiB?"), ("5KB", "GiB", None)],
)
def test_a_number_that_can_be_no_size_is_asked_about(text: str, unit: str, asks: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, "write-cache-size", unit_meant=unit)
    assert str(caught.value).startswith(f"write-cache-size '{text}' is not a multiple of 512")
    assert caught.value.remedy is not None
    assert (asks is None) == ("do you mean" not in caught.value.remedy)
    assert asks is None or asks in caught.value.remedy


@given(st.integers(1, MAX_SIZE // 512))
def test_an_exact_number_of_bytes_is_always_taken(pages: int) -> None:
    assert parse_size(str(pages * 512)) == pages * 512


@pytest.mark.parametrize(
    ("size", "text"),
    [(512, "512B"), (32 << 30, "32GiB"), (1536, "1.5KiB"), (MAX_SIZE, "8TiB"), ((10 << 20) + 512, "10MiB")],
)
def test_a_size_is_shown_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("300", 300.0), ("5m", 300.0), ("90s", 90.0), ("1h", 3600.0), ("never", None)]
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5 minutes", "-1", "soon"])
def test_bad_durations_name_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="io-timeout"):
        parse_duration(text, "io-timeout")


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "../etc"},
        {"name": ""},
        {"name": "a/b"},
        {"lease_s": 14.0},
        {"lease_s": 61.0},
        {"io_timeout_s": 0.0},
        {"sector_size": 1024},
        {"cache": "writeback"},
        {"write_cache_size": 1 << 20},
        {"read_cache_size": 0},
        {"write_delay_s": 0.0},
        {"write_delay_s": float("nan")},
        {"iops": 0},
        {"iops": -5},
        {"mbps": 0.0},
        {"mbps": -1.0},
        {"mbps": float("nan")},
        {"mbps": float("inf")},
    ],
)
def test_bad_options_are_refused_at_once(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        AttachOptions(**bad)  # type: ignore[arg-type]
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("[::1]", True), ("localhost", True), ("10.0.0.1", False), ("azurite", False)],
)
def test_an_endpoint_on_this_machine_is_known_as_such(host: str, loopback: bool) -> None:
    assert Endpoint.parse(f"http://{host}:10000").is_loopback is loopback


ODD_HOSTS = [
    "http://[::1/",
    "http://::1]/",
    "http://[::1]x/",
    "http://[not.an.address]/",
    "https://acct01\u2100.blob.core.windows.net/",  # NFKC makes a '/' of it
    "https://acct01.blob\uff0ecore.windows.net/",  # and a '.' of this
    "https://acct01.blob.core.windows.net\u3002evil.example/",
    "https://my acct.blob.core.windows.net/",
    "https://acct01.blob.core.windows.net /",
    " https://acct01.blob.core.windows.net/",
    "https://acct01.blob.core.windows.net\n/",
    "https://acct01.blob.core\twindows.net/",
    "https://acct01.blob..windows.net/",
    "https://.blob.core.windows.net/",
    "https://acct01.blob.core.windows.net:0/",
    "https://acct01.blob.core.windows.net:65536/",
    "https://acct01.blob.core.windows.net:\u0663/",
    "https://acct01\\.blob.core.windows.net/",
    "https://user:secret@acct01.blob.core.windows.net/",
]


@pytest.mark.parametrize("text", ODD_HOSTS)
def test_a_host_that_is_none_is_a_usage_error_of_an_endpoint_and_of_a_disk(text: str) -> None:
    for parse in (lambda: Endpoint.parse(text, "acct01"), lambda: DiskAddress.parse(f"{text}disks/data")):
        with pytest.raises(UsageError) as caught:
            parse()
        assert "\n" not in caught.value.line() and "\t" not in caught.value.line()
        assert "secret" not in caught.value.line()


@pytest.mark.parametrize(
    "path", ["disks/a b", "disks/a\u00a0b", "disks/data ", "disks/%ff", "disks/%c3%28", "disks/a%0ab"]
)
def test_a_url_whose_path_is_none_is_not_taken_for_another_blobs(path: str) -> None:
    with pytest.raises(UsageError):
        DiskAddress.parse(f"https://acct01.blob.core.windows.net/{path}")


@pytest.mark.parametrize(
    "text", ["https://h/a b", "https://h/a\u00e4", "https://h/a%20b", "https://h//a", "https://h/../a"]
)
def test_an_endpoints_path_is_an_accounts_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"path|blank"):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    "realm", ["evil.example/x", "a b", "x:8080", "u@x", "", ".x", "x\r\nHost: y", "\u00e4.example"]
)
def test_a_realm_is_the_end_of_a_hosts_name(realm: str) -> None:
    with pytest.raises(UsageError, match="realm"):
        Endpoint.of_account("acct01", realm)


@pytest.mark.parametrize(
    "text", ["9" * 32, "9" * 32 + "GiB", "9" * 5000, "0." + "0" * 40 + "1GiB", "1." + "3" * 40 + "TiB"]
)
def test_a_size_of_many_digits_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"above 8 TiB|not a multiple of 512") as caught:
        parse_size(text)
    assert len(caught.value.line()) < 200


@pytest.mark.parametrize("text", ["\u0665", "1\u0665GiB"])
def test_digits_are_those_of_ascii(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)
    with pytest.raises(UsageError):
        parse_duration(text)
    with pytest.raises(UsageError):
        check_snapshot("\u0662026-01-31T12:00:00.0000000Z")


@pytest.mark.parametrize("text", ["ftp://x", "https://", "https://h/?q=1", "https://user@h", "http://h:0x1"])
def test_an_endpoint_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    "text", ["", "abc", "{00112233-4455-6677-8899-aabbccddeeff}", "00112233445566778899aabbccddeeff"]
)
def test_a_lease_id_is_a_uuid(text: str) -> None:
    with pytest.raises(UsageError, match="is not a UUID"):
        AttachOptions(lease_id=text)
    assert AttachOptions(lease_id="00112233-4455-6677-8899-AABBCCDDEEFF").lease_id
