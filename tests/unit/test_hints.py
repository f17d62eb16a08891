"""What errors advise to type: an option is named so that every command that may show the error has it."""

from __future__ import annotations

import ast
from pathlib import Path

import blobfuse_dysk
from blobfuse_dysk.options import ATTACH_OPTIONS, MOUNT_OPTIONS

ROOT = Path(blobfuse_dysk.__file__).parent
# What only dyskctl shows, and what shows nothing.
ELSEWHERE = ("cli", "kubernetes", "testing")
OF_RELOAD = "azure/credential/credential.py"


def texts(path: Path) -> list[str]:
    """The strings of a file, without what is put into them, and without docstrings."""
    tree = ast.parse(path.read_text())
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents
    ]


def test_what_mount_shows_too_names_its_own_spelling_of_an_option() -> None:
    """`mount -o` has no --io-timeout and no --break-lease: where one is advised, `-o` stands beside it."""
    flags = [f"--{option}" for option in (*ATTACH_OPTIONS, *MOUNT_OPTIONS)]
    assert "--io-timeout" in flags and "--break-lease" in flags
    wrong = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in ELSEWHERE and str(path.relative_to(ROOT)) != OF_RELOAD
        for text in texts(path)
        if " " in text.strip() and any(flag in text.split() or f"{flag}," in text for flag in flags)
        if "-o " not in text and "dyskctl" not in text
    ]
    assert wrong == []
