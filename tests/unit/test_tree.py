"""Trees: what a node's driver copies onto its machine, and when it is taken away again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.kubernetes.host import tree


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sealed tree as an image has it: two programs that are one file, a module, a directory in a directory."""
    made = tmp_path / "image"
    (made / "bin").mkdir(parents=True)
    (made / "lib" / "deep").mkdir(parents=True)
    (made / "bin" / "python3").write_bytes(b"program")
    (made / "bin" / "python3").chmod(0o755)
    os.link(made / "bin" / "python3", made / "bin" / "dyskctl")
    (made / "lib" / "deep" / "module.py").write_text("answer = 42\n")
    tree.seal(made, "0.1.0")
    return made


def test_a_tree_is_called_by_its_version_and_its_content(image: Path) -> None:
    before = tree.tree_id(image)
    assert before.startswith("0.1.0-")
    (image / "lib" / "deep" / "module.py").write_text("answer = 43\n")
    tree.seal(image, "0.1.0")
    assert tree.tree_id(image) != before


def test_what_is_copied_is_the_same_with_its_modes_and_its_links(image: Path, tmp_path: Path) -> None:
    there = tree.install(image, tmp_path / "trees")
    assert there == tmp_path / "trees" / tree.tree_id(image)
    assert tree.verify(there) is None
    assert (there / "bin" / "python3").stat().st_ino == (there / "bin" / "dyskctl").stat().st_ino
    assert (there / "bin" / "python3").stat().st_mode & 0o777 == 0o755


def test_a_second_copy_is_not_made(image: Path, tmp_path: Path) -> None:
    there = tree.install(image, tmp_path / "trees")
    before = (there / "bin" / "python3").stat().st_ino
    assert tree.install(image, tmp_path / "trees") == there
    assert (there / "bin" / "python3").stat().st_ino == before


@pytest.mark.parametrize("harm", ["changed", "missing", "more", "mode"])
def test_a_damaged_tree_makes_room_for_a_good_one(image: Path, tmp_path: Path, harm: str) -> None:
    there = tree.install(image, tmp_path / "trees")
    module = there / "lib" / "deep" / "module.py"
    if harm == "changed":
        module.write_text("answer = 0\n")
    elif harm == "missing":
        module.unlink()
    elif harm == "more":
        (there / "lib" / "more.py").write_text("")
    else:
        module.chmod(0o666)
    assert tree.verify(there) is not None
    assert tree.install(image, tmp_path / "trees") == there
    assert tree.verify(there) is None


def test_of_a_damaged_image_nothing_is_installed(image: Path, tmp_path: Path) -> None:
    (image / "lib" / "deep" / "module.py").write_text("answer = 0\n")
    with pytest.raises(DeviceError, match=r"image's installation is damaged: lib/deep/module.py is damaged"):
        tree.install(image, tmp_path / "trees")
    assert [path.name for path in (tmp_path / "trees").iterdir()] == [".lock"]


def test_what_a_killed_copy_left_is_taken_away(image: Path, tmp_path: Path) -> None:
    left = tmp_path / "trees" / ".new-0.1.0-abc-1"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    tree.install(image, tmp_path / "trees")
    assert not left.exists()


def test_what_is_no_tree_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="is no installation to copy"):
        tree.install(tmp_path, tmp_path / "trees")


def test_trees_that_nothing_runs_from_are_removed_and_others_are_not(image: Path, tmp_path: Path) -> None:
    trees = tmp_path / "trees"
    old = tree.install(image, trees)
    program = old / "bin" / "program"
    shutil.copy(os.path.realpath(sys.executable), program)
    (image / "lib" / "deep" / "module.py").write_text("answer = 43\n")
    tree.seal(image, "0.2.0")
    new = tree.install(image, trees)
    with subprocess.Popen([program, "-S", "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1) as running:
        assert running.stdout
        running.stdout.readline()
        assert tree.users_of(old) == [running.pid]
        assert tree.remove_unused(trees, new.name) == []
        running.communicate(b"\n")
    assert tree.remove_unused(trees, new.name) == [old.name]
    assert sorted(path.name for path in trees.iterdir()) == [".lock", new.name]


def test_no_tree_but_the_one_to_keep_stays_though_none_is_used(image: Path, tmp_path: Path) -> None:
    there = tree.install(image, tmp_path / "trees")
    assert tree.remove_unused(tmp_path / "trees", there.name) == []
    assert there.exists()
