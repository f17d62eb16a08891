"""What others say never steers a terminal, and a log has one line for a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfuse_dysk.azure.refusal import service_error
from blobfuse_dysk.azure.wire import Reply
from blobfuse_dysk.cli import output
from blobfuse_dysk.device.ipc.log import Log
from blobfuse_dysk.errors import DyskError, LeasedError
from blobfuse_dysk.printable import MOST, printable, printable_json

TRICKS = [
    "\x1b[31mred",
    "\x07",
    "a\rb",
    "\x9b2J",
    "\u202eabc",
    "\xad",
    "\x7f",
    "a\nb",
    "\u2028",
    "\udc80",
    "\U000e0001",
]
ANYTHING = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e4\u20ac\u6f22", "plain \u00e4\u20ac\u6f22"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\tb\r\nc", "a b  c"),
        ("abc\u202efdp", r"abc\u202efdp"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_is_not_printable_is_shown_as_its_number(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(ANYTHING, st.integers(10, 50))
def test_it_is_one_line_that_is_printable_and_short_enough(text: str, most: int) -> None:
    assert printable(text, most).isprintable()
    assert len(printable(text)) <= 10 * MOST
    assert printable(printable(text)) == printable(text)
    if len(text) > most:
        assert printable(text, most).endswith("...")
    elif text.isprintable():
        assert printable(text, most) == text


@given(st.dictionaries(ANYTHING, ANYTHING))
def test_json_means_the_same(value: dict[str, str]) -> None:
    text = printable_json(json.dumps(value, indent=2, ensure_ascii=False))
    assert json.loads(text) == value
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("trick", TRICKS)
def test_no_way_out_lets_it_through(trick: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = f"<Error><Code>C{trick}</Code><Message>M{trick}</Message></Error>".encode("utf-8", "surrogatepass")
    refused = service_error(Reply(400, b"HTTP/1.1 400 No\r\n\r\n", body), "read")
    named = LeasedError("leased", holder=f"n{trick}", since=trick, remedy=trick)
    said = [
        *map(str, (refused, refused.code, DyskError(trick), named.holder, named.since)),
        DyskError("x", remedy=trick).line(),
    ]
    output.print_error(f"e{trick}", trick, as_json=False)
    output.print_error(f"e{trick}", trick, as_json=True)
    output.warn(trick)
    output.print_json({"disk": trick, trick: 1})
    output.print_table(["DISK"], [[trick], [None]])
    output.print_pairs({"holder": trick, "more": {"names": [trick]}})
    Log("dysk-worker", "data", str(tmp_path), syslog="/nonexistent")(f"the service says {trick}")
    out, err = capfd.readouterr()
    for text in (*said, *out.splitlines(), *err.splitlines(), *(tmp_path / "data.log").read_text().split("\n")):
        assert text.isprintable(), repr(text)


def test_a_refusal_is_not_longer_than_anybody_reads() -> None:
    body = f"<Error><Code>{'c' * 9999}</Code><Message>{'m' * 9999}</Message></Error>".encode()
    assert len(str(service_error(Reply(400, b"HTTP/1.1 400 No\r\n\r\n", body), "read"))) < 700
