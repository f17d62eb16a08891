"""Whether refusals depend on the rate: an experiment, and what is believed since.

Theory. A busy service turns away one request in a hundred, whoever sends it and how fast. A limit turns away none
below it. So a few refusals are answered by an experiment (Trial): a little less is sent, and requests are counted, not
seconds, since a share of requests is what noise is. Nothing refused in CLEAR times the number of requests that passed
between two refusals before: it was a limit. About the same share again, twice: it is noise, the rate is given back,
and that share is believed (Noise) until FORGET times the requests went by in which one refusal was due.

Where refusals stop the whole disk, and for so long that most of the time is spent waiting, a bucket of the service's
fills up meanwhile, and what gets through between two pauses says little about its limit. What got through with the
pauses counted in is borne for certain, so it is that rate at which the experiment is made. That is slow, so it ends
with the first refusal if the rate before was borne in calm time, too: a limit fell, or there is noise, hardly both. If
nothing is refused, what was borne before is not any more; the count of requests for that is the longest one, as a share
that was seen while many callers waited for their repeats may be that of a few moments.
"""

from __future__ import annotations

__all__ = ["Noise", "Trial"]

SEEN = 3  # refusals that make a share known
MOST_SHARE = 0.06  # who is turned away waits before the repeat, so a limit that is far off can look like more than that
SURELY_NOT = 2 * MOST_SHARE  # of a few requests, and noise after all: one in hundreds
SMALL_SHARE = 0.03
ROUNDS = 3  # where more than that is refused: a limit that was far off looks the same for a moment
CLEAR = 3.0
MOST_CLEAR_WAITING = 350  # requests, where it is the waiting that takes the time, and the experiment costs the most
LEAST_CLEAR_WAITING = 30  # where so much was refused that few show the difference
LEAST_CLEAR = 150  # requests
MOST_CLEAR = 300
MOST_CLEAR_PAUSING = 3000  # a limit mistaken for noise, or noise for one, costs more where each refusal is a pause
FORGET = 10.0
MORE = 1.5  # times the most that may be believed, of 4 * SEEN refusals: chance shows it once in a thousand times
SLACK = 3.0  # times the share that is believed, and as many refusals: still the same


class Trial:
    """An experiment at one rate. Counts of requests are cumulative ones, of those that came back, refused or not."""

    __slots__ = (
        "_clear",
        "_clear_at",
        "_seen",
        "_since",
        "before",
        "borne",
        "certain",
        "done",
        "open_s",
        "rounds",
        "since_s",
    )

    def __init__(
        self,
        requests: int,
        times: tuple[float, float],
        done: tuple[int, int],
        clear: float,
        *,
        before: float = 0.0,
        rounds: int = 0,
        certain: bool = False,
        borne: bool = False,
    ) -> None:
        """times: now, and with the pauses left out. done: operations and bytes. clear: requests.

        before: the share refused at the rate before, 0 if unknown. rounds: in which less was sent, and that stayed.
        certain: a limit would have refused nothing at this rate. borne: nor, in calm time, at the one before.
        """
        self.before, self.rounds, self.certain, self.borne = before, rounds, certain, borne
        self.done, (self.since_s, self.open_s) = done, times
        self._since, self._seen = requests, 0
        self._clear = clear
        self._clear_at = requests + self._clear

    def holds(self, requests: int) -> bool:
        """Whether it goes on: something was refused not long ago."""
        return requests < self._clear_at

    def share(self, requests: int) -> float | None:
        """The share refused, with the one of now; None as long as that is not known."""
        self._seen += 1
        self._clear_at = requests + self._clear
        if self._seen < SEEN and not (self.certain and self.borne):
            return None
        return self._seen / max(self._seen, requests - self._since)

    def futile(self, share: float) -> bool:
        """Whether about the same share was refused at the rates before, often enough to call that noise."""
        if self.certain:
            return self.borne or self.before / 3 <= share <= MOST_SHARE
        alike = share <= MOST_SHARE and self.before / 3 <= share <= self.before * 2 + 0.01
        self.rounds = self.rounds + 1 if alike else 0
        return self.rounds >= (1 if share < SMALL_SHARE else ROUNDS)


class Noise:
    """The share of requests that is believed to be refused whatever their rate."""

    __slots__ = ("_from", "_last", "_most", "_seen", "_share")

    def __init__(self) -> None:
        self._share = self._most = 0.0
        self._from = self._last = self._seen = 0

    def believe(self, share: float, requests: int) -> None:
        """From now on."""
        self._share, self._most = share, min(MOST_SHARE, 2 * share)
        self._from = self._last = requests
        self._seen = 0

    def believed(self, requests: int) -> bool:
        """Whether there is such a share, and it did not end."""
        return self._share > 0 and (requests - self._last) * self._share < FORGET

    def explains(self, requests: int) -> bool:
        """Whether a refusal now is one of those; call for each one."""
        if not self.believed(requests):
            self._share = 0.0
            return False
        self._last = requests
        self._seen += 1
        count = max(1, requests - self._from)
        if self._seen > SLACK * (1 + self._share * count):
            self._share = 0.0
            return False
        if self._seen >= 4 * SEEN:
            share = self._seen / count
            if share > MORE * self._most:
                self._share = 0.0
                return False
            self._share = min(self._most, share)
            self._from, self._seen = requests, 0
        return True
