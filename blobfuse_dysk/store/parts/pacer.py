"""How many requests and bytes a second: the limits that a user set, and those that the service is found to have.

Theory. A tier sells so many I/O operations and so many bytes a second. A number of requests in flight cannot hold
such a limit: 500 operations a second at 2 ms are one request in flight, and two are twice too many. So requests are
spaced in time. Each of the two dimensions is a bucket, kept as the moment at which all that was sent so far is paid
for; a request may start once that moment has come. Up to BURST_S of unused time is made up for.

A rate is known only if the user gave it, or once the service refused something. From then on it is learned: rate.py.

What got through while the service refused is the service's limit, whatever we sent; it is measured from the last
cut or pause on if that was a moment ago (over a longer time if nothing gets through now). Where much was refused, a
cut is taken back to that, and one round later the next one may follow, so a limit that fell sharply is found in two or
three rounds. Rates grow only by the time during which they held requests back: an application that wants little
learns nothing. Where nothing gets through at all the service is out of order, and the cuts of that moment are undone.

Refusals that do not depend on the rate (a busy service that turns away one request in a hundred, whoever sends it)
must not pull it down. Where little is refused, a small cut is an experiment: noise.py. What got through in calm time
is remembered as borne. Once nothing is refused for CALM_S, a rate below that comes back to it in large steps, however
was lost; an attempt that is refused at once is made after twice that time the next time, and at last not any more; what
got through then is the limit. Much refused is the limit, too: what was borne is forgotten.

A refusal does not say which limit it is about. The mean size of what got through does, but for those between
SMALL and LARGE: there the one that was nearly used up is meant, or both.

Retry-After: the refused request is not repeated before (retry.py). Where so much is refused that it must mean all, no
request starts for that time. One refusal among many that get through does not: the service is there, as those show, and
what is held back could prove that it was noise. Probing for more costs more when the service asks for long pauses, so
the curve is stretched. Pauses of the whole disk are not counted in what is measured: gate.py.

No await in here; times are those of trio.current_time(), given by the caller.
"""

from __future__ import annotations

from math import inf

from blobfuse_dysk.store.contract import MAX_WRITE
from blobfuse_dysk.store.parts.gate import Gate
from blobfuse_dysk.store.parts.noise import (
    CLEAR,
    LEAST_CLEAR,
    LEAST_CLEAR_WAITING,
    MOST_CLEAR,
    MOST_CLEAR_PAUSING,
    MOST_CLEAR_WAITING,
    MOST_SHARE,
    SURELY_NOT,
    Noise,
    Trial,
)
from blobfuse_dysk.store.parts.rate import IO_SIZE, NEW, Rate, State, operations
from blobfuse_dysk.store.parts.through import ROUND_S, Span, Through

__all__ = ["IO_SIZE", "Pacer", "Rate", "operations"]

LUMP_S = 0.008  # time that one write may take up: a fraction of what is measured over, and of a service's own burst
WINDOW_S = 0.5  # how far back one looks
LONG_S = 1.0  # and where nothing gets through at the moment: some services count by the second
ENOUGH = 5  # refusals that can show a limit by themselves
FEW = 30  # requests right after a cut: what is refused of those was for the rate before
CURVE_S = 3.0  # from a cut back to the old rate
PAUSES = 30  # the curve takes at least so many times the pause that the service asked for
PAUSES_OF_ONE = 10  # where it was only the refused call that waited
MOST_CURVE_S = 300.0
RARE = 0.01  # share of refusals that is ignored below the top of the curve
NOISE = 0.25  # share of refusals that can be noise; more is always a limit
EASE = 0.03  # how far below what was sent a cut goes that may be for nothing
COUNTABLE = 50  # operations whose time gives a rate
EASE_PAUSING = 0.05  # where pauses fill the service's bucket: a limit a little lower refuses hardly more than noise
EASE_MORE = 0.005  # and the next one, below what was not refused
AGAIN = 3  # searches that noise may end before what was known ahead of it is given up
STEPS = 8  # of STEP_DOWN, each a pause, until a limit that was found by many refusals is known well
CALM_S = 2.0  # without a refusal: what was borne before is tried again
MOST_CALM_S = 32.0  # after attempts that failed
MOST_CALM_WAITING_S = 4.0  # where an experiment says so, too, and each attempt may stop the whole disk
FAR = 1.5  # times what was borne: an overshoot that no experiment needs to confirm
STEPS_FOUND = 3  # of them, where it was found by one refusal on the way up
STEP_DOWN = 0.75  # where a pause is all that a refusal brings, too short a time is left for measuring
SMALL = 32_000  # bytes an operation; below, it is operations that every tier runs out of first (P60: 33 KB)
LARGE = 200_000  # bytes an operation; above, it is bytes (P10: 200 KB)
LEAST = (16.0, 4e6)  # operations, bytes a second; learned rates never go below
FIRST = (250.0, 30e6)  # nor a first estimate below half of the smallest tier


class Pacer:
    """See the module's text. iops, bytes_per_s: what the user allows; None is no limit."""

    def __init__(self, iops: float | None = None, bytes_per_s: float | None = None) -> None:
        self.operations = Rate(inf, LEAST[0], FIRST[0])
        self.bytes = Rate(inf, LEAST[1], FIRST[1])
        self.paced = False  # `due` and `charge` need not be called
        self._gate = Gate()
        self.allow(iops, bytes_per_s)
        self._curve_s = CURVE_S
        self._through = Through()
        self._cut_at = -inf
        self._held_at = inf  # since when requests are held back; inf: they are not
        self._cut_open = -inf  # _cut_at, without the pauses
        self._cut_requests = 0  # that had come back then
        self._refused_at = 0  # requests that had come back at the last refusal
        self._trial: Trial | None = None
        self._before: tuple[State, State] | None = None  # what was known before the cuts that may have been mistakes
        self._noise = Noise()
        self._refused_last = -inf  # time of the last refusal
        self._caught_up_at = -inf
        self._calm_s = CALM_S
        self._most_calm_s = MOST_CALM_S  # beyond it, what was borne is given up
        self._kept: tuple[State, State] | None = None  # what was known at _kept_at
        self._kept_at = -inf
        self._again = 0  # searches that may end before that is given up
        self._steps = 0  # that a limit may still be away from what was found

    def allow(self, iops: float | None, bytes_per_s: float | None) -> None:
        """Change the user's limits; None is no limit. What was charged at the old ones stays charged."""
        self.operations.allow(inf if iops is None else iops)
        self.bytes.allow(inf if bytes_per_s is None else bytes_per_s)
        rate = min(self.operations.rate, self.bytes.rate)
        self.paced = rate < inf or self._gate.resumed_at > -inf or self._gate.idle_at < inf

    @property
    def largest_write(self) -> int:
        """Bytes of the largest write worth sending in one: where bytes are spaced, few large ones come in lumps."""
        if self.bytes.rate == inf:
            return MAX_WRITE
        return max(IO_SIZE, min(MAX_WRITE, int(self.bytes.rate * LUMP_S) // IO_SIZE * IO_SIZE))

    def due(self) -> float:
        """When the next request may start."""
        return max(self._gate.closed_until, self.operations.paid, self.bytes.paid)

    def charge(self, length: int, now: float) -> None:
        """A request starts; `due` has come."""
        if self._gate.idle_at < inf:
            self._gate.started(now)
        if self.operations.rate < inf:
            self.operations.charge(operations(length), now)
        if self.bytes.rate < inf:
            self.bytes.charge(length, now)

    def held(self, now: float, waits: bool) -> None:
        """Requests wait, and it is only `due` that they wait for (or not: `waits`). Call when that may have changed."""
        if self._held_at < now:
            binding = self.operations if self.operations.paid >= self.bytes.paid else self.bytes
            if binding.behind and self._is_calm(now):
                if self._trial is not None:
                    self._most_calm_s = MOST_CALM_WAITING_S if self._trial.certain else MOST_CALM_S
                binding.catch_up(now - self._held_at, self._curve_s)
                self._caught_up_at, self._trial = now, None
            elif self._trial is None or not self._trial.holds(self._requests):
                beyond = self._curve_s == CURVE_S or not self._noise.believed(self._requests)
                binding.grow(now - self._held_at, self._curve_s, beyond=beyond)
        self._held_at = max(now, self._gate.closed_until) if waits else inf

    def succeeded(self, length: int, now: float) -> None:
        """A request of `length` bytes came back well."""
        self._through.add(length, self._gate.open(now))

    def asked(self, seconds: float, now: float, *, much: bool, last: bool) -> None:
        """The service wants a refused request not before `seconds` from now. much: as `refused` said.

        last: it was the only one in progress, and none waits, so that the disk is idle until some repeat starts.
        """
        closes = much or now < self._gate.closed_until
        times = PAUSES if closes or last else PAUSES_OF_ONE
        self._curve_s = min(MOST_CURVE_S, max(CURVE_S, seconds * times))
        if closes:
            self._gate.close(now, seconds)
        if last:
            self._gate.idle(now)
        self.paced = True

    def refused(self, started: float, now: float, in_flight: tuple[int, int]) -> bool:
        """A request was turned away; in_flight: (operations, bytes). Whether so much is refused that it is for all.

        Then slots are to be cut, too.
        """
        through = self._through
        through.refused += 1
        calm, self._refused_at = self._requests - self._refused_at, self._requests
        if started <= self._cut_at or self._is_echo(now):
            return False
        at = self._gate.open(now)
        refuted = self._remember(now, at)
        given_up = refuted and self._calm_s > self._most_calm_s
        if given_up:
            self._forget()
        unknown = self.operations.learned == inf and self.bytes.learned == inf
        settled = self.operations.settled or self.bytes.settled
        reopened = self._gate.open(self._gate.resumed_at)
        lately = through.since(at - LONG_S, at)
        span = through.since(max(self._cut_open, reopened, at - (WINDOW_S if settled else 2 * ROUND_S)), at)
        if not lately.done and not unknown:
            self._take_back(now)
            return True
        if now > self._kept_at + 3 * LONG_S:
            self._kept, self._kept_at = (self.operations.state, self.bytes.state), now
        got = (span if span.done else lately).rates(in_flight if unknown else (0, 0))
        after_pause = self._cut_at < self._gate.resumed_at <= now < self._gate.resumed_at + WINDOW_S
        if not after_pause:
            self._steps = 0
        doubted = not self._noise.believed(self._requests)
        much = (unknown and self._requests < COUNTABLE) or not lately.done or self._is_much(span, now)
        if much or (after_pause and doubted and self._steps):
            self._steps = self._steps - 1 if after_pause and self._steps else STEPS
            if much:
                self._forget()
            else:
                got = self._most(got, at)
            self._cut(got, (now, at), STEP_DOWN if after_pause else 1.0)
        elif not self._noise.explains(self._requests):
            if given_up:
                self._cut(self._most(got, at), (now, at), 1.0)
            elif not refuted:
                self._sporadic(calm, (now, at), got)
        return much

    def _is_echo(self, now: float) -> bool:
        """Whether a refusal follows a cut so closely that it was for the rate before; where pauses come of it."""
        few = self._requests - self._cut_requests < FEW
        return self._curve_s > CURVE_S and now - self._cut_at < ROUND_S and few

    def _is_calm(self, now: float) -> bool:
        """Whether nothing was refused for long enough to try again what was borne; an experiment wants its requests."""
        requests = 0 if self._trial is None else LEAST_CLEAR
        long = now - max(self._refused_last, self._gate.resumed_at) >= self._calm_s
        return long and self._requests - self._refused_at >= requests

    def _remember(self, now: float, at: float) -> bool:
        """What got through in calm time is known to be borne; whether an attempt to come back to it has just failed."""
        since, self._refused_last = max(self._refused_last, self._gate.resumed_at), now
        if now - self._caught_up_at < LONG_S:
            self._calm_s *= 2
            self._caught_up_at = -inf
            return True
        if now - since >= CALM_S:
            best = self._through.since(at - CALM_S, at).rates((0, 0))
            self.operations.remember(best[0])
            self.bytes.remember(best[1])
            if not (self.operations.behind or self.bytes.behind):
                self._calm_s = CALM_S
        return False

    def _forget(self) -> None:
        """What was borne once is not any more."""
        self._before = None
        self.operations.borne = self.bytes.borne = 0.0
        self._calm_s = CALM_S

    def _take_back(self, now: float) -> None:
        """It is out of order, which is not about rates: the cuts while that could not be seen were mistakes."""
        if self._kept is not None and now < self._kept_at + 3 * LONG_S:
            self.operations.restore(self._kept[0])
            self.bytes.restore(self._kept[1])
            self._trial = self._before = self._kept = None

    def _is_much(self, span: Span, now: float) -> bool:
        """Whether so much was refused since the last cut that it must be for the rate."""
        since_s = now - self._cut_at
        evident = (since_s >= ROUND_S and span.refused >= ENOUGH) or (since_s >= WINDOW_S and span.refused > 1)
        return evident and span.exceeds(NOISE)

    def _sporadic(self, calm: int, times: tuple[float, float], got: tuple[float, float]) -> None:
        """One refusal among many requests, `calm` of them since the one before: see noise.py."""
        trial = self._trial
        if trial is not None and trial.holds(self._requests):
            self._heard(trial, times, got)
            return
        if trial is not None and trial.certain:
            self._forget()  # nothing was refused at that rate, so it was the limit that refused at the one before
        if self._curve_s == CURVE_S and self._rare(times[1]):
            return
        if any(rate.searching and rate.learned > FAR * rate.borne for rate, _ in self._blamed(*got)):
            if times[0] - self._cut_at >= WINDOW_S:
                before = self._before if self._again else None
                self._cut(self._most(got, times[1]), times, 1.0)
                self._steps = STEPS_FOUND
                self._before, self._again = before, max(0, self._again - 1)
        else:
            known = trial is not None and trial.before > 0 and calm > MOST_CLEAR
            if self._before is None or known or calm > MOST_CLEAR_PAUSING:
                self._before, self._again = (self.operations.state, self.bytes.state), AGAIN
            else:
                self.operations.raise_to(self._before[0])
                self.bytes.raise_to(self._before[1])
            self._ease(got, times, EASE, 0.0)
            if self._before[0][0] == self._before[1][0] == inf:
                self.operations.settle()
                self.bytes.settle()
            self._try(Trial(self._requests, times, self._through.totals, self._clear(CLEAR * calm)))

    def _heard(self, trial: Trial, times: tuple[float, float], got: tuple[float, float]) -> None:
        """A refusal during an experiment."""
        share = trial.share(self._requests)
        if share is None:
            return
        if share > NOISE:
            self._before = None  # not noise; `refused` will see enough soon, or the next experiment
            return
        waited = times[1] - trial.open_s < (times[0] - trial.since_s) / 2
        twice = trial.before > 0 or self._curve_s == CURVE_S
        if self._before is not None and twice and trial.futile(share) and (trial.certain or not waited):
            self._noise.believe(trial.before if trial.certain else share, self._requests)
            self.operations.restore(self._before[0])
            self.bytes.restore(self._before[1])
            self.operations.settle()
            self.bytes.settle()
            self._trial = self._before = None
            self._was_cut(*times)
            return
        totals = self._through.totals
        blamed = self._blamed(*got)
        borne = share <= MOST_SHARE and all(0 < achieved <= rate.borne * NEW for rate, achieved in blamed)
        if waited:
            clear: float = MOST_CLEAR_WAITING
            if share > SURELY_NOT:
                self._forget()
                clear = LEAST_CLEAR_WAITING
            for rate, _ in blamed:
                index = int(rate is self.bytes)
                rate.step_down((totals[index] - trial.done[index]) / (times[0] - trial.since_s))
        else:
            clear = self._clear(CLEAR / share)
            self._ease(got, times, EASE_MORE if self._curve_s == CURVE_S else EASE_PAUSING, share)
        more = Trial(
            self._requests, times, totals, clear, before=share, rounds=trial.rounds, certain=waited, borne=borne
        )
        self._try(more)

    def _ease(self, got: tuple[float, float], times: tuple[float, float], margin: float, share: float) -> None:
        for rate, achieved in self._blamed(*self._most(got, times[1])):
            rate.ease(achieved, share, margin)

    def _most(self, got: tuple[float, float], at: float) -> tuple[float, float]:
        """What got through, of a time long enough to tell."""
        best = self._through.best(min(WINDOW_S, max(ROUND_S, COUNTABLE / self.operations.learned)), at)
        return max(got[0], best[0]), max(got[1], best[1])

    def _clear(self, requests: float) -> float:
        """How many without a refusal show that it was the rate, within bounds."""
        return max(LEAST_CLEAR, min(requests, MOST_CLEAR if self._curve_s == CURVE_S else MOST_CLEAR_PAUSING))

    def _try(self, trial: Trial) -> None:
        self._trial = trial
        self._was_cut(trial.since_s, trial.open_s)

    def _cut(self, got: tuple[float, float], times: tuple[float, float], most: float) -> None:
        """It is the rate; most: the share of the present one that may be left."""
        for rate, achieved in self._blamed(*got):
            rate.cut(min(achieved, rate.learned * most))
        self._trial = self._before = None
        self._was_cut(*times)

    @property
    def _requests(self) -> int:
        """How many came back, refused or not."""
        return self._through.requests + self._through.refused

    def _rare(self, at: float) -> bool:
        """Whether hardly anything is refused, and it is not the limit that is being looked for."""
        above = self.operations.above_top or self.bytes.above_top
        return not above and not self._through.since(at - LONG_S, at).exceeds(RARE)

    def _was_cut(self, now: float, at: float) -> None:
        self._cut_at, self._cut_open, self._cut_requests, self.paced = now, at, self._requests, True
        self._through.mark(at)

    def _blamed(self, done: float, size: float) -> list[tuple[Rate, float]]:
        """The dimensions that a refusal is about, with what got through in each, per second."""
        mean = size / done if done else 0.0
        both = [(self.operations, done), (self.bytes, size)]
        if mean < SMALL:
            return both[:1]
        if mean > LARGE:
            return both[1:]
        used_up = [(rate, achieved) for rate, achieved in both if achieved > rate.learned * 0.8]
        return used_up or both
