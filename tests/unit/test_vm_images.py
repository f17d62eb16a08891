"""The two images that tests/vm gives to its machines are whole, and differ."""

from __future__ import annotations

import subprocess
from pathlib import Path

from blobfuse_dysk.kubernetes.host import tree
from tests.vm.images import IN_IMAGE, make_images


def test_the_second_image_is_another_version_and_the_first_is_as_it_was(tmp_path: Path) -> None:
    made = tmp_path / "tree"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "python3").write_bytes(b"program" * 10_000)
    name = tree.seal(made, "0.1.0")
    images = make_images(made, tmp_path)
    assert images.trees[0] == name
    assert images.trees[1].startswith("0.1.0+1-")
    for number, wanted in enumerate(images.trees, start=1):
        out = tmp_path / f"out-{number}"
        out.mkdir()
        order = f"rdump /image-{number}/{IN_IMAGE} {out}"
        subprocess.run(["/sbin/debugfs", "-R", order, images.drive], check=True, capture_output=True)
        found = out / Path(IN_IMAGE).name
        assert tree.tree_id(found) == wanted
        assert tree.verify(found) is None
