"""csi-sanity, the test suite of the Container Storage Interface, against controller and node with real mounts.

tools/setup builds it, as the Go module of kubernetes-csi/csi-test that tests/kubernetes/go/sanity pins.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import need
from tools.csiup import ROOT, SANITY

LEFT_OUT = tomllib.loads((Path(__file__).parent / "sanity-left-out.toml").read_text())
LIMIT_S = 900
COMMAND = (
    '"$0" --csi.endpoint="$CSI_ENDPOINT" --csi.controllerendpoint="$CSI_CONTROLLER_ENDPOINT"'
    ' --csi.secrets="$CSI_SECRETS_FILE" --csi.testvolumeparameters="$CSI_PARAMETERS_FILE"'
    ' --csi.testvolumemutableparameters="$CSI_MUTABLE_PARAMETERS_FILE" --csi.mountdir="$1/mount"'
    ' --csi.stagingdir="$1/staging" --ginkgo.json-report="$1/report.json" --ginkgo.skip="$2" --ginkgo.no-color'
)


@pytest.mark.timeout(LIMIT_S)
def test_all_specs_that_apply_pass(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "it mounts, which takes root")
    need(SANITY.exists(), f"{SANITY} is not there; tools/setup builds it where Go is installed")
    skipped = "|".join(re.escape(name) for name in LEFT_OUT["not-asked"])
    done = subprocess.run(
        [ROOT / "tools" / "csi-up", "bash", "-c", COMMAND, SANITY, tmp_path, skipped],
        capture_output=True,
        text=True,
        timeout=LIMIT_S - 60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (report,) = json.loads((tmp_path / "report.json").read_text())
    states: dict[str, set[str]] = {}
    for spec in report["SpecReports"]:
        if spec["LeafNodeType"] == "It":
            name = " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]])
            states.setdefault(spec["State"], set()).add(name)
    assert set(states) == {"passed", "skipped", "pending"}
    assert states["skipped"] | states["pending"] == set(LEFT_OUT["not-asked"]) | set(LEFT_OUT["left-out-by-itself"])
    assert len(states["passed"]) >= 75
