"""The circuit breaker: when it opens, whom it lets probe, and that nothing wedges it."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from unwait.flow.faults import is_overload, retry_after
from unwait.flow.retry import transient
from unwait.web.breaker import TRANSITIONS, Admission, Breaker, CircuitOpen, Event, State
from unwait.web.errors import ClientError

HOST = "api.example.com:443"


def fail(breaker: Breaker, times: int, now: float = 0.0, host: str = HOST) -> None:
    for _ in range(times):
        breaker.check(host, now).failed(now)


def refused(breaker: Breaker, now: float, host: str = HOST) -> float:
    with pytest.raises(CircuitOpen) as caught:
        breaker.check(host, now)
    return caught.value.retry_after or 0.0


def test_only_failures_open_it_at_the_bound_and_not_before() -> None:
    breaker = Breaker(3, cooldown=5)
    fail(breaker, 2)
    assert breaker.state(HOST) is State.CLOSED
    fail(breaker, 1)
    assert breaker.state(HOST) is State.OPEN
    assert refused(breaker, 1.5) == 3.5


def test_the_error_names_the_host_and_the_delay_that_retries_wait_for() -> None:
    breaker = Breaker(1, cooldown=5)
    fail(breaker, 1)
    with pytest.raises(
        CircuitOpen, match=r"api\.example\.com:443 failed too often and is left alone for 5\.0 s"
    ) as caught:
        breaker.check(HOST, 0)
    error = caught.value
    assert isinstance(error, ClientError)
    assert isinstance(error, ConnectionError)
    assert error.host == HOST
    assert retry_after(error) == 5.0
    # Nobody was asked: nothing for adaptive limits to learn.
    assert not is_overload(error)
    assert transient(error)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(again), str(again), retry_after(again)) == (CircuitOpen, str(error), 5.0)


@pytest.mark.parametrize("status", [200, 204, 301, 304, 400, 401, 404, 408, 425, 429, 499])
def test_an_answer_below_500_is_no_failure(status: int) -> None:
    breaker = Breaker(1)
    breaker.check(HOST, 0).answered(status, 0)
    assert breaker.state(HOST) is State.CLOSED


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_an_answer_of_500_and_above_is_a_failure(status: int) -> None:
    breaker = Breaker(1)
    breaker.check(HOST, 0).answered(status, 0)
    assert breaker.state(HOST) is State.OPEN


@pytest.mark.parametrize("seed", range(5))
def test_a_server_that_fails_one_time_in_ten_never_opens_it(seed: int) -> None:
    chance = random.Random(seed)
    breaker = Breaker()
    for second in range(50_000):
        breaker.check(HOST, second).answered(500 if chance.random() < 0.1 else 200, second)
        assert breaker.state(HOST) is State.CLOSED


def test_a_long_good_past_does_not_delay_it() -> None:
    breaker = Breaker(3)
    for _ in range(1000):
        breaker.check(HOST, 0).answered(200, 0)
    fail(breaker, 3, 1)
    assert breaker.state(HOST) is State.OPEN


def test_a_server_that_answers_some_is_not_down() -> None:
    breaker = Breaker(10, quiet=1)
    breaker.check(HOST, 0).answered(200, 0)
    for tenth in range(1, 1000):
        now = tenth / 10
        fail(breaker, 5, now)
        if tenth % 9 == 0:
            breaker.check(HOST, now).answered(200, now)
        assert breaker.state(HOST) is State.CLOSED


def test_a_server_that_goes_down_opens_it_when_nothing_has_succeeded_for_a_while() -> None:
    breaker = Breaker(10, quiet=1)
    breaker.check(HOST, 0).answered(200, 0)
    fail(breaker, 100, 0.999)
    assert breaker.state(HOST) is State.CLOSED
    fail(breaker, 1, 1)
    assert breaker.state(HOST) is State.OPEN


def test_hosts_do_not_share_a_circuit() -> None:
    breaker = Breaker(1)
    fail(breaker, 1)
    breaker.check("other.example", 0).answered(200, 0)
    assert breaker.state("other.example") is State.CLOSED
    assert breaker.state(HOST) is State.OPEN


def test_after_the_cooldown_one_probe_is_let_through_and_its_success_closes() -> None:
    breaker = Breaker(2, cooldown=5)
    fail(breaker, 2)
    assert refused(breaker, 4.999) == pytest.approx(0.001)
    probe = breaker.check(HOST, 5)
    assert breaker.state(HOST) is State.HALF_OPEN
    assert refused(breaker, 5) == 5.0
    probe.answered(429, 6)
    assert breaker.state(HOST) is State.CLOSED
    # It begins anew, without what was counted before.
    fail(breaker, 1, 7)
    assert breaker.state(HOST) is State.CLOSED


def test_each_failed_probe_doubles_the_cooldown_up_to_a_bound_and_a_success_resets_it() -> None:
    breaker = Breaker(1, cooldown=5, longest=30)
    now = 0.0
    fail(breaker, 1, now)
    cooldowns = []
    for _ in range(5):
        cooldowns.append(refused(breaker, now))
        now += cooldowns[-1]
        breaker.check(HOST, now).failed(now)
    assert cooldowns == [5, 10, 20, 30, 30]
    now += 30
    slow = breaker.check(HOST, now)
    now += 50
    slow.failed(now)
    assert refused(breaker, now) == 30  # counted from its end
    now += 30
    breaker.check(HOST, now).answered(200, now)
    fail(breaker, 1, now)
    assert refused(breaker, now) == 5


def test_whoever_waits_exactly_as_long_as_told_is_let_through() -> None:
    for step in range(1, 2000):
        breaker = Breaker(1, cooldown=0.1 * step, longest=1000)
        now = 1e6 + 0.7 * step
        fail(breaker, 1, now)
        later = now + 0.03 * step
        breaker.check(HOST, later + refused(breaker, later))


def test_a_host_that_never_answered_is_not_waited_for_for_ever() -> None:
    breaker = Breaker(2, cooldown=5, longest=20)

    def is_waited_for(now: float) -> bool:
        with pytest.raises(CircuitOpen) as caught:
            breaker.check(HOST, now)
        again = copy.copy(caught.value)
        assert again.retryable == transient(again) == ("never answered" not in str(again))
        return again.retryable

    fail(breaker, 2)
    assert is_waited_for(0)
    breaker.check(HOST, 5).failed(5)
    assert is_waited_for(5)
    breaker.check(HOST, 15).failed(15)
    assert not is_waited_for(15)
    probe = breaker.check(HOST, 35)
    assert not is_waited_for(35)
    probe.answered(503, 35)
    # It is alive, after all.
    assert breaker.state(HOST) is State.OPEN
    assert is_waited_for(35)


def test_a_host_that_answered_before_is_waited_for_however_long_it_fails() -> None:
    breaker = Breaker(2, cooldown=5)
    breaker.check(HOST, -1).answered(200, -1)
    fail(breaker, 2)
    now = 0.0
    for _ in range(8):
        with pytest.raises(CircuitOpen) as caught:
            breaker.check(HOST, now)
        assert caught.value.retryable
        now += caught.value.retry_after or 0
        breaker.check(HOST, now).failed(now)


def test_a_cancelled_probe_leaves_its_place_to_the_next_request() -> None:
    breaker = Breaker(1, cooldown=5)
    fail(breaker, 1)
    breaker.check(HOST, 5).cancelled()
    second = breaker.check(HOST, 5)
    refused(breaker, 5)
    second.answered(200, 6)
    assert breaker.state(HOST) is State.CLOSED


def test_a_probe_that_never_reports_is_given_up_after_the_patience() -> None:
    breaker = Breaker(1, cooldown=5, patience=60)
    fail(breaker, 1)
    lost = breaker.check(HOST, 5)
    refused(breaker, 64.999)
    second = breaker.check(HOST, 65)
    # What the lost one says now is no longer asked for.
    lost.failed(66)
    assert breaker.state(HOST) is State.HALF_OPEN
    second.answered(200, 67)
    assert breaker.state(HOST) is State.CLOSED


def test_others_wait_for_a_probe_the_longer_the_longer_it_lasts() -> None:
    breaker = Breaker(1, cooldown=5, patience=60)
    fail(breaker, 1)
    breaker.check(HOST, 5)
    assert refused(breaker, 5.5) == 5.5
    assert refused(breaker, 11) == 11
    assert refused(breaker, 22) == 22
    assert refused(breaker, 45) == 20
    assert refused(breaker, 64) == 1


def test_what_was_sent_before_it_opened_says_nothing_about_the_probe() -> None:
    breaker = Breaker(2, cooldown=5)
    early = [breaker.check(HOST, 0) for _ in range(6)]
    early[0].failed(1)
    early[1].failed(1)
    early[2].answered(200, 2)
    early[3].failed(2)
    assert refused(breaker, 2) == 4
    probe = breaker.check(HOST, 6)
    early[4].answered(200, 7)
    early[5].failed(7)
    assert breaker.state(HOST) is State.HALF_OPEN
    probe.answered(200, 8)
    assert breaker.state(HOST) is State.CLOSED


def test_only_the_first_report_of_an_admission_counts() -> None:
    breaker = Breaker(2)
    admission = breaker.check(HOST, 0)
    for _ in range(3):
        admission.failed(0)
    assert breaker.state(HOST) is State.CLOSED
    cancelled = breaker.check(HOST, 0)
    cancelled.cancelled()
    cancelled.failed(0)
    assert breaker.state(HOST) is State.CLOSED


def test_the_clock_of_another_loop_does_not_wedge_it() -> None:
    breaker = Breaker(1, cooldown=5)
    fail(breaker, 1, now=1_000_000.0)
    # A new loop's clock began near zero.
    breaker.check(HOST, 1.0).answered(200, 1.0)
    assert breaker.state(HOST) is State.CLOSED


def test_the_hosts_used_last_are_kept() -> None:
    breaker = Breaker(1, hosts=2)
    fail(breaker, 1, host="a")
    fail(breaker, 1, host="b")
    refused(breaker, 0, host="a")
    breaker.check("c", 0)
    assert [breaker.state(host) for host in "abc"] == [State.OPEN, State.CLOSED, State.CLOSED]


@pytest.mark.parametrize(
    "options",
    [
        {"failures": 0},
        {"cooldown": 0},
        {"cooldown": 10, "longest": 5},
        {"patience": 0},
        {"hosts": 0},
        {"cooldown": float("nan")},
    ],
)
def test_values_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Breaker(**options)


def test_each_state_can_be_left_and_each_event_leads_somewhere() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert set(TRANSITIONS.values()) == set(State)


class AnyTraffic(RuleBasedStateMachine):
    """Random traffic to one host: whatever happens, one probe at a time, and never refused for ever."""

    COOLDOWN, LONGEST, PATIENCE = 4.0, 16.0, 30.0

    @initialize(failures=st.integers(1, 4))
    def begin(self, failures: int) -> None:
        self.breaker = Breaker(failures, cooldown=self.COOLDOWN, longest=self.LONGEST, patience=self.PATIENCE)
        self.now = 0.0
        self.out: list[Admission] = []
        self.probes: list[tuple[Admission, float]] = []

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        closed = self.breaker.state(HOST) is State.CLOSED
        refusal = None
        try:
            admission = self.breaker.check(HOST, self.now)
        except CircuitOpen as error:
            refusal = error
        if refusal is not None:
            assert not closed
            assert refusal.retry_after is not None
            assert 0 < refusal.retry_after <= max(self.LONGEST, self.PATIENCE)
            return
        self.out.append(admission)
        if self.breaker.state(HOST) is State.HALF_OPEN:
            # No other probe that is younger than the patience is out.
            assert all(self.now - asked >= self.PATIENCE for _, asked in self.probes)
            self.probes = [(admission, self.now)]

    @precondition(lambda self: self.out)
    @rule(data=st.data(), kind=st.sampled_from(["answered", "5xx", "failed", "cancelled", "lost"]))
    def report(self, data: st.DataObject, kind: str) -> None:
        admission = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        before = self.breaker.state(HOST)
        is_probe = any(admission is probe for probe, _ in self.probes)
        match kind:
            case "answered":
                admission.answered(200, self.now)
            case "5xx":
                admission.answered(503, self.now)
            case "failed":
                admission.failed(self.now)
            case "cancelled":
                admission.cancelled()
        after = self.breaker.state(HOST)
        if kind in ("cancelled", "lost"):
            assert after is before
        if before is State.OPEN or (before is State.HALF_OPEN and not is_probe):
            assert after is before
        if before is State.HALF_OPEN and is_probe and kind not in ("cancelled", "lost"):
            assert after is (State.CLOSED if kind == "answered" else State.OPEN)
        if is_probe and kind != "lost":
            self.probes = []

    @rule()
    def nobody_is_refused_for_ever(self) -> None:
        self.now += max(self.LONGEST, self.PATIENCE)
        admission = self.breaker.check(HOST, self.now)
        self.probes = [(admission, self.now)] if self.breaker.state(HOST) is State.HALF_OPEN else []
        self.out.append(admission)


TestAnyTraffic = AnyTraffic.TestCase
TestAnyTraffic.settings = settings(
    max_examples=100, stateful_step_count=40, derandomize=True, deadline=None, database=None
)
