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
    from unwait.documents.ingest import ingest
    from unwait.documents.model import SourceFailed
    from unwait.documents.report import IngestReport
    from unwait.documents.search import Hit, search
    from unwait.documents.store import Store, StoreBusy, StoreError, open_store
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
    "Hit": "documents.search",
    "IngestReport": "documents.report",
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
    "SourceFailed": "documents.model",
    "Stage": "flow.pipeline",
    "StatusError": "web.errors",
    "Store": "documents.store",
    "StoreBusy": "documents.store",
    "StoreError": "documents.store",
    "Stream": "flow.fanout",
    "WorkerCrashed": "flow.workers",
    "fetch": "web.fetch",
    "ingest": "documents.ingest",
    "map": "flow.fanout",
    "open_store": "documents.store",
    "search": "documents.search",
    "stream": "flow.fanout",
}

# What comes with unwait[documents], by the names of its modules.
_OF_DOCUMENTS = {
    "aiohttp",
    "multidict",
    "yarl",
    "numpy",
    "pydantic",
    "pypdfium2",
    "selectolax",
    "semantic_text_splitter",
    "wordllama",
}

__all__ = [
    "Auto",
    "Batch",
    "Client",
    "ClientError",
    "CodecError",
    "DuplicateKey",
    "Hit",
    "IngestReport",
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
    "SourceFailed",
    "Stage",
    "StatusError",
    "Store",
    "StoreBusy",
    "StoreError",
    "Stream",
    "WorkerCrashed",
    "__version__",
    "fetch",
    "ingest",
    "install",
    "map",
    "new_event_loop",
    "open_connection",
    "open_store",
    "open_unix_connection",
    "run",
    "search",
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
        lacking = (missing.name or "").partition(".")[0]
        if lacking in ("aiohttp", "multidict", "yarl") and not _LATER[name].startswith("documents"):
            raise ImportError(
                f'unwait.{name} needs aiohttp: pip install "unwait[web]"', name="aiohttp"
            ) from None
        if lacking in _OF_DOCUMENTS:
            raise ImportError(
                f'unwait.{name} needs {lacking}: pip install "unwait[documents]"', name=lacking
            ) from None
        raise
    found: object = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
