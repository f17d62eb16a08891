"""What the packages hold that is not ours, as a CycloneDX document; and whether faults of that are known.

    .venv/bin/python tools/sbom.py                   the document, on standard output
    .venv/bin/python tools/sbom.py run entra csi     the same for other parts of tools/constraints.txt: the image's
    .venv/bin/python tools/sbom.py --audit           asks osv.dev for each version; exit 1 if a fault is known

Sources: https://cyclonedx.org/docs/1.5/json/, https://google.github.io/osv.dev/post-v1-querybatch/
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ASKED = "https://api.osv.dev/v1/querybatch"
SHIPPED = ("run", "entra", "csi")  # the parts of tools/constraints.txt that are in the packages


@dataclass(frozen=True, slots=True)
class Component:
    """A pinned package; hashes: SHA-256 of its archives, one of which is used."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def components(parts: Sequence[str] = SHIPPED) -> list[Component]:
    """What these parts of tools/constraints.txt pin."""
    text = subprocess.run([ROOT / "tools" / "pins", *parts], capture_output=True, text=True, check=True).stdout
    found = []
    for block in re.split(r"\n(?=\S)", text.strip()):
        name, version = block.split()[0].split("==")
        found.append(Component(name.lower(), version, tuple(re.findall(r"sha256:([0-9a-f]{64})", block))))
    return found


def document(found: Sequence[Component]) -> dict[str, Any]:
    """The bill of materials."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": project["name"], "version": project["version"]}},
        "components": [
            {
                "type": "library",
                "bom-ref": each.purl,
                "name": each.name,
                "version": each.version,
                "purl": each.purl,
                "hashes": [{"alg": "SHA-256", "content": digest} for digest in each.hashes],
            }
            for each in found
        ],
    }


def known_faults(found: Sequence[Component]) -> dict[str, list[str]]:
    """Package and version: the names of its known faults. Raises OSError if the database cannot be asked."""
    body = json.dumps({"queries": [{"package": {"purl": each.purl}} for each in found]}).encode()
    request = urllib.request.Request(ASKED, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        results = json.load(answer)["results"]
    named = zip(found, results, strict=True)
    return {each.purl: [fault["id"] for fault in result["vulns"]] for each, result in named if result.get("vulns")}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/sbom.py", description="What the package holds that is not ours.")
    parser.add_argument("--audit", action="store_true", help="ask osv.dev for known faults; exit 1 if there are some")
    parser.add_argument("parts", nargs="*", default=SHIPPED, metavar="PART", help=f"default: {' '.join(SHIPPED)}")
    options = parser.parse_args(arguments)
    found = components(options.parts)
    if not options.audit:
        print(json.dumps(document(found), indent=2))
        return 0
    try:
        faults = known_faults(found)
    except (OSError, ValueError) as error:
        print(f"tools/sbom.py: osv.dev could not be asked: {error}; is it in reach from here?", file=sys.stderr)
        return 2
    for purl, names in faults.items():
        print(f"{purl}: {', '.join(names)}")
    print(f"{len(found)} packages, {len(faults)} with known faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
