"""tools/constraints.txt: every archive by its hash, no host, and all that the package wants; the bill of materials."""

from __future__ import annotations

import re
import tomllib

import pytest

from tools.sbom import ROOT, components, document

PARTS = ["build", "run", "entra", "csi", "demo", "test"]


@pytest.mark.parametrize("part", PARTS)
def test_every_pin_has_hashes(part: str) -> None:
    found = components([part])
    assert found
    assert all(each.hashes for each in found)


def test_no_pin_names_a_host() -> None:
    assert "://" not in (ROOT / "tools" / "constraints.txt").read_text()


def test_a_part_has_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for parts, wanted in (
        (["run"], project["dependencies"]),
        (["run", "entra"], extras["entra"]),
        (["run", "csi"], extras["csi"]),
        (["demo"], extras["demo"]),
        (PARTS, extras["test"]),
    ):
        pinned = {each.name for each in components(parts)}
        assert {re.split("[<>=]", name)[0].lower() for name in wanted} <= pinned


def test_the_bill_of_materials_is_of_what_the_package_holds() -> None:
    names = {each["name"] for each in document(components())["components"]}
    assert {"trio", "pyfuse3", "azure-identity", "grpcio"} <= names
    assert not {"pytest", "setuptools"} & names
