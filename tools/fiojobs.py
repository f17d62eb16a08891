"""The loads in tools/fio, which people run by hand, for tests and benchmark: as they are, or with options changed."""

from __future__ import annotations

import configparser
from pathlib import Path

__all__ = ["JOBS", "command"]

JOBS = Path(__file__).with_name("fio")
Value = str | int | None


def command(job: str, target: str | Path, output: str = "terse", /, **changed: Value) -> list[str]:
    """fio's command line for a job file on a device or file. changed: other values of options; None: without it."""
    path = JOBS / f"{job}.fio"
    words = ["fio", f"--output-format={output}", f"--filename={target}"]
    if not changed:
        return [*words, str(path)]
    found = configparser.ConfigParser(interpolation=None, comment_prefixes=(";",))
    found.read_string(path.read_text())
    options: dict[str, Value] = {**found["global"], **changed}
    return [*words, f"--name={job}", *(f"--{name}={value}" for name, value in options.items() if value is not None)]
