"""Structured records: a pydantic model's fields, as a chat model finds them in a document's text.

The model's JSON schema goes into the request, so that a server that knows schemas answers nothing else; what comes
back is validated all the same, and what is not valid goes back with the reason.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unwait.documents.finished import Finished, each
from unwait.documents.model import Chunk, Record, SourceFailed, digest
from unwait.documents.models import Chat
from unwait.documents.prompts import AS_DATA, Window, quoted, windows
from unwait.flow.faults import describe

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_TOKENS = 4096  # of an answer
_PROBLEMS = 10  # of an answer that are named when the model is asked again
_PLACES = 50  # of a value in the text that are looked at

_SYSTEM = f"""You extract records from documents.
Answer with JSON that agrees with the schema: an object with the list "records", one for each {{name}} in the document.
Take every value from the document; invent none. What the document does not say is null where the schema allows it.
Where the document has no {{name}}, the list is empty.
{AS_DATA}"""
_TASK = "Extract every {name} from this document, or this part of one."
_AGAIN = "This is not valid:\n{problems}\nAnswer again, with the whole JSON and nothing else."


class Extractor:
    """Extracts records of one pydantic model; each call is kept by `finished` as soon as it is answered.

    A document is read in windows of at most `window` characters (or one chunk, if that is longer), each for `most`
    records, or any number of them: a small model may not know when to stop. `schema_name` is the name of the model;
    `version` stands for its schema, the chat model and the prompts.

    Raises TypeError for what is not a pydantic model, and ImportError without pydantic.
    """

    def __init__(
        self,
        chat: Chat,
        finished: Finished,
        model: type[BaseModel],
        *,
        attempts: int = 3,
        window: int = 8000,
        most: int | None = None,
    ) -> None:
        pydantic = _pydantic()
        if not (isinstance(model, type) and issubclass(model, pydantic.BaseModel)):
            raise TypeError(f"records are described by a pydantic model (a class), and {model!r} is none")
        if attempts < 1 or window < 1:
            raise ValueError(f"attempts and window must be at least 1, and are {attempts} and {window}")
        self.schema_name = model.__name__
        records = (list[model], pydantic.Field(max_length=most))  # type: ignore[valid-type]
        self._wrapped: type[BaseModel] = pydantic.create_model("Records", records=records)
        self._schema = strict_schema(self._wrapped.model_json_schema())
        prompts = (_SYSTEM, _TASK, _AGAIN, str(window), str(_TOKENS))
        made_of = digest(json.dumps(self._schema, sort_keys=True), *prompts)
        self.version = f"{self.schema_name}:{chat.name}:{made_of[:12]}"
        self._chat = chat
        self._finished = finished
        self._attempts = attempts
        self._window = window

    async def extract(self, uri: str, title: str, chunks: Sequence[Chunk]) -> list[Record]:
        """The records of the document, in the order of its text.

        Raises SourceFailed with the kind "invalid records" if what the model answers is not valid in the end, and
        ClientError where it gives no answer.
        """

        async def found(window: Window) -> list[Record]:
            return await self._records(uri, title, window)

        parts = await each(found, windows(chunks, self._window))
        return [record for part in parts for record in part]

    async def _records(self, uri: str, title: str, window: Window) -> list[Record]:
        if not window.text.strip():
            return []
        task = _TASK.format(name=self.schema_name)
        messages = [
            {"role": "system", "content": _SYSTEM.format(name=self.schema_name)},
            {"role": "user", "content": f"{task}\n{quoted(title, window.text)}"},
        ]
        problems = ""
        for _ in range(self._attempts):
            answer = await self._finished.complete(
                uri, "records", self._chat, messages, schema=self._schema, max_tokens=_TOKENS
            )
            try:
                valid = self._wrapped.model_validate_json(_bare(answer))
            except ValueError as error:
                problems = _problems(error)
                messages += [
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": _AGAIN.format(problems=problems)},
                ]
                continue
            data = valid.model_dump(mode="json", by_alias=True)["records"]
            return await asyncio.to_thread(self._placed, data, window)
        asked = "once" if self._attempts == 1 else f"{self._attempts} times"
        raise SourceFailed(
            f"{self._chat.name} was asked {asked} for {self.schema_name} records of the characters "
            f"{window.start} to {window.end}, and no answer was valid: {'; '.join(problems.splitlines())}",
            kind="invalid records",
        )

    def _placed(self, data: Sequence[Mapping[str, Any]], window: Window) -> list[Record]:
        place = _Places(window.text)
        found = []
        for values in data:
            start, end = place.span(values)
            found.append(Record(self.schema_name, values, window.start + start, window.start + end))
        return found


def _pydantic() -> ModuleType:
    try:
        return importlib.import_module("pydantic")
    except ModuleNotFoundError:
        raise ImportError('records need pydantic: pip install "unwait[documents]"', name="pydantic") from None


def _bare(answer: str) -> str:
    """JSON without the fence of Markdown that some models put around it."""
    fenced = re.fullmatch(r"\s*```\w*\n(.*?)\n?```\s*", answer, re.DOTALL)
    return fenced[1] if fenced else answer


def _problems(error: ValueError) -> str:
    """What is wrong with an answer, a line for each thing."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return describe(error)
    invalid: ValidationError = error  # type: ignore[assignment]
    found = invalid.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(map(str, one['loc'])) or 'the answer'}: {one['msg']}" for one in found[:_PROBLEMS]]
    if len(found) > _PROBLEMS:
        lines.append(f"and {len(found) - _PROBLEMS} more")
    return "\n".join(lines)


# Schemas.


def strict_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema in the strict form that servers hold a model to.

    Every property is required (one that may be left out is nullable as it is, or has a value that the model can say)
    and no other is allowed; an object of any names stays one. Defaults are left out, `$ref` stands alone, and `oneOf`
    becomes `anyOf`. The one given is changed.
    """
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        if not isinstance(part, dict):
            continue
        for name in ("default", "discriminator"):
            part.pop(name, None)
        if "$ref" in part:
            reference = part["$ref"]
            part.clear()
            part["$ref"] = reference
            continue
        if "oneOf" in part:
            part["anyOf"] = part.pop("oneOf")
        properties = part.get("properties")
        if part.get("type") == "object" and (properties or "additionalProperties" not in part):
            part["additionalProperties"] = False
            part["required"] = list(properties or ())
            part.setdefault("properties", {})
        # What stands under a name of the user's is a schema, whatever its name; all else is one by its keyword.
        for name in ("properties", "$defs"):
            waiting += part.get(name, {}).values()
        waiting += [
            part.get(name) for name in ("items", "prefixItems", "anyOf", "allOf", "additionalProperties")
        ]
    return schema


# Where a record comes from.


class _Places:
    """Finds values in a text."""

    def __init__(self, text: str) -> None:
        lower = text.lower()
        # Some letters are two in lower case: then their places would be others.
        lower = lower if len(lower) == len(text) else text
        self._text = lower.translate({ord(space): " " for space in "\n\t\r\xa0"})

    def span(self, values: Any) -> tuple[int, int]:
        """The smallest span with a place of each value that is found; all of the text if none is."""
        found = [places for value in _scalars(values) if (places := self._of(value))]
        return _smallest(found) if found else (0, len(self._text))

    def _of(self, value: Any) -> list[tuple[int, int]]:
        places: list[tuple[int, int]] = []
        for spelling in _spellings(value):
            at = -1
            while len(places) < _PLACES and (at := self._text.find(spelling, at + 1)) >= 0:
                if self._is_word(at, at + len(spelling)):
                    places.append((at, at + len(spelling)))
        return sorted(places)

    def _is_word(self, start: int, end: int) -> bool:
        """Whether what is there begins and ends where words do."""
        text = self._text
        before = start > 0 and text[start - 1].isalnum() and text[start].isalnum()
        after = end < len(text) and text[end].isalnum() and text[end - 1].isalnum()
        if text[start].isdigit() and re.search(r"\d[.,]\Z", text[max(0, start - 2) : start]):
            return False  # the end of a longer number
        return not before and not after


def _scalars(values: Any) -> Iterator[Any]:
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif value is not None and not isinstance(value, bool) and value != "":
            yield value


def _spellings(value: Any) -> Iterator[str]:
    """How a value may be written in a text, in lower case."""
    text = " ".join(str(value).lower().split())
    if text:
        yield text
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d(T.*)?", value):
        try:
            day = date.fromisoformat(value[:10])
        except ValueError:
            return
        month = f"{day:%B}".lower()
        for name in (month, month[:3]):
            yield from (f"{day.day} {name} {day.year}", f"{name} {day.day}, {day.year}")
        for format in ("%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d"):
            yield day.strftime(format)
        yield f"{day.day}.{day.month}.{day.year}"
        return
    if isinstance(value, str) and not re.fullmatch(r"-?\d{1,15}(\.\d{1,6})?", value):
        return
    if not isinstance(value, int | float | str):
        return
    number = float(value)
    if abs(number) < 1e15:
        for form in (
            f"{number:,.2f}",
            f"{number:.2f}",
            f"{number:,.0f}" if number == int(number) else "",
            f"{number:g}",
        ):
            if form and form != text:
                yield form
                yield form.translate(_OTHER_WAY_ROUND)


_OTHER_WAY_ROUND = str.maketrans(",.", ".,")


def _smallest(found: Sequence[Sequence[tuple[int, int]]]) -> tuple[int, int]:
    """The smallest span that covers one of the places in each of the lists, which are sorted; the first of these."""
    heap = [(places[0], which, 0) for which, places in enumerate(found)]
    heapq.heapify(heap)
    end = max(places[0][1] for places in found)
    best = (heap[0][0][0], end)
    while True:
        _, which, at = heap[0]
        if at + 1 == len(found[which]):
            return best
        following = found[which][at + 1]
        heapq.heapreplace(heap, (following, which, at + 1))
        end = max(end, following[1])
        if end - heap[0][0][0] < best[1] - best[0]:
            best = (heap[0][0][0], end)


# The model that a command line names.


def load_model(spec: str) -> type[BaseModel]:
    """The pydantic model at "invoices.py:Invoice" (a file) or "package.module:Invoice".

    The file's folder, or the working directory, is on the path while it is imported. Raises ValueError, which says what
    is missing, and ImportError without pydantic.
    """
    pydantic = _pydantic()
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name:
        raise ValueError(f"records are FILE.py:Model or package.module:Model, and not {spec!r}")
    module = _from_file(place) if place.endswith(".py") or os.sep in place else _from_path(place)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    base = pydantic.BaseModel
    if isinstance(found, type) and issubclass(found, base):
        return found
    models = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    ]
    what = "is not there" if found is None else "is no pydantic model"
    there = f"; its models are {', '.join(sorted(models))}" if models else "; it has no pydantic models"
    raise ValueError(f"{name} in {place} {what}{there}")


def _from_file(name: str) -> ModuleType:
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {name!r} to take the model of the records from")
    # A name that no other module has, and the same in each process.
    module_name = (
        f"{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    )
    if (loaded := sys.modules.get(module_name)) is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{name!r} is not a file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with _on_path(str(path.parent)):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ValueError(f"{name} cannot be imported: {describe(error)}") from error
    return module


def _from_path(name: str) -> ModuleType:
    try:
        with _on_path(os.getcwd()):
            return importlib.import_module(name)
    except Exception as error:
        hint = "; a file is named with its .py" if isinstance(error, ModuleNotFoundError) else ""
        raise ValueError(f"{name} cannot be imported: {describe(error)}{hint}") from error


@contextmanager
def _on_path(folder: str) -> Iterator[None]:
    before = sys.path.copy()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = before
