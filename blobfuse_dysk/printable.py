"""Text of others made fit for a terminal and a log: the one place through which all of it goes.

What the service, a gateway or a tool says may hold escape sequences, which would steer root's terminal, and characters
that turn the order of others round or show nothing. Errors (errors.py), what the commands print (cli/output.py,
mount/helper.py) and every line of a log (device/ipc/log.py) are made of this.
"""

from __future__ import annotations

__all__ = ["MOST", "printable", "printable_json"]

MOST = 4000  # characters


def printable(text: str, most: int = MOST) -> str:
    """The text in one line and at most `most` characters: what Unicode calls not printable is written as `\\x1b`.

    Tabs and ends of lines become blanks.
    """
    if len(text) > most:
        text = f"{text[: most - 3]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c in "\t\n\r" else _escaped(c) for c in text)


def printable_json(text: str) -> str:
    """JSON that means the same and holds printable characters and its own ends of lines only."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(c if c.isprintable() or c == "\n" else _json_escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _json_escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
