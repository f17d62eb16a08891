"""The only reader of environment variables; everything else asks here.

DYSK_* variables move this package's directories (tests and containers do); AZURE_STORAGE_* carry credentials under the
Azure CLI's names. An empty variable counts as one that is not set.
"""

from __future__ import annotations

import os
import socket

TYPE_CHECKING = False  # importing typing and pathlib would cost the holder a MiB
if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "azure_variables",
    "config_dir",
    "dev_dir",
    "log_dir",
    "node_name",
    "proxy_variables",
    "restore",
    "run_dir",
    "service_variables",
    "started_with",
    "variables",
]

_PROXY = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_AZURE = ("ACCOUNT", "KEY", "SAS_TOKEN", "CONNECTION_STRING", "AUTH_MODE")


def run_dir() -> Path:
    """The state of this node's attachments, on a tmpfs: DYSK_RUN_DIR or /run/dysk."""
    return _directory("DYSK_RUN_DIR", "/run/dysk")


def config_dir() -> Path:
    """Credential files, one per account, ACCOUNT.conf: DYSK_CONFIG_DIR or /etc/dysk."""
    return _directory("DYSK_CONFIG_DIR", "/etc/dysk")


def log_dir() -> Path:
    """Log files of holders and workers: DYSK_LOG_DIR or /var/log/dysk."""
    return _directory("DYSK_LOG_DIR", "/var/log/dysk")


def dev_dir() -> Path:
    """The stable names of devices: DYSK_DEV_DIR or /dev/dysk."""
    return _directory("DYSK_DEV_DIR", "/dev/dysk")


def node_name() -> str:
    """What this node calls itself to others, who see it as a lease's holder: DYSK_NODE or the host name."""
    return os.environ.get("DYSK_NODE") or socket.gethostname()


def azure_variables() -> dict[str, str]:
    """Return the AZURE_STORAGE_* variables that are set, by their names without that prefix.

    Keys are among ACCOUNT, KEY, SAS_TOKEN, CONNECTION_STRING and AUTH_MODE, which mean what they mean to the Azure CLI.
    Source: https://learn.microsoft.com/azure/storage/blobs/authorize-data-operations-cli#set-environment-variables-for-authorization-parameters
    """
    found = {name: os.environ.get(f"AZURE_STORAGE_{name}", "") for name in _AZURE}
    return {name: value for name, value in found.items() if value}


def service_variables() -> dict[str, str]:
    """What systemd tells a service: NOTIFY_SOCKET, LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES."""
    return {name: value for name, value in os.environ.items() if name.startswith(("LISTEN_", "NOTIFY_"))}


def proxy_variables() -> dict[str, str]:
    """http_proxy, https_proxy, all_proxy and no_proxy, as far as they are set, in capitals if not in small letters."""
    found = {name: os.environ.get(name) or os.environ.get(name.upper(), "") for name in _PROXY}
    return {name: value for name, value in found.items() if value}


def variables() -> dict[str, str]:
    """All of them, for a process that was started without, since /proc shows what it starts with. Some are secret."""
    return dict(os.environ)


def started_with() -> dict[str, str]:
    """All of them, for a process of ours that is to find its modules as this one does."""
    return dict(os.environ)


def restore(variables: dict[str, str]) -> None:
    """Set variables in this process, for the programs that it starts."""
    os.environ.update(variables)


def _directory(variable: str, default: str) -> Path:
    from pathlib import Path

    return Path(os.environ.get(variable) or default)
