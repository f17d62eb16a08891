"""What becomes of requests on their way to a simulated page blob, and what arrived: trouble drawn at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from blobfuse_dysk.errors import GatewayError, ServiceError

__all__ = ["FATE", "LATEST_S", "Fate", "Refused", "Write", "gateways", "refuse", "weather"]

Refused = ServiceError | GatewayError
LATEST_S = 200.0  # seconds that a request stays on its way at most


def refuse(status: int, code: str, retry_after_s: float | None = None) -> ServiceError:
    return ServiceError(f"{code} (HTTP {status})", status=status, code=code, retry_after_s=retry_after_s)


def gateways(random: Random) -> GatewayError:
    """What something on the way says in the service's place, of the request that it may have handed on."""
    return GatewayError(
        "an answer that is not the service's", status=random.choice((200, 302, 400, 404, 412, 502, 503))
    )


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one request. Seconds.

    unsent: it never leaves. error: the service refuses it so, undone. done_error: the service does it, then answers so.
    early_error: the answer (after after_s), while the service is still at it and does it after before_s.
    before_s: on its way to the service. after_s: the answer's way back. lost_s: the connection breaks after this long,
    wherever the request is then (it still arrives).
    """

    unsent: bool = False
    error: Refused | None = None
    done_error: Refused | None = None
    early_error: Refused | None = None
    before_s: float = 0.001
    after_s: float = 0.001
    lost_s: float = math.inf


FATE = Fate()


@dataclass(frozen=True, slots=True)
class Write:
    """A modifying request as it reached the service. code: empty when it was done, else why not."""

    client: str
    offset: int
    length: int
    lease_id: str | None
    epoch: int | None
    at: float
    code: str


def weather(random: Random, *, bad: float) -> Callable[[str], Fate]:
    """A network and a service in which each request has trouble with this probability, of all kinds.

    Requests stay on their way for at most LATEST_S.
    """

    def fate(name: str) -> Fate:
        before_s, after_s = random.uniform(0.0005, 0.01), random.uniform(0.0005, 0.01)
        if random.random() >= bad:
            return Fate(before_s=before_s, after_s=after_s)
        return random.choice(
            (
                Fate(unsent=True),
                Fate(before_s=before_s, after_s=after_s, lost_s=random.uniform(0.0, 0.02)),
                Fate(before_s=min(LATEST_S, random.expovariate(0.1)), lost_s=random.uniform(0.0, 1.0)),
                Fate(before_s=min(LATEST_S, random.expovariate(0.02))),
                Fate(error=refuse(503, "ServerBusy", random.choice((None, 0.5))), before_s=before_s),
                Fate(error=refuse(500, "OperationTimedOut"), before_s=before_s),
                Fate(done_error=refuse(500, "OperationTimedOut"), before_s=before_s),
                Fate(done_error=refuse(502, ""), before_s=before_s),
                Fate(done_error=gateways(random), before_s=before_s),
                Fate(error=gateways(random), before_s=before_s),
                Fate(early_error=gateways(random), before_s=min(LATEST_S, random.expovariate(0.2))),
                Fate(early_error=refuse(500, "OperationTimedOut"), before_s=min(LATEST_S, random.expovariate(0.2))),
            )
        )

    return fate
