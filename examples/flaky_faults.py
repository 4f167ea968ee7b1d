"""What examples/flaky_api.py does wrong and when, its limits, and what it counts; nothing here does any I/O."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from statistics import NormalDist
from struct import unpack
from typing import Any, Literal, NamedTuple

FATES = ("ok", "drop", "reset", "stall", "slow", "redirect", "close")  # and any HTTP status from 300 to 599
ERRORS = (500, 502, 503, 504)
REDIRECTS = (301, 302, 307, 308)
_LAST_NUMBER = re.compile(r"[0-9]+\Z")
_normal = NormalDist().inv_cdf


def draws(*parts: object) -> tuple[float, ...]:
    """Eight numbers above 0 and below 1 that depend on the parts alone: the same in every run and process."""
    digest = blake2b("\0".join(map(str, parts)).encode(), digest_size=64).digest()
    return tuple((number >> 11 | 1) / 2**53 for number in unpack("<8Q", digest))


def lognormal(draw: float, median: float, spread: float) -> float:
    """A log-normal number from a uniform one, at most ten medians."""
    return min(median * math.exp(spread * _normal(draw)), 10 * median)


def _pick(values: Sequence[int], draw: float) -> int:
    return values[int(draw * len(values))]


class Fate(NamedTuple):
    """What becomes of one attempt: `kind` is of FATES, or "status" with the status to answer."""

    kind: str
    status: int
    latency: float  # seconds


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How the server behaves; by default fast and without a fault or a limit.

    What happens to a request depends on `seed`, on what it asks for and on how many requests for the same
    were admitted before it, and on nothing else: two runs meet the same faults whatever their order and pace.
    """

    seed: int = _option(0, "chooses what goes wrong")
    rpm: int | None = _option(None, "requests admitted in any window; more are answered 429")
    tpm: int | None = _option(None, "tokens admitted in any window; more are answered 429")
    window: float = _option(60.0, "length of the sliding windows of --rpm and --tpm in seconds")
    retry_after: Literal["both", "seconds", "date", "none"] = _option("both", "form of Retry-After")
    latency: float = _option(0.0, "median seconds until an answer (log-normal, at most 10 times this)")
    spread: float = _option(0.5, "sigma of the latency's logarithm")
    errors: float = _option(0.0, "share of ids that lie in a burst: 500, 502, 503 or 504 at first")
    burst: int = _option(8, "neighbouring ids that fail together")
    persist: int = _option(2, "attempts at most that an id in a burst fails")
    drops: float = _option(0.0, "share of attempts reset before a byte is answered")
    resets: float = _option(0.0, "share of attempts reset in the middle of the body")
    stalls: float = _option(0.0, "share of attempts never answered")
    slow: float = _option(0.0, "share of attempts whose body trickles")
    slow_seconds: float = _option(1.0, "how long a body trickles")
    redirects: float = _option(0.0, "share of attempts redirected (301, 302, 307, 308) to the same again")
    closes: float = _option(0.0, "share of answers after which the connection is closed unannounced")
    gzip: float = _option(0.0, "share of answers compressed, for clients that accept gzip")
    page_bytes: int = _option(20_000, "median size of a page")
    invalid: int = _option(0, "first answers of a conversation that are not the JSON that was asked for")
    response_format: Literal["json_schema", "json_object"] = _option(
        "json_schema", "the most that chat knows; json_object refuses schemas"
    )
    models: str = _option(
        "", "names of the models there are, with commas; others are answered 404 (none: any name)"
    )
    api_key: str | None = _option(None, "what /v1/ wants as a bearer token; others are answered 401")

    def __post_init__(self) -> None:
        for name in ("rpm", "tpm", "window", "burst", "persist", "page_bytes"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value!r}")
        if self.invalid < 0:
            raise ValueError(f"invalid must not be negative, and is {self.invalid!r}")
        for name in ("latency", "spread", "slow_seconds"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {value!r}")
        for name in ("errors", "drops", "resets", "stalls", "slow", "redirects", "closes", "gzip"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {value!r}")
        if self._bounds[-1] > 1 + 1e-9:
            raise ValueError("drops, resets, stalls, slow, redirects and closes add up to more than 1")

    def fate(self, identity: str, attempt: int, script: Sequence[str] = ()) -> Fate:
        """What becomes of the attempt (from 0) at `identity`.

        `script` names the fates of the first attempts; the ones after them, if it names any, are "ok".
        """
        which, when, what, *_ = draws(self.seed, identity, attempt)
        latency = lognormal(when, self.latency, self.spread) if self.latency else 0.0
        if script:
            return self._scripted(script[attempt] if attempt < len(script) else "ok", what, latency)
        if self.errors and attempt < self._failures(identity):
            return Fate("status", _pick(ERRORS, what), latency)
        for kind, bound in zip(FATES[1:], self._bounds, strict=True):
            if which < bound:
                return Fate(kind, _pick(REDIRECTS, what) if kind == "redirect" else 200, latency)
        return Fate("ok", 200, latency)

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        shares = (self.drops, self.resets, self.stalls, self.slow, self.redirects, self.closes)
        return tuple(accumulate(shares))

    def _failures(self, identity: str) -> int:
        """How many first attempts fail. Ids whose numbers are neighbours lie in the same burst."""
        number = _LAST_NUMBER.search(identity)
        block = f"{identity[: number.start()]}{int(number[0]) // self.burst}" if number else identity
        if draws(self.seed, "burst", block)[0] >= self.errors:
            return 0
        return 1 + int(draws(self.seed, "persist", identity)[0] * self.persist)

    def _scripted(self, name: str, what: float, latency: float) -> Fate:
        if name == "redirect":
            return Fate(name, _pick(REDIRECTS, what), latency)
        if name in FATES:
            return Fate(name, 200, latency)
        if name.isascii() and name.isdigit() and 300 <= int(name) <= 599:
            return Fate("redirect" if int(name) in REDIRECTS else "status", int(name), latency)
        raise ValueError(f"no such fault: {name!r}; there are {', '.join(FATES)} and statuses 300 to 599")


# An ordinary bad day; the command's --bad-day.
BAD_DAY: dict[str, Any] = {
    "latency": 0.05,
    "errors": 0.05,
    "drops": 0.01,
    "resets": 0.01,
    "slow": 0.01,
    "redirects": 0.01,
    "closes": 0.02,
    "gzip": 0.5,
}


class Window:
    """A true sliding window: never more than `limit` within any `seconds`, measured at admission."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self._seconds = seconds
        self._admitted: deque[tuple[float, int]] = deque()
        self._used = 0

    def remaining(self, now: float) -> int:
        while self._admitted and self._admitted[0][0] <= now - self._seconds:
            self._used -= self._admitted.popleft()[1]
        return self.limit - self._used

    def admit(self, now: float, cost: int) -> None:
        self._admitted.append((now, cost))
        self._used += cost

    def wait(self, now: float, cost: int) -> float:
        """Seconds until the cost fits if nothing else is admitted; inf if it never will."""
        if cost > self.limit:
            return math.inf
        lacking = cost - self.remaining(now)
        until = now
        for when, freed in self._admitted:
            if lacking <= 0:
                break
            lacking -= freed
            until = when + self._seconds
        return max(until - now, 0.0)

    def reset(self, now: float) -> float:
        """Seconds until nothing is left of what was admitted."""
        return self._admitted[-1][0] + self._seconds - now if self._admitted else 0.0


@dataclass(slots=True)
class Seen:
    """What was seen of one identity."""

    received: int = 0  # requests, refused ones included
    admitted: int = 0  # not refused by a limit
    completed: int = 0  # answers 2xx of which the last byte was handed to the system
    tokens: int = 0  # of those
    overloaded: bool = False  # the last answer was 429 or 503
    not_before: float = -math.inf  # when the last answer asked for the next request


def _most(times: Sequence[float], seconds: float, weights: Sequence[int] | None = None) -> int:
    """The largest sum of weights (the number, without) within any `seconds`; the times must not decrease."""
    most = held = 0
    first = 0
    for index, time in enumerate(times):
        held += 1 if weights is None else weights[index]
        while times[first] <= time - seconds:
            held -= 1 if weights is None else weights[first]
            first += 1
        most = max(most, held)
    return most


class Stats:
    """What the server saw. Times are seconds of time.monotonic()."""

    def __init__(self, window: float) -> None:
        self.window = window
        self.seen: dict[str, Seen] = {}
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.concurrent = 0
        self.concurrent_max = 0
        self.arrivals = array("d")
        self.tokens = array("q")  # of each arrival
        self.admitted = bytearray()  # 1 for each arrival that no limit refused
        self.retries = array("d")  # arrivals whose previous answer, for the same identity, was 429 or 503
        self.early = 0  # arrivals before the time that the previous answer's Retry-After had named
        self.embedded: Counter[str] = (
            Counter()
        )  # how often each text, with its model, was embedded and answered

    def arrived(self, identity: str, tokens: int, now: float) -> Seen:
        seen = self.seen.get(identity)
        if seen is None:
            seen = self.seen[identity] = Seen()
        seen.received += 1
        if seen.overloaded:
            seen.overloaded = False
            self.retries.append(now)
        self.early += now < seen.not_before
        self.arrivals.append(now)
        self.tokens.append(tokens)
        self.admitted.append(0)
        return seen

    def admit(self, seen: Seen) -> int:
        """Marks the last arrival as admitted; the number of the attempt, from 0."""
        self.admitted[-1] = 1
        seen.admitted += 1
        return seen.admitted - 1

    def answered(self, seen: Seen, status: int, not_before: float = -math.inf, tokens: int = 0) -> None:
        self.statuses[status] += 1
        seen.not_before = not_before
        seen.overloaded = status in (429, 503)
        if 200 <= status < 300:
            seen.completed += 1
            seen.tokens += tokens

    @property
    def refused(self) -> int:
        """Answers 429."""
        return self.statuses[429]

    @property
    def completed(self) -> int:
        return sum(seen.completed for seen in self.seen.values())

    @property
    def repeated(self) -> list[str]:
        """What was completed more than once."""
        return [identity for identity, seen in self.seen.items() if seen.completed > 1]

    @property
    def embedded_again(self) -> int:
        """Texts that were embedded more than once."""
        return sum(count > 1 for count in self.embedded.values())

    @property
    def endpoints(self) -> dict[str, dict[str, int]]:
        """For each endpoint of a model: payloads, requests, answers, payloads answered more than once, tokens."""
        found: dict[str, dict[str, int]] = {}
        for identity, seen in self.seen.items():
            path, separator, _ = identity.partition("#")
            if not separator:
                continue
            names = ("payloads", "received", "completed", "repeated", "tokens")
            counts = found.setdefault(path, dict.fromkeys(names, 0))
            more = (1, seen.received, seen.completed, seen.completed > 1, seen.tokens)
            for name, count in zip(names, more, strict=True):
                counts[name] += count
        return found

    def most_requests(self, seconds: float | None = None, *, admitted: bool = False) -> int:
        """The most requests that arrived (or were admitted) in any `seconds`, the window's unless given."""
        times, _ = self._arrivals(admitted)
        return _most(times, self.window if seconds is None else seconds)

    def most_tokens(self, seconds: float | None = None, *, admitted: bool = False) -> int:
        """The most tokens that arrived (or were admitted) in any `seconds`, the window's unless given."""
        times, tokens = self._arrivals(admitted)
        return _most(times, self.window if seconds is None else seconds, tokens)

    def largest_burst(self, seconds: float) -> int:
        """The most retries after a 429 or 503 that arrived within any `seconds`."""
        return _most(self.retries, seconds)

    def _arrivals(self, admitted: bool) -> tuple[Sequence[float], Sequence[int]]:
        if not admitted:
            return self.arrivals, self.tokens
        chosen = [index for index, mark in enumerate(self.admitted) if mark]
        return [self.arrivals[index] for index in chosen], [self.tokens[index] for index in chosen]

    def summary(self, window: float | None = None, burst: float = 0.1) -> dict[str, Any]:
        """All of it for JSON: the maxima of `window` seconds, and the largest burst of retries in `burst`."""
        window = self.window if window is None else window
        return {
            "received": len(self.arrivals),
            "admitted": sum(self.admitted),
            "completed": self.completed,
            "refused": self.refused,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "faults": dict(sorted(self.faults.items())),
            "concurrent_max": self.concurrent_max,
            "window": {
                "seconds": window,
                "requests_arrived": self.most_requests(window),
                "requests_admitted": self.most_requests(window, admitted=True),
                "tokens_arrived": self.most_tokens(window),
                "tokens_admitted": self.most_tokens(window, admitted=True),
            },
            "retries_after_overload": len(self.retries),
            "early": self.early,
            "largest_burst": {"seconds": burst, "retries": self.largest_burst(burst)},
            "repeated": self.repeated,
            "endpoints": self.endpoints,
            "embedded": {"texts": len(self.embedded), "again": self.embedded_again},
            "ids": {key: [seen.received, seen.completed] for key, seen in self.seen.items()},
        }


def options() -> list[tuple[str, Any, str]]:
    """Name, default and meaning of each field of `Faults`, for a command line."""
    return [(item.name, item.default, item.metadata["help"]) for item in fields(Faults)]
