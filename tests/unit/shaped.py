"""The types of messages and of state.json as typing has them, and values that fit them or do not."""

from __future__ import annotations

import importlib
import math
import os
import sys
import types
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from blobfuse_dysk.device.ipc.shapes import Rule

_PACKAGE = "blobfuse_dysk.device.ipc"
_NAMES = ["statefile", "messages", "control"]  # each imports those before it


class Typed:
    """All records as mypy sees them: with typing's own TypedDict, Literal, Annotated, NotRequired.

    modules: by name. hints: of each record, what typing says of its fields.
    """

    def __init__(self) -> None:
        real = {f"{_PACKAGE}.{name}": importlib.import_module(f"{_PACKAGE}.{name}") for name in _NAMES}
        self.modules: dict[str, types.ModuleType] = {}
        self.hints: dict[Any, dict[str, Any]] = {}
        try:
            for full, module in real.items():
                source = Path(module.__file__ or "").read_text()
                assert source.count("TYPE_CHECKING = False") == 1
                typed = sys.modules[full] = types.ModuleType(full)  # the next one imports from it
                exec(source.replace("TYPE_CHECKING = False", "TYPE_CHECKING = True"), vars(typed))
                self.modules[full.rpartition(".")[2]] = typed
            for typed in self.modules.values():
                records = filter(is_typeddict, vars(typed).values())
                self.hints |= {record: get_type_hints(record, include_extras=True) for record in records}
        finally:
            sys.modules.update(real)

    def record(self, name: str) -> Any:
        """By its name."""
        return next(record for record in self.hints if record.__name__ == name)

    def required(self, record: Any) -> set[str]:
        """The fields that must be there. typing does not find that out where annotations are text."""
        return {name for name, hint in self.hints[record].items() if get_origin(hint) is not NotRequired}

    def fits(self, value: Any, hint: Any) -> bool:
        """Whether a value is of a type, by the rules of shapes.py, said once more."""
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is NotRequired:
            return self.fits(value, arguments[0])
        if origin is Annotated:
            return self.fits(value, arguments[0]) and all(rule.fits(value) for rule in arguments[1:])
        if origin is Literal:
            return any(type(value) is type(each) and value == each for each in arguments)
        if origin in (Union, types.UnionType):
            return any(self.fits(value, each) for each in arguments)
        if origin is list:
            return isinstance(value, list) and all(self.fits(each, arguments[0]) for each in value)
        if origin is dict:
            return isinstance(value, dict) and all(
                self.fits(key, arguments[0]) and self.fits(each, arguments[1]) for key, each in value.items()
            )
        if is_typeddict(hint):
            fields = self.hints[hint]
            return (
                isinstance(value, dict)
                and self.required(hint) <= value.keys() <= fields.keys()
                and all(self.fits(each, fields[name]) for name, each in value.items())
            )
        return _is_plain(value, hint)

    def value(self, hint: Any, chance: Random) -> Any:
        """A value of a type, drawn."""
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is NotRequired:
            return self.value(arguments[0], chance)
        if origin is Annotated:
            return self._ruled(arguments[0], arguments[1:], chance)
        if origin is Literal:
            return chance.choice(arguments)
        if origin in (Union, types.UnionType):
            return self.value(chance.choice(arguments), chance)
        if origin is list:
            return [self.value(arguments[0], chance) for _ in range(chance.randrange(3))]
        if origin is dict:
            return {
                self.value(arguments[0], chance): self.value(arguments[1], chance) for _ in range(chance.randrange(3))
            }
        if is_typeddict(hint):
            fields, required = self.hints[hint], self.required(hint)
            names = [name for name in fields if name in required or chance.random() < 0.5]
            return {name: self.value(fields[name], chance) for name in names}
        return plain_value(hint, chance)

    def _ruled(self, hint: Any, rules: tuple[Rule, ...], chance: Random) -> Any:
        while True:
            value = self.value(hint, chance)
            if all(rule.fits(value) for rule in rules):
                return value

    def mutated(self, value: Any, chance: Random) -> Any:
        """With something in it changed, taken away or added."""
        if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
            return odd_value(chance)
        what = chance.choice(["inside", "inside", "remove", "add"])
        if isinstance(value, list):
            place = chance.randrange(len(value))
            inside = [self.mutated(value[place], chance)] if what == "inside" else []
            return [*value, odd_value(chance)] if what == "add" else [*value[:place], *inside, *value[place + 1 :]]
        name = chance.choice(list(value))
        if what == "remove":
            return {key: each for key, each in value.items() if key != name}
        if what == "inside":
            return {**value, name: self.mutated(value[name], chance)}
        return {**value, chance.choice(TEXTS): odd_value(chance)}


def _is_plain(value: Any, hint: Any) -> bool:
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 1e308
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e308
    if hint is str:
        return isinstance(value, str) and _is_path(value)
    if hint is object:
        return _is_finite(value)
    assert hint in (bool, type(None))
    return isinstance(value, hint)


def _is_path(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(key, str) and _is_finite(each) for key, each in value.items())
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return value is None or any(_is_plain(value, hint) for hint in (bool, float, str))


def plain_value(hint: Any, chance: Random) -> Any:
    """A bool, int, float, str, None or any JSON."""
    if hint is object:
        kind = chance.choice([dict, list, bool, int, float, str, type(None)])
        if kind is list:
            return [plain_value(object, chance) for _ in range(chance.randrange(3))]
        if kind is dict:
            return {chance.choice(TEXTS): plain_value(object, chance) for _ in range(chance.randrange(3))}
        return plain_value(kind, chance)
    values: dict[Any, list[Any]] = {
        bool: [False, True],
        int: [0, 1, 512, 4711, -1, 1 << 40, 10**20],
        float: [0, 1, 60.0, 0.25, -1, -0.5, 1e308, 1 << 70],
        str: TEXTS,
        type(None): [None],
    }
    return chance.choice(values[hint])


def odd_value(chance: Random) -> Any:
    """Any JSON, and what JSON cannot say but json.loads takes all the same."""
    odd: list[Any] = [math.nan, math.inf, -math.inf, 10**400, "\ud800", "/a\udcff", 1e308, -1, 0.5, True, 1 << 31]
    return chance.choice(odd) if chance.random() < 0.5 else plain_value(object, chance)


TEXTS = [
    "",
    "a",
    "data",
    "old",
    "a=b",
    "state",
    "é",
    "\U0001f5b4",
    "x" * 65,
    "x" * 5000,
    "a\0b",
    "a\n",
    "\x1b[2J",
    "op",
    "event",
]
