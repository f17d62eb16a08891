"""What a record's annotations say while the program runs is what they say to mypy."""

from __future__ import annotations

import sys
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.device.ipc import control, messages, shapes, statefile
from tests.unit.shaped import Typed

EXAMPLES = settings(max_examples=120, deadline=None)
TYPED = Typed()
RECORDS = {record.__name__: record for record in TYPED.hints}
STAND_INS: dict[str, Any] = {
    name: value
    for module in (statefile, messages, control)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, shapes.TypedDict) and value is not shapes.TypedDict
}


def test_every_record_is_a_typed_dict_to_mypy_and_a_shape_at_run_time() -> None:
    assert RECORDS.keys() == STAND_INS.keys()
    assert len(RECORDS) > 25


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_record_has_the_fields_that_mypy_knows(name: str) -> None:
    shape = shapes._record(STAND_INS[name])
    assert shape.fields.keys() == TYPED.hints[RECORDS[name]].keys()
    assert {*shape.required} == TYPED.required(RECORDS[name])


@given(chance=st.randoms(use_true_random=True))
@EXAMPLES
def test_what_mypy_would_take_fits(chance: Random) -> None:
    name = chance.choice([*RECORDS])
    value = TYPED.value(RECORDS[name], chance)
    assert TYPED.fits(value, RECORDS[name])
    assert shapes.problem(value, STAND_INS[name]) is None


@given(chance=st.randoms(use_true_random=True))
@EXAMPLES
def test_of_a_changed_record_typing_and_shape_judge_alike(chance: Random) -> None:
    name = chance.choice([*RECORDS])
    value = TYPED.mutated(TYPED.value(RECORDS[name], chance), chance)
    problem = shapes.problem(value, STAND_INS[name])
    assert (problem is None) == TYPED.fits(value, RECORDS[name]), problem
    assert problem is None or (problem.isprintable() and problem.isascii() and len(problem) < 1000)


@pytest.mark.parametrize("alias", ["State", "StateSeen"])
def test_a_literal_has_the_values_that_mypy_knows(alias: str) -> None:
    hint = vars(TYPED.modules["statefile"])[alias]
    assert get_origin(hint) is Literal
    assert shapes.values_of(getattr(statefile, alias)) == get_args(hint)


def test_whoever_looks_may_see_a_dead_attachment_and_nobody_writes_one_down() -> None:
    assert {*shapes.values_of(statefile.StateSeen)} - {*shapes.values_of(statefile.State)} == {"dead"}


if TYPE_CHECKING:
    from typing import NotRequired, TypedDict
else:
    from blobfuse_dysk.device.ipc.shapes import NotRequired, TypedDict


class Inner(TypedDict):
    number: int


class Outer(TypedDict):
    inner: Inner | None
    many: list[Inner]
    named: dict[str, float]
    free: NotRequired[object]


FITS: dict[str, Any] = {"inner": {"number": 1}, "many": [{"number": 2}], "named": {"a": 1.5}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"inner": None}, None),
        ({"free": [{}, [None, True, "x"]]}, None),
        ({"free": "/a/path/that/is/no/text\udcff"}, None),
        ({"inner": {"number": True}}, "it.inner.number is true, not a whole number"),
        ({"inner": {"number": 1.0}}, "it.inner.number is 1.0, not a whole number"),
        ({"inner": {}}, "it.inner.number is missing"),
        ({"inner": 3}, "it.inner is 3, not an object or null"),
        ({"many": [{"number": 2}, {"number": 2, "b\n": 1}]}, r"it.many[1].'b\n' is not known"),
        ({"many": {}}, "it.many is an object, not a list"),
        ({"named": {"a": float("nan")}}, "it.named['a'] is nan, not a number"),
        ({"named": {"a": float("inf")}}, "it.named['a'] is inf, not a number"),
        ({"named": {"\ud800": 1}}, r"a key of it.named is '\ud800', not a text"),
        ({"named": {"a": 10**400}}, f"it.named['a'] is 1{'0' * 59}..., not a number"),
        ({"free": {"deep": [float("nan")]}}, "it.free is an object, not JSON of little depth"),
        ({"surplus": 1}, "it.'surplus' is not known"),
    ],
)
def test_a_problem_is_named_with_its_place(change: dict[str, Any], expected: str | None) -> None:
    assert shapes.problem({**FITS, **change}, Outer, "it") == expected


def test_fields_that_are_not_known_may_be_let_pass() -> None:
    assert shapes.problem({**FITS, "surplus": 1, "inner": {"number": 1, "more": 2}}, Outer, surplus=True) is None
    assert shapes.problem({**FITS, "surplus": 1, "inner": {}}, Outer, surplus=True) == "inner.number is missing"


def test_free_json_is_not_deeper_than_a_stack() -> None:
    value: object = 1
    for _ in range(sys.getrecursionlimit() * 2):
        value = [value]
    assert shapes.problem({**FITS, "free": value}, Outer)


def test_an_annotation_that_nobody_understands_is_no_shape() -> None:
    class Wrong(TypedDict):
        field: tuple[int]

    with pytest.raises(TypeError, match="no shape"):
        shapes.problem({}, Wrong)


def test_a_rule_says_what_it_wants() -> None:
    hint = get_args(vars(TYPED.modules["statefile"])["Seconds"])
    assert (get_origin(Annotated[int, 1]), hint[0]) == (Annotated, float)
    value = {"op": "drain", "id": "1", "limit_s": -0.5}
    assert shapes.problem(value, messages.Drain) == "limit_s is -0.5, not a number, 0 or more"
