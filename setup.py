"""What pyproject.toml cannot say: Python's form of csi.proto is made when the package is built, also an editable one.

It is written beside the source, where git ignores it, so that mypy finds the types. protoc comes with grpcio-tools.

The modules in C are optional: where there is no compiler they are left out, and what they do is done in Python. So it
is with the program dyskctl (blobfuse_dysk/cli/native/dyskctl.c): in its place is a script then. The whole of dyskctl,
which the program executes, is pip's script dyskctl.py beside it.
"""

import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError, PlatformError

ROOT = Path(__file__).resolve().parent
PROTO = "blobfuse_dysk/kubernetes/csi/proto/csi.proto"

FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-missing-field-initializers"),
    f"-ffile-prefix-map={ROOT}=.",  # the same tree builds the same program, wherever it lies
]
DYSKCTL = "blobfuse_dysk/cli/native/dyskctl.c"
SCRIPT = """#!python
import sys
from blobfuse_dysk.commands import dyskctl
sys.exit(dyskctl())
"""  # pip puts the interpreter's path into the first line


def native(package: str, module: str, sources: tuple[str, ...], headers: tuple[str, ...] = ()) -> Extension:
    """A module in C, of files that lie in the package beside it."""
    folder = package.replace(".", "/")
    return Extension(
        f"{package}.{module}",
        sources=[f"{folder}/{source}" for source in sources],
        depends=[f"{folder}/{header}" for header in headers],
        extra_compile_args=[
            *FLAGS,
            "-fvisibility=hidden",  # what its files share is nobody else's
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


class BuildPrograms(Distribution().get_command_class("build_scripts")):
    """Makes dyskctl of its source."""

    def copy_scripts(self) -> tuple[list[str], list[str]]:
        from distutils.ccompiler import new_compiler  # setuptools' own
        from distutils.sysconfig import customize_compiler

        program = Path(self.build_dir) / "dyskctl"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.unlink(missing_ok=True)
        compiler = new_compiler()
        customize_compiler(compiler)
        try:
            build_temp = self.get_finalized_command("build_ext").build_temp
            objects = compiler.compile([DYSKCTL], build_temp, extra_preargs=FLAGS)
            compiler.link_executable(objects, program.name, str(program.parent))
        except (CCompilerError, PlatformError) as error:
            print(f"dyskctl is a script, it cannot be compiled: {error}", file=sys.stderr)
            program.write_text(SCRIPT)
        program.chmod(0o755)
        return [str(program)], [str(program)]


setup(ext_modules=MODULES, scripts=[DYSKCTL], cmdclass={"build_py": BuildWithProtocol, "build_scripts": BuildPrograms})
