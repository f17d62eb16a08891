"""Lists that are told in pieces: over the containers that the driver was given, each with the service's own markers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from grpc import StatusCode

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import NotFoundError, ServiceError, UsageError
from blobfuse_dysk.kubernetes.csi.status import CallError

__all__ = ["PAGE", "Ask", "Container", "pieces"]

_T = TypeVar("_T")
Container: TypeAlias = DiskAddress
"""A container of an account; its blob stands for all."""
Ask: TypeAlias = Callable[[Container, str, int], tuple[list[_T], str]]
"""container, marker ('' for the first), the most entries -> entries, marker of the rest ('' for none)."""

PAGE = 5000  # entries, where nobody says how many
_TOKEN = re.compile(r"([0-9]{1,4}):(.*)", re.DOTALL)


def pieces(containers: Sequence[Container], token: str, most: int, ask: Ask[_T]) -> tuple[list[_T], str]:
    """At most `most` entries (0: a page of ours) from where the token says, and the token of the rest, '' at the end.

    A container that is not there has none. Raises CallError(ABORTED) for a token that is none of ours; else as `ask`.
    """
    at, marker = _read(token, len(containers))
    entries: list[_T] = []
    left = most or PAGE
    while at < len(containers) and left > 0:
        try:
            found, marker_after = ask(containers[at], marker, min(left, PAGE))
        except NotFoundError:
            found, marker_after = [], ""
        except (UsageError, ServiceError) as error:
            if marker and (isinstance(error, UsageError) or error.status == 400):
                raise _no_token(token) from error
            raise
        entries += found
        left -= len(found)
        marker = marker_after
        if not marker:
            at += 1
    return entries, f"{at}:{marker}" if at < len(containers) else ""


def _read(token: str, containers: int) -> tuple[int, str]:
    if not token:
        return 0, ""
    match = _TOKEN.fullmatch(token)
    if not match or int(match[1]) >= containers:
        raise _no_token(token)
    return int(match[1]), match[2]


def _no_token(token: str) -> CallError:
    return CallError(StatusCode.ABORTED, f"starting_token {token[:64]!r} is none of this list", remedy="begin anew")
