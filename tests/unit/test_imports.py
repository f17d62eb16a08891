"""The rules of the house, kept by a machine: who may import whom, and what stays out of small processes.

Imports point one way: `cli -> kubernetes -> disks -> mount -> live -> attachment -> attached -> device -> store ->
azure -> options, imageformat -> disk, environment, keyvalue, vhd -> proxies, installed -> clock, errors, patience,
timestamp -> printable`. A part imports parts of a lower rank only; the folders in it keep the walls between them. The
source is read as text (ast), so imports inside functions count.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "blobfuse_dysk"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.endswith("_pb2.py"))  # protoc makes those
SHIPPED = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] != "testing"]
MOST_LINES = 400

RANK = {
    "printable": -2,
    "clock": -1,
    "holes": -1,
    "invariant": -1,
    "errors": -1,
    "patience": -1,
    "timestamp": -1,
    "detached": 0,
    "installed": 0,
    "proxies": 0,
    "disk": 1,
    "environment": 1,
    "keyvalue": 1,
    "vhd": 1,
    "imageformat": 2,
    "options": 2,
    "azure": 3,
    "store": 4,
    "device": 5,
    "attached": 6,
    "attachment": 7,
    "diskfile": 8,
    "live": 8,
    "ownlease": 8,
    "mount": 9,
    "disks": 10,
    "kubernetes": 11,
    "cli": 12,
    "commands": 13,
}
# Folder inside a part -> what else of that part it may import: other folders, and files that lie above the folders.
WALLS = {
    "store/parts": {"store/contract"},
    "store/lease": {"store/blobapi", "store/contract", "store/serviceerrors", "store/parts"},
    "store/layers": {
        "store/blobapi",
        "store/contract",
        "store/passage",
        "store/serviceerrors",
        "store/lease",
        "store/parts",
    },
    "device/kernel": set(),
    "device/ipc": set(),
    "device/holder": {"device/ipc", "device/kernel"},
    "device/monitor": {"device/ipc", "device/kernel"},
    "device/native": set(),
    "device/worker": {"device/ipc", "device/kernel", "device/native"},
    "device/template": {"device/holder", "device/ipc", "device/kernel", "device/monitor", "device/worker"},
    "device/attacher": {"device/ipc", "device/kernel"},
}
# Third-party packages that only some places may import, since they are slow to load: path prefixes inside the package.
ONLY_IN = {
    "azure": ("azure/management.py", "azure/deletion.py", "azure/snapshots.py", "azure/credential/token.py"),
    "click": ("cli/",),
    "google": ("kubernetes/csi/",),
    "grpc": ("kubernetes/csi/",),
}


def name_of(path: Path) -> str:
    """The path inside the package, for messages and test ids: `store/contract.py`."""
    return path.relative_to(PACKAGE).as_posix()


def told(wrong: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is wrong with which file, without the files that are well."""
    return {name: found for name, found in wrong.items() if found}


def part_of(path: Path) -> str:
    """The part of the house a file belongs to: `store/contract.py` -> `store`, `vhd.py` -> `vhd`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The source as a tree; most tests want it of every file."""
    return ast.parse(path.read_text())


@functools.cache
def imported(path: Path) -> tuple[str, ...]:
    """Each module that a file imports, as a dotted name; names imported from a package count as its modules."""
    names = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; this project writes names in full"
            assert node.module
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def own_parts(path: Path) -> set[str]:
    """The parts of this package that a file imports. What the package itself offers comes from attachment.py."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("blobfuse_dysk.")} - {"__version__"}
    return {name if name in RANK or name == "testing" else "attachment" for name in names}


def assignments(tree: ast.Module) -> Iterator[ast.Assign | ast.AnnAssign]:
    """The assignments at the top level of a module."""
    return (node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign))


def is_layer(path: Path) -> bool:
    """Whether a file of store/ defines a Store."""
    return any(
        isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id == "Store" for base in node.bases)
        for node in ast.walk(parsed(path))
    )


def test_imports_point_one_way_and_never_to_testing() -> None:
    wrong = {}
    for path in SHIPPED:
        part, others = part_of(path), own_parts(path)
        if part in ("__init__", "__main__"):
            wrong[name_of(path)] = others - {"attachment", "disk", "errors", "options"}
        else:
            up = {other for other in others - {part} if other == "testing" or RANK[other] >= RANK[part]}
            wrong[name_of(path)] = up
    assert told(wrong) == {}


def test_the_folders_of_a_part_keep_their_walls() -> None:
    wrong = {}
    for path in SHIPPED:
        folder = path.parent.relative_to(PACKAGE).as_posix()
        if folder in WALLS:
            part = part_of(path)
            names = [name.split(".")[1:] for name in imported(path) if name.startswith(f"blobfuse_dysk.{part}.")]
            wrong[name_of(path)] = {"/".join(name[:2]) for name in names} - WALLS[folder] - {folder}
    assert told(wrong) == {}


def test_every_folder_with_walls_is_there() -> None:
    files = [path for part in ("store", "device") for path in (PACKAGE / part).rglob("*.py")]
    inside = {path.parent.relative_to(PACKAGE).as_posix() for path in files}
    assert inside - {"store", "device"} == set(WALLS)


def test_only_stack_knows_the_layers() -> None:
    files = sorted((PACKAGE / "store").rglob("*.py"))
    layers = tuple(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if is_layer(file))
    assert len(layers) >= 9
    wrong = {
        name_of(path): {
            name for name in imported(path) if name in layers or name.startswith(tuple(f"{layer}." for layer in layers))
        }
        for path in files
        if path.name != "stack.py"
    }
    assert told(wrong) == {}


def test_slow_packages_stay_where_they_are_needed() -> None:
    wrong = {
        name_of(path): {
            name
            for name in imported(path)
            if (allowed := ONLY_IN.get(name.partition(".")[0])) and not name_of(path).startswith(allowed)
        }
        for path in SHIPPED
    }
    assert told(wrong) == {}


def test_environment_variables_are_read_in_one_place() -> None:
    readers = {"environ", "environb", "getenv", "getenvb"}
    wrong = {
        name_of(path): {
            f"line {node.lineno}"
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Attribute)
            and node.attr in readers
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        }
        | ({f"os.{reader}" for reader in readers} & set(imported(path)))
        for path in SHIPPED
        if name_of(path) != "environment.py"
    }
    assert told(wrong) == {}


def test_a_module_says_what_it_is_and_what_is_public() -> None:
    wrong = {}
    for path in MODULES:
        tree = parsed(path)
        defines = any(isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) for node in tree.body)
        targets = [node.target if isinstance(node, ast.AnnAssign) else node.targets[0] for node in assignments(tree)]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        wrong[name_of(path)] = {"no __all__"} if defines and "__all__" not in names else set()
        if tree.body and not ast.get_docstring(tree):
            wrong[name_of(path)].add("no docstring")
    assert told(wrong) == {}


def test_no_file_is_too_long() -> None:
    files = MODULES + [path for top in ("tests", "tools") for path in (ROOT / top).rglob("*.py")]
    long = {
        str(path.relative_to(ROOT)): count
        for path in files
        if (count := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert len(files) > len(MODULES)
    assert not long, "find the second job in them"


def loaded_by(module: str) -> set[str]:
    """The top-level names in sys.modules after importing `module` in a fresh interpreter."""
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "blobfuse_dysk",
        "blobfuse_dysk.attachment",
        "blobfuse_dysk.mount.helper",
        "blobfuse_dysk.kubernetes.flexvolume",
        "blobfuse_dysk.device.holder.holder",
        "blobfuse_dysk.device.worker.worker",
    ],
)
def test_small_processes_load_no_azure_sdk_and_no_terminal_packages(module: str) -> None:
    assert not loaded_by(module) & {"azure", "msal", "requests", "click", "google", "grpc"}


def test_the_node_driver_loads_no_azure_sdk_and_no_trio() -> None:
    """It is on every node, and is to stay below 60 MiB."""
    assert not loaded_by("blobfuse_dysk.kubernetes.csi.node") & {"azure", "msal", "requests", "click", "trio"}


def test_attaching_needs_no_trio_and_no_pyfuse3() -> None:
    assert not loaded_by("blobfuse_dysk.attachment") & {"trio", "pyfuse3"}


def test_options_are_read_without_anything_slow() -> None:
    assert not loaded_by("blobfuse_dysk.options") & {"click", "difflib", "shlex", "trio"}


def test_the_holder_needs_the_standard_library_only() -> None:
    foreign = loaded_by("blobfuse_dysk.device.holder.holder") - loaded_by("sys") - set(sys.stdlib_module_names)
    assert foreign <= {"blobfuse_dysk"}


@pytest.mark.parametrize("module", ["holder", "systemd"])
def test_the_holder_does_without_typing(module: str) -> None:
    """It would cost half a MiB in each; see device/ipc/shapes.py."""
    program = f"import sys; sys.path.append({str(ROOT)!r}); import blobfuse_dysk.device.holder.{module}"
    program += "; import blobfuse_dysk.device.ipc.door; print('typing' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
