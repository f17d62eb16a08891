"""The only reader of environment variables; everything else asks here.

DYSK_* variables move this package's directories (tests and containers do), and what is relative there holds from the
directory of this process, not from that of a worker; AZURE_STORAGE_* carry credentials under the
Azure CLI's names. An empty variable counts as one that is not set.
"""

from __future__ import annotations

import os
import socket

TYPE_CHECKING = False  # importing typing and pathlib would cost the holder a MiB
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "AZURE_PREFIX",
    "LOGIN_VARIABLES",
    "azure_variables",
    "changes_interpreter",
    "completes",
    "config_dir",
    "dev_dir",
    "leaves_cgroup",
    "log_dir",
    "login_variables",
    "machine_pid",
    "node_name",
    "proxy_variables",
    "replace",
    "restore",
    "run_dir",
    "service_variables",
    "started_with",
    "uses_native",
    "uses_resend",
]

AZURE_PREFIX = "AZURE_STORAGE_"
LOGIN_VARIABLES = frozenset(
    (
        # Source: azure.identity, _constants.py
        "AZURE_AUTHORITY_HOST", "AZURE_CLIENT_CERTIFICATE_PASSWORD", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_CLIENT_ID",
        "AZURE_CLIENT_SECRET", "AZURE_CLIENT_SEND_CERTIFICATE_CHAIN", "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_IDENTITY_DISABLE_MULTITENANTAUTH", "AZURE_KUBERNETES_CA_DATA", "AZURE_KUBERNETES_CA_FILE",
        "AZURE_KUBERNETES_SNI_NAME", "AZURE_KUBERNETES_TOKEN_PROXY", "AZURE_PASSWORD",
        "AZURE_POD_IDENTITY_AUTHORITY_HOST", "AZURE_REGIONAL_AUTHORITY_NAME", "AZURE_TENANT_ID",
        "AZURE_TOKEN_CREDENTIALS", "AZURE_USERNAME", "IDENTITY_ENDPOINT", "IDENTITY_HEADER",
        "IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET",
        # Where the Azure CLI has its login, and how the login's host is reached
        "AZURE_CONFIG_DIR", "HOME",
        "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy", "http_proxy", "https_proxy", "no_proxy",
    )
)  # fmt: skip
"""What a program that fetches a token may need of the environment of who attaches. What says which code is loaded, or
which authorities are trusted (PYTHON*, LD_*, PATH, SSL_*), is not among it: a worker runs for root, and for long."""
_PROXY = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_AT_START = ("PYTHON", "LD_", "GLIBC_", "MALLOC_", "OPENSSL_")
_HARMLESS = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")  # of the former ones: what is printed is flushed anyway
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


def leaves_cgroup() -> bool:
    """Whether what is attached is to outlive this process's control group, a pod's: DYSK_LEAVE_CGROUP."""
    return bool(os.environ.get("DYSK_LEAVE_CGROUP"))


def completes(program: str) -> bool:
    """Whether a shell asks for what may stand next on the command line. Source: click, shell completion."""
    return bool(os.environ.get(f"_{program.upper()}_COMPLETE"))


def uses_native() -> bool:
    """Whether what is there in C is used in place of the same in Python: unless DYSK_NATIVE is "no"."""
    return os.environ.get("DYSK_NATIVE") != "no"


def uses_resend(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether a kernel that can send requests again is asked to: unless DYSK_RESEND is "no".

    variables: those of a worker, for its holder, which has none of its own where it is a service.
    """
    return variables.get("DYSK_RESEND") != "no"


def machine_pid() -> int:
    """A process that sees the machine as a container's node: DYSK_MACHINE_PID, or 1; another where nodes are nested."""
    text = os.environ.get("DYSK_MACHINE_PID") or "1"
    return int(text) if text.isdecimal() and int(text) else 1


def azure_variables() -> dict[str, str]:
    """Return the AZURE_STORAGE_* variables that are set, by their names without that prefix.

    Keys are among ACCOUNT, KEY, SAS_TOKEN, CONNECTION_STRING and AUTH_MODE, which mean what they mean to the Azure CLI.
    Source: https://learn.microsoft.com/azure/storage/blobs/authorize-data-operations-cli#set-environment-variables-for-authorization-parameters
    """
    found = {name: os.environ.get(f"{AZURE_PREFIX}{name}", "") for name in _AZURE}
    return {name: value for name, value in found.items() if value}


def service_variables() -> dict[str, str]:
    """What systemd tells a service: NOTIFY_SOCKET, LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES."""
    return {name: value for name, value in os.environ.items() if name.startswith(("LISTEN_", "NOTIFY_"))}


def login_variables() -> dict[str, str]:
    """Those of LOGIN_VARIABLES that are set, for a worker, which starts without: /proc shows what it starts with."""
    return {name: value for name, value in os.environ.items() if name in LOGIN_VARIABLES}


def proxy_variables() -> dict[str, str]:
    """http_proxy, https_proxy, all_proxy and no_proxy, as far as they are set, in capitals if not in small letters."""
    found = {name: os.environ.get(name) or os.environ.get(name.upper(), "") for name in _PROXY}
    return {name: value for name, value in found.items() if value}


def started_with() -> dict[str, str]:
    """All of them, for a process of ours that is to find its modules as this one does."""
    return dict(os.environ)


def restore(variables: dict[str, str]) -> None:
    """Set variables in this process, for the programs that it starts; what is none of LOGIN_VARIABLES is left out."""
    os.environ.update((name, value) for name, value in variables.items() if name in LOGIN_VARIABLES)


def replace(variables: list[bytes]) -> None:
    """Have these (NAME=VALUE), and no others, in this process, which was forked for one that has them."""
    os.environb.clear()
    for variable in variables:
        name, equals, value = variable.partition(b"=")
        if name and equals:
            os.environb[name] = value


def changes_interpreter() -> bool:
    """Whether one is set that changes what Python, or a library that it loads, does when it starts."""
    return any(name.startswith(_AT_START) and name not in _HARMLESS for name in os.environ)


def _directory(variable: str, default: str) -> Path:
    from pathlib import Path

    return Path(os.environ.get(variable) or default).absolute()
