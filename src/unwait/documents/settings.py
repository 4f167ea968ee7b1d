"""What an ingestion is to do: what was given, else what the store remembers of its last run, else the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

STATIC = "wordllama"
EXTRACTIVE = "extractive"
NONE = "none"
_MODELS = ("embed", "summarise", "chat")
DEFAULTS: Mapping[str, str | int] = {
    "embed": STATIC,
    "summarise": EXTRACTIVE,
    "records": NONE,
    "chat": NONE,
    "base_url": "",
    "chunk_size": 1000,
    "overlap": 0,
    "text_field": "text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an ingestion is to do. It can be pickled.

    `embed` is "wordllama" or "openai:MODEL"; `summarise` "extractive", "none" or "openai:MODEL"; `records` "none" or
    where their pydantic model is, "invoices.py:Invoice" or "package.module:Invoice", with the class in `schema` if
    it was given itself; `chat` is the model that extracts them. `limit` bounds what waits at the same time,
    `per_host` the requests for sources to one host, `rate` and `tokens` the calls of each model; `max_bytes` a source.
    `processes` is how many may read documents, 0 for threads.
    """

    embed: str
    summarise: str
    records: str
    chat: str
    base_url: str
    chunk_size: int
    overlap: int
    text_field: str
    limit: int = 64
    per_host: int = 16
    rate: str | None = None
    tokens: str | None = None
    max_bytes: int = 50 << 20
    processes: int = 0
    schema: type[BaseModel] | None = None

    @property
    def remembered(self) -> dict[str, str]:
        """What the store keeps, so that the next run and a search need not be told again: all but secrets."""
        kept = {name: str(getattr(self, name)) for name in DEFAULTS}
        # Without secrets, and not another place: nothing is to be sent where it was not meant to go. Where nobody has
        # opened it, it may be anything.
        address = kept["base_url"].partition("#")[0].partition("?")[0]
        scheme, separator, rest = address.rpartition("://")
        used = any(kept[name].startswith("openai") for name in _MODELS)
        return {**kept, "base_url": f"{scheme}{separator}{rest.rpartition('@')[2]}" if used else ""}


def resolve(
    given: Mapping[str, Any],
    remembered: Mapping[str, str],
    records: type[BaseModel] | str | None,
    **rest: Any,
) -> Settings:
    """The settings of a run; None among the `given` stands for what was not said.

    Raises ValueError for what makes no sense together.
    """
    found: dict[str, Any] = {}
    for name, default in DEFAULTS.items():
        value: Any = given.get(name)
        if value is None:
            value = remembered.get(name, default)
        found[name] = type(default)(value)
    if not found["base_url"] and any(":" in found[name] for name in _MODELS):
        # In another shell, the next run and a search are to ask the same server.
        found["base_url"] = os.environ.get("OPENAI_BASE_URL", "")
    schema = None
    if isinstance(records, type):
        schema, found["records"] = records, f"{records.__module__}:{records.__qualname__}"
    elif records is not None:
        found["records"] = _anywhere(records)
    if found["records"] != NONE and found["chat"] == NONE:
        # One chat model is enough for both.
        if found["summarise"] in (EXTRACTIVE, NONE):
            raise ValueError(
                "records are extracted by a chat model: name it with chat= (--chat openai:MODEL)"
            )
        found["chat"] = found["summarise"]
    if found["chunk_size"] < 1 or not 0 <= found["overlap"] < found["chunk_size"]:
        raise ValueError(
            f"chunk_size must be positive and overlap smaller than it, and are {found['chunk_size']} and "
            f"{found['overlap']}"
        )
    return Settings(**found, schema=schema, **rest)


def _anywhere(records: str) -> str:
    """Where the model is, as every working directory understands it."""
    place, colon, name = records.rpartition(":")
    is_file = place.endswith(".py") or os.sep in place
    return f"{os.path.abspath(os.path.expanduser(place))}{colon}{name}" if is_file else records
