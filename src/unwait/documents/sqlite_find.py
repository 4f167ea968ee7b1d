"""The two rankings of the SQLite store: full text by FTS5, and vectors by one product with a matrix in memory."""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from unwait.documents.model import Candidate, Filter
from unwait.documents.sqlite_schema import SHIFT, range_of, restored
from unwait.documents.words import most_matches, rarest, terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unwait.documents.model import Vectors

    Rows = NDArray[np.int64]

# Of the columns title, section and text.
_WEIGHTS = "4.0, 2.0, 1.0"
# A product may come out otherwise in its last bits, depending on where in the matrix a row lies.
_DECIMALS = 6
_ONE = "SELECT uri FROM documents WHERE id = ?"
_CANDIDATES = """
SELECT c.id, c.chunk, d.uri, d.title, c.section, c.page, c.start, c.end, c.text, d.metadata
FROM json_each(?) wanted CROSS JOIN chunks c ON c.id = wanted.value CROSS JOIN documents d ON d.id = c.id >> 24
"""


def facets(metadata: Mapping[str, Any]) -> bytes:
    """What a document is filtered by: 16 bytes for each top-level value that is a text, a number, or true or false."""
    return b"".join(
        _facet(key, value if isinstance(value, str) else json.dumps(value))
        for key, value in metadata.items()
        if isinstance(value, str | int | float)
    )


def condition(where: Filter) -> tuple[str, list[Any]]:
    """The filter as a condition on a row of `documents`, and its parameters."""
    clauses, parameters = ["1"], list[Any]()
    if where.source:
        prefix, star, _ = where.source.partition("*")
        try:
            low, high = range_of(prefix)
            where.source.encode()
        except UnicodeEncodeError:
            return "0", []  # no URI has half a character
        clauses.append("uri >= ?")
        parameters.append(low)
        if high is not None:
            clauses.append("uri < ?")
            parameters.append(high)
        if star:
            clauses.append("matches(uri, ?)")
            parameters.append(where.source)
    for key, value in where.metadata.items():
        clauses.append("instr(facets, ?)")
        parameters.append(_facet(key, value))
    return " AND ".join(clauses), parameters


class Matrix:
    """The vectors of one space in memory, as of one change of the file.

    Rows are only added behind the others, and `alive` and `vectors` only replaced: what `rows_of` gave to one thread
    stays right while another brings the matrix up to date. To be used by one thread at a time otherwise.
    """

    def __init__(self, space: str, dimensions: int) -> None:
        self.space, self.dimensions = space, dimensions
        self._changes = -1
        self._last = 0  # the last document looked at
        self._documents: Rows = np.empty(0, np.int64)
        self._vectors: Vectors = np.empty((0, dimensions), np.float32)
        self._ids: Rows = np.empty(0, np.int64)
        self._alive: NDArray[np.bool_] = np.empty(0, np.bool_)
        self._used = 0

    def rows_of(
        self, connection: sqlite3.Connection, changes: int
    ) -> tuple[Vectors, Rows, NDArray[np.bool_]]:
        """The vectors, the ids of their chunks, and which still count, as the file is after this many changes."""
        if changes != self._changes:
            self._update(connection)
            self._changes = changes
        return self._vectors[: self._used], self._ids[: self._used], self._alive

    def _update(self, connection: sqlite3.Connection) -> None:
        found = connection.execute(
            "SELECT id, chunks FROM documents WHERE made_vectors = ? AND dimensions = ?",
            (self.space, self.dimensions),
        ).fetchall()
        documents, counts = np.array(found, np.int64).reshape(-1, 2).T
        removed = np.setdiff1d(self._documents, documents, assume_unique=True)
        alive = self._alive
        if len(removed):
            alive = alive & ~np.isin(self._ids[: self._used] >> SHIFT, removed)
        more = int(counts[documents > self._last].sum())
        dead = len(alive) - int(np.count_nonzero(alive))
        if self._used + more > len(self._ids) or dead > self._used // 4:
            self._move(alive, more)
            alive = np.ones(self._used, np.bool_)
        self._alive = np.concatenate((alive, np.ones(more, np.bool_)))
        self._load(connection)
        self._documents = documents
        self._last = max(self._last, int(documents.max(initial=0)))

    def _move(self, alive: NDArray[np.bool_], more: int) -> None:
        """Take the rows that count to where there is room for more."""
        used = int(np.count_nonzero(alive))
        # The first time there is nothing to grow from.
        room = used + more + (used >> 2)
        vectors, ids = np.empty((room, self.dimensions), np.float32), np.empty(room, np.int64)
        vectors[:used] = self._vectors[: self._used][alive]
        ids[:used] = self._ids[: self._used][alive]
        self._vectors, self._ids, self._used = vectors, ids, used

    def _load(self, connection: sqlite3.Connection) -> None:
        blocks = connection.execute(
            f"""
            SELECT v.id, v.vectors FROM documents d
            JOIN vectors v ON v.id BETWEEN d.id << {SHIFT} AND ((d.id + 1) << {SHIFT}) - 1
            WHERE d.made_vectors = ? AND d.dimensions = ? AND d.id > ?
            """,
            (self.space, self.dimensions, self._last),
        )
        for first, data in blocks:
            block = np.frombuffer(data, np.float32).reshape(-1, self.dimensions)
            end = self._used + len(block)
            self._vectors[self._used : end] = block
            self._ids[self._used : end] = np.arange(first, first + len(block))
            self._used = end


def allowed(connection: sqlite3.Connection, where: Filter) -> list[int] | None:
    """The ids of the documents that the filter lets through; None for all."""
    if not where.source and not where.metadata:
        return None
    clause, parameters = condition(where)
    return [id for (id,) in connection.execute(f"SELECT id FROM documents WHERE {clause}", parameters)]


def by_text(
    connection: sqlite3.Connection, words: str, depth: int, documents: list[int] | None
) -> list[tuple[int, float]]:
    """The best chunks by BM25, the best first: their ids and scores."""
    query, last = _query(connection, words)
    if not query:
        return []
    clause, parameters = "", [query]
    if documents is not None:
        clause = f"AND rowid >> {SHIFT} IN (SELECT value FROM json_each(?))"
        parameters.append(json.dumps(documents))
    elif last is not None:
        clause = f"AND rowid <= {last}"
    limit = 4 * depth
    while True:
        found = connection.execute(
            f"SELECT rowid, -bm25(full_text, {_WEIGHTS}) AS score FROM full_text WHERE full_text MATCH ? {clause} "
            f"ORDER BY score DESC LIMIT {limit}",
            parameters,
        ).fetchall()
        least = found[min(depth, len(found)) - 1][1] if found else 0.0
        # The last place may belong to any of those with its score: all of them are needed.
        if len(found) < limit or found[-1][1] < least:
            return _in_order(connection, [each for each in found if each[1] >= least], depth)
        limit *= 8


def by_vector(
    connection: sqlite3.Connection,
    vector: Vectors,
    rows: tuple[Vectors, Rows, NDArray[np.bool_]],
    depth: int,
    documents: list[int] | None,
) -> list[tuple[int, float]]:
    """The nearest chunks by cosine, the nearest first: their ids and scores."""
    vectors, ids, alive = rows
    if documents is not None:
        alive = alive & np.isin(ids >> SHIFT, np.array(documents, np.int64))
    # By einsum: BLAS would wake a thread of its own for it, and now and then wait 8 ms for that one's turn.
    scores = np.round(np.einsum("ij,j->i", vectors, vector), _DECIMALS)
    if not alive.all():
        ids, scores = ids[alive], scores[alive]
    if len(scores) > depth:
        least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        best = scores >= least
        ids, scores = ids[best], scores[best]
    return _in_order(connection, zip(ids.tolist(), scores.tolist(), strict=True), depth)


def candidates(
    connection: sqlite3.Connection, *rankings: Iterable[tuple[int, float]]
) -> list[list[Candidate]]:
    """What is shown of the chunks of these rankings."""
    ids = json.dumps(list({id for ranking in rankings for id, _ in ranking}))
    rows = {row[0]: row[1:] for row in connection.execute(_CANDIDATES, (ids,))}
    metadata: dict[int, Any] = {}
    found = []
    for ranking in rankings:
        shown = []
        for id, score in ranking:
            chunk, uri, title, section, page, start, end, text, data = rows[id]
            if id >> SHIFT not in metadata:
                metadata[id >> SHIFT] = json.loads(restored(data))
            shown.append(
                Candidate(
                    chunk=restored(chunk),
                    uri=restored(uri),
                    title=restored(title),
                    section=headings(section),
                    page=page,
                    start=start,
                    end=end,
                    text=restored(text),
                    metadata=metadata[id >> SHIFT],
                    score=score,
                )
            )
        found.append(shown)
    return found


@functools.lru_cache(4096)
def headings(section: str | bytes | None) -> tuple[str, ...]:
    """The path of headings as it is stored: as JSON, or nothing for none."""
    return () if section is None else tuple(json.loads(restored(section)))


def _facet(key: str, value: str) -> bytes:
    name = key.encode("utf-8", "surrogatepass")
    text = value.encode("utf-8", "surrogatepass")
    return blake2b(b"%d:%b%b" % (len(name), name, text), digest_size=16).digest()


def _query(connection: sqlite3.Connection, words: str) -> tuple[str, int | None]:
    """The query in FTS5's syntax: each term as a phrase, any of them; the last chunk to rank, if not all are.

    Where there is much to rank, the most common words are left out, and the rest of a word's chunks if it is in most.
    """
    looked_for = terms(words)
    quoted = [f'"{" ".join(term)}"' for term in looked_for]
    (chunks,) = connection.execute("SELECT chunks FROM state").fetchone()
    most = most_matches(chunks)
    if len(quoted) * chunks <= most:
        return " OR ".join(quoted), None
    counts = [_matching(connection, word, most + 1) for word in quoted]
    chosen = rarest(looked_for, counts, most)
    last = None
    if len(chosen) == 1 and counts[chosen[0]] > most:
        (only,) = chosen
        if _matching(connection, quoted[only], chunks) > chunks // 2:
            # BM25 gives nothing for a word that most chunks have: the first of them are as good as others.
            query = f"SELECT rowid FROM full_text WHERE full_text MATCH ? LIMIT 1 OFFSET {most - 1}"
            (last,) = connection.execute(query, (quoted[only],)).fetchone()
    return " OR ".join(quoted[place] for place in chosen), last


def _matching(connection: sqlite3.Connection, word: str, most: int) -> int:
    query = f"SELECT count(*) FROM (SELECT 1 FROM full_text WHERE full_text MATCH ? LIMIT {most})"
    return int(connection.execute(query, (word,)).fetchone()[0])


def _in_order(
    connection: sqlite3.Connection, found: Iterable[tuple[int, float]], depth: int
) -> list[tuple[int, float]]:
    """The first `depth`, equal scores by URI and position."""
    ranked = list(found)
    uris = {
        document: connection.execute(_ONE, (document,)).fetchone()[0]
        for document in {id >> SHIFT for id, _ in ranked}
    }
    ranked.sort(key=lambda each: (-each[1], uris[each[0] >> SHIFT], each[0]))
    return ranked[:depth]
