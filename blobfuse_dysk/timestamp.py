"""Moments as text: ISO 8601 in UTC, whole seconds, as state.json, logs, messages and the blob's metadata have them."""

from __future__ import annotations

import time

__all__ = ["utc_text"]


def utc_text(seconds: float | None = None) -> str:
    """`2026-01-31T12:00:00Z` for seconds since the epoch, or for now."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
