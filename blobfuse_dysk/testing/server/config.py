"""How a server is to behave: one JSON object, checked once. What `configure` may change while running is marked."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["LIVE", "Config", "Token", "config_from_json", "parse_keys", "parse_tokens"]


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token that is accepted until `expires_at` (service's clock, seconds since the epoch; None: for ever).

    permissions: SAS letters; "rl" is the role Storage Blob Data Reader, "rwdlc" Contributor.
    """

    expires_at: float | None = None
    permissions: str = "rwdlc"


@dataclass(slots=True)
class Config:
    """Fields named in LIVE can be changed through the control port."""

    accounts: dict[str, list[bytes]] = field(default_factory=dict)  # live; every key is accepted, as key1 and key2 are
    tokens: dict[str, Token] = field(default_factory=dict)  # live; bearer tokens by their text
    tokens_over_http: bool = False  # the service takes bearer tokens over HTTPS only
    host: str = "127.0.0.1"
    port: int = 0  # 0: any free port
    control_port: int = 0
    cert_file: str | None = None  # HTTPS with this chain and key
    key_file: str | None = None
    directory: str | None = None  # keep everything here; None: in memory
    latency: str = "0"  # live; see latency.parse_latency
    tier: str | None = None  # live; see throttle.TIERS, or "IOPS/MBPS"
    throttle: str = "503"  # live; what a tier's limit does: "503" or "delay"
    seed: int | None = None  # of latency and of faults by probability
    copies: str = "success"  # live; what Copy Blob comes to at once; "pending": until the control port ends it
    sku: str = "Standard_LRS"  # live; of the accounts; in a "Premium_..." one page blobs have tiers (tiers.py)
    idle_timeout_s: float | None = None  # live; idle connections are closed after this
    idle_death_s: float | None = None  # live; after this an idle connection is forgotten, and neither side told
    clock_offset_s: float = 0.0  # live; the service's clock against this machine's
    max_skew_s: float = 900.0  # of a signed request's date


LIVE = frozenset(
    {
        "accounts",
        "clock_offset_s",
        "copies",
        "idle_death_s",
        "idle_timeout_s",
        "latency",
        "sku",
        "throttle",
        "tier",
        "tokens",
    }
)


def parse_keys(accounts: Mapping[str, str | list[str]]) -> dict[str, list[bytes]]:
    """`{account: base64 key or list of them}` decoded; ValueError names the account."""
    found = {}
    for name, keys in accounts.items():
        try:
            texts = [keys] if isinstance(keys, str) else keys
            found[name] = [base64.b64decode(text, validate=True) for text in texts]
        except binascii.Error as error:
            raise ValueError(f"key of account {name} is not base64: {error}") from None
    return found


def parse_tokens(tokens: Mapping[str, Mapping[str, Any]]) -> dict[str, Token]:
    """`{token: {"expires_at": ..., "permissions": ...}}`."""
    return {text: Token(**options) for text, options in tokens.items()}


def config_from_json(given: Mapping[str, Any]) -> Config:
    """Read and check; ValueError for an unknown name or a malformed value."""
    unknown = set(given) - {each.name for each in fields(Config)}
    if unknown:
        raise ValueError(f"unknown option {sorted(unknown)[0]!r}")
    values = dict(given)
    values["accounts"] = parse_keys(given.get("accounts", {}))
    values["tokens"] = parse_tokens(given.get("tokens", {}))
    for name in ("cert_file", "key_file"):
        if (path := given.get(name)) and not Path(path).is_file():
            raise ValueError(f"{name} {path!r} is no file")
    if not values["accounts"]:
        raise ValueError("a server needs an account")
    return Config(**values)
