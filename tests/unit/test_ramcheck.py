"""Caches that do not fit into the machine are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobfuse_dysk.device.attacher import ramcheck
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions


@pytest.fixture
def meminfo(tmp_path: Path) -> str:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:        1048576 kB\nMemFree:  1 kB\nMemAvailable:     524288 kB\n")
    return str(path)


def test_the_memory_that_is_available_is_read_from_meminfo(meminfo: str, tmp_path: Path) -> None:
    assert ramcheck.available(meminfo) == 512 << 20
    assert ramcheck.available(str(tmp_path / "none")) is None
    assert (ramcheck.available() or 0) > 0


def test_caches_may_take_half_of_what_is_available(meminfo: str) -> None:
    ramcheck.check(AttachOptions(write_cache_size=128 << 20, read_cache_size=128 << 20), meminfo)
    with pytest.raises(UsageError, match=r"256MiB.*512MiB available") as caught:
        ramcheck.check(AttachOptions(write_cache_size=128 << 20, read_cache_size=(128 << 20) + 512), meminfo)
    assert "cache=none" in caught.value.line()


@pytest.mark.parametrize("options", [{"cache": "none"}, {"cache": "readonly"}, {"read_only": True}])
def test_only_caches_that_are_used_count(options: dict[str, object], meminfo: str) -> None:
    ramcheck.check(AttachOptions(write_cache_size=1 << 40, **options), meminfo)  # type: ignore[arg-type]
