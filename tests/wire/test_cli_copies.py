"""dyskctl clone and diff, as typed: what is printed, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from blobfuse_dysk import patience
from blobfuse_dysk.azure.diskclient import DiskClient
from blobfuse_dysk.azure.marks import CloneMark
from blobfuse_dysk.cli.main import main
from blobfuse_dysk.disks import clonesteps
from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.pageblobserver import DEVELOPMENT_ACCOUNT, DEVELOPMENT_KEY
from tests.polling import eventually
from tests.wire.page_lists import snapshot
from tests.wire.rest import Rest

PAGE = 512
MIB = 1 << 20
OTHER = {"other": "b3RoZXIga2V5"}
DATA, COPY = f"{DEVELOPMENT_ACCOUNT}/disks/data", f"{DEVELOPMENT_ACCOUNT}/disks/copy"


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageBlobServer]:
    """A server with two accounts, whose credentials are where dyskctl looks, and the disk `data` in the first."""
    accounts = {DEVELOPMENT_ACCOUNT: DEVELOPMENT_KEY, **OTHER}
    with PageBlobServer(accounts) as running:
        for name, key in accounts.items():
            file = tmp_path / f"{name}.conf"
            file.write_text(f"account_key = {key}\nendpoint = {running.url}/{name}\n")
            file.chmod(0o600)
        monkeypatch.setenv("DYSK_CONFIG_DIR", str(tmp_path))
        running.create("disks", "data", 4 * MIB)
        yield running


@pytest.fixture
def rest(two: PageBlobServer) -> Iterator[Rest]:
    with Rest(two.endpoint, two.account, two.key) as found:
        found.put("disks/data", 0, b"a" * 4 * PAGE)
        yield found


def test_a_clone_is_told(two: PageBlobServer, rest: Rest, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clone", DATA, COPY]) == 0
    assert capsys.readouterr().out == f"cloned {DATA} to {COPY}, 4MiB\n"
    assert rest.get("disks/copy", 0, PAGE).body == b"a" * PAGE
    assert main(["clone", DATA, "other/disks/far", "--size", "8MiB", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("source").startswith(f"{DATA}?snapshot=")
    size = 8 * MIB
    assert told == {
        "disk": "other/disks/far",
        "size": size,
        "blob_size": size,
        "complete": True,
        "snapshot_made": True,
    }


def test_a_clone_that_is_not_waited_for_and_given_up(
    two: PageBlobServer, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    two.configure(copies="pending")
    assert main(["clone", DATA, COPY, "--no-wait"]) == 0
    assert "the service copies" in capsys.readouterr().out
    assert main(["list", "--remote", f"{DEVELOPMENT_ACCOUNT}/disks"]) == 0
    listed = [line.partition(f"  {DEVELOPMENT_ACCOUNT}/")[2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == ["disks/copy (unfinished clone)", "disks/data"]
    assert main(["clone", DATA, COPY, "--abort"]) == 0
    assert capsys.readouterr().out == f"gave up the clone {COPY}; nothing of it is left\n"
    assert rest("HEAD", "disks/copy").status == 404


@pytest.mark.parametrize("grows", [False, True])
def test_a_clone_that_was_complete_before_it_could_be_given_up_is_not_told_to_be_gone(
    two: PageBlobServer, rest: Rest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    """By the service's copy alone, and by another process that took its mark off."""
    two.configure(copies="pending")
    words = ["clone", DATA, COPY, *(["--size", "8MiB"] if grows else [])]
    assert main([*words, "--no-wait"]) == 0
    undo = clonesteps.undo

    async def late(client: DiskClient, mark: CloneMark) -> bool:
        two.copy("disks", "copy", "success")
        if grows:
            assert await trio.to_thread.run_sync(main, words) == 0
        return await undo(client, mark)

    monkeypatch.setattr(clonesteps, "undo", late)
    capsys.readouterr()
    assert main(["clone", DATA, COPY, "--abort"]) == 2
    printed = capsys.readouterr()
    assert "nothing of it is left" not in printed.out
    assert printed.err == (
        f"dyskctl: {COPY} is no unfinished clone any more: it was completed or replaced before it could be given up: "
        "delete a disk with dyskctl delete\n"
    )
    assert rest.get("disks/copy", 0, PAGE).body == b"a" * PAGE
    assert main(["get", COPY]) == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["clone", DATA, DATA], 2, "cannot be a clone of itself"),
        (["clone", DATA, "other/disks/far", "--no-wait"], 2, "needs this command until it is complete"),
        (["clone", DATA, COPY, "--abort", "--size", "8MiB"], 2, "--abort takes nothing besides"),
        (["clone", DATA, COPY, "--abort"], 1, "does not exist"),
        (["clone", DATA, COPY, "--source-endpoint", "http://127.0.0.1:1"], 2, "are of one account"),
        (["clone", DATA, COPY, "--size", "1MiB"], 2, "at least its size, 4MiB"),
        (["diff", DATA, "--from", "yesterday"], 2, "is not a snapshot's time"),
        (["diff", DATA, "--from", f"{COPY}?snapshot=2026-01-01T00:00:00.0000000Z"], 2, "is no snapshot of"),
        (["diff", DATA, "--from", "2026-01-01T00:00:00.0000000Z"], 1, "does not exist (any more)"),
    ],
)
def test_what_cannot_be_is_one_line(
    two: PageBlobServer, rest: Rest, capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    assert main(words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert told in printed.err and printed.err.count("\n") == 1


def test_a_diff_as_a_table_and_as_json(two: PageBlobServer, rest: Rest, capsys: pytest.CaptureFixture[str]) -> None:
    first = snapshot(rest, "disks/data")
    rest.put("disks/data", MIB, b"b" * 2 * PAGE)
    rest.clear("disks/data", PAGE, PAGE)
    second = snapshot(rest, "disks/data")
    rest.put("disks/data", 2 * MIB, b"c" * PAGE)
    assert main(["diff", DATA, "--from", first, "--to", f"{DATA}?snapshot={second}"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["OFFSET", "LENGTH", "CHANGE"],
        ["512", "512", "cleared"],
        ["1048576", "1024", "written"],
        ["written:", "1KiB", "in", "1", "ranges;", "cleared:", "512B", "in", "1", "ranges"],
    ]
    assert main(["diff", DATA, "--from", first, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "disk": DATA,
        "from": first,
        "to": None,
        "ranges": [
            {"offset": 512, "length": 512, "cleared": True},
            {"offset": MIB, "length": 1024, "cleared": False},
            {"offset": 2 * MIB, "length": 512, "cleared": False},
        ],
        "written": 1536,
        "cleared": 512,
    }
    assert main(["diff", DATA, "--from", second, "--to", second, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranges"] == []


@pytest.mark.parametrize(
    ("words", "asked", "operation"),
    [
        (["diff", DATA, "--from", "SNAPSHOT"], "asking for the disk's properties", "get_blob_properties"),
        (["diff", DATA, "--from", "SNAPSHOT"], "finding out whether it knows what changed", "get_page_ranges"),
        (["get", DATA], "", "get_blob_properties"),
        (["snapshot", "create", DATA], "", "snapshot_blob"),
        (["resize", DATA, "8MiB"], "", "get_blob_properties"),
    ],
)
def test_a_slow_service_is_spoken_of(
    two: PageBlobServer, rest: Rest, monkeypatch: pytest.MonkeyPatch, words: list[str], asked: str, operation: str
) -> None:
    """As behind a gateway that takes its time; nothing is told where nobody sits at a terminal."""
    first = snapshot(rest, "disks/data")
    heard: list[str] = []
    monkeypatch.setattr(patience, "FIRST_S", 0.05)
    monkeypatch.setattr(patience, "AGAIN_S", 0.05)
    monkeypatch.setattr(patience, "tell_on_terminal", lambda program: patience.tell_by(heard.append))
    two.fault("delay", operation=operation)
    with ThreadPoolExecutor(1) as pool:
        ends = pool.submit(main, [first if word == "SNAPSHOT" else word for word in words])
        eventually(lambda: any(DATA in line and asked in line for line in heard), 20)
        two.clear_faults()
        two.release()
        assert ends.result(60) == 0
    patience.tell_by(None)


def test_ctrl_c_leaves_nothing_within_an_account_and_says_what_it_leaves_in_another(
    two: PageBlobServer, rest: Rest, tmp_path: Path
) -> None:
    two.configure(copies="pending")
    ended = interrupted(two, ["clone", DATA, COPY], lambda: counted(two, "get_blob_properties") > 4)  # it polls
    assert (ended.returncode, ended.stderr.strip()) == (130, "dyskctl: interrupted")
    assert rest("HEAD", "disks/copy").status == 404
    two.fault("delay", operation="put_page_from_url")
    ended = interrupted(two, ["clone", DATA, "other/disks/far"], lambda: bool(two.faults()[0]["hits"]))
    assert ended.returncode == 130
    assert "what was cloned stays as other/disks/far: the same command goes on with it" in ended.stderr
    two.clear_faults()
    two.release()
    assert main(["clone", DATA, "other/disks/far"]) == 0


@pytest.mark.parametrize("gone", ["snapshot", "disk"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("when", ["before it goes on", "in the middle"])
def test_a_clone_whose_source_is_gone_can_only_be_given_up_and_says_so(
    two: PageBlobServer, rest: Rest, capsys: pytest.CaptureFixture[str], gone: str, named: bool, when: str
) -> None:
    source = f"{DATA}?snapshot={snapshot(rest, 'disks/data')}" if named else DATA
    words = ["clone", source, "other/disks/far"]

    def delete() -> None:
        for each in two.blob("disks", "data")["snapshots"]:
            assert rest("DELETE", "disks/data", f"snapshot={each}").status == 202
        if gone == "disk":
            assert rest("DELETE", "disks/data").status == 202

    if when == "in the middle":
        two.fault("delay", operation="put_page_from_url")
        with ThreadPoolExecutor(1) as pool:
            ends = pool.submit(main, words)
            eventually(lambda: bool(two.faults()[0]["hits"]), 20)
            delete()
            two.clear_faults()
            two.release()
            assert ends.result(60) == 1
    else:
        two.fault("error", operation="put_page_from_url", status=400)
        assert main(words) == 1
        two.clear_faults()
        delete()
        capsys.readouterr()
        assert main(words) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "is gone" in printed.err, printed.err
    assert f"give it up: dyskctl clone --abort {shlex.quote(source)} other/disks/far\n" in printed.err
    assert main(["clone", source, "other/disks/far", "--abort"]) == 0
    assert capsys.readouterr().out == "gave up the clone other/disks/far; nothing of it is left\n"


def counted(two: PageBlobServer, kind: str) -> int:
    return int(two.stats()["requests"].get(kind, 0))


def interrupted(two: PageBlobServer, words: list[str], when: object) -> subprocess.CompletedProcess[str]:
    """Run dyskctl, and interrupt it as soon as this is so."""
    assert callable(when)
    command = [sys.executable, "-m", "blobfuse_dysk.cli.main", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        eventually(when, 20)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    return subprocess.CompletedProcess(command, process.returncode, "", told)
