"""What pyproject.toml cannot say: Python's form of csi.proto is made when the package is built, also an editable one.

It is written beside the source, where git ignores it, so that mypy finds the types. protoc comes with grpcio-tools.
"""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PROTO = "blobfuse_dysk/kubernetes/csi/proto/csi.proto"


class BuildWithProtocol(build_py):
    """Makes csi_pb2.py and csi_pb2.pyi before the modules are looked for."""

    def run(self) -> None:
        from grpc_tools import protoc

        common = Path(protoc.__file__).parent / "_proto"  # google/protobuf/*.proto
        outputs = [f"--{kind}_out={ROOT}" for kind in ("python", "pyi")]
        if protoc.main(["protoc", f"--proto_path={ROOT}", f"--proto_path={common}", *outputs, PROTO]) != 0:
            sys.exit(f"protoc could not read {PROTO}")
        super().run()


setup(cmdclass={"build_py": BuildWithProtocol})
