"""The model of what a page may hold, and the stamp by which a page says what it is."""

from __future__ import annotations

import contextlib

import pytest

from blobfuse_dysk.testing.pages import FOREIGN, PAGE, PageModel, stamped, versions


def written(model: PageModel[int, str], content: str, *pages: int) -> None:
    with model.writing(dict.fromkeys(pages or (0,), content)):
        pass


@pytest.mark.parametrize("ordered", [False, True])
def test_a_page_holds_what_it_held_at_first_until_a_write_has_returned(ordered: bool) -> None:
    model = PageModel[int, str]("zeros", {1: "first"}, ordered=ordered)
    write = model.begin({0: "a", 1: "a"})
    assert model.allowed(0, model.now()) == {"zeros", "a"}
    assert model.allowed(1, model.now()) == {"first", "a"}
    model.end(write)
    assert model.allowed(0, model.now()) == model.allowed(1, model.now()) == {"a"}
    assert model.allowed(2, model.now()) == {"zeros"}
    assert model.places() == {0, 1}


@pytest.mark.parametrize("ordered", [False, True])
def test_a_write_that_failed_may_be_there_or_not_until_the_next_one_has_returned(ordered: bool) -> None:
    model = PageModel[int, str]("zeros", ordered=ordered)
    with contextlib.suppress(OSError), model.writing({0: "failed"}):
        raise OSError
    assert model.allowed(0, model.now()) == {"zeros", "failed"}
    written(model, "next")
    assert model.allowed(0, model.now()) == ({"next"} if ordered else {"next", "failed"}), "it may land late"


def test_of_two_writes_at_the_same_time_either_may_be_the_last_unless_the_store_keeps_their_order() -> None:
    for ordered, allowed in ((False, {"a", "b"}), (True, {"b"})):
        model = PageModel[int, str]("zeros", ordered=ordered)
        first, second = model.begin({0: "a"}), model.begin({0: "b"})
        model.end(second)
        model.end(first)
        assert model.allowed(0, model.now()) == allowed


def test_a_crash_may_undo_what_no_flush_guaranteed_and_nothing_else() -> None:
    model = PageModel[int, str]("zeros")
    written(model, "a")
    flush = model.now()
    written(model, "b")
    assert model.allowed(0, flush) == {"a", "b"}
    assert model.allowed(0, model.now()) == {"b"}


def test_a_reader_may_see_what_began_before_it_had_ended_and_nothing_that_began_later() -> None:
    model = PageModel[int, str]("zeros")
    begun = model.now()
    written(model, "during")
    ended = model.now()
    written(model, "after")
    assert model.allowed(0, begun, ended) == {"zeros", "during"}


@pytest.mark.parametrize("ordered", [False, True])
def test_what_is_wrong_with_a_page_is_told(ordered: bool) -> None:
    model = PageModel[int, str]("zeros", ordered=ordered)
    written(model, "old")
    written(model, "new")
    assert model.doubt(0, "new", model.now()) is None
    for content, lost in (("old", True), ("zeros", True), ("other", False)):
        doubt = model.doubt(0, content, model.now())
        assert doubt is not None
        assert doubt.lost == lost
        assert doubt.since == 3, "the moment at which the newer one began"
        assert doubt.text.startswith(f"page 0 holds {content}, ")
        assert doubt.text.endswith("allowed: new")
    with pytest.raises(AssertionError, match=r"after the crash:\npage 0 holds old, older than"):
        model.check([(0, "old"), (1, "zeros")], model.now(), when="after the crash")
    model.check([(0, "new"), (1, "zeros")], model.now())


def test_what_no_call_in_doubt_has_changed_is_settled() -> None:
    model = PageModel[int, str]("zeros", {1: "first"})
    assert [model.settled(0), model.settled(1)] == ["zeros", "first"]
    written(model, "a", 0, 1)
    model.begin({0: "in doubt"})
    assert [model.settled(0), model.settled(1)] == ["a", "a"]


def test_moments_may_be_the_callers_own() -> None:
    model = PageModel[int, str]("zeros")
    model.end(model.begin({0: "a"}, at=0), at=10)
    assert model.allowed(0, 10) == {"zeros", "a"}
    assert model.allowed(0, 11) == {"a"}


@pytest.mark.parametrize("ordered", [False, True])
def test_what_is_forgotten_is_only_what_nobody_can_see_any_more(ordered: bool) -> None:
    model = PageModel[int, str]("zeros", ordered=ordered)
    running = model.begin({0: "running"})
    for content in "abcd":
        written(model, content, 0, 1)
    before = [model.allowed(page, model.now()) for page in (0, 1, 2)]
    model.forget([0, 1, 2])
    assert [model.allowed(page, model.now()) for page in (0, 1, 2)] == before
    assert [len(writes) for writes in model._writes.values()] == ([1, 1] if ordered else [2, 1])
    model.end(running)
    assert model.allowed(1, model.now()) == {"d"}


def test_pages_tell_where_they_belong() -> None:
    pages = stamped(5, 2) + stamped(6, 3)
    assert versions(pages, 2) == [5, 6]
    assert versions(pages, 0) == [FOREIGN, FOREIGN]
    assert versions(pages, 2, space=1) == [FOREIGN, FOREIGN]
    torn = pages[:256] + stamped(7, 2)[256:] + stamped(0, 3)
    assert versions(torn, 2) == [FOREIGN, 0]
    assert versions(pages[16:528], 2) == [FOREIGN]
    assert versions(bytes(PAGE + 8)) == [0, 0]
