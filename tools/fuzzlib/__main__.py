"""Fuzzes what is written in C with libFuzzer, ASan and UBSan (clang), or runs the corpus only (gcc does).

    tools/fuzz --seconds 3600            # from the corpus on; fails, and shows the input, if something is wrong
    tools/fuzz --seconds 3600 --keep     # and adds to the corpus what reached code that no input had reached
    tools/fuzz --target channel          # one of them alone; else each has the same share of the time
    tools/fuzz --corpus                  # each input of the corpus, once

Targets: answer, the parser of azure/native (answer.c here); exchange, all else there that has to do with sockets and
TLS (exchange.py); channel, device/native with its memory that outlives a worker (channel.py). These two do what an
input says by the module's Python interface, in a program with Python in it (host.c).

A corpus is tools/fuzzlib/corpus/TARGET.txt: an input a line, with Python's escapes for what is not printable ASCII.
Needs Debian's clang and libclang-rt-*-dev, and Python's own headers; without --seconds gcc is enough.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "TARGETS", "Target", "main", "read_corpus", "run_corpus"]

ROOT = Path(__file__).resolve().parents[2]
_HERE = "tools/fuzzlib"
_FLAGS = ("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all")
_MODULE_FLAGS = (
    "-D_GNU_SOURCE",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
)  # as setup.py; of Python's own headers
_WORDS = (
    *("HTTP/1.1 206 ", "HTTP/1.1 201 ", "\\x0d\\x0a", "\\x0d\\x0a\\x0d\\x0a", "Content-Length:", "Content-Range:"),
    *("bytes ", "512-1023/", "Connection:", "keep-alive", "close", "Transfer-Encoding:", "chunked", "Trailer:"),
    *("Upgrade:", "x-ms-request-id:", "0", "512", "4096", "18446744073709552128"),
)
_MAIN = """
#include <stdio.h>
#include <stdint.h>
int LLVMFuzzerTestOneInput(const uint8_t *, size_t);
int main(int count, char **names)
{
    static uint8_t data[1 << 20];
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        size_t size = file ? fread(data, 1, sizeof data, file) : 0;
        if (!file || fclose(file) || LLVMFuzzerTestOneInput(data, size))
            return 1;
    }
    return 0;
}
"""


class Target(NamedTuple):
    """What is fuzzed. module: that is linked in, whose sources these are; none where a parser is called as it is.

    longest: bytes of an input.
    """

    name: str
    longest: int
    module: str = ""
    sources: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def corpus(self) -> Path:
        """The file with its inputs."""
        return ROOT / _HERE / "corpus" / f"{self.name}.txt"

    def build(self, compiler: str, sanitizers: str, program: Path, root: Path, *more: str) -> None:
        """Make a program of the sources under `root`. Raises CalledProcessError."""
        command = [compiler, *_FLAGS, f"-fsanitize={sanitizers}", *more]
        if self.module:
            package, _, name = self.module.rpartition(".")
            folder = root / package.replace(".", "/")
            texts = {"NAME": self.module, "TARGET": f"tools.fuzzlib.{self.name}", "PYTHON": sys.executable}
            texts["ROOT"] = str(ROOT)
            command += [*_MODULE_FLAGS, f"-DINIT=PyInit_{name}", *(f'-D{key}="{text}"' for key, text in texts.items())]
            command += [f"-I{sysconfig.get_path('include')}", *(str(folder / source) for source in self.sources)]
        command += [str(root / _HERE / ("host.c" if self.module else f"{self.name}.c")), "-o", str(program)]
        subprocess.run([*command, *(_python() if self.module else ())], check=True)


def _python() -> list[str]:
    """How a program with Python in it is linked."""
    where, library, others, system = sysconfig.get_config_vars("LIBDIR", "LDVERSION", "LIBS", "SYSLIBS")
    return [f"-L{where}", f"-Wl,-rpath,{where}", f"-lpython{library}", *shlex.split(f"{others} {system}"), "-rdynamic"]


TARGETS = {
    target.name: target
    for target in (
        Target("answer", 9000, words=_WORDS),
        Target("channel", 300, "blobfuse_dysk.device.native._channel", ("channel.c", "taken.c")),
        Target(
            "exchange",
            300,
            "blobfuse_dysk.azure.native._exchange",
            ("exchange.c", "heads.c", "module.c", "ready.c", "tls.c"),
            _WORDS,
        ),
    )
}


def read_corpus(target: Target) -> list[bytes]:
    """Its inputs."""
    lines = target.corpus.read_text().splitlines() if target.corpus.exists() else []
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in lines]


def run_corpus(target: Target, directory: Path, compiler: str = "gcc", root: Path = ROOT) -> None:
    """Run every input once, built with sanitizers, in an empty directory. CalledProcessError: something is wrong.

    root: of the sources in C.
    """
    main_file, program = directory / "main.c", directory / "run"
    main_file.write_text(_MAIN)
    target.build(compiler, "address,undefined", program, root, str(main_file))
    subprocess.run([program, *_unpack(target, directory / "inputs")], check=True)


def _unpack(target: Target, directory: Path) -> list[Path]:
    directory.mkdir()
    paths = []
    for number, data in enumerate(read_corpus(target)):
        paths.append(directory / f"{number:04}")
        paths[-1].write_bytes(data)
    return paths


def _fuzz(target: Target, directory: Path, compiler: str, seconds: int, keep: bool) -> None:
    program, inputs, words = directory / "fuzz", directory / "inputs", directory / "words"
    target.build(compiler, "fuzzer,address,undefined", program, ROOT)
    _unpack(target, inputs)
    words.write_text("".join(f'"{word}"\n' for word in target.words) or "# none\n")
    limits = [f"-max_total_time={seconds}", f"-max_len={target.longest}", "-rss_limit_mb=1024", "-print_final_stats=1"]
    limits += ["-len_control=0"] if target.module else []  # an input is a list of steps: few come to nothing
    done = subprocess.run(
        [program, *limits, f"-dict={words}", f"-artifact_prefix={directory}/found-", inputs], check=False
    )
    for found in sorted(directory.glob("found-*")):
        print(f"{target.name}, {found.name}: {_line(found.read_bytes())}")
    if done.returncode:
        sys.exit("tools/fuzz: something is wrong; the input stands above")
    if keep:
        least = directory / "least"
        least.mkdir()
        subprocess.run([program, "-merge=1", least, inputs], check=True, stderr=subprocess.DEVNULL)
        lines = {_line(data) for data in (*read_corpus(target), *(path.read_bytes() for path in least.iterdir()))}
        target.corpus.write_text("".join(f"{line}\n" for line in sorted(lines)))


def _line(data: bytes) -> str:
    return data.decode("latin-1").encode("unicode_escape").decode()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="how long to look for more; 60 by default")
    parser.add_argument("--target", choices=TARGETS, action="append", help="what is fuzzed; all by default")
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus")
    parser.add_argument("--corpus", action="store_true", help="run the corpus only")
    options = parser.parse_args()
    clang = next(filter(None, map(shutil.which, ("clang", "clang-19", "clang-14"))), None)
    targets = [TARGETS[name] for name in options.target or TARGETS]
    for target in targets:
        with tempfile.TemporaryDirectory() as name:
            if options.corpus:
                run_corpus(target, Path(name), os.environ.get("CC", "gcc"))
            elif clang is None:
                sys.exit(
                    "tools/fuzz: there is no clang: run: "
                    "apt-get install --no-install-recommends clang libclang-rt-14-dev"
                )
            else:
                _fuzz(target, Path(name), clang, max(1, options.seconds // len(targets)), options.keep)


if __name__ == "__main__":
    main()
