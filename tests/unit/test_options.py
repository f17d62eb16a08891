"""The table of options, walked through every door: each takes and refuses the same values with the same words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blobfuse_dysk.device.ipc import shapes
from blobfuse_dysk.device.ipc.messages import StateChanged
from blobfuse_dysk.device.worker import controlserver
from blobfuse_dysk.device.worker.operations import Asked, Questions
from blobfuse_dysk.diskfile import read_disk_file
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.mount.options import parse_mount
from blobfuse_dysk.options import (
    ATTACH_OPTIONS,
    LIVE_OPTIONS,
    MOUNT_OPTIONS,
    AttachOptions,
    LiveOptions,
    MountOptions,
    Option,
)
from tests.unit.cli_fakes import Machine, machine

__all__ = ["machine"]

DISK = "mystore/disks/data"
UUID = "00112233-4455-6677-8899-aabbccddeeff"
TIME = "2026-01-31T12:00:00.0000000Z"
MIB = 1 << 20
VAST = "9" * 400  # as a float it is infinite

# key -> what is taken, and what it means; the least and the most among it.
GOOD: dict[str, dict[str, object]] = {
    "name": {"a": "a", "A.b-c_d": "A.b-c_d", "x" * 63: "x" * 63, "a-part1b": "a-part1b", "by-blobs": "by-blobs"},
    "lease": {"15": 15.0, "60s": 60.0, "0.5m": 30.0, "15000 ms": 15.0, "infinite": None, "never": None, "NEVER": None},
    "lease-id": {UUID: UUID, UUID.upper(): UUID.upper()},
    "sector-size": {"512": 512, "4096": 4096},
    "io-timeout": {"1": 1.0, "5m": 300.0, "1h": 3600.0, "2d": 172800.0, "never": None, "infinite": None},
    "vhd": {"auto": "auto", "yes": "yes", "no": "no"},
    "checksum": {"auto": "auto", "md5": "md5", "none": "none"},
    "cache": {"none": "none", "readonly": "readonly", "readwrite": "readwrite"},
    "write-cache-size": {"16MiB": 16 * MIB, "16777216": 16 * MIB, "64M": 64 * MIB, "1GB": 10**9},
    "read-cache-size": {"1MiB": MIB, "1.5MiB": 3 * MIB // 2, "1T": 1 << 40},
    "write-delay": {"1ms": 0.001, "60": 60.0, "1m": 60.0},
    "iops": {"1": 1, "500": 500, "9" * 300: int("9" * 300), "none": None},
    "mbps": {"0.1": 0.1, "60.5": 60.5, "100": 100.0, "none": None},
    "credentials": {"/etc/dysk/other.conf": "/etc/dysk/other.conf", "a b": "a b"},
    "endpoint": {"http://127.0.0.1:10000/x": "http://127.0.0.1:10000/x"},
    "realm": {"core.chinacloudapi.cn": "core.chinacloudapi.cn"},
    "proxy": {"http://u:p@proxy:3128": "http://u:p@proxy:3128", "proxy:1": "proxy:1", "none": "none"},
    "fstype": {
        "ext4": "ext4",
        "xfs": "xfs",
        "btrfs": "btrfs",
        "auto": "auto",
        "ext3": "ext3",
        "vfat": "vfat",
        "ntfs3": "ntfs3",
    },
    "mkfs": {"blank": "blank", "never": "never"},
    "mkfs.options": {"-q": ("-q",), "-L 'a b' -q": ("-L", "a b", "-q")},
    "partition": {"1": 1, "255": 255},
    "snapshot": {TIME: TIME},
    "trace": {"0": 0.0, "30": 30.0, "1.5m": 90.0, "1h": 3600.0},
}
# key -> what is refused.
BAD: dict[str, tuple[str, ...]] = {
    "name": ("a/b", "../x", ".a", "-a", "a b", "ä", "x" * 64, "by-blob", "a-part1", "a-part1-part12"),
    "lease": ("14.9", "61", "0", "-1", "soon", "1.5.5", "5 minutes", VAST, "nan", "inf"),
    "lease-id": ("x", UUID[:-1], UUID + "0", UUID.replace("-", ""), f"{{{UUID}}}"),
    "sector-size": ("0", "1024", "512.0", "0512", "4k"),
    "io-timeout": ("0", "0.9", "999ms", "-5", "soon", "none", VAST, "nan", "inf"),
    "vhd": ("maybe", "Yes", "true"),
    "checksum": ("crc", "MD5"),
    "cache": ("writeback", "no", "None"),
    "write-cache-size": ("0", "1MiB", "16MB", "16777215", "lots", "-1", "9TiB", "none"),
    "read-cache-size": ("0", "512", "1023KiB", "1MB", "lots", "9TiB"),
    "write-delay": ("0", "0ms", "60.1", "61s", "never", "infinite", "soon", VAST),
    "iops": ("0", "-5", "1.9", "0.5", "1e3", "many", "nan", "inf", "never", "None", VAST),
    "mbps": ("0", "0.01", "0.09", "-1", "fast", "nan", "inf", "-inf", "never", VAST),
    "fstype": ("zfs", "EXT4", "swap"),
    "mkfs": ("always", "yes"),
    "mkfs.options": ("-L it's",),
    "partition": ("0", "256", "x", "-1", "1.0", "²"),
    "trace": ("-1", "3601", "2h", "never", "none", "soon", VAST, "nan", "inf"),
    "snapshot": ("yesterday", "2026-01-31", TIME[:-1]),
    "proxy": ("https://p", "socks5://p:1", "http://", "p:x", "http://p/x"),
    # Any text; whether it leads to an account shows when it is used.
    "credentials": (),
    "endpoint": (),
    "realm": (),
}
SWITCHES = [key for key, option in ATTACH_OPTIONS.items() if option.is_switch]


class Doors:
    """Each gives an option and a text, and has the value that came through, or what was said: (message, remedy)."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.path = directory / "db.conf"
        machine.disks[DISK] = MIB

    def of(self, option: Option) -> Iterator[str]:
        """The doors that an option has."""
        if option.key in ATTACH_OPTIONS:
            yield "attach"
            if option.key != "name":  # the file's name is the name
                yield "file"
        if option.in_mount:
            yield "mount"
        if option.live:
            yield "set"

    def go(self, door: str, option: Option, text: str) -> object:
        try:
            return getattr(self, f"_{door}")(option, text)
        except UsageError as error:
            return (str(error), error.remedy)

    def _attach(self, option: Option, text: str) -> object:
        return self._run(option, "attach", DISK, f"--{option.key}={text}")

    def _set(self, option: Option, text: str) -> object:
        return self._run(option, "set", "data", f"{option.key}={text}")

    def _run(self, option: Option, *words: str) -> object:
        result = self.machine.run("-o", "json", *words)
        calls, self.machine.calls = self.machine.calls, []
        if result.code:
            assert (result.code, calls) == (2, [])
            said = json.loads(result.err)
            return (said["error"], said["remedy"])
        given = cast(Any, calls[0][2])
        return given[option.field] if isinstance(given, dict) else getattr(given, option.field)

    def _mount(self, option: Option, text: str) -> object:
        request: Any = parse_mount([DISK, "/mnt", "-o", f"{option.key}={text}"])
        if option.key in ATTACH_OPTIONS:
            return getattr(request.attach, option.field)
        if option.key == "mkfs":
            return "blank" if request.make_blank else "never"
        return request.disk.snapshot if option.key == "snapshot" else getattr(request, option.field)

    def _file(self, option: Option, text: str) -> object:
        self.path.write_text(f"disk = {DISK}\n{option.key} = {text}\n")
        try:
            return getattr(read_disk_file(self.path).options, option.field)
        except UsageError as error:
            message = str(error)
            assert message.startswith(f"{self.path}, line 2: ")
            raise UsageError(message.removeprefix(f"{self.path}, line 2: "), remedy=error.remedy) from None


@pytest.fixture
def doors(machine: Machine, tmp_path: Path) -> Doors:
    return Doors(machine, tmp_path)


def options() -> dict[str, Option]:
    """Every option that takes a value, of an attachment, of a mount or of `set` alone."""
    return {
        key: option
        for key, option in {**ATTACH_OPTIONS, **MOUNT_OPTIONS, **LIVE_OPTIONS}.items()
        if not option.is_switch
    }


def test_the_tables_of_this_file_have_every_option() -> None:
    assert set(GOOD) == set(BAD) == set(options())
    assert set(LIVE_OPTIONS) == {"io-timeout", "iops", "mbps", "trace"}
    assert not {"trace"} & {*ATTACH_OPTIONS, *MOUNT_OPTIONS}
    rows = [option.field for option in ATTACH_OPTIONS.values()]
    assert [*rows, "autoclear", "original_link"] == [each.name for each in fields(AttachOptions)]


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in GOOD.items() for text in texts])
def test_what_is_taken_means_the_same_at_every_door(doors: Doors, key: str, text: str) -> None:
    option, means = options()[key], GOOD[key][text]
    assert option.read(text) == means
    outcomes = {door: doors.go(door, option, text) for door in doors.of(option)}
    assert outcomes == dict.fromkeys(outcomes, means) and outcomes
    assert all(type(value) is type(means) for value in outcomes.values())


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in BAD.items() for text in texts])
def test_what_is_refused_is_refused_in_the_same_words_at_every_door(doors: Doors, key: str, text: str) -> None:
    option = options()[key]
    with pytest.raises(UsageError) as caught:
        option.read(text)
    outcomes = {door: doors.go(door, option, text) for door in doors.of(option)}
    assert outcomes == dict.fromkeys(outcomes, (str(caught.value), caught.value.remedy)) and outcomes
    assert caught.value.remedy


@pytest.mark.parametrize("key", [key for key in GOOD if key != "mkfs.options"])
def test_no_option_that_takes_a_value_goes_without(doors: Doors, key: str) -> None:
    """In a file that is a line without a value, which is refused before the key is looked at."""
    option = options()[key]
    outcomes = {door: doors.go(door, option, "") for door in doors.of(option) if door != "file"}
    assert outcomes == dict.fromkeys(outcomes, (f"option {key} has no value", f"give one, or leave {key} out"))


@pytest.mark.parametrize("key", SWITCHES)
def test_a_switch_is_off_until_it_is_given(machine: Machine, tmp_path: Path, key: str) -> None:
    option, path = ATTACH_OPTIONS[key], tmp_path / "db.conf"
    assert option.default is None and getattr(AttachOptions(), option.field) is False
    machine.disks[DISK] = MIB
    machine.run("attach", DISK, f"--{key}")
    assert machine.calls == [("attach", DISK, AttachOptions(**{option.field: True}))]  # type: ignore[arg-type]
    for text, means in (("yes", True), ("No", False), ("YES", True)):
        path.write_text(f"disk = {DISK}\n{key} = {text}\n")
        assert getattr(read_disk_file(path).options, option.field) is means
    if option.in_mount:
        assert getattr(parse_mount([DISK, "/mnt", "-o", key]).attach, option.field) is True
        with pytest.raises(UsageError, match=f"option {key} takes no value"):
            parse_mount([DISK, "/mnt", "-o", f"{key}=yes"])


@pytest.mark.parametrize("key", [key for key, option in options().items() if option.default])
def test_a_default_is_what_its_own_text_means_at_every_door(doors: Doors, key: str) -> None:
    option = options()[key]
    of = next(kind() for kind in (AttachOptions, MountOptions, LiveOptions) if hasattr(kind, option.field))
    assert option.read(option.default or "") == getattr(of, option.field)
    for door in doors.of(option):
        assert doors.go(door, option, option.default or "") == getattr(of, option.field), door


def test_without_options_every_door_gives_the_defaults(machine: Machine, tmp_path: Path) -> None:
    machine.disks[DISK] = MIB
    machine.run("attach", DISK)
    path = tmp_path / "db.conf"
    path.write_text(f"disk = {DISK}\n")
    assert machine.calls == [("attach", DISK, AttachOptions())]
    assert read_disk_file(path).options == AttachOptions(name="db")
    assert parse_mount([DISK, "/mnt"]).attach == AttachOptions(autoclear=True)


class FakeStack:
    """Remembers what a worker sets."""

    def __init__(self) -> None:
        self.limits: dict[str, float | None] = {"iops": 7, "mbps": 7.5}
        self.io_timeout_s: float | None = 7.0
        self.traced_s: float | None = None

    def set_io_timeout(self, io_timeout_s: float | None) -> None:
        self.io_timeout_s = io_timeout_s

    def trace(self, seconds: float) -> None:
        self.traced_s = seconds

    def set_limits(self, iops: float | None, mbps: float | None) -> None:
        self.limits = {"iops": iops, "mbps": mbps}


async def asked_to_set(**question: object) -> tuple[FakeStack, dict[str, object]]:
    """What became of a worker's stack, and what it told the holder."""
    stack, told = FakeStack(), dict[str, object]()
    worker = SimpleNamespace(stack=stack, send_event=told.update)
    await Questions(cast(Asked, worker)).answers["set"](question)
    return stack, told


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("io_timeout_s", value) for value in (1, 1.5, None)],
        *[("iops", value) for value in (1, 500.0, None)],
        *[("mbps", value) for value in (0.1, 5, None)],
    ],
)
async def test_a_worker_takes_what_the_table_takes(field: str, value: object) -> None:
    stack, told = await asked_to_set(**{field: value})
    assert told == {"event": "state", field: value}
    assert shapes.problem(told, StateChanged) is None
    now = {"io_timeout_s": stack.io_timeout_s, **stack.limits}
    assert now == {"io_timeout_s": 7.0, "iops": 7, "mbps": 7.5, field: value}


@pytest.mark.parametrize("seconds", [0, 30, 3600.0])
async def test_a_trace_is_for_the_worker_that_has_the_disk_and_for_no_later_one(seconds: float) -> None:
    stack, told = await asked_to_set(trace_s=seconds)
    assert (stack.traced_s, told) == (seconds, {})
    stack, told = await asked_to_set(trace_s=seconds, iops=5)
    assert (stack.traced_s, told) == (seconds, {"event": "state", "iops": 5})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("trace_s", value) for value in (-1, 3601, None, nan, inf)],
        *[("io_timeout_s", value) for value in (0.5, -1, nan, inf)],
        *[("iops", value) for value in (0, -1, 0.5, 1.9, nan, inf)],
        *[("mbps", value) for value in (0, 0.01, -1.0, nan, inf)],
    ],
)
async def test_a_worker_and_a_program_hear_the_same_words(field: str, value: float) -> None:
    """A worker is asked over its socket, by any version; a program gives AttachOptions, or LiveOptions."""
    with pytest.raises(UsageError) as of_program:
        (AttachOptions if hasattr(AttachOptions, field) else LiveOptions)(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError) as of_worker:
        await asked_to_set(**{field: value})
    assert of_worker.value.line() == of_program.value.line()
    assert of_worker.value.remedy


@pytest.mark.parametrize("field", [option.field for option in LIVE_OPTIONS.values()])
@pytest.mark.parametrize("value", ["5", [5], {}, True])
def test_a_worker_takes_numbers_only(field: str, value: object) -> None:
    question = json.dumps({"op": "set", field: value}).encode()
    with pytest.raises(UsageError, match=f"^the question cannot be read: set: {field} is .*, not a number or null"):
        controlserver.admit(question)
