"""The parts of tools/bench that need no device: reading what programs print, tables, the frame."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import need
from tools import fiojobs
from tools.benchlib import tables
from tools.benchlib.__main__ import main
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.figures import Figure, Report, report_from_json
from tools.benchlib.fio import Job, command, parse, run
from tools.benchlib.meter import Meter, Reading
from tools.benchlib.peers import wrk
from tools.benchlib.peers.start import MissingPeerError
from tools.benchlib.plan import QUICK
from tools.benchlib.postgres import PgbenchResult, parse_pgbench
from tools.benchlib.processes import mapped_rss_bytes, rss_bytes
from tools.benchlib.sections import SECTIONS
from tools.benchlib.tables import column

SIDE = {
    "iops": 1234.5,
    "bw_bytes": 5_056_512,
    "io_bytes": 8192,
    "total_ios": 2,
    "clat_ns": {"mean": 2_500_000.0, "percentile": {"99.000000": 9_000_000}},
}
RANDREAD = Job("randread", 32, 2.0)


def fio_output(error: int = 0) -> str:
    nothing = {**SIDE, "iops": 0.0}
    return "note: something\n" + json.dumps({"jobs": [{"error": error, "read": SIDE, "write": nothing}]})


def test_fio_report_is_read_for_the_direction_of_the_job() -> None:
    found = parse(fio_output(), "", 0, RANDREAD)
    assert found == {"iops": 1234.5, "mbps": 5.056512, "mean_us": 2500, "p99_us": 9000, "bytes": 8192, "ios": 2}
    assert parse(fio_output(), "", 0, Job("write", 1, 1))["iops"] == 0


@pytest.mark.parametrize(("output", "code"), [(fio_output(error=5), 0), (fio_output(), 1), ("", 1), ("", 0)])
def test_failed_fio_is_no_figure(output: str, code: int) -> None:
    with pytest.raises(RuntimeError, match=f"fio randread ended with {code}: no space"):
        parse(output, "no space", code, RANDREAD)


def test_fio_that_finds_no_file_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="fio randread ended with"):
        run("/proc/nowhere", Job("randread", 1, 0.1))


@pytest.mark.parametrize("job", sorted(path.stem for path in fiojobs.JOBS.glob("*.fio")))
def test_a_job_file_is_one_that_fio_takes_as_it_is_and_with_options_changed(job: str, tmp_path: Path) -> None:
    need(shutil.which("fio"), "fio is not installed")
    target = tmp_path / "file"
    target.touch()
    for changed in ({}, {"size": "8k", "bs": "4k", "bsrange": None, "runtime": None, "time_based": None, "loops": 1}):
        words = [*fiojobs.command(job, target, **changed), "--parse-only"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    text = (fiojobs.JOBS / f"{job}.fio").read_text()
    assert f"fio --filename=/dev/dysk/by-blob/ACCOUNT/CONTAINER/BLOB tools/fio/{job}.fio" in text, (
        "it says how it is run by hand"
    )
    assert ("It overwrites" in text) == ("write" in text.split("rw=")[1].splitlines()[0] or "rw=randrw" in text)


def test_fio_command_says_what_the_job_says() -> None:
    words = command("/dev/loop9", Job("write", 0, 1.5, block="8k", ramp_s=0.5, direct=False, fsync=32, size="1m"))
    assert {"--rw=write", "--bs=8k", "--ioengine=psync", "--direct=0", "--fsync=32", "--size=1m"} <= set(words)
    assert command("/dev/loop9", Job("read", 0, 1.0), timed=False).count("--time_based=1") == 0
    assert {"--runtime=1500ms", "--ramp_time=500ms", "--time_based=1", "--filename=/dev/loop9"} <= set(words)
    assert "--time_based" not in command("/dev/loop9", RANDREAD, timed=False)
    assert "--iodepth=32" in command("/dev/loop9", RANDREAD)


WRK = """  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.91ms    1.02ms  12.90ms   90.00%
  Latency Distribution
     50%    1.50ms
     99%  850.00us
Requests/sec:  15728.31
"""


def test_wrk_is_read_and_a_refusal_is_no_figure() -> None:
    found = wrk.parse(WRK)
    assert (found["iops"], found["mean_us"], found["p99_us"]) == (15728.31, 1910, 850)
    with pytest.raises(RuntimeError, match="Non-2xx or 3xx responses: 7"):
        wrk.parse("  Non-2xx or 3xx responses: 7\n" + WRK)
    with pytest.raises(RuntimeError):
        wrk.parse("nothing")


def test_wrk_sends_what_the_disk_would_send() -> None:
    url = "http://127.0.0.1:1/account/bench/io?sig=x"
    assert '"/account/bench/io?sig=x", 256, "GET"' in wrk.script(url, "randread", 1 << 20)
    assert '"/account/bench/io?sig=x&comp=page", 256, "PUT"' in wrk.script(url, "randwrite", 1 << 20)
    for pattern in ("randread", "randwrite"):  # a header that a read has no use for is refused by our server
        line = next(line for line in wrk.script(url, pattern, 1 << 20).splitlines() if "x-ms-page-write" in line)
        assert line.startswith('if method == "PUT" then')


def test_pgbench_is_read() -> None:
    output = (
        "number of transactions actually processed: 2410\nnumber of failed transactions: 0 (0.000%)\ntps = 240.5 (x)"
    )
    assert parse_pgbench(output) == PgbenchResult(2410, 240.5)
    for wrong in (output.replace("transactions: 0", "transactions: 3"), "tps = 1.0"):
        with pytest.raises(RuntimeError, match="pgbench"):
            parse_pgbench(wrong)


def test_rates_are_between_two_readings() -> None:
    stats = [
        {
            "total_requests": total,
            "statuses": {"200": total - busy, "503": busy},
            "bytes_in": 0,
            "bytes_out": total * 10000,
        }
        for total, busy in ((100, 0), (400, 60))
    ]
    first, last = (Reading(at, cpu, stat) for at, cpu, stat in zip((10.0, 12.0), (1.0, 1.5), stats, strict=True))
    meter = Meter((1,), object())  # type: ignore[arg-type]  # whether there is a server is all that counts
    found = meter.rates(first, last, 5000.0)
    assert found["cpu_us_per_io"] == pytest.approx(50)
    assert found["cpu_percent"] == pytest.approx(25)
    assert (found["requests_per_s"], found["served_per_s"], found["service_mbps"]) == (150, 120, 1.5)
    assert "device_iops" not in found
    assert Meter().rates(first, last, 1.0) == {}


# -- what is shown ---------------------------------------------------------------------------------------------------


def a_report() -> Report:
    report = Report({"kernel": "6.18", "cores": 2, "python": "3.11", "plan": "full", "minutes": 20.0,
                     "date": "2026-01-31", "load_before": 0.1})  # fmt: skip
    for depth in (1, 32):
        setting: dict[str, str | float] = {"load": "randread", "block": "4k", "service_ms": 2, "depth": depth}
        report.figures.append(Figure("random", OURS, setting, {"iops": 4000.0 * depth, "mean_us": 100.0}))
    report.figures.append(Figure("mkfs", OURS, {"tib": 1}, {"seconds": 6.0, "requests": 500}))
    return report


def test_memory_of_one_mapping_is_what_of_it_is_in_memory() -> None:
    me = [os.getpid()]
    descriptors = [os.memfd_create(name) for name in ("bench-parts-a", "bench-parts-b")]
    mappings = []
    for descriptor in descriptors:
        os.ftruncate(descriptor, 64 * mmap.PAGESIZE)
        mappings.append(mmap.mmap(descriptor, 64 * mmap.PAGESIZE))
    mappings[0][: 3 * mmap.PAGESIZE] = bytes(3 * mmap.PAGESIZE)
    mappings[1][: 5 * mmap.PAGESIZE] = bytes(5 * mmap.PAGESIZE)
    try:
        assert mapped_rss_bytes(me, "memfd:bench-parts-a") == 3 * mmap.PAGESIZE
        assert mapped_rss_bytes(me, "memfd:bench-parts") == 8 * mmap.PAGESIZE
        assert mapped_rss_bytes(me, "memfd:bench-parts-c") == 0
        assert mapped_rss_bytes(me, "") == pytest.approx(rss_bytes(me), rel=0.1), "each mapping is seen"
    finally:
        for mapping, descriptor in zip(mappings, descriptors, strict=True):
            mapping.close()
            os.close(descriptor)


def test_a_report_survives_json() -> None:
    report = a_report()
    assert report_from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_table_shows_what_a_figure_has() -> None:
    columns = (column("load", "load"), column("time", "seconds", "ms"), column("gone", "gone"))
    figure = Figure("x", "me", {"load": "randread"}, {"seconds": 0.0123})
    assert tables.header(columns) == "| what | load | time | gone |\n|---|---|---|---|"
    assert tables.row(figure, columns) == "| me | randread | 12 ms |  |"
    with pytest.raises(KeyError):
        column("load", "load", "furlongs")


def test_markdown_has_each_section_with_figures() -> None:
    report = a_report()
    text = tables.markdown(report, [(each.name, each.title, each.columns) for each in SECTIONS])
    assert text.startswith("Linux 6.18, 2 cores")
    assert "| 128,000 |" in text
    for section in SECTIONS:
        assert (section.title in text) == bool(report.section(section.name)), section.name


def test_a_checkout_that_was_not_set_up_is_no_earlier_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--earlier", str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tmp_path} has no .venv/bin/dyskctl: run tools/setup there" in capsys.readouterr().err


def test_show_makes_tables_of_an_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, made = tmp_path / "run.json", tmp_path / "tables.md"
    path.write_text(json.dumps(a_report().to_json()))
    assert main(["--show", str(path), "--markdown", str(made)]) == 0
    assert capsys.readouterr().out == ""
    assert made.read_text().startswith("Linux 6.18, 2 cores")
    path.write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        main(["--show", str(path)])
    assert "no file that --json wrote" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--only", "nothing"], ["--json", "/nowhere/at/all"], ["--quickly"]])
def test_wrong_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "tools/bench: error" in capsys.readouterr().err


# -- the frame -------------------------------------------------------------------------------------------------------


def test_what_is_missing_or_fails_is_named_and_the_run_goes_on() -> None:
    def measure(bench: Bench) -> None:
        with bench.optional("a peer"):
            raise MissingPeerError("it is not installed")
        with bench.optional("another"):
            raise RuntimeError("it\nbroke")
        bench.add(OURS, {"load": "x"}, {"iops": 1})
        raise OSError("no disk")

    said: list[str] = []
    bench = Bench(QUICK, say=said.append)
    bench.run(Section("some", "Some section", (column("load", "load"), column("IOPS", "iops")), measure))
    assert [(each.what, each.reason, each.remedy) for each in bench.report.skipped] == [
        ("a peer", "it is not installed", "tools/setup --bench installs it"),
        ("another", "it failed: it broke", "tools/bench --only some shows it alone"),
        ("the rest of this section", "OSError: no disk", "--only some"),
    ]
    assert f"| {OURS} | x | 1 |" in said
    assert "a peer" in tables.skipped_table(bench.report)
    assert tables.skipped_table(Report()) == ""


def test_ctrl_c_is_not_taken_for_a_failure() -> None:
    bench = Bench(QUICK, say=lambda line: None)
    with pytest.raises(KeyboardInterrupt), bench.optional("a peer"):
        raise KeyboardInterrupt


def test_sections_have_names_of_their_own() -> None:
    names = [section.name for section in SECTIONS]
    assert len(set(names)) == len(names) == 14
