"""Images as one OCI archive, of files and of a root directory's tar: no container engine, base image or registry.

The layout is that of the OCI image specification (image-layout.md, config.md, manifest.md); containerd reads an
image's name from the annotation io.containerd.image.name.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Image:
    """One image: its names, the tar of a root directory below (or none), and files of ours on top."""

    names: tuple[str, ...]
    root: Path | None = None
    files: tuple[tuple[Path, str], ...] = ()  # (file here, absolute path in the image)
    links: tuple[tuple[str, str], ...] = ()  # (absolute path in the image, what it points to)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = field(default=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",))


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _digest(stream: io.BufferedReader) -> str:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _top_layer(image: Image, target: Path) -> None:
    """The files and links of ours, owned by root, with the folders above them."""
    folders: set[str] = set()
    with tarfile.open(target, "w") as archive:

        def add(name: str, kind: bytes, mode: int, source: Path | None = None, points_to: str = "") -> None:
            info = tarfile.TarInfo(name.lstrip("/"))
            info.type, info.mode, info.linkname = kind, mode, points_to
            if source is None:
                archive.addfile(info)
                return
            info.size = source.stat().st_size
            with source.open("rb") as content:
                archive.addfile(info, content)

        def add_folders(path: str) -> None:
            for folder in reversed(Path(path).parents[:-1]):
                # A Debian root has links for these, and a folder in a later layer would replace the link.
                if image.root and str(folder) in ("/bin", "/sbin", "/lib", "/lib64"):
                    continue
                if str(folder) not in folders:
                    folders.add(str(folder))
                    add(str(folder), tarfile.DIRTYPE, 0o755)

        if not image.root:
            add("/tmp", tarfile.DIRTYPE, 0o1777)
            folders.add("/tmp")
        for source, path in image.files:
            add_folders(path)
            add(path, tarfile.REGTYPE, 0o755, source)
        for path, points_to in image.links:
            add_folders(path)
            add(path, tarfile.SYMTYPE, 0o777, points_to=points_to)


def write_archive(images: Sequence[Image], target: Path) -> None:
    """Writes the images as the OCI archive `target`, whole or not at all; what they share is in it once."""
    top, new = target.with_suffix(".layer"), target.with_suffix(".new")
    roots: dict[Path, dict[str, object]] = {}
    manifests = []
    with tarfile.open(new, "w") as archive:
        _add_bytes(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        for image in images:
            layers = []
            if image.root:
                if image.root not in roots:
                    roots[image.root] = _add_layer(archive, image.root)
                layers.append(roots[image.root])
            if image.files or image.links:
                _top_layer(image, top)
                layers.append(_add_layer(archive, top))
                top.unlink()
            config = _add_json(archive, _CONFIG, _config(image, [layer["digest"] for layer in layers]))
            described = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}
            manifest = _add_json(archive, _MANIFEST, described)
            manifests += [manifest | {"annotations": {"io.containerd.image.name": name}} for name in image.names]
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests}
        _add_bytes(archive, "index.json", json.dumps(index).encode())
    new.rename(target)


def _add_layer(archive: tarfile.TarFile, layer: Path) -> dict[str, object]:
    with layer.open("rb") as content:
        digest = _digest(content)
        content.seek(0)
        info = tarfile.TarInfo(f"blobs/sha256/{digest}")
        info.size = layer.stat().st_size
        archive.addfile(info, content)
    return {"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": info.size}


def _add_json(archive: tarfile.TarFile, kind: str, value: object) -> dict[str, object]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    _add_bytes(archive, f"blobs/sha256/{digest}", data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _config(image: Image, layers: Sequence[object]) -> dict[str, object]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": image.entrypoint, "Cmd": image.command, "Env": image.environment},
        "rootfs": {"type": "layers", "diff_ids": layers},
    }
