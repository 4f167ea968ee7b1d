"""The permit that `Limits` gives: how it is held, lent to what is nested in it, corrected, and given back."""

from __future__ import annotations

import math
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING

from unwait.flow.faults import retry_after
from unwait.flow.rates import Slot

if TYPE_CHECKING:
    from unwait.flow.limits import _Lane

held: ContextVar[Permit | None] = ContextVar("unwait_held_permit", default=None)


class Permit:
    """The right to one attempt, until its release.

    As a context manager it is held (`hold`), and at the end released with the exception that ends the block, if one
    does.
    """

    __slots__ = (
        "_cost",
        "_epoch",
        "_lane",
        "_lender",
        "_lent",
        "_outer",
        "_rate_slot",
        "_released",
        "_token",
        "_token_slot",
        "_weight",
    )

    _epoch: int
    _outer: Permit | None
    _rate_slot: Slot | None
    _token_slot: Slot | None

    def __init__(self, lane: _Lane, cost: float, weight: int, lender: Permit | None) -> None:
        self._lane = lane
        self._cost = cost
        self._weight = weight
        self._lender = lender
        self._lent = 0  # to how many
        self._released = True  # until it is taken
        self._token: Token[Permit | None] | None = None  # while it is held

    def release(self, error: BaseException | None = None) -> None:
        """End the attempt, which `error` ended if it failed; releasing again does nothing.

        A success, or an error that the Limits' `overload` says is one, moves an adaptive limit. An overload that names
        a delay in seconds (`retry_after`) pauses the key for so long.
        """
        if self._released:
            return
        lane = self._lane
        in_use = lane.in_use
        self._give_up()
        try:
            if error is None:
                if lane.aimd is not None:
                    lane.aimd.succeeded(self._epoch, in_use)
                    lane.capacity = lane.aimd.limit
            elif isinstance(error, Exception) and lane.limits._overload(error):
                if lane.aimd is not None:
                    lane.aimd.overloaded(self._epoch)
                    lane.capacity = lane.aimd.limit
                lane.pause(retry_after(error) or 0)
        finally:
            lane.pump()

    def refund(self) -> None:
        """Release it as if it had never been taken: the attempt did not begin, and rate and tokens are given back."""
        if self._released:
            return
        lane = self._lane
        self._give_up()
        if lane.rate is not None and self._rate_slot is not None:
            lane.rate.give_back(self._rate_slot, 1)
        if lane.tokens is not None and self._token_slot is not None:
            lane.tokens.give_back(self._token_slot, self._cost)
            self._token_slot = None
        self._cost = 0
        lane.reconsider()

    def spent(self, cost: float) -> None:
        """Correct the cost of this attempt, in tokens, to what it really was, before or after the release.

        Raises ValueError for a cost that is negative or not finite.
        """
        check_cost(cost)
        lane = self._lane
        more = cost - self._cost
        if lane.tokens is None or not more:
            return
        if more > 0:
            # Counted from now: whether the server counted it at the begin or at the end, this is not too early.
            slot = lane.tokens.take(more, lane.loop.time())
            self._token_slot = self._token_slot or slot
        elif self._token_slot is not None:
            lane.tokens.give_back(self._token_slot, -more)
            lane.reconsider()
        self._cost = cost

    def hold(self) -> Permit:
        """Let what runs from here on, in this task and those it starts, be nested in this permit until its release.

        Of several that one task holds, the last is to be released first. Raises RuntimeError after the release.
        """
        if self._released:
            raise RuntimeError("this permit was released; a new attempt needs a new one")
        if self._token is None:
            self._outer = outer = held.get()
            if outer is not None:
                # A chain of tasks, each started by the one before, must not keep all their permits.
                outer._outer = _unreleased(outer._outer)
            self._token = held.set(self)
        return self

    __enter__ = hold

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release(error)

    def _give_up(self) -> None:
        self._released = True
        if self._token is not None:
            try:
                held.reset(self._token)
            except ValueError:
                pass  # released from another context than it was held in, where nobody sees it
            finally:
                self._token = None
        lane = self._lane
        lane.outstanding -= 1
        if not self._lent:
            lane.in_use -= self._weight
        if self._lender is not None:
            self._lender._take_back()

    def _lend(self) -> None:
        self._lent += 1
        if self._lent == 1 and not self._released:
            self._lane.in_use -= self._weight

    def _take_back(self) -> None:
        self._lent -= 1
        if not self._lent and not self._released:
            self._lane.in_use += self._weight


def _unreleased(permit: Permit | None) -> Permit | None:
    """The permit, or the nearest one around it that is not released."""
    while permit is not None and permit._released:
        permit = permit._outer
    return permit


def check_cost(cost: float) -> None:
    """Raise ValueError for what can't be a number of tokens."""
    if not 0 <= cost < math.inf:
        raise ValueError(f"cost must be a finite number of at least 0, not {cost!r}")
