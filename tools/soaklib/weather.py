"""Faults of the service, drawn at random: what the page blob server does wrong during a round."""

from __future__ import annotations

from random import Random
from typing import Any

from blobfuse_dysk.testing import PageBlobServer

__all__ = ["draw", "switch_on"]

_ANY = ["put_page", "clear_page", "get_blob", "get_page_ranges", "lease_renew", "set_blob_properties"]
_LATE = ["put_page", "clear_page", "get_blob", "set_blob_properties"]


def draw(random: Random, *, checksum: bool, most: int = 4) -> list[dict[str, Any]]:
    """Some rules, each with its probability. corrupt: only where checksums find it."""
    seconds = random.choice((0.05, 0.2, 0.5))
    rules: list[dict[str, Any]] = [
        {"action": "error", "status": 503, "operation": _ANY, "probability": 0.05},
        {"action": "error", "status": 500, "operation": _ANY, "probability": 0.03},
        {"action": "error", "status": 500, "when": "after", "operation": _ANY, "probability": 0.03},
        {"action": "reset", "operation": _ANY, "probability": 0.03},
        {"action": "reset", "when": "after", "operation": _ANY, "probability": 0.03},
        {"action": "lost", "connection": "close", "operation": _ANY, "probability": 0.03},
        {"action": "late", "seconds": seconds, "operation": _LATE, "probability": 0.05},
        {"action": "late", "seconds": seconds, "status": 500, "operation": _LATE, "probability": 0.05},
        {"action": "delay", "seconds": seconds / 2, "operation": _ANY, "probability": 0.05},
        {"action": "stall", "seconds": seconds / 2, "operation": _ANY, "probability": 0.02},
        {"action": "short", "operation": _ANY, "probability": 0.02},
    ]
    if checksum:
        rules.append({"action": "corrupt", "operation": ["put_page", "get_blob"], "probability": 0.03})
    return random.sample(rules, random.randint(1, most))


def switch_on(server: PageBlobServer, rules: list[dict[str, Any]]) -> None:
    """Put all of them in force."""
    for rule in rules:
        server.fault(**rule)
