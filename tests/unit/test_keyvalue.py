"""Files of `key = value` lines, and what a mistyped word meant."""

from __future__ import annotations

import pytest

from blobfuse_dysk.errors import CredentialError
from blobfuse_dysk.keyvalue import read_entries, suggest

KEYS = ("disk", "io-timeout", "secret")


def values(text: str) -> dict[str, str]:
    entries = read_entries(
        text, "FILE", KEYS, expected="keys are ...", fold=lambda key: key.replace("_", "-"), error=CredentialError
    )
    assert all(entry.where == f"FILE, line {entry.line}" for entry in entries.values())
    return {key: entry.value for key, entry in entries.items()}


def test_blanks_comments_quotes_and_capitals() -> None:
    text = "# disk = x\n\n  disk=a = b\r\nIO_timeout = '5 m'\n \t# more\nsecret =  \"'\"  \n"
    assert values(text) == {"disk": "a = b", "io-timeout": "5 m", "secret": "'"}
    assert values("disk = \"a'") == {"disk": "\"a'"}, "quotes that do not belong together stay"
    assert values("disk = '") == {"disk": "'"}
    assert values("") == {}


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("disk", "FILE, line 1: expected 'key = value'", "keys are ..."),
        ("= x", "FILE, line 1: expected 'key = value'", "keys are ..."),
        ("\nio_timout = 5", "FILE, line 2: unknown key 'io_timout'", "did you mean io-timeout?"),
        ("ZZZ = 5", "FILE, line 1: unknown key 'zzz'", "keys are ..."),
        ("disk = ''", "FILE, line 1: expected a value behind 'disk ='", "fill it in, or remove the line"),
        (
            "io-timeout = 5\n\nio_timeout = 6",
            "FILE, line 3: io_timeout is given in line 1 already",
            "remove one of them",
        ),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, message: str, remedy: str) -> None:
    with pytest.raises(CredentialError) as caught:
        values(text)
    assert (str(caught.value), caught.value.remedy) == (message, remedy)


@pytest.mark.parametrize(
    "text", ["c2VjcmV0SECRET==", "SECRETSECRETSECRETSECRETSECRET = x", "secret = SECRET\nsecret = x"]
)
def test_no_message_holds_what_may_be_a_secret(text: str) -> None:
    with pytest.raises(CredentialError) as caught:
        values(text)
    assert "secretsecret" not in caught.value.line().lower() and "SECRET" not in caught.value.line()
    assert "SECRET" not in repr(read_entries("secret = SECRET", "FILE", KEYS, expected=""))


def test_the_nearest_words_are_suggested_with_their_dashes() -> None:
    assert suggest("atach", ["attach", "detach", "list"]) == "did you mean attach or detach?"
    assert suggest("atach", ["attach", "detach", "list"], most=1) == "did you mean attach?"
    assert suggest("--io-timout", ["--io-timeout", "--iops"], most=1) == "did you mean --io-timeout?"
    assert suggest("frobnicate", ["attach", "detach"]) is None
    assert suggest("attch", ["attach"], cutoff=0.95) is None
    assert suggest("frobnicate", ["attach"], cutoff=0) == "did you mean attach?"
