"""HTTP proxies: which one the way to an endpoint leads through, by a setting or by the variables that curl knows.

A proxy is asked for a tunnel (CONNECT), for HTTPS as for HTTP, by the data path (azure/tunnel.py) and by doctor; the
SDK of the management calls is given the same one. The proxy sees names and amounts, and with HTTPS nothing else.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from blobfuse_dysk.errors import UsageError

__all__ = ["NONE", "Proxy", "choose"]

NONE = "none"
"""The setting that goes without a proxy, whatever the variables say."""
_REMEDY = "write http://[USER:PASSWORD@]HOST:PORT, or none"


@dataclass(frozen=True, slots=True)
class Proxy:
    """user, password: to be sent to the proxy, or ''. source: where it is named, for people; '' if nobody will ask."""

    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    source: str = ""

    @classmethod
    def parse(cls, text: str, source: str) -> Proxy | None:
        """Read a proxy's URL; None for `none`. Raises UsageError, which shows no password. A bare HOST:PORT will do."""
        if text == NONE:
            return None
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UsageError(f"{source} is not the URL of a proxy", remedy=_REMEDY) from None
        if parts.scheme != "http":
            raise UsageError(f"{source} names a proxy of the kind {parts.scheme}, not http", remedy=_REMEDY)
        if not host or parts.path not in ("", "/") or parts.query or parts.fragment or not host.isprintable():
            raise UsageError(f"{source} is not the URL of a proxy", remedy=_REMEDY)
        return cls(host, port or 80, unquote(parts.username or ""), unquote(parts.password or ""), source)

    @property
    def url(self) -> str:
        """With the password: a secret."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user else ""
        return f"http://{login}{self._place}"

    @property
    def headers(self) -> dict[str, str]:
        """What it has to be sent with a CONNECT."""
        if not self.user:
            return {}
        login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Proxy-Authorization": f"Basic {login}"}

    @property
    def _place(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"http://{self._place}"


def choose(
    scheme: str, host: str, port: int, settings: Mapping[str, str | None], variables: Mapping[str, str]
) -> Proxy | None:
    """The proxy to an endpoint, or None. Raises UsageError.

    settings: by where they stand, the first that is not None or '' counts, for every endpoint. variables: http_proxy,
    https_proxy, all_proxy and no_proxy, which do not count for endpoints on this machine.
    """
    for source, setting in settings.items():
        if setting:
            return Proxy.parse(setting, source)
    if _is_loopback(host) or _is_exempt(host, port, variables.get("no_proxy", "")):
        return None
    for name in (f"{scheme}_proxy", "all_proxy"):
        if variables.get(name):
            return Proxy.parse(variables[name], name)
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether a name or address, with its port or not, a domain above it, a network around it or `*` is in the list."""
    for entry in no_proxy.replace(",", " ").lower().split():
        if entry == "*" or _is_within(host, entry):
            return True
        name, colon, wanted = entry.rpartition(":")
        name = (name if colon and wanted == str(port) else entry).strip("[]").removeprefix("*").lstrip(".")
        if name and (host == name or host.endswith(f".{name}")):
            return True
    return False


def _is_within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
