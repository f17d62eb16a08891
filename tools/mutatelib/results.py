"""What became of mutants, kept in a file, so that a run does only what changed since the one before.

A line of JSON each, only ever appended: several runs, of several working trees, may share the file. A result counts
while its key is the same: a hash of the source, the mutant, the tests named for it, and the tests' helpers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.mutatelib.mutants import Mutant

__all__ = ["Baseline", "Keys", "Outcome", "Results"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the tests said to a mutant. by: the test that noticed, '' if none did. slow: it ran out of time."""

    id: str
    killed: bool
    by: str
    slow: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Baseline:
    """That tests pass on the tree as it is, and how long that took."""

    tests: str
    seconds: float


class Results:
    """The file with what is known. Not for use by several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, dict[str, object]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    self._lines[entry.pop("key")] = entry
                except (ValueError, KeyError, AttributeError):
                    continue  # a line that was cut when a machine went down

    def outcome(self, key: str) -> Outcome | None:
        """What is known under a key, if anything."""
        entry = self._lines.get(key)
        return None if entry is None else Outcome(**entry)  # type: ignore[arg-type]

    def baseline(self, key: str) -> Baseline | None:
        """What is known under a key, if anything."""
        entry = self._lines.get(key)
        return None if entry is None else Baseline(**entry)  # type: ignore[arg-type]

    def add(self, key: str, value: Outcome | Baseline) -> None:
        """Keep it: one write, so that lines of several runs do not mix."""
        self._lines[key] = asdict(value)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, **asdict(value)}) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


class Keys:
    """Makes the keys. What is in the files is read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[Path, str] = {}
        self._helpers = self._hash(path for path in (root / "tests").rglob("*.py") if not _is_test(path))
        self._sources = self._hash((root / "blobfuse_dysk").rglob("*.py"))

    def of_mutant(self, mutant: Mutant) -> str:
        """The key of a mutant's outcome."""
        tests = [self._test(test) for test in mutant.tests]
        return _digest("mutant", mutant.id, mutant.file, mutant.text, mutant.mutated, self._helpers, *tests)

    def of_baseline(self, test: str) -> str:
        """The key of a baseline, which all of the product's source goes into."""
        return _digest("baseline", self._sources, self._helpers, self._test(test))

    def _test(self, test: str) -> str:
        path = self._root / test.partition("::")[0]
        files = [path] if path.is_file() else [file for file in path.rglob("*.py") if _is_test(file)]
        return _digest(test, self._hash(files))

    def _hash(self, paths: Iterable[Path]) -> str:
        return _digest(*self._pieces(sorted(paths)))

    def _pieces(self, paths: list[Path]) -> Iterator[str]:
        for path in paths:
            if path not in self._read:
                self._read[path] = path.read_text()
            yield path.relative_to(self._root).as_posix()
            yield self._read[path]


def _is_test(path: Path) -> bool:
    return path.name.startswith("test_")


def _digest(*pieces: str) -> str:
    sums = [hashlib.sha256(piece.encode()).hexdigest() for piece in pieces]
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()
