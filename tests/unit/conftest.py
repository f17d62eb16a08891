"""Fixtures of the unit tests."""

from tests.suspension import suspend

__all__ = ["suspend"]
