"""What tells two processes apart that would not hand the same on to a child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import need

ROOT = Path(__file__).resolve().parents[2]
SHOW = "from blobfuse_dysk.device.kernel.inherited import inherited; print(inherited(leaves_cgroup={}))"


def shown(*before: str, leaves_cgroup: bool = False, first: str = "pass") -> str:
    """Of a process that is started by what comes `before` its command line, and then does something `first`."""
    command = [*before, sys.executable, "-c", f"import os, resource; {first}; {SHOW.format(leaves_cgroup)}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


def test_it_is_the_same_whatever_a_holder_sets_for_itself() -> None:
    plain = shown()
    for first in ("os.setsid()", "os.umask(0o123)", "os.environ.update(ODD='1')"):
        assert shown(first=first) == plain
    assert shown("sh", "-c", 'trap "" HUP INT; exec "$0" "$@"') == plain


@pytest.mark.parametrize(
    "first",
    [
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))",
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 1 << 20))",
        "os.nice(3)",
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])",
        "open('/proc/self/oom_score_adj', 'w').write('77')",
        "os.setgroups([77])",
    ],
)
def test_what_a_child_would_have_of_it_counts(first: str) -> None:
    need(os.geteuid() == 0, "it changes what takes root")
    need(len(os.sched_getaffinity(0)) > 1 or "affinity" not in first, "there are two processors")
    assert shown(first=first) != shown()


@pytest.mark.parametrize("kind", ["--net", "--mount", "--ipc", "--uts", "--cgroup"])
def test_so_do_namespaces(kind: str) -> None:
    need(os.geteuid() == 0, "it makes namespaces, which takes root")
    assert shown("unshare", kind) != shown()


def test_so_do_capabilities_and_new_privileges() -> None:
    need(os.geteuid() == 0, "it drops capabilities")
    assert shown("setpriv", "--bounding-set", "-net_raw") != shown()
    assert shown("setpriv", "--no-new-privs") != shown()


def test_a_control_group_does_unless_it_is_left() -> None:
    assert "cgroup " in shown()
    assert "\ncgroup 0" not in shown(leaves_cgroup=True)
    assert shown(leaves_cgroup=True) != shown()
