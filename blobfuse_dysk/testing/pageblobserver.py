"""The page blob server in a process of its own, as a context manager for tests, demonstrations and benchmarks."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["DEVELOPMENT_ACCOUNT", "DEVELOPMENT_KEY", "PageBlobServer"]

# The emulator's well-known account; not a secret.
# Source: https://learn.microsoft.com/azure/storage/common/storage-use-azurite#well-known-storage-account-and-key
DEVELOPMENT_ACCOUNT = "devstoreaccount1"
DEVELOPMENT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class PageBlobServer:
    """`with PageBlobServer(latency_ms=2) as server:` ... `server.endpoint`, `server.stats()`, `server.fault(...)`.

    accounts: {name: base64 key, or a list of keys}; the first one is `account` and `key`.
    latency_ms: milliseconds, or a distribution as server.latency reads it. tier: P4 to P80, "standard",
    "IOPS/MBPS". throttle: "503" or "delay". tokens: {bearer token: {"expires_at": ..., "permissions": "rwdlc"}}.
    directory: keep everything there, so that `kill` and `start` lose nothing. hosts: further names for the
    certificate. Other options: the fields of server.config.Config.
    Errors: RuntimeError when the server does not start, ValueError when a command is refused.
    """

    def __init__(
        self,
        accounts: Mapping[str, str | list[str]] | None = None,
        *,
        https: bool = False,
        latency_ms: float | str = 0,
        hosts: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self._config: dict[str, Any] = {
            "accounts": dict(accounts or {DEVELOPMENT_ACCOUNT: DEVELOPMENT_KEY}),
            "latency": str(latency_ms),
            **options,
        }
        self._https = https
        self._hosts = hosts
        self._process: subprocess.Popen[str] | None = None
        self._certificates: str | None = None
        self.url = ""
        self.port = 0
        self.control_url = ""
        self.pid = 0
        self.ca_file: str | None = None
        self.account = next(iter(self._config["accounts"]))
        keys = self._config["accounts"][self.account]
        self.key: str = keys if isinstance(keys, str) else keys[0]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._certificates is not None:
            shutil.rmtree(self._certificates)
            self._certificates = None

    # The process.

    def start(self) -> None:
        """Start, or start again on the same port after `stop` or `kill`."""
        if self._https and self._certificates is None:
            self._make_certificates()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "blobfuse_dysk.testing.server", "--config", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(self._config) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError("the page blob server did not start; its standard error says why")
        ready = json.loads(line)
        self.url, self.port, self.control_url = ready["url"], ready["port"], ready["control_url"]
        self.pid = ready["pid"]
        self._config["port"] = self.port

    def stop(self) -> None:
        """End the process in good order; what is in memory only is lost. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """`stop` and `start`; faults, counts and changes made by `configure` are gone afterwards."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: the machine hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # Where it is.

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT/ACCOUNT` of the first account."""
        return f"{self.url}/{self.account}"

    @property
    def connection_string(self) -> str:
        """As the Azure SDK and Azure CLI take it."""
        scheme = "https" if self._https else "http"
        return (
            f"DefaultEndpointsProtocol={scheme};AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={self.endpoint};"
        )

    # What it does and has seen.

    def fault(self, action: str, **fields: Any) -> int:
        """Put a fault in force; fields as in server.faults. Returns its id."""
        return int(self._command("fault", action=action, **fields)["id"])

    def faults(self) -> list[dict[str, Any]]:
        """The faults in force, with their hits."""
        found: list[dict[str, Any]] = self._command("faults")["faults"]
        return found

    def clear_faults(self, fault_id: int | None = None) -> None:
        """Take back one fault, or all."""
        self._command("clear-faults", id=fault_id)

    def release(self) -> int:
        """Let held requests go on (faults late, delay, stall without seconds); returns how many there were."""
        return int(self._command("release")["released"])

    def stats(self) -> dict[str, Any]:
        """All counts since the start or the last reset; see server.statistics."""
        return self._command("stats")

    def reset_stats(self) -> None:
        """Count from zero."""
        self._command("reset-stats")

    def configure(self, *, latency_ms: float | str | None = None, **changes: Any) -> None:
        """Change latency_ms, or what server.config calls live, while running."""
        if latency_ms is not None:
            changes["latency"] = str(latency_ms)
        self._command("configure", **changes)

    def outage(self, kind: str | None) -> None:
        """ "silent": nothing is read, answered or accepted; "refuse": connections are refused; None: over."""
        self._command("outage", kind=kind)

    def forget_connections(self) -> int:
        """As a NAT or load balancer that restarts: all connections of now are dead, and neither side is told.

        New ones are served. Returns how many there were.
        """
        return int(self._command("forget-connections")["forgotten"])

    def elapse_leases(self, seconds: float) -> None:
        """Let the time of every lease pass, without waiting."""
        self._command("elapse-leases", seconds=seconds)

    def create(self, container: str, blob: str, size: int, **fields: Any) -> str:
        """Make an empty page blob (and its container); returns the blob's URL."""
        self._command("create", account=self.account, container=container, blob=blob, size=size, **fields)
        return f"{self.endpoint}/{container}/{blob}"

    def blob(self, container: str, blob: str) -> dict[str, Any]:
        """Size, allocated bytes, sequence number, metadata, lease, snapshots; ValueError when there is none."""
        return self._command("blob", account=self.account, container=container, blob=blob)

    def copy(self, container: str, blob: str, status: str, copied: int = 0) -> None:
        """Say that a copy to the blob is pending, success, failed or aborted, and how many bytes have come."""
        self._command("copy", account=self.account, container=container, blob=blob, status=status, copied=copied)

    def remove(self, container: str, blob: str) -> None:
        """Delete a blob, leased or not."""
        self._command("remove", account=self.account, container=container, blob=blob)

    def _command(self, name: str, **arguments: Any) -> dict[str, Any]:
        address = urlsplit(self.control_url)
        assert address.hostname is not None
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
        try:
            connection.request("POST", f"/-/{name}", json.dumps(arguments))
            reply = connection.getresponse()
            result: dict[str, Any] = json.loads(reply.read())
        finally:
            connection.close()
        if reply.status != 200:
            raise ValueError(result["error"])
        return result

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        if number != signal.SIGKILL:
            process.send_signal(signal.SIGCONT)  # it may be paused
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _make_certificates(self) -> None:
        from blobfuse_dysk.testing.server.certificates import make_certificates

        self._certificates = tempfile.mkdtemp(prefix="page-blob-server-")
        names = ["localhost", "127.0.0.1", "::1", self._config.get("host", "127.0.0.1"), *self._hosts]
        made = make_certificates(Path(self._certificates), names)
        self.ca_file = made.ca_file
        self._config["cert_file"], self._config["key_file"] = made.cert_file, made.key_file
