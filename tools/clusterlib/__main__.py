"""tools/cluster: a real Kubernetes cluster on this one machine, for trying the drivers; as root.

Everything is built from Go modules and Debian packages: no container engine, no registry of images, no network. The
control plane and each node have namespaces of their own; `down` (or a reboot) leaves nothing but .cache.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tools.clusterlib import binaries, cluster, steps, suite
from tools.clusterlib.dysk import DYSK
from tools.clusterlib.places import ClusterError
from tools.clusterlib.space import Space
from tools.clusterlib.standin import STANDIN

_DRIVERS = {"csi-dysk": DYSK, "standin": STANDIN}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build the programs (most of an hour the first time)")
    build.add_argument("names", nargs="*", metavar="PROGRAM", help="only these")
    build.add_argument("--list", action="store_true", help="show what there is to build")
    up = commands.add_parser("up", help="make the images and the cluster, and run a pod that says hello")
    up.add_argument("--nodes", type=int, default=2, choices=range(1, 10), metavar="N", help="1 to 9 (default: 2)")
    test = commands.add_parser("test", help="try a driver on the cluster, step by step, then with External.Storage")
    test.add_argument("--driver", choices=sorted(_DRIVERS), default="csi-dysk", help="(default: csi-dysk)")
    test.add_argument(
        "--image", type=Path, metavar="ARCHIVE", help="the driver's OCI archive (csi-dysk has no default)"
    )
    test.add_argument(
        "--next-image", type=Path, metavar="ARCHIVE", help="another build, to which the driver is upgraded under load"
    )
    test.add_argument("--step", action="append", choices=list(steps.STEPS), help="only this; may be repeated")
    test.add_argument("--suite", choices=("only", "no"), help="only External.Storage, or all but it")
    test.add_argument("--focus", default="", metavar="REGEXP", help="only tests of External.Storage with such a name")
    commands.add_parser("down", help="end the cluster and remove what is left of it on this machine")
    inside = commands.add_parser("enter", help="run a command where node1 (or --on SPACE) runs")
    inside.add_argument("--on", default="node1", metavar="SPACE", help="node1, node2, ... or control")
    inside.add_argument("words", nargs=argparse.REMAINDER, metavar="WORD")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "build" if arguments.list:
            for binary in binaries.BINARIES:
                print(f"{binary.name:26} {binary.package}")
        case "build":
            binaries.build_all(arguments.names)
        case "up":
            cluster.up(arguments.nodes)
        case "test":
            _test(arguments)
        case "down":
            cluster.down()
        case "enter":
            return subprocess.run(Space(arguments.on).enter(*arguments.words)).returncode
    return 0


def _test(arguments: argparse.Namespace) -> None:
    driver = replace(_DRIVERS[arguments.driver], next_image=arguments.next_image)
    if arguments.image:
        for node in cluster.nodes():
            cluster.load_images(node, arguments.image, driver.image)
    for name, step in steps.STEPS.items():
        if name in (arguments.step or steps.STEPS) and arguments.suite != "only":
            print(f"{name}: {step.__doc__}", flush=True)
            step(driver)
    if arguments.suite != "no" and not arguments.step:
        suite.run(driver, arguments.focus)


def main() -> int:
    """Runs one command; what cannot be done is one line and exit status 1."""
    arguments = _arguments().parse_args()
    if os.geteuid() and arguments.command != "build":
        print("tools/cluster: namespaces and mounts take root: run it as root", file=sys.stderr)
        return 1
    try:
        return _run(arguments)
    except ClusterError as error:
        print(f"tools/cluster: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"tools/cluster: {shlex.join(map(str, error.cmd))} failed: the lines above are its own", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
