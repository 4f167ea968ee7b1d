"""What becomes of each item, and of all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from unwait.flow.stats import Report

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Outcome(Generic[T, R]):
    """What became of one item: `value`, or the `error` that its last attempt ended with; both if only saving failed.

    `index` is its place among the items, from 0; `key` its name in the journal, None without one; `attempts`
    how often the function was called; `waited` the seconds spent waiting for permits and in back-off,
    `elapsed` those from the moment it was taken to its end; `resumed` whether the value comes from an
    earlier run's journal, and no call was made.
    """

    index: int
    item: T
    key: str | None = None
    value: R | None = None
    error: BaseException | None = None
    attempts: int = 0
    waited: float = 0.0
    elapsed: float = 0.0
    resumed: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None

    def unwrap(self) -> R:
        """The value; raises the error if there is none."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


class Results(list[R]):
    """The values of `map` in the order of its items, with the `outcomes` of all items and the run's `report`."""

    def __init__(self, values: Sequence[R], outcomes: list[Outcome[Any, R]], report: Report) -> None:
        super().__init__(values)
        self.outcomes = outcomes
        self.report = report


class MapError(ExceptionGroup[Exception]):
    """What `map` raises with `errors="raise"`: the errors that ended it.

    `outcomes` are those of all items that ended before, in the order of the items, so that nothing done is
    lost; `report` tells the rest.
    """

    outcomes: list[Outcome[Any, Any]]
    report: Report

    def __new__(
        cls, message: str, errors: Sequence[Exception], outcomes: list[Outcome[Any, Any]], report: Report
    ) -> MapError:
        group = super().__new__(cls, message, errors)
        group.outcomes = outcomes
        group.report = report
        return group

    def __init__(self, message: str, errors: Sequence[Exception], *_: object) -> None:
        super().__init__(message, errors)

    def __reduce__(self) -> Any:
        return MapError, (self.message, self.exceptions, self.outcomes, self.report), self.__dict__

    def derive(self, errors: Sequence[Exception], /) -> MapError:  # type: ignore[override]
        """The group that `except*` makes of some of the errors; outcomes and report stay with it."""
        return MapError(self.message, errors, self.outcomes, self.report)
