"""The two rankings of the PostgreSQL store, within one transaction: BM25 over its postings, and pgvector's products."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from unwait.documents.model import Candidate, Filter
from unwait.documents.postgres_connections import encode_vectors
from unwait.documents.postgres_rank import ENTRY_BYTES, Postings, bm25
from unwait.documents.postgres_text import facet, like, original, original_json, stored, term
from unwait.documents.words import most_matches, rarest, terms

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

_TERMS = f"""
SELECT term, sum(octet_length(posting)) / {ENTRY_BYTES} AS entries
FROM unwait.postings WHERE term = ANY ($1) GROUP BY term
"""
_TOTALS = "SELECT sum(chunks)::bigint AS chunks, sum(words)::bigint AS words FROM unwait.counts"
# Apart from `_TERMS`, so that the server knows what it plans for.
_POSTINGS = f"""
SELECT string_agg(int8send(document), '') AS documents,
    string_agg(int4send(octet_length(posting) / {ENTRY_BYTES}), '') AS counts,
    string_agg(posting, '') AS entries
FROM unwait.postings WHERE term = ANY ($1) GROUP BY term ORDER BY array_position($1, term)
"""
# Equal scores are in the order of URI and position.
_CANDIDATES = """
WITH best AS MATERIALIZED (
    SELECT d.id, given.position, given.score, d.uri, d.title, d.metadata
    FROM unnest($1::bigint[], $2::int[], $3::float8[]) AS given (document, position, score)
    JOIN unwait.documents d ON d.id = given.document
    ORDER BY given.score DESC, d.uri, given.position LIMIT $4
)
SELECT c.id, uri, title, section, page, begins, ends, text, metadata, score
FROM best JOIN unwait.chunks c ON c.document = best.id AND c.position = best.position
ORDER BY score DESC, uri, best.position
"""


def condition(where: Filter, first: int) -> tuple[str, list[Any]]:
    """The filter as a condition on `d`, a row of documents, and its parameters, which begin with the `first`."""
    clauses, parameters = ["true"], list[Any]()
    if where.source:
        clauses.append(f"d.uri LIKE ${first}")
        parameters.append(like(where.source))
    if where.metadata:
        clauses.append(f"d.facets @> ${first + len(parameters)}::text[]")
        parameters.append([facet(name, value) for name, value in where.metadata.items()])
    return " AND ".join(clauses), parameters


async def allowed(connection: Any, where: Filter) -> list[int] | None:
    """The ids of the documents that the filter lets through; None for all."""
    if not where.source and not where.metadata:
        return None
    clause, parameters = condition(where, 1)
    rows = await connection.fetch(f"SELECT d.id FROM unwait.documents d WHERE {clause}", *parameters)
    return [row["id"] for row in rows]


async def by_text(connection: Any, words: str, depth: int, documents: list[int] | None) -> list[Candidate]:
    """The best chunks by BM25, the best first."""
    # Chosen and added up as in SQLite: the scores are the same.
    looked_for = await asyncio.to_thread(terms, words)
    names = [term(each) for each in looked_for]
    entries = dict(await connection.fetch(_TERMS, names)) if names else {}
    if not entries:
        return []
    totals = await connection.fetchrow(_TOTALS)
    counts = [entries.get(name, 0) for name in names]
    chosen = rarest(looked_for, counts, most_matches(totals["chunks"]))
    rows = await connection.fetch(_POSTINGS, [names[place] for place in chosen])
    postings = [Postings(*row) for row in rows]
    ranked = await asyncio.to_thread(bm25, postings, totals["chunks"], totals["words"], depth, documents)
    return await _candidates(connection, ranked.documents, ranked.positions, ranked.scores, depth)


async def by_vector(
    connection: Any,
    extension: str,
    vector: Vectors | None,
    space: str,
    depth: int,
    documents: list[int] | None,
) -> list[Candidate]:
    """The nearest chunks by cosine, the nearest first; `extension` is the schema of pgvector."""
    if vector is None or not vector.any():
        return []
    # Lengths are equal within a space, as long as its model stays what it was.
    query = f"""
        SELECT document, position, vector OPERATOR({extension}.<#>) $1::{extension}.vector AS distance
        FROM unwait.vectors WHERE space = $2 AND {extension}.vector_dims(vector) = $3
            {"" if documents is None else "AND document = ANY ($4::bigint[])"}
        ORDER BY distance
    """
    given = [encode_vectors(vector.reshape(1, -1))[0], stored(space), vector.size]
    if documents is not None:
        given.append(documents)
    rows = await connection.fetch(f"{query} LIMIT {depth + 1}", *given)
    if len(rows) > depth and rows[depth]["distance"] == rows[depth - 1]["distance"]:
        # The last place may belong to any of those with its score: all of them are needed.
        rows = await connection.fetch(f"{query} FETCH FIRST {depth} ROWS WITH TIES", *given)
    return await _candidates(
        connection,
        [row["document"] for row in rows],
        [row["position"] for row in rows],
        [0.0 - row["distance"] for row in rows],
        depth,
    )


async def _candidates(
    connection: Any, documents: list[int], positions: list[int], scores: list[float], depth: int
) -> list[Candidate]:
    if not documents:
        return []
    rows = await connection.fetch(_CANDIDATES, documents, positions, scores, depth)
    return [
        Candidate(
            chunk=original(row["id"]),
            uri=original(row["uri"]),
            title=original(row["title"]),
            section=tuple(original_json(row["section"])),
            page=row["page"],
            start=row["begins"],
            end=row["ends"],
            text=original(row["text"]),
            metadata=original_json(row["metadata"]),
            score=row["score"],
        )
        for row in rows
    ]
