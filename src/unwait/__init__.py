"""unwait: I/O-bound Python that stops waiting."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from unwait.loop import (
    Loop,
    Runner,
    install,
    new_event_loop,
    open_connection,
    open_unix_connection,
    run,
    start_server,
    start_unix_server,
)
from unwait.version import __version__

if TYPE_CHECKING:
    from unwait.flow.batches import Batch
    from unwait.flow.codec import CodecError
    from unwait.flow.fanout import Stream, map, stream
    from unwait.flow.faults import Overloaded
    from unwait.flow.journal import Journal, JournalBusy, JournalError, JournalMismatch
    from unwait.flow.limits import Auto, Limits
    from unwait.flow.outcome import MapError, Outcome, Results
    from unwait.flow.pipeline import Pipeline, Stage
    from unwait.flow.rates import Rate
    from unwait.flow.retry import Retry, RetryBudget
    from unwait.flow.saving import DuplicateKey
    from unwait.flow.stats import Report
    from unwait.flow.workers import WorkerCrashed
    from unwait.web.client import Client
    from unwait.web.errors import ClientError, StatusError
    from unwait.web.fetch import fetch
    from unwait.web.response import Response

# Loaded when first asked for: who wants the loop alone does not wait for the rest.
_LATER = {
    "Auto": "flow.limits",
    "Batch": "flow.batches",
    "Client": "web.client",
    "ClientError": "web.errors",
    "CodecError": "flow.codec",
    "DuplicateKey": "flow.saving",
    "Journal": "flow.journal",
    "JournalBusy": "flow.journal",
    "JournalError": "flow.journal",
    "JournalMismatch": "flow.journal",
    "Limits": "flow.limits",
    "MapError": "flow.outcome",
    "Outcome": "flow.outcome",
    "Overloaded": "flow.faults",
    "Pipeline": "flow.pipeline",
    "Rate": "flow.rates",
    "Report": "flow.stats",
    "Response": "web.response",
    "Results": "flow.outcome",
    "Retry": "flow.retry",
    "RetryBudget": "flow.retry",
    "Stage": "flow.pipeline",
    "StatusError": "web.errors",
    "Stream": "flow.fanout",
    "WorkerCrashed": "flow.workers",
    "fetch": "web.fetch",
    "map": "flow.fanout",
    "stream": "flow.fanout",
}

__all__ = [
    "Auto",
    "Batch",
    "Client",
    "ClientError",
    "CodecError",
    "DuplicateKey",
    "Journal",
    "JournalBusy",
    "JournalError",
    "JournalMismatch",
    "Limits",
    "Loop",
    "MapError",
    "Outcome",
    "Overloaded",
    "Pipeline",
    "Rate",
    "Report",
    "Response",
    "Results",
    "Retry",
    "RetryBudget",
    "Runner",
    "Stage",
    "StatusError",
    "Stream",
    "WorkerCrashed",
    "__version__",
    "fetch",
    "install",
    "map",
    "new_event_loop",
    "open_connection",
    "open_unix_connection",
    "run",
    "start_server",
    "start_unix_server",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'unwait' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"unwait.{_LATER[name]}")
    except ModuleNotFoundError as missing:
        # The last two come with aiohttp, and are imported first.
        if (missing.name or "").partition(".")[0] not in ("aiohttp", "multidict", "yarl"):
            raise
        raise ImportError(f'unwait.{name} needs aiohttp: pip install "unwait[web]"', name="aiohttp") from None
    found: object = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
