"""The ceiling: how many of the same requests an HTTP load generator, wrk, gets out of the server.

wrk signs nothing (the URL has a SAS), checks nothing, and has no kernel in between, so no disk on this server can be
faster. What it reaches says how much of a figure is the server's own doing.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from tools.benchlib.fio import Job
from tools.benchlib.peers.start import need_programs

__all__ = ["NAME", "parse", "run", "script"]

NAME = "wrk (ceiling of the server)"
_SCRIPT = """\
local path, blocks, method = "{path}", {blocks}, "{method}"
local body = {body}
local headers = {{ ["x-ms-version"] = "2021-12-02" }}
if method == "PUT" then headers["x-ms-page-write"] = "update" end -- our server refuses what a request has no use for
request = function()
  local offset = math.random(0, blocks - 1) * 4096
  headers["Range"] = string.format("bytes=%d-%d", offset, offset + 4095)
  return wrk.format(method, path, headers, body)
end
"""
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def script(url: str, pattern: str, size: int) -> str:
    """wrk's script for random 4 KiB requests on the first `size` bytes of a blob."""
    parts = urlsplit(url)
    write = pattern == "randwrite"
    return _SCRIPT.format(
        path=f"{parts.path}?{parts.query}{'&comp=page' if write else ''}",
        blocks=size // 4096,
        method="PUT" if write else "GET",
        body='string.rep("dysk", 1024)' if write else "nil",
    )


def run(url: str, job: Job, size: int, directory: Path) -> dict[str, float]:
    """randread or randwrite of 4 KiB; `url` has a SAS that allows it."""
    need_programs("wrk")
    path = directory / "wrk.lua"
    path.write_text(script(url, job.pattern, size))
    path.chmod(0o600)
    parts = urlsplit(url)
    seconds = max(1, round(job.seconds))
    command = ["wrk", "-t1", f"-c{job.depth}", f"-d{seconds}s", "--latency", "-s", str(path)]
    done = subprocess.run([*command, f"{parts.scheme}://{parts.netloc}/"], capture_output=True, text=True, check=True)
    return parse(done.stdout)


def parse(output: str) -> dict[str, float]:
    """What wrk printed. Raises RuntimeError when the server refused any request."""
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if refused or not rate:
        raise RuntimeError(f"wrk: {refused[0] if refused else output.strip()[-300:]}")
    iops = float(rate[1])
    found = {"iops": iops, "mbps": iops * 4096 / 1e6}
    for key, pattern in (("mean_us", r"Latency\s+([\d.]+)(us|ms|s)"), ("p99_us", r"99%\s+([\d.]+)(us|ms|s)")):
        if match := re.search(pattern, output):
            found[key] = float(match[1]) * _UNITS[match[2]]
    return found
