"""Tools for tests: stores that misbehave or check, one conformance suite, a page blob server.

Nothing of this is imported by the package itself. Names are imported when first used, so that a test which only
needs a server does not pay for the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checked import CheckedStore
    from .conformance import CHECKS, check_name, check_store
    from .detached import DetachedStore
    from .fates import Fate, weather
    from .faulty import Fault, FaultyStore, at_random, in_turn
    from .lanes import LaneStore
    from .memory import MemoryStore
    from .pageblobserver import PageBlobServer
    from .recording import Call, RecordingStore
    from .simblob import SimBlob
    from .simclient import SimClient

__all__ = [
    "CHECKS",
    "Call",
    "CheckedStore",
    "DetachedStore",
    "Fate",
    "Fault",
    "FaultyStore",
    "LaneStore",
    "MemoryStore",
    "PageBlobServer",
    "RecordingStore",
    "SimBlob",
    "SimClient",
    "at_random",
    "check_name",
    "check_store",
    "in_turn",
    "weather",
]

_MODULES = {
    "CHECKS": "conformance",
    "Call": "recording",
    "CheckedStore": "checked",
    "DetachedStore": "detached",
    "Fate": "fates",
    "Fault": "faulty",
    "FaultyStore": "faulty",
    "LaneStore": "lanes",
    "MemoryStore": "memory",
    "PageBlobServer": "pageblobserver",
    "RecordingStore": "recording",
    "SimBlob": "simblob",
    "SimClient": "simclient",
    "at_random": "faulty",
    "check_name": "conformance",
    "check_store": "conformance",
    "in_turn": "faulty",
    "weather": "fates",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{module}", __name__), name)
