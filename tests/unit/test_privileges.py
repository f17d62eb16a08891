"""What is left of a process's rights when it has given them up, in one that the test starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.device.kernel import privileges
from blobfuse_dysk.device.kernel.privileges import User, find_user, unreadable
from tests.conftest import need

DAC_READ_SEARCH, IPC_LOCK = 1 << 2, 1 << 14
FRAME = """
import json, os, re, sys, threading
from blobfuse_dysk.device.kernel import privileges
from blobfuse_dysk.device.kernel.privileges import User

def facts():
    text = open("/proc/self/status").read()
    found = dict(line.split(":", 1) for line in text.splitlines())
    sets = {name: int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    ids = {name: found[name].split() for name in ("Uid", "Gid", "Groups", "NoNewPrivs")}
    return {**sets, **ids, "owner": os.stat("/proc/self/environ").st_uid}

privileges.find_user = lambda: USER
privileges.unreadable = lambda paths: CLOSED
"""


def dropped(program: str, user: User | None, closed: str | None = None) -> dict[str, Any]:
    """Run a program that prints JSON."""
    need(os.geteuid() == 0, "rights are given up")
    root = Path(__file__).resolve().parents[2]
    head = FRAME.replace("USER", f"User({user.uid}, {user.gid})" if user else "None").replace("CLOSED", repr(closed))
    done = subprocess.run(
        [sys.executable, "-c", f"{head}\n{program}"], cwd=root, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_user_and_one_capability_are_left() -> None:
    found = dropped("why = privileges.drop(); print(json.dumps({**facts(), 'why': why}))", User(4321, 4322))
    assert found == {
        **dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), IPC_LOCK),
        "CapInh": 0,
        "CapAmb": 0,
        "Uid": ["4321"] * 4,
        "Gid": ["4322"] * 4,
        "Groups": [],
        "NoNewPrivs": ["1"],
        "owner": 0,
        "why": None,  # not of the user: it can be neither dumped nor traced
    }


def test_threads_that_come_later_have_no_more() -> None:
    thread = """
privileges.drop()
found = []
thread = threading.Thread(target=lambda: found.append(open(f"/proc/thread-self/status").read()))
thread.start(); thread.join()
print(json.dumps({"status": found[0]}))
"""
    status = dropped(thread, User(4321, 4322))["status"]
    assert f"CapEff:\t{IPC_LOCK:016x}" in status
    assert "Uid:\t4321\t4321\t4321\t4321" in status


def test_no_program_brings_anything_back() -> None:
    """A shell, since not everybody may be able to run this Python."""
    look = """sh=$(tr -s '\\t\\n' '  ' </proc/self/status); echo "{\\"status\\": \\"$sh\\"}" """
    program = f"privileges.drop(); os.execv('/bin/sh', ['sh', '-c', {look!r}])"
    status = dropped(program, User(4321, 4322))["status"]
    for name, value in (("CapEff", f"{0:016x}"), ("CapPrm", f"{0:016x}"), ("Uid", "4321 4321 4321 4321")):
        assert f"{name}: {value}" in status


@pytest.mark.parametrize(
    ("user", "closed", "uid", "says"),
    [
        (None, None, "0", "it has root's user id: there is no user _dysk"),
        (
            User(4321, 4322),
            "/root",
            "4321",
            "it can read all files: the user _dysk could not load the program, as /root",
        ),
    ],
)
def test_where_it_takes_more_to_load_the_program(user: User | None, closed: str | None, uid: str, says: str) -> None:
    found = dropped("why = privileges.drop(); print(json.dumps({**facts(), 'why': why}))", user, closed)
    assert found["why"].startswith(says)
    assert found["Uid"] == [uid] * 4
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == IPC_LOCK | DAC_READ_SEARCH
    assert found["NoNewPrivs"] == ["1"]
    assert found["owner"] == 0


def test_who_may_not_become_another_user_says_so() -> None:
    program = """
import ctypes
libc = ctypes.CDLL(None)
privileges._set_capabilities(libc, 1 << 14 | 1 << 7)
why = privileges.drop()
print(json.dumps({**facts(), "why": why}))
"""
    found = dropped(program, User(4321, 4322))
    assert found["why"] == "it has root's user id: CAP_SETUID and CAP_SETGID are missing"
    assert found["CapEff"] == IPC_LOCK
    assert found["Uid"] == ["0"] * 4


PASSWD = """root:x:0:0:root:/root:/bin/bash
broken
daemon:x:1:1::/:/bin/sh
_dysk2:x:7:7::/:/bin/sh
_dysk:x:{ids}:\udce9:/nonexistent:/usr/sbin/nologin
_dysk:x:5:5::/:/bin/sh
"""


@pytest.mark.parametrize(
    ("ids", "user"),
    [
        ("998:997", User(998, 997)),
        ("0:0", None),
        ("0:5", None),
        ("5:0", None),
        ("-1:5", User(5, 5)),  # the next line counts
        (":", User(5, 5)),  # the next line counts
        ("5", User(5, 5)),  # the next line counts
    ],
)
def test_the_user_of_workers(tmp_path: Path, ids: str, user: User | None) -> None:
    """Never root, whatever stands there."""
    path = tmp_path / "passwd"
    path.write_text(PASSWD.replace("{ids}", ids), errors="surrogateescape")
    assert find_user(path=str(path)) == user
    assert find_user("nobody_of_that_name", str(path)) is None


def test_no_list_of_users(tmp_path: Path) -> None:
    assert find_user(path=str(tmp_path / "none")) is None


def test_what_everybody_can_read(tmp_path: Path) -> None:
    need(Path("/tmp").stat().st_mode & 0o005 == 0o005, "everybody can read /tmp")
    assert unreadable(["/usr/lib", "/usr/lib/no_such_directory"]) is None
    open_to_all = tmp_path / "open"
    (open_to_all / "package").mkdir(parents=True)
    module = open_to_all / "package" / "module.py"
    module.write_text("")
    tmp_path.chmod(0o700)
    closed = next(str(each) for each in (tmp_path, *tmp_path.parents) if not each.stat().st_mode & 0o001)
    assert unreadable(["/usr/lib", str(module)]) == closed


def test_a_process_that_keeps_its_rights_is_looked_into_by_nobody() -> None:
    program = """
before = facts()["CapEff"]
privileges.seclude("a title that is long", name="a name that is long")
import resource
print(json.dumps({
    **facts(),
    "name": open("/proc/self/comm").read(),
    "command": open("/proc/self/cmdline").read().rstrip("\\0"),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "may_set_oom": before >> 24 & 1,
    "oom": open("/proc/self/oom_score_adj").read(),
    "locked": re.search(r"VmLck:\\s*(\\d+)", open("/proc/self/status").read())[1],
    "before": before,
}))
"""
    found = dropped(program, None)
    assert (found["name"], found["core"], found["owner"]) == ("a name that is \n", [0, 0], 0)
    assert found["oom"] == "-1000\n" or not found["may_set_oom"]
    assert found["locked"] != "0"
    assert found["command"] == "a title that is long"
    assert found["CapEff"] == found["before"]


def test_a_kernel_that_refuses_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def prctl(self, *arguments: int) -> int:
            return -1

    with pytest.raises(OSError, match="prctl 38"):
        privileges._prctl(Refuses(), privileges._PR_SET_NO_NEW_PRIVS, 1)  # type: ignore[arg-type]
