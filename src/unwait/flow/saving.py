"""Outcomes and the journal: what an earlier run stored, what is being called, what waits for its commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from unwait.flow.codec import CodecError
from unwait.flow.journal import STAGE, Journal, JournalError, Stored
from unwait.flow.keys import check_key, derive_key
from unwait.flow.outcome import Outcome

if TYPE_CHECKING:
    from unwait.flow.journal_session import Session

Item = TypeVar("Item", bound=Outcome[Any, Any])


class DuplicateKey(ValueError):
    """Two items of one run have the same key in the journal."""


class Saver(Generic[Item]):
    """One run's use of a journal: outcomes go in, and are settled when they are committed.

    `settle` gets each outcome once, in order of completion. `broken` is called after that if the journal can't be
    written: what it had not committed has failed then, and keeps its value. `changed` is called after each commit.
    `most` is how many outcomes may wait for theirs before `full`.
    """

    def __init__(
        self,
        journal: Journal,
        function: str,
        key: Callable[[Any], Any] | None,
        *,
        settle: Callable[[Item], None],
        broken: Callable[[JournalError], None],
        changed: Callable[[], None],
        most: int,
    ) -> None:
        self._key = key
        self._settle = settle
        self._on_broken = broken
        self._changed = changed
        self._most = most
        self._calling: set[str] = set()
        self._waiting: set[Item] = set()
        self._steps = 0  # of pipelines, saved and not committed
        self._commit: asyncio.Future[None] | None = None
        self._session: Session = journal.session(function, self._committed, self._broken)
        self.path = journal.path

    @property
    def full(self) -> bool:
        """Whether so many outcomes wait for their commit that nothing more should be begun."""
        return len(self._waiting) + self._steps >= self._most

    @property
    def idle(self) -> bool:
        """Whether all that was saved is committed."""
        return not self._waiting and not self._steps

    async def room(self) -> None:
        """Wait until it is not full."""
        while self.full:
            if self._commit is None:
                self._commit = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._commit)

    def begin(self, outcome: Item) -> Stored | None:
        """Give the outcome its key; what is stored under it, if an earlier run made something of it.

        Raises what the key function raises, TypeError for a key that is none, DuplicateKey where another item of this
        run has it. To be followed by `reuse`, or by `save` or `drop`.
        """
        key = derive_key(outcome.item) if self._key is None else check_key(self._key(outcome.item))
        stored = self._session.find(key)
        if key in self._calling or (stored is not None and stored.this_run):
            raise DuplicateKey(
                f"two items have the key {key!r}: leave out the second, or tell them apart with key="
            )
        outcome.key = key
        self._calling.add(key)
        if stored is None or not stored.ok:
            return None
        outcome.value, outcome.resumed = stored.value, True
        return stored

    def reuse(self, outcome: Item) -> None:
        """Take over what `begin` found; the outcome is settled when that is noted."""
        key = str(outcome.key)
        self._calling.discard(key)
        self._session.reused(key, outcome)
        self._waiting.add(outcome)

    def save(self, outcome: Item) -> None:
        """Store the outcome, which is settled when that is committed. A value that can't be stored becomes an error."""
        key = str(outcome.key)
        self._calling.discard(key)
        attempts, waited, elapsed = outcome.attempts, outcome.waited, outcome.elapsed
        if outcome.error is None:
            try:
                outcome.value = self._session.done(
                    key, outcome.value, outcome, attempts=attempts, waited=waited, elapsed=elapsed
                )
            except CodecError as error:
                outcome.value, outcome.error = None, error
        if outcome.error is not None:
            self._session.failed(
                key, outcome.error, outcome, attempts=attempts, waited=waited, elapsed=elapsed
            )
        self._waiting.add(outcome)

    def drop(self, outcome: Item) -> None:
        """Forget an outcome that was begun and will never be saved."""
        self._calling.discard(str(outcome.key))

    def find_step(self, outcome: Item, step: str) -> Stored | None:
        """What an earlier run saved of this step of the outcome."""
        if not self._session.resumes:
            return None
        stored = self._session.find(f"{outcome.key}{STAGE}{step}")
        return stored if stored is not None and stored.ok else None

    def save_step(self, outcome: Item, step: str, elapsed: float) -> None:
        """Store the outcome's value, as that of a step on the way; it then is as a later run will find it.

        Raises CodecError for a value that can't be stored.
        """
        outcome.value = self._session.done(
            f"{outcome.key}{STAGE}{step}",
            outcome.value,
            None,
            attempts=outcome.attempts,
            waited=outcome.waited,
            elapsed=elapsed,
        )
        self._steps += 1

    async def close(self) -> None:
        """Commit what was saved, settle it, close the journal. May be called again."""
        await self._session.close()

    def _committed(self, outcomes: list[Item | None]) -> None:
        for outcome in outcomes:
            if outcome is None:
                self._steps -= 1
            else:
                self._waiting.discard(outcome)
                self._settle(outcome)
        self._wake()

    def _broken(self, error: JournalError) -> None:
        lost, self._waiting, self._steps = self._waiting, set(), 0
        for outcome in sorted(lost, key=attrgetter("index")):
            if outcome.error is None and not outcome.resumed:
                outcome.error = error
            self._settle(outcome)
        self._on_broken(error)
        self._wake()

    def _wake(self) -> None:
        if self._commit is not None:
            self._commit.set_result(None)
            self._commit = None
        self._changed()
