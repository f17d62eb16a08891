"""Lists of mutants: a TOML file beside each source file that decides over data. CONTRIBUTING.md has the format.

All of it is checked strictly, since a mutant that is not what its author meant says nothing about the tests.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SUFFIX", "Mutant", "MutantError", "load"]

SUFFIX = ".mutants.toml"
_TOPS = ("blobfuse_dysk", "tools")  # where lists are looked for
_ID = re.compile(r"[A-Z]{2,3}[0-9]{2,3}")
_FILE_KEYS = {"tests": list, "mutant": list}
_NEEDED = {"id": str, "means": str, "loses_data": bool, "old": str, "new": str}
_OPTIONAL = {"tests": list, "equivalent": str}


class MutantError(Exception):
    """A list that is wrong: one line that says where and how."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A source file with some of its lines replaced by wrong ones.

    file: the source, relative to the root, with '/'. tests: pytest arguments, cheapest first. equivalent: why no test
    can tell, or None. text, mutated: the whole file as it is, and with the wrong lines.
    """

    id: str
    file: str
    line: int
    means: str
    loses_data: bool
    tests: tuple[str, ...]
    equivalent: str | None
    old: str
    new: str
    text: str
    mutated: str


def load(root: Path) -> list[Mutant]:
    """Read and check all lists under `root`, by file. Raises MutantError."""
    found: dict[str, Mutant] = {}
    for path in sorted(path for top in _TOPS for path in (root / top).rglob(f"*{SUFFIX}")):
        for mutant in _read(root, path):
            if mutant.id in found:
                raise MutantError(f"{_name(root, path)}: {mutant.id} is in {found[mutant.id].file}, too")
            found[mutant.id] = mutant
    return list(found.values())


def _read(root: Path, path: Path) -> list[Mutant]:
    where = _name(root, path)
    source = path.with_name(path.name.removesuffix(SUFFIX) + ".py")
    if not source.is_file():
        raise MutantError(f"{where}: there is no {source.name} beside it")
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MutantError(f"{where}: not TOML: {error}") from None
    _check_keys(where, table, _FILE_KEYS, {})
    tests = _tests(root, where, table["tests"])
    text = source.read_text()
    return [_mutant(root, where, _name(root, source), text, tests, entry) for entry in table["mutant"]]


def _mutant(root: Path, where: str, file: str, text: str, tests: tuple[str, ...], entry: object) -> Mutant:
    if not isinstance(entry, dict):
        raise MutantError(f"{where}: a mutant is a table: [[mutant]]")
    where = f"{where}: {entry.get('id', 'a mutant without id')}"
    _check_keys(where, entry, _NEEDED, _OPTIONAL)
    if not _ID.fullmatch(entry["id"]):
        raise MutantError(f"{where}: an id is two or three capitals and a number")
    for key in ("means", "equivalent"):
        if not entry.get(key, "-").strip():
            raise MutantError(f"{where}: {key!r} is empty")
    old, new = (re.sub(r"\n[ \t]*\Z", "", entry[key]) for key in ("old", "new"))
    if not old.strip():
        raise MutantError(f"{where}: 'old' is empty")
    if old == new:
        raise MutantError(f"{where}: 'old' and 'new' are the same")
    places = _places(text, old)
    if len(places) != 1:
        how = f"{len(places)} times" if places else "not"
        raise MutantError(f"{where}: 'old' is {how} in {file}; whole lines that occur once are needed")
    mutated = text[: places[0]] + new + text[places[0] + len(old) + (not new) :]  # no lines in place of an empty one
    try:
        compile(mutated, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise MutantError(f"{where}: with 'new', {file} does not compile: {error}") from None
    return Mutant(
        id=entry["id"],
        file=file,
        line=text.count("\n", 0, places[0]) + 1,
        means=entry["means"],
        loses_data=entry["loses_data"],
        tests=_tests(root, where, entry["tests"]) if "tests" in entry else tests,
        equivalent=entry.get("equivalent"),
        old=old,
        new=new,
        text=text,
        mutated=mutated,
    )


def _places(text: str, lines: str) -> list[int]:
    """Where these whole lines begin in the text."""
    return [match.start() for match in re.finditer(rf"(?m)^(?={re.escape(lines)}$)", text)]


def _check_keys(where: str, table: Mapping[str, Any], needed: Mapping[str, type], optional: Mapping[str, type]) -> None:
    known = {**needed, **optional}
    if unknown := sorted(table.keys() - known.keys()):
        raise MutantError(f"{where}: unknown key {unknown[0]!r}")
    for key, kind in known.items():
        if key not in table and key in needed:
            raise MutantError(f"{where}: {key!r} is missing")
        if key in table and not isinstance(table[key], kind):
            raise MutantError(f"{where}: {key!r} is no {kind.__name__}")


def _tests(root: Path, where: str, tests: list[object]) -> tuple[str, ...]:
    if not tests:
        raise MutantError(f"{where}: 'tests' is empty")
    for test in tests:
        if not isinstance(test, str) or not test or not (root / test.partition("::")[0]).exists():
            raise MutantError(f"{where}: there is no test {test!r}")
    return tuple(map(str, tests))


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
