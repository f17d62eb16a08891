"""What a value out of JSON must be, read from the annotations of the TypedDicts by which mypy knows it.

So a record is written down once. mypy takes `TypedDict`, `Literal`, `Annotated` and `NotRequired` from typing, whose
import would cost the holder half a MiB; while the program runs they are what stands below under the same names:

    if TYPE_CHECKING:
        from typing import Annotated, Literal, NotRequired, TypedDict
    else:
        from blobfuse_dysk.device.ipc.shapes import Annotated, Literal, NotRequired, TypedDict

Annotations may use bool, int, float, str, None, object (whatever JSON can say), `|`, list[X], dict[str, X], other
records, and these four. They are stricter than JSON and than Python: true is no int; neither NaN nor an infinity is a
number, nor is an int so large that it is no float; a str can be a path.

What cannot be said with them is Annotated[X, Rule]. tests/unit/test_shapes.py compares all of this with typing's own.
"""

from __future__ import annotations

import json
import sys

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "Annotated",
    "Literal",
    "NotRequired",
    "Rule",
    "Shape",
    "TypedDict",
    "at_least",
    "at_most_characters",
    "fields_of",
    "parse",
    "problem",
    "values_of",
]

_MOST_DEPTH = 16  # of what an annotation `object` lets pass; the rest is as deep as the annotations are
_MOST_SHOWN = 60  # characters of a wrong value or of a name that are shown
_LARGEST = 1e308  # of a number


class Shape:
    """What a value must be. what: in words. fits: whether it is."""

    __slots__ = ("fits", "what")

    def __init__(self, what: str, fits: Callable[[Any], bool]) -> None:
        self.what = what
        self.fits = fits

    def problem(self, value: object, where: str, surplus: bool) -> str | None:
        """What is wrong with a value, if anything. where: its name. surplus: fields that are not known may be there."""
        return None if self.fits(value) else f"{where} is {_shown(value)}, not {self.what}"

    def __or__(self, other: object) -> Shape:
        return _Either(self, _shape(other))

    def __ror__(self, other: object) -> Shape:
        return _Either(_shape(other), self)


class Rule:
    """A condition of a value, beyond its type. what: in words, as `0 or more`."""

    __slots__ = ("fits", "what")

    def __init__(self, what: str, fits: Callable[[Any], bool]) -> None:
        self.what = what
        self.fits = fits


def at_least(least: float) -> Rule:
    """For numbers."""
    return Rule(f"{least:g} or more", lambda value: bool(value >= least))


def at_most_characters(most: int) -> Rule:
    """For texts."""
    return Rule(f"{most} characters at most", lambda value: len(value) <= most)


class _Either(Shape):
    """X | Y"""

    __slots__ = ("shapes",)

    def __init__(self, *shapes: Shape) -> None:
        super().__init__(" or ".join(shape.what for shape in shapes), _no_value)
        self.shapes = shapes

    def problem(self, value: object, where: str, surplus: bool) -> str | None:
        problems = [shape.problem(value, where, surplus) for shape in self.shapes]
        if None in problems:
            return None
        inside = (found for found in problems if found and not found.startswith(f"{where} is "))
        return next(inside, super().problem(value, where, surplus))


class _Values(Shape):
    """Literal["a", "b"]"""

    __slots__ = ("values",)

    def __init__(self, values: tuple[object, ...]) -> None:
        super().__init__(" or ".join(map(repr, values)), _no_value)
        self.values = values

    def problem(self, value: object, where: str, surplus: bool) -> str | None:
        if any(type(value) is type(each) and value == each for each in self.values):
            return None
        return f"{where} is {_shown(value)}, not {self.what}"


class _Ruled(Shape):
    """Annotated[X, Rule]"""

    __slots__ = ("rules", "shape")

    def __init__(self, shape: Shape, rules: tuple[Rule, ...]) -> None:
        super().__init__(", ".join((shape.what, *(rule.what for rule in rules))), _no_value)
        self.shape, self.rules = shape, rules

    def problem(self, value: object, where: str, surplus: bool) -> str | None:
        found = self.shape.problem(value, where, surplus)
        if found is None and not all(rule.fits(value) for rule in self.rules):
            return f"{where} is {_shown(value)}, not {self.what}"
        return found


class _List(Shape):
    """list[X]"""

    __slots__ = ("shape",)

    def __init__(self, shape: Shape) -> None:
        super().__init__("a list", _is_list)
        self.shape = shape

    def problem(self, value: Any, where: str, surplus: bool) -> str | None:
        if not self.fits(value):
            return super().problem(value, where, surplus)
        found = (self.shape.problem(each, f"{where}[{number}]", surplus) for number, each in enumerate(value))
        return next(filter(None, found), None)


class _Dict(Shape):
    """dict[str, X]"""

    __slots__ = ("keys", "values")

    def __init__(self, keys: Shape, values: Shape) -> None:
        super().__init__("an object", _is_object)
        self.keys, self.values = keys, values

    def problem(self, value: Any, where: str, surplus: bool) -> str | None:
        if not self.fits(value):
            return super().problem(value, where, surplus)
        for key, each in value.items():
            found = self.keys.problem(key, f"a key of {where}", surplus)
            if found := found or self.values.problem(each, f"{where}[{_shown(key)}]", surplus):
                return found
        return None


class _Optional:
    """NotRequired[X]"""

    __slots__ = ("shape",)

    def __init__(self, shape: Shape) -> None:
        self.shape = shape


class _Record(Shape):
    """A TypedDict. required: the names of fields that must be there."""

    __slots__ = ("fields", "required")

    def __init__(self, fields: dict[str, Shape], required: tuple[str, ...]) -> None:
        super().__init__("an object", _is_object)
        self.fields, self.required = fields, required

    def problem(self, value: Any, where: str, surplus: bool) -> str | None:
        if not self.fits(value):
            return super().problem(value, where, surplus)
        inside = f"{where}." if where else ""
        for name in self.required:
            if name not in value:
                return f"{inside}{name} is missing"
        for name, each in value.items():
            if name in self.fields:
                if found := self.fields[name].problem(each, f"{inside}{name}", surplus):
                    return found
            elif not surplus:
                return f"{inside}{_shown(name)} is not known"
        return None


def _no_value(value: object) -> bool:
    """For shapes that judge in another way."""
    return False


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _is_int(value: object) -> bool:
    return type(value) is int and _is_number(value)


def _is_text(value: object) -> bool:
    """JSON can say lone halves of surrogate pairs. Of these os.fsencode takes those that stand for a byte of a path."""
    if not isinstance(value, str):
        return False
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_json(value: object, depth: int = _MOST_DEPTH) -> bool:
    if depth and isinstance(value, dict):
        return all(_is_text(key) and _is_json(each, depth - 1) for key, each in value.items())
    if depth and isinstance(value, list):
        return all(_is_json(each, depth - 1) for each in value)
    return value is None or isinstance(value, bool) or _is_number(value) or _is_text(value)


_PLAIN = {
    bool: Shape("true or false", lambda value: isinstance(value, bool)),
    int: Shape("a whole number", _is_int),
    float: Shape("a number", _is_number),
    str: Shape("a text", _is_text),
    None: Shape("null", lambda value: value is None),
    type(None): Shape("null", lambda value: value is None),
    object: Shape("JSON of little depth", _is_json),
}
_UNION: Any = type(int | None)
_GENERIC: Any = type(list[int])
_records: dict[type, _Record] = {}


class TypedDict:
    """In the place of typing's while the program runs: only its annotations are asked for."""


class _Literals:
    def __getitem__(self, values: object) -> Shape:
        return _Values(values if isinstance(values, tuple) else (values,))


class _Annotations:
    def __getitem__(self, arguments: tuple[Any, ...]) -> Shape:
        shape, *rules = arguments
        return _Ruled(_shape(shape), tuple(rules))


class _NotRequireds:
    def __getitem__(self, argument: object) -> _Optional:
        return _Optional(_shape(argument))


Literal, Annotated, NotRequired = _Literals(), _Annotations(), _NotRequireds()


def _shape(annotation: Any) -> Shape:
    if isinstance(annotation, Shape):
        return annotation
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if isinstance(annotation, type) and issubclass(annotation, TypedDict):
        return _record(annotation)
    if type(annotation) is _UNION:
        return _Either(*map(_shape, annotation.__args__))
    if type(annotation) is _GENERIC and annotation.__origin__ in (list, dict):
        return (_List if annotation.__origin__ is list else _Dict)(*map(_shape, annotation.__args__))
    raise TypeError(f"no shape is made of {annotation!r}")


def _record(record: type) -> _Record:
    """The shape of a TypedDict, made when it is first asked for."""
    if record not in _records:
        fields: dict[str, Shape] = {}
        required: list[str] = []
        for cls in reversed(record.__mro__[: record.__mro__.index(TypedDict)]):
            for name, text in cls.__annotations__.items():
                shape = eval(text, vars(sys.modules[cls.__module__]))  # as typing.get_type_hints does
                if isinstance(shape, _Optional):
                    fields[name] = shape.shape
                else:
                    fields[name] = _shape(shape)
                    required.append(name)
        _records[record] = _Record(fields, tuple(required))
    return _records[record]


def parse(data: bytes) -> Any:
    """JSON as the standard has it, without NaN and infinities. Raises nothing but ValueError, with one line of text."""
    try:
        return json.loads(data, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is too deep") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {ascii(str(error))[1:-1]}") from None


def problem(value: object, record: Any, where: str = "", *, surplus: bool = False) -> str | None:
    """What is wrong with a value that is to be such a record, in one line; None if it fits.

    where: what to call the value; fields are named by their path. surplus: fields that are not known may be there.
    """
    return _record(record).problem(value, where, surplus)


def fields_of(record: Any) -> dict[str, Shape]:
    """The fields of a record, those that need not be there included."""
    return _record(record).fields


def values_of(literal: Any) -> tuple[Any, ...]:
    """The values of a Literal."""
    assert isinstance(literal, _Values)
    return literal.values


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _shown(value: object) -> str:
    """A wrong value for a line in a log: short, and without control characters."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    text = ascii(value[: _MOST_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
