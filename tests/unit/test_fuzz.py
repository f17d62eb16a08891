"""tools/fuzzlib: what is written in C does as it should for each input of its corpus, and what breaks it is seen."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import need
from tools.fuzzlib.__main__ import ROOT, TARGETS, Target, read_corpus, run_corpus

NATIVE = "blobfuse_dysk/azure/native", "blobfuse_dysk/device/native"


@pytest.fixture
def target(name: str) -> Target:
    need(shutil.which("gcc"), "there is no gcc")
    found = TARGETS[name]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    need(not found.module or headers.exists(), "there are no headers of Python")
    return found


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus(target: Target, tmp_path: Path) -> None:
    assert len(read_corpus(target)) > 50
    run_corpus(target, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "said"),
    [
        ("answer", "azure/native/answer.h", "!fits || (*got & what)", "(void)fits, *got & what", "length"),
        ("answer", "azure/native/answer.h", "== needed ?", "!= 99 ?", "length"),
        ("channel", "device/native/channel.c", "header->len > slab->size)", "0)", "AddressSanitizer"),
        ("channel", "device/native/taken.c", "slab->start < end ||", "slab->start + 8 < end ||", "slabs that are none"),
        ("channel", "device/native/taken.c", " || slab->kept == 0)", ")", "AddressSanitizer"),
        ("exchange", "azure/native/exchange.c", "rest > line->wanted.length ||", "", "AddressSanitizer"),
        ("exchange", "azure/native/exchange.c", "line->state != before", "line->ready == NULL", "AddressSanitizer"),
        ("exchange", "azure/native/exchange.c", "bool more = !line->busy;", "bool more = true;", "who waits"),
        ("exchange", "azure/native/ready.c", "Py_CLEAR(line->task);", ";", "is given out"),
    ],
)
def test_what_is_broken_is_noticed(
    target: Target, file: str, old: str, new: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("tools/fuzzlib", *NATIVE):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    source = tmp_path / "blobfuse_dysk" / file
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_corpus(target, tmp_path, root=tmp_path)
    assert caught.value.cmd[0] == tmp_path / "run", "it was not even built"
    assert said in capfd.readouterr().err
