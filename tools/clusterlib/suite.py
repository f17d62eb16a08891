"""Kubernetes' own External.Storage suite, run against one driver."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from tools.clusterlib import binaries, cluster, imagelist
from tools.clusterlib.driver import Driver
from tools.clusterlib.places import BIN, KUBECONFIG, RUN, ClusterError

__all__ = ["results", "run"]

# Tests that need no feature beyond these, and that do not break nodes, take very long, or have to be alone.
_FEATURES = "VolumeSnapshotDataSource, VolumeSourceXFS, VolumeAttributesClass"
_LABELS = f"Feature: isSubsetOf {{{_FEATURES}}} && !Disruptive && !Slow && !Serial && !Flaky"
_TIMEOUT_S = 3 * 3600
_PROCESSES = 4  # a test mostly waits for pods to come and go


def _definition(driver: Driver) -> dict[str, object]:
    """What the suite is told of a driver (test/e2e/storage/external/external.go, driverDefinition)."""
    return {
        "StorageClass": {"FromExistingClassName": driver.name},
        "SnapshotClass": {"FromExistingClassName": driver.name},
        **({"VolumeAttributesClass": {"FromExistingClassName": driver.name}} if driver.attributes_class else {}),
        "DriverInfo": {
            "Name": driver.name,
            "SupportedFsType": {"": {}, "ext4": {}, "xfs": {}} if driver.own_filesystems else {"": {}},
            "SupportedSizeRange": {"Min": driver.minimum_size},
            "SupportedMountOption": {option: {} for option in driver.mount_options} or None,
            "RequiredAccessModes": ["ReadWriteOnce"],
            "Capabilities": driver.capabilities,
        },
    }


def run(driver: Driver, focus: str = "") -> None:
    """Runs what applies to the driver (and matches `focus`), and prints what passed, failed and was skipped why.

    ClusterError if a test failed, or if none ran. The full output is in the cluster's logs, with a JUnit report beside.
    """
    binaries.require(for_suite=True)
    archive = imagelist.suite_archive()
    for node in cluster.nodes():
        cluster.load_images(node, archive)
    reports = RUN / "reports" / driver.name
    reports.mkdir(parents=True, exist_ok=True)
    definition = reports / "driver.json"
    definition.write_text(json.dumps(_definition(driver), indent=1))
    command: list[str | Path] = [
        BIN / "ginkgo",
        f"--procs={_PROCESSES}",
        f"--timeout={_TIMEOUT_S}s",
        f"--focus=External.Storage.*{driver.name}.*{focus}",
        f"--label-filter={_LABELS}",
        "--no-color",
        BIN / "e2e.test",
        "--",
        f"--kubeconfig={KUBECONFIG}",
        f"--kubectl-path={BIN}/kubectl",
        "--provider=skeleton",
        f"--storage.testdriver={definition}",
        f"--report-dir={reports}",
    ]
    environment = os.environ | {"KUBE_TEST_REPO_LIST": str(imagelist.registries_file())}
    log = reports / "output.log"
    with log.open("wb") as output:
        subprocess.run(command, cwd=reports, env=environment, stdout=output, stderr=subprocess.STDOUT)
    passed, failed, skipped = results(reports)
    for reason, times in skipped.most_common():
        print(f"skipped {times}: {reason}")
    for name in failed:
        print(f"failed: {name}")
    print(
        f"External.Storage {driver.name}: {passed} passed, {len(failed)} failed, {skipped.total()} skipped; {log}",
        flush=True,
    )
    if failed or not passed:
        raise ClusterError(f"External.Storage does not pass with {driver.name}: {log} has each test's steps")


def results(reports: Path) -> tuple[int, list[str], Counter[str]]:
    """How many tests passed, the names of those that failed, and why the suite skipped tests that were chosen."""
    passed, failed, skipped = 0, [], Counter[str]()
    for report in reports.glob("junit*.xml"):
        for case in ElementTree.parse(report).iter("testcase"):
            name, skip = case.get("name", "?"), case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append(name)
            elif skip is not None:
                _, dash, reason = skip.get("message", "").partition(" - ")
                if dash:  # one that was not chosen has none
                    skipped[reason.removesuffix(" - skipping").removesuffix(" -- skipping")] += 1
            elif "External Storage" in name:
                passed += 1
    return passed, failed, skipped
