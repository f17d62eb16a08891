"""tools/cluster's own parts that need no cluster: the archives that containerd reads, and the cluster's keys."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tools.clusterlib import cgroups, keys, suite
from tools.clusterlib.image import Image, write_archive


def _read_json(archive: tarfile.TarFile, name: str) -> dict[str, object]:
    member = archive.extractfile(name)
    assert member is not None
    value: dict[str, object] = json.loads(member.read())
    return value


def test_an_archive_holds_each_blob_under_its_own_digest_and_every_name_of_the_image(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"program")
    with tarfile.open(tmp_path / "root.tar", "w") as root:
        root.add(program, "etc/below")
    image = Image(("r.test/a:1", "r.test/b:2"), tmp_path / "root.tar", ((program, "/opt/bin/program"),))
    write_archive([image, Image(("r.test/c:1",), tmp_path / "root.tar")], tmp_path / "image.tar")

    with tarfile.open(tmp_path / "image.tar") as archive:
        blobs = [name for name in archive.getnames() if name.startswith("blobs/")]
        for name in blobs:
            content = archive.extractfile(name)
            assert content is not None
            assert hashlib.sha256(content.read()).hexdigest() == name.removeprefix("blobs/sha256/")
        index = _read_json(archive, "index.json")
    assert len(blobs) == 6  # two layers, of which one is shared; for each image the configuration and the manifest
    manifests = index["manifests"]
    assert isinstance(manifests, list)
    names = [manifest["annotations"]["io.containerd.image.name"] for manifest in manifests]
    assert names == ["r.test/a:1", "r.test/b:2", "r.test/c:1"]


def test_files_of_an_image_can_be_run_and_lie_in_folders_that_can_be_entered(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"program")
    image = Image(("r.test/a:1",), files=((program, "/opt/bin/program"),))
    write_archive([image], tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as archive:
        manifest_name = str(_read_json(archive, "index.json")["manifests"][0]["digest"])  # type: ignore[index]
        manifest = _read_json(archive, manifest_name.replace("sha256:", "blobs/sha256/"))
        layer_name = str(manifest["layers"][0]["digest"])  # type: ignore[index]
        layer = archive.extractfile(layer_name.replace("sha256:", "blobs/sha256/"))
        assert layer is not None
        with tarfile.open(fileobj=layer) as inner:
            modes = {member.name: member.mode for member in inner}
    assert modes == {"tmp": 0o1777, "opt": 0o755, "opt/bin": 0o755, "opt/bin/program": 0o755}


def test_a_certificate_is_signed_by_the_clusters_authority_and_has_the_names_of_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "KEYS", tmp_path)
    authority = keys.Authority.create()
    authority.issue("server", "kube-apiserver", "group", names=("localhost", "10.0.0.1"))
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes()))
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in alternatives.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    assert certificate.public_key() == load_pem_public_key((tmp_path / "server.pub").read_bytes())


def test_results_of_the_suite_are_passed_failed_and_skipped_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "junit_01.xml").write_text(
        """<testsuites><testsuite>
        <testcase name="[It] External Storage a"/>
        <testcase name="[It] External Storage b"><skipped message="skipped"/></testcase>
        <testcase name="[It] External Storage d"><skipped message="skipped - no blocks - skipping"/></testcase>
        <testcase name="[It] External Storage c"><failure>no</failure></testcase>
        <testcase name="[SynchronizedBeforeSuite]"/>
        </testsuite></testsuites>"""
    )
    assert suite.results(tmp_path) == (1, ["[It] External Storage c"], {"no blocks": 1})


def test_a_cgroup_that_holds_a_cgroup_is_removed_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu" / "cluster-x" / "pods" / "one").mkdir(parents=True)
    (tmp_path / "memory" / "other").mkdir(parents=True)
    monkeypatch.setattr(cgroups, "_TOP", tmp_path)
    cgroups.remove("/cluster-x")
    assert not (tmp_path / "cpu" / "cluster-x").exists()
    assert (tmp_path / "memory" / "other").exists()
