"""Runs mutants: some workers, each with a copy of the tree, until every mutant was seen by its tests.

Tests must pass without a mutant first, in the copy, or what they say to one is worth nothing. Tests that attach devices
run one at a time, since beside each other they are slow enough to miss their own deadlines.
"""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

from tools.mutatelib.mutants import Mutant
from tools.mutatelib.place import Place, Run
from tools.mutatelib.results import Baseline, Keys, Outcome, Results

__all__ = ["BaselineError", "Engine"]

_Item = TypeVar("_Item")

_ALONE = ("tests/device", "tests/e2e")  # they attach devices
_BASELINE_S = 1800.0
_LEAST_S = 30.0  # tests with a mutant may take this, and so many times what they take without one
_TIMES = 5.0
_PYTEST = ("-m", "pytest", "-x", "-q", "-rfE", "--tb=line", "--no-header", "-p", "no:cacheprovider")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.*?)(?: - (.*))?$", re.MULTILINE)


class BaselineError(Exception):
    """Tests that do not pass on the tree as it is. Says which, and the end of what they printed."""


class Engine:
    """Runs tests with mutants and keeps what they say in `results`; `say` is called with a line for each."""

    def __init__(self, root: Path, keys: Keys, results: Results, say: Callable[[str], None]) -> None:
        self._root = root
        self._keys = keys
        self._results = results
        self._say = say
        self._seconds: dict[str, float] = {}  # what tests take on the tree as it is
        self._todo = 0
        self._lock = threading.Lock()
        self._alone = threading.Lock()

    def run(self, mutants: Sequence[Mutant], workers: int) -> None:
        """Run them all. Raises BaselineError, and KeyboardInterrupt after Ctrl-C or SIGTERM; nothing is left behind."""
        self._todo = len(mutants)
        with tempfile.TemporaryDirectory(prefix="dm-", ignore_cleanup_errors=True) as directory:
            places = [Place(self._root, Path(directory, str(number))) for number in range(min(workers, len(mutants)))]
            with _stopped_by_signals(places):
                tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
                _share(places, tests, self._baseline)
                _share(places, mutants, self._mutant)

    def _baseline(self, place: Place, test: str) -> None:
        key = self._keys.of_baseline(test)
        known = self._results.baseline(key)
        if known is None:
            run = self._pytest(place, test, _BASELINE_S)
            if run.code != 0:
                end = "\n".join(run.output.splitlines()[-15:])
                raise BaselineError(f"{test} does not pass without a mutant, so it cannot tell one:\n{end}")
            known = Baseline(test, round(run.seconds, 1))
            with self._lock:
                self._results.add(key, known)
                self._say(f"without a mutant: {test} passes in {known.seconds} s")
        self._seconds[test] = known.seconds

    def _mutant(self, place: Place, mutant: Mutant) -> None:
        spent = 0.0
        killed, by, slow = False, "", False
        for test in mutant.tests:
            run = self._pytest(place, test, _LEAST_S + _TIMES * self._seconds[test], mutant)
            spent += run.seconds
            if run.code != 0:
                killed = True
                by, slow = _noticed(test, run)
                break
        outcome = Outcome(mutant.id, killed, by, slow, round(spent, 1))
        with self._lock:
            self._results.add(self._keys.of_mutant(mutant), outcome)
            self._todo -= 1
            how = "killed" if killed else "SURVIVED: " + mutant.means
            self._say(f"{mutant.id}  {how}{' (time)' if slow else ''}  {by}  {outcome.seconds} s, {self._todo} to do")

    def _pytest(self, place: Place, test: str, limit_s: float, mutant: Mutant | None = None) -> Run:
        # A test that hangs is ended by pytest before its whole stage is, and then has a name.
        each = max(10.0, min(120.0, limit_s - 10.0))
        command = [sys.executable, *_PYTEST, f"--timeout={each:.0f}", test]
        with self._alone if test.startswith(_ALONE) else contextlib.nullcontext():
            return place.run(command, limit_s, mutant)


def _noticed(test: str, run: Run) -> tuple[str, bool]:
    """The test that failed, as pytest names it, and whether it was for the time that it took."""
    if run.code is None:
        return test, True
    failed = _FAILED.search(run.output)
    if failed is None:
        return test, False
    return failed[1], "Timeout (>" in (failed[2] or "")


def _share(places: Sequence[Place], items: Sequence[_Item], do: Callable[[Place, _Item], None]) -> None:
    """Call `do` for all items, in each place one at a time. The first error stops all of it, and is raised."""
    waiting: queue.SimpleQueue[_Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    errors: list[BaseException] = []

    def work(place: Place) -> None:
        try:
            while True:
                do(place, waiting.get_nowait())
        except queue.Empty:
            return
        except BaseException as error:
            errors.append(error)
            for other in places:
                other.stop()

    threads = [threading.Thread(target=work, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise KeyboardInterrupt if isinstance(errors[0], InterruptedError) else errors[0]


@contextlib.contextmanager
def _stopped_by_signals(places: Sequence[Place]) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        for place in places:
            place.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
