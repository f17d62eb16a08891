"""tools/fuzzlib: the parser that is written in C holds what it promises for each input of its corpus."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import need
from tools import fuzzlib
from tools.fuzzlib.__main__ import read_corpus, run_corpus


def test_every_input_of_the_corpus(tmp_path: Path) -> None:
    need(shutil.which("gcc"), "there is no gcc")
    assert len(read_corpus()) > 50
    run_corpus(tmp_path)


def test_a_parser_that_takes_anything_is_noticed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need(shutil.which("gcc"), "there is no gcc")
    root = Path(fuzzlib.__file__).parents[2]
    for name in ("tools/fuzzlib", "blobfuse_dysk/azure/native"):
        shutil.copytree(root / name, tmp_path / name)
    header = tmp_path / "blobfuse_dysk/azure/native/answer.h"
    text = header.read_text()
    for old, new in (("if (!fits || (*got & what))", "if (*got & what)"), ("== needed ?", "!= 99 ?")):
        assert old in text
        header.write_text(text.replace(old, new))
        place = tmp_path / str(len(old))
        place.mkdir()
        with pytest.raises(subprocess.CalledProcessError):
            run_corpus(place, target=tmp_path / "tools/fuzzlib/answer.c")
    assert "length" in capfd.readouterr().err
