"""What goes through the pipeline, from what a person named to what is stored and found.

    Source → Content → Text → Chunk… → Document

No I/O here, and nothing that is not in the standard library but the arrays of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]


def digest(*parts: str | bytes) -> str:
    """32 hexadecimal digits that stand for these parts, in this order; the same in every process."""
    state = blake2b(digest_size=16)
    for part in parts:
        # Half a character (a lone surrogate) is text as well, though not in UTF-8.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


class SourceFailed(Exception):
    """A source that gives no document; the message says what is wrong with it and, where one can, what to do.

    `kind` is the cause in a word or two, by which a summary counts: "not found", "too large", "encrypted", "empty",
    "unknown format", "broken", "refused". `gone` says that the source no longer exists, for --prune.
    """

    def __init__(self, message: str, *, kind: str, gone: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.gone = gone

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are unpickled by their positional arguments alone.
        return partial(SourceFailed, kind=self.kind, gone=self.gone), self.args


@dataclass(frozen=True, slots=True)
class Content:
    """What was downloaded or read: the bytes, and what its place said of them.

    `media_type` ("text/html") and `charset` are hints and may be wrong. `digest` stands for the bytes.
    """

    body: bytes
    digest: str
    media_type: str | None = None
    charset: str | None = None
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where one document comes from.

    `uri` is its name in the store: a URL, or the absolute path of a file, for JSON Lines with `#` and the line's id, or
    `#line 3` without one; it always is text that UTF-8 can hold. `location` is the URL to load it from where that is
    another, with credentials. `origin` is what the person named (a directory, a sitemap), in the same spelling in each
    run: what an origin no longer lists is what --prune removes. `path` is the file as the system spells it. `content`
    is there if listing it brought it along. `metadata` joins that of the document. `problem` stands in place of what
    could not be listed.
    """

    uri: str
    origin: str
    path: str | None = None
    location: str | None = None
    content: Content | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    problem: SourceFailed | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """From `offset` (in characters) on, the text belongs to this section and this page.

    `section` is the path of headings, the outermost first; `page` counts from 1 and is None where there are none.
    """

    offset: int
    section: tuple[str, ...] = ()
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a document, as it is stored, embedded and searched.

    Paragraphs and other blocks are separated by an empty line. `marks` are sorted by offset; the first is at 0.
    `metadata` is what the document says of itself; its values are JSON.
    """

    text: str
    title: str
    format: str
    marks: Sequence[Mark] = (Mark(0),)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document's text: `text == document_text[start:end]`.

    Chunks are in the order of the text and cover all of it; one begins before the end of the last by the overlap.
    `id` is made of source, position, text and the version of the pipeline.
    """

    id: str
    position: int
    start: int
    end: int
    text: str
    section: tuple[str, ...] = ()
    page: int | None = None

    @property
    def passage(self) -> str:
        """What is embedded: the text under its headings. It is the same for the same words in the same section."""
        return f"{' > '.join(self.section)}\n{self.text}" if self.section else self.text

    @property
    def digest(self) -> str:
        """Stands for the passage: chunks of the same digest have the same vector."""
        return digest(self.passage)


def text_of(chunks: Sequence[Chunk]) -> str:
    """The text that the chunks of a document were cut from."""
    pieces, end = [], 0
    for chunk in chunks:
        pieces.append(chunk.text[end - chunk.start :])
        end = chunk.end
    return "".join(pieces)


@dataclass(frozen=True, slots=True)
class Record:
    """What a model extracted: fields that agree with the schema, and the span of the text they come from."""

    schema: str
    data: Mapping[str, Any]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Versions:
    """What each step's result was made with; a step is done again when its version is another one.

    `chunks` stands for the extraction as well. `vectors` is the name of the space. Empty: the step was not done.
    """

    chunks: str = ""
    vectors: str = ""
    summary: str = ""
    records: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(slots=True)
class Document:
    """A document as it is stored, whole. `vectors` has a row for each chunk: float32, of unit length."""

    uri: str
    origin: str
    title: str
    format: str
    digest: str
    versions: Versions
    chunks: Sequence[Chunk]
    vectors: Vectors
    summary: str = ""
    records: Sequence[Record] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    etag: str | None = None
    last_modified: str | None = None

    @property
    def text(self) -> str:
        """The text, put together from the chunks."""
        return text_of(self.chunks)


@dataclass(frozen=True, slots=True)
class State:
    """What the store knows of a document without reading it. `run` is the last run that saw its source."""

    digest: str
    versions: Versions
    run: int
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A source that gave no document in its last run; an older version of it may be in the store.

    `stage` is where it failed, `kind` the cause in a word or two, `error` the whole text, without secrets.
    """

    uri: str
    origin: str
    stage: str
    kind: str
    error: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Which documents: `source` is a URI, the beginning of one, or a pattern with `*`; all of `metadata` must agree."""

    source: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that a ranking of the store has found, with what is shown of its document; a higher score is better."""

    chunk: str
    uri: str
    title: str
    section: tuple[str, ...]
    page: int | None
    start: int
    end: int
    text: str
    metadata: Mapping[str, Any]
    score: float


@dataclass(frozen=True, slots=True)
class Listed:
    """A document in a list. Times are seconds since 1970."""

    uri: str
    origin: str
    title: str
    format: str
    chunks: int
    records: int
    characters: int
    summary: str
    metadata: Mapping[str, Any]
    saved: float
