"""Fuzzes native/answer.h with libFuzzer, ASan and UBSan (clang), or runs its corpus only (gcc does).

    tools/fuzz --seconds 3600            # from the corpus on; fails, and shows the input, if something is wrong
    tools/fuzz --seconds 3600 --keep     # and adds to the corpus what reached code that no input had reached
    tools/fuzz --corpus                  # each input of the corpus, once

The corpus is tools/fuzzlib/corpus.txt: an input a line, with Python's escapes for what is not printable ASCII.
Needs Debian's clang and libclang-rt-*-dev; without --seconds gcc is enough.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["CORPUS", "main", "read_corpus", "run_corpus"]

_HERE = Path(__file__).resolve().parent
CORPUS = _HERE / "corpus.txt"
_TARGET = _HERE / "answer.c"
_FLAGS = ("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all")
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


def read_corpus() -> list[bytes]:
    """Its inputs."""
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in CORPUS.read_text().splitlines()]


def run_corpus(directory: Path, compiler: str = "gcc", target: Path = _TARGET) -> None:
    """Run every input once, built with sanitizers, in an empty directory. CalledProcessError: something is wrong."""
    main_file, program = directory / "main.c", directory / "run"
    main_file.write_text(_MAIN)
    command = [compiler, *_FLAGS, "-fsanitize=address,undefined", str(target), str(main_file), "-o", str(program)]
    subprocess.run(command, check=True)
    subprocess.run([program, *_unpack(directory / "inputs")], check=True)


def _unpack(directory: Path) -> list[Path]:
    directory.mkdir()
    paths = []
    for number, data in enumerate(read_corpus()):
        paths.append(directory / f"{number:04}")
        paths[-1].write_bytes(data)
    return paths


def _fuzz(directory: Path, compiler: str, seconds: int, keep: bool) -> None:
    program, inputs, words = directory / "fuzz", directory / "inputs", directory / "words"
    subprocess.run(
        [compiler, *_FLAGS, "-fsanitize=fuzzer,address,undefined", str(_TARGET), "-o", str(program)], check=True
    )
    _unpack(inputs)
    words.write_text("".join(f'"{word}"\n' for word in _WORDS))
    limits = [f"-max_total_time={seconds}", "-max_len=9000", "-rss_limit_mb=1024", "-print_final_stats=1"]
    done = subprocess.run(
        [program, *limits, f"-dict={words}", f"-artifact_prefix={directory}/found-", inputs], check=False
    )
    for found in sorted(directory.glob("found-*")):
        print(f"{found.name}: {_line(found.read_bytes())}")
    if done.returncode:
        sys.exit("tools/fuzz: something is wrong; the input stands above")
    if keep:
        least = directory / "least"
        least.mkdir()
        subprocess.run([program, "-merge=1", least, inputs], check=True, stderr=subprocess.DEVNULL)
        lines = {_line(data) for data in read_corpus()} | {_line(path.read_bytes()) for path in least.iterdir()}
        CORPUS.write_text("".join(f"{line}\n" for line in sorted(lines)))


def _line(data: bytes) -> str:
    return data.decode("latin-1").encode("unicode_escape").decode()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="how long to look for more; 60 by default")
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus")
    parser.add_argument("--corpus", action="store_true", help="run the corpus only")
    options = parser.parse_args()
    clang = next(filter(None, map(shutil.which, ("clang", "clang-19", "clang-14"))), None)
    with tempfile.TemporaryDirectory() as name:
        if options.corpus:
            run_corpus(Path(name), os.environ.get("CC", "gcc"))
        elif clang is None:
            sys.exit(
                "tools/fuzz: there is no clang: run: apt-get install --no-install-recommends clang libclang-rt-14-dev"
            )
        else:
            _fuzz(Path(name), clang, options.seconds, options.keep)


if __name__ == "__main__":
    main()
