"""Misbehaviour on order: which requests it strikes, and what happens to them.

Actions (`when`: "before" the request is applied, so that it never is, or "after"; `connection`: "open", "close",
"reset"; `seconds` None: until released):

| action | what happens |
|---|---|
| error | `status` and `code` are answered, with Retry-After if `retry_after_s` is given; `when` |
| reset | the connection is reset; `when` |
| lost | applied, but no answer; `connection` |
| late | no answer (`connection`), or the error `status`/`code` at once; applied after `seconds` or when released |
| delay | applied and answered after `seconds` or when released |
| stall | applied; half of the answer is sent, the rest after `seconds` or when released |
| short | applied; the body ends half way and the connection closes |
| corrupt | one bit of the data is wrong: of the answer, or of what a write carries, as it arrives |
| wrong_etag | the answer has an ETag that is not the blob's |
| blackhole | not applied, not answered; the connection stays open |
| gateway | a proxy's or load balancer's own page: `status`, HTML, nothing that marks the service's answers; `when` |
| forget | not applied, not answered: all connections of now are dead, and nobody is told; new ones are served |
| interim | `count` answers of `status` 100 to 199 come first; then applied and answered |
| headers | applied; in the answer's head these `headers` take the place of those of the same name, or (null) of none |
| close_delimited | applied; the answer has no length and ends with the connection, `missing` bytes too soon |

`for_s`: a rule is over so many seconds after it first struck, by itself.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from .actions import ACTIONS
from .operations import KINDS, Operation
from .request import Target

__all__ = ["Fault", "Faults"]

GROUPS = {
    "any": KINDS,
    "read": frozenset({"get_blob"}),
    "write": frozenset({"put_page", "put_page_from_url", "clear_page"}),
    "lease": frozenset(kind for kind in KINDS if kind.startswith("lease_")),
}
# What a status is answered with when the rule names no code.
CODES = {
    400: "InvalidInput",
    401: "InvalidAuthenticationInfo",
    403: "AuthenticationFailed",
    404: "BlobNotFound",
    409: "LeaseAlreadyPresent",
    412: "ConditionNotMet",
    416: "InvalidRange",
    500: "OperationTimedOut",
    503: "ServerBusy",
}


@dataclass(slots=True)
class Fault:
    """One rule. A request matches by kind, blob and range; then `skip` matches pass and `times` are struck."""

    action: str
    operation: str | list[str] = "any"  # a kind of operation, "read", "write", "lease", "any", or a list of these
    blob: str | None = None  # pattern of `CONTAINER/BLOB`
    offset: int | None = None  # with length: only requests that touch this range
    length: int | None = None
    min_length: int = 0  # only requests for at least so many bytes
    skip: int = 0
    times: int | None = None  # None: until cleared
    probability: float = 1.0
    status: int | None = None
    code: str | None = None
    retry_after_s: int | None = None
    when: str = "before"
    connection: str = "reset"
    seconds: float | None = None
    for_s: float | None = None
    count: int = 1
    headers: dict[str, str | None] = field(default_factory=dict)
    missing: int = 0
    id: int = 0
    hits: int = 0
    kinds: frozenset[str] = field(default_factory=frozenset)
    first_hit: float | None = None  # of the machine's monotonic clock

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"unknown action {self.action!r}; there are {', '.join(sorted(ACTIONS))}")
        if self.when not in ("before", "after"):
            raise ValueError(f"when is {self.when!r}, not before or after")
        if self.connection not in ("open", "close", "reset"):
            raise ValueError(f"connection is {self.connection!r}, not open, close or reset")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability {self.probability} is not between 0 and 1")
        if self.action in ("error", "gateway", "interim") and self.status is None:
            raise ValueError(f"action {self.action} needs a status")
        if self.status is not None and (self.status < 200) != (self.action == "interim"):
            raise ValueError(f"action {self.action} cannot have status {self.status}")
        if self.action == "headers" and not self.headers:
            raise ValueError("action headers needs headers")
        names = [self.operation] if isinstance(self.operation, str) else self.operation
        unknown = [name for name in names if name not in GROUPS and name not in KINDS]
        if unknown:
            raise ValueError(f"unknown operation {unknown[0]!r}; there are {', '.join(sorted({*GROUPS, *KINDS}))}")
        self.kinds = frozenset().union(*(GROUPS.get(name, frozenset({name})) for name in names))
        if self.status is not None and self.code is None:
            self.code = CODES.get(self.status, "")

    def covers(self, kind: str, blob: str, offset: int, length: int) -> bool:
        """Whether the rule is about such a request."""
        if kind not in self.kinds:
            return False
        if self.blob is not None and not fnmatchcase(blob, self.blob):
            return False
        if length < self.min_length:
            return False
        if self.offset is None:
            return True
        end = self.offset + (self.length if self.length is not None else 1 << 62)
        return offset < end and self.offset < offset + max(length, 1)

    def over(self) -> bool:
        """Whether it struck as often or as long as it was to."""
        if self.times is not None and self.hits >= self.times:
            return True
        if self.for_s is None or self.first_hit is None:
            return False
        return time.monotonic() > self.first_hit + self.for_s

    def to_json(self) -> dict[str, Any]:
        """For the control port."""
        found = asdict(self)
        del found["kinds"], found["first_hit"]
        return found


class Faults:
    """The rules in force, oldest first; the first that strikes a request decides."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._rules: dict[int, Fault] = {}
        self._last_id = 0

    def add(self, fault: Fault) -> int:
        """Put a rule in force; returns its id."""
        self._last_id += 1
        fault.id = self._last_id
        self._rules[fault.id] = fault
        return fault.id

    def clear(self, fault_id: int | None = None) -> None:
        """Take back one rule, or all. KeyError if there is none of that id."""
        if fault_id is None:
            self._rules.clear()
        else:
            del self._rules[fault_id]

    def to_json(self) -> list[dict[str, Any]]:
        """All rules with their hits."""
        return [rule.to_json() for rule in self._rules.values()]

    @property
    def active(self) -> bool:
        """Whether there is any rule."""
        return bool(self._rules)

    def strike(self, operation: Operation, target: Target, offset: int, length: int) -> Fault | None:
        """The rule that strikes this request, if any; counts the hit."""
        blob = f"{target.container}/{target.blob}"
        for rule in self._rules.values():
            if rule.over():
                continue
            if not rule.covers(operation.kind, blob, offset, length):
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            if rule.probability < 1 and self._generator.random() >= rule.probability:
                continue
            rule.hits += 1
            if rule.first_hit is None:
                rule.first_hit = time.monotonic()
            return rule
        return None
