"""A circuit breaker for each host: one that only fails is left alone for a while, then asked once.

No I/O and no clock here: every call is given the time, in seconds of any clock that never goes back. A
circuit's states and what moves it between them:

    state      event      next
    closed     tripped    open       `failures` in a row, and no success for `quiet` seconds
    open       cooled     half-open  the cooldown is over and a request comes: it is the probe
    half-open  answered   closed     the probe was answered; the cooldown is the first one again
    half-open  failed     open       the probe failed; the cooldown doubles
    half-open  lost       half-open  the probe was cancelled or never came back: the next request is one

A success anywhere between closes the account: a host that answers some of what it is asked is not down, even
if the rest fails over and over because it is repeated. The time is there because many requests that run at the
same time fail at the same time.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from unwait.web.errors import ClientError

_SLACK = 1e-6  # s: whoever waited exactly as long as told must not be refused for the last bit of a float


class CircuitOpen(ClientError, ConnectionError):
    """The host failed too often lately, and was not asked.

    `retry_after` is when to try again, in seconds. `retryable` is false for a host that has never answered, not
    even one of the probes up to the longest cooldown: most likely it would be in vain, and hold up what is for others.
    """

    def __init__(self, host: str, seconds: float, *, retryable: bool = True) -> None:
        what = "failed too often" if retryable else "never answered"
        cause = f"circuit open: {host} {what} and is left alone for {seconds:.1f} s"
        super().__init__(cause, retryable=retryable)
        self.args = (host, seconds)  # what makes it again, where it is copied; the attributes follow
        self.host = host
        self.retry_after = seconds


class State(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Event(enum.Enum):
    TRIPPED = "tripped"
    COOLED = "cooled"
    ANSWERED = "answered"
    FAILED = "failed"
    LOST = "lost"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.COOLED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.ANSWERED): State.CLOSED,
    (State.HALF_OPEN, Event.FAILED): State.OPEN,
    (State.HALF_OPEN, Event.LOST): State.HALF_OPEN,
}


@dataclass(slots=True, eq=False)
class _Circuit:
    cooldown: float  # how long it is, or would be, open
    state: State = State.CLOSED
    failures: int = 0  # in a row
    succeeded: float = -math.inf  # when it last did
    heard: bool = False  # it answered, whatever, at least once
    since: float = 0.0  # open: when it opened; half-open: when the probe began
    # Counts the transitions: what was admitted in an earlier period says nothing about this one.
    period: int = 0

    def move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self.period += 1
        self.failures = 0


@dataclass(slots=True, eq=False)
class Admission:
    """One request that was let through. Say what became of it once; more is ignored.

    `answered`, `failed` or, for anything that says nothing about the host (cancelled, refused by a limit on
    this side), `cancelled`. One that never reports counts as lost after the breaker's `patience`.
    """

    _breaker: Breaker
    _circuit: _Circuit
    _period: int
    _reported: bool = field(default=False, init=False)

    def answered(self, status: int, now: float) -> None:
        """The host answered. A status of 500 or above is a failure of the host; 4xx, 429 too, is not."""
        self._circuit.heard = True
        self._report(status >= 500, now)

    def failed(self, now: float) -> None:
        """No (complete) answer: the connection failed, or the time was over."""
        self._report(True, now)

    def cancelled(self) -> None:
        """Given up for a reason that is not the host's."""
        if self._counts() and self._circuit.state is State.HALF_OPEN:
            self._circuit.since = -math.inf

    def _report(self, failure: bool, now: float) -> None:
        if self._counts():
            self._breaker._observe(self._circuit, failure, now)

    def _counts(self) -> bool:
        first, self._reported = not self._reported, True
        return first and self._period == self._circuit.period


class Breaker:
    """Circuits by host.

    `failures` in a row open a circuit, once nothing has succeeded for `quiet` seconds. `cooldown`: seconds for
    which it is open at first; doubled after each probe that fails, up to `longest`. `patience`: seconds after
    which a probe that has not reported is lost. `hosts`: how many circuits are kept, those used last. Raises
    ValueError for values that make no sense.
    """

    def __init__(
        self,
        failures: int = 10,
        *,
        quiet: float = 1.0,
        cooldown: float = 5.0,
        longest: float = 60.0,
        patience: float = 60.0,
        hosts: int = 10_000,
    ) -> None:
        if failures < 1 or hosts < 1 or not (0 < cooldown <= longest) or not patience > 0 or not quiet >= 0:
            raise ValueError(
                "failures, cooldown, patience and hosts must be positive, quiet not negative, longest ≥ cooldown"
            )
        self._failures = failures
        self._quiet = quiet
        self._cooldown = cooldown
        self._longest = longest
        self._patience = patience
        self._hosts = hosts
        self._circuits: dict[str, _Circuit] = {}

    def check(self, host: str, now: float) -> Admission:
        """Lets one request to `host` through, which is to report; raises CircuitOpen where it is not to be asked."""
        circuit = self._circuits.pop(host, None)
        if circuit is None:
            circuit = _Circuit(self._cooldown)
            if len(self._circuits) >= self._hosts:
                del self._circuits[next(iter(self._circuits))]
        self._circuits[host] = circuit
        if circuit.state is not State.CLOSED:
            is_open = circuit.state is State.OPEN
            span, passed = circuit.cooldown if is_open else self._patience, now - circuit.since
            # What has not begun yet was begun by the clock of another loop.
            if 0 <= passed < span - _SLACK:
                # Somebody else's probe mostly ends soon; the longer it has lasted, the less so.
                wait = span - passed
                wait = wait if is_open else min(wait, circuit.cooldown + passed)
                hope = circuit.heard or circuit.cooldown < self._longest
                raise CircuitOpen(host, wait, retryable=hope)
            circuit.move(Event.COOLED if is_open else Event.LOST)
            circuit.since = now
        return Admission(self, circuit, circuit.period)

    def state(self, host: str) -> State:
        """The state of the host's circuit after what was reported so far."""
        circuit = self._circuits.get(host)
        return circuit.state if circuit else State.CLOSED

    def _observe(self, circuit: _Circuit, failure: bool, now: float) -> None:
        if circuit.state is State.HALF_OPEN:
            circuit.move(Event.FAILED if failure else Event.ANSWERED)
            circuit.cooldown = min(2 * circuit.cooldown, self._longest) if failure else self._cooldown
            circuit.since = now
        elif not failure:
            circuit.failures = 0
            circuit.succeeded = now
        else:
            circuit.failures += 1
            # What succeeded later than now did so by the clock of another loop.
            quiet = not 0 <= now - circuit.succeeded < self._quiet
            if circuit.failures >= self._failures and quiet:
                circuit.move(Event.TRIPPED)
                circuit.since = now
