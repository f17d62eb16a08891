"""Run the page blob server: `python -m blobfuse_dysk.testing.server --account NAME=KEY ...`.

Prints one JSON object with url, control_url and port once it listens, then serves until SIGTERM or SIGINT.
With `--config -` the whole configuration (config.Config as JSON, one line) comes from standard input, and the
server also ends when that input ends: it does not outlive the test that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from typing import Any

from .config import Config, config_from_json
from .control import ControlConnection
from .protocol import DataConnection
from .service import Service

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, serve, return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    from_stdin = options.config == "-"
    try:
        given = json.loads(sys.stdin.readline()) if from_stdin else _from_options(options)
        config = config_from_json(given)
        try:
            import uvloop

            loop_factory: Any = uvloop.new_event_loop
        except ImportError:
            loop_factory = asyncio.new_event_loop
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_serve(config, watch_stdin=from_stdin))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m blobfuse_dysk.testing.server", description=__doc__)
    parser.add_argument("--config", metavar="-", help="read the configuration from standard input")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--control-port", type=int, default=0)
    parser.add_argument("--account", action="append", default=[], metavar="NAME=KEY", help="may be repeated")
    parser.add_argument("--directory", help="keep everything here; default: in memory")
    parser.add_argument("--cert-file", help="serve HTTPS with this certificate chain")
    parser.add_argument("--key-file")
    parser.add_argument("--latency", default="0", help="MS, normal:MEAN,SD or lognormal:MEDIAN,SIGMA")
    parser.add_argument("--tier", help="P4 to P80, standard, or IOPS/MBPS: of every blob")
    parser.add_argument("--sku", default="Standard_LRS", help="Premium_LRS: each blob has a tier of its own")
    parser.add_argument("--throttle", choices=("503", "delay"), default="503")
    parser.add_argument("--seed", type=int)
    return parser


def _from_options(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: value for name, value in vars(options).items() if name not in ("account", "config")}
    pairs = [text.partition("=") for text in options.account]
    if not all(mark for _, mark, _ in pairs):
        raise ValueError("an --account is not NAME=KEY")
    given["accounts"] = {name: key for name, _, key in pairs}
    return given


async def _serve(config: Config, watch_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    service = Service(config, DataConnection)
    port = await service.listen()
    control = await loop.create_server(lambda: ControlConnection(service), "127.0.0.1", config.control_port)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if watch_stdin:
        loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    scheme = "https" if config.cert_file else "http"
    host = f"[{config.host}]" if ":" in config.host else config.host
    ready = {
        "url": f"{scheme}://{host}:{port}",
        "port": port,
        "control_url": f"http://127.0.0.1:{control.sockets[0].getsockname()[1]}",
        "pid": os.getpid(),
    }
    print(json.dumps(ready), flush=True)
    await ended.wait()
    control.close()
    await service.close()


if __name__ == "__main__":
    sys.exit(main())
