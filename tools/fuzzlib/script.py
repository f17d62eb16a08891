"""An input of a fuzzer, read as a list of things to do. At its end come zeros: so any input can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Script"]

T = TypeVar("T")


class Script:
    """What is left of an input."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """The next byte."""
        return self.bytes(1)[0] if self else 0

    def number(self, size: int) -> int:
        """The next `size` bytes, as a number."""
        return int.from_bytes(self.bytes(size), "little")

    def one_of(self, choices: Sequence[T]) -> T:
        """One of these, chosen by the next byte."""
        return choices[self.byte() % len(choices)]

    def bytes(self, most: int) -> bytes:
        """As many of the next bytes as there are."""
        self._at += most
        return self._data[self._at - most : self._at]
