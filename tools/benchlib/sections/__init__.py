"""The tables of tools/bench, each in a file, in the order in which they are measured.

A section that its plan gives nothing to do adds no figure. The titles say what is measured and how.
"""

from __future__ import annotations

from tools.benchlib.bench import Section
from tools.benchlib.sections import (
    attaching,
    azurite,
    barriers,
    beside,
    blank,
    databases,
    earlier,
    memory,
    random,
    s3,
    sequential,
    streams,
    tiers,
    volumes,
)  # fmt: skip

__all__ = ["SECTIONS"]

SECTIONS: tuple[Section, ...] = (
    attaching.SECTION,
    beside.SECTION,
    earlier.SECTION,
    random.SECTION,
    tiers.SECTION,
    sequential.SECTION,
    streams.SECTION,
    barriers.SECTION,
    databases.SECTION,
    blank.SECTION,
    memory.SECTION,
    volumes.SECTION,
    azurite.SECTION,
    s3.SECTION,
)
