"""What pyproject.toml cannot say: Python's form of csi.proto is made when the package is built, also an editable one.

It is written beside the source, where git ignores it, so that mypy finds the types. protoc comes with grpcio-tools.

The modules in C are optional: where there is no compiler they are left out, and what they do is done in Python.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PROTO = "blobfuse_dysk/kubernetes/csi/proto/csi.proto"


def native(package: str, module: str, sources: tuple[str, ...], headers: tuple[str, ...] = ()) -> Extension:
    """A module in C, of files that lie in the package beside it."""
    folder = package.replace(".", "/")
    return Extension(
        f"{package}.{module}",
        sources=[f"{folder}/{source}" for source in sources],
        depends=[f"{folder}/{header}" for header in headers],
        extra_compile_args=[
            *("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-missing-field-initializers"),
            "-fvisibility=hidden",  # what its files share is nobody else's
            f"-ffile-prefix-map={ROOT}=.",  # the same tree builds the same module, wherever it lies
        ],
        optional=True,
    )


MODULES = [
    native(
        "blobfuse_dysk.azure.native",
        "_exchange",
        ("exchange.c", "heads.c", "module.c", "ready.c", "tls.c"),
        ("answer.h", "exchange.h", "module.h"),
    ),
    native("blobfuse_dysk.device.native", "_channel", ("channel.c", "taken.c"), ("taken.h",)),
]


class BuildWithProtocol(build_py):
    """Makes csi_pb2.py and csi_pb2.pyi before the modules are looked for."""

    def run(self) -> None:
        from grpc_tools import protoc

        common = Path(protoc.__file__).parent / "_proto"  # google/protobuf/*.proto
        outputs = [f"--{kind}_out={ROOT}" for kind in ("python", "pyi")]
        if protoc.main(["protoc", f"--proto_path={ROOT}", f"--proto_path={common}", *outputs, PROTO]) != 0:
            sys.exit(f"protoc could not read {PROTO}")
        super().run()


setup(ext_modules=MODULES, cmdclass={"build_py": BuildWithProtocol})
