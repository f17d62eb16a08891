"""PostgreSQL commits while workers are killed and replaced below it: no error, and no transaction is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

from tests.e2e.kit import Node, node, until
from tests.e2e.loads import FSCK, call
from tests.e2e.test_workloads_databases import Postgres

__all__ = ["node"]

KILLS = 12


def state(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((node.dirs.run / "data" / "state.json").read_text())
    return found


def served_by_another_than(node: Node, old: dict[str, int]) -> bool:
    now = state(node)
    return bool(now["worker"]) and now["worker"] != old and now["state"] == "attached"


def test_postgresql_notices_nothing_of_workers_that_die(node: Node) -> None:
    node.dirs.root.chmod(0o711)  # the user postgres has to come through
    sockets = node.dirs.root / "pg"
    sockets.mkdir()
    disk = node.create()
    assert node.mount(disk, "fstype=ext4").code == 0
    postgres = Postgres(node.mountpoint / "data", sockets)
    for path in (sockets, node.mountpoint):
        call("chown", "postgres", str(path))
    postgres.create()
    with postgres.running():
        postgres.call("pgbench", "-q", "-i", "-s", "1", "postgres")
        bench = subprocess.Popen(
            ["runuser", "-u", "postgres", "--", "env", f"PGHOST={sockets}", str(postgres.programs / "pgbench"),
             "-n", "-c", "4", "-t", "1500", "postgres"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        done = 0
        while bench.poll() is None and done < KILLS:
            old = state(node)["worker"]
            if done % 3 == 2:
                node.ok("upgrade", "data")
            else:
                os.kill(old["pid"], signal.SIGKILL)
            until(lambda old=old: served_by_another_than(node, old), "another worker")  # type: ignore[misc]
            done += 1
        output = bench.communicate(timeout=90)[0]
        assert bench.returncode == 0, output
        assert done >= 6
        assert postgres.check() == 4 * 1500
        postgres.stop("immediate")  # and what was committed is in the log
    with postgres.running():
        assert postgres.check() == 4 * 1500
        postgres.stop("fast")
    postgres.call("pg_checksums", "--check", "-D", str(postgres.data))
    assert node.umount().code == 0
    device = node.ok("attach", disk, "--read-only").strip()
    call(*FSCK["ext4"], device)
    node.ok("detach", disk)
    assert node.nothing_left()
