"""How well `unwait search` finds the pages that people named for a question: recall@10 and MRR@10.

The pages are ingested with the embedded defaults; lists of pages (indexes, tables of contents) are left out, for
they hold every question with its answer. A question is searched as it stands. One ranking of chunks by full text and
one by vectors, 100 deep as for ten hits, are what each way is made of; the pages of the chunks, each once, are the
answer. Recall is the share of the named pages among the first ten, MRR 1 ÷ the place of the first of them (0 below
ten), both averaged over the questions.

The constants of the fusion and the weights of the columns were chosen with a look at all these questions, so what is
measured is how they fit, not what they are worth on others. Around them the figures hardly change.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from documents_cells import FULL_TEXT, FUSION, SETS, VECTORS
from documents_corpus import Corpus
from documents_judgments import Query, judgments

QUERIES = 500  # of each kind; there are fewer of some
ENOUGH = 60  # chunks of a fusion, which are of ten pages at least
FIRST = 10
DEPTH = 100


def found_pages(uris: Iterable[str], query: Query) -> list[str]:
    """The first ten pages, each once."""
    pages = (uri for uri in uris if not query.hidden or not uri.startswith(query.hidden))
    return list(dict.fromkeys(pages))[:FIRST]


def score(rankings: list[list[str]], queries: list[Query]) -> dict[str, float]:
    recall = mrr = 0.0
    for pages, query in zip(rankings, queries, strict=True):
        recall += len(query.pages & set(pages)) / len(query.pages)
        mrr += next((1 / place for place, page in enumerate(pages, 1) if page in query.pages), 0.0)
    return {"queries": len(queries), "recall": recall / len(queries), "mrr": mrr / len(queries)}


async def measure(corpus: Corpus, scratch: Path, short: bool) -> dict[str, Any]:
    """Contender → metrics, for the sets of this corpus."""
    import unwait
    from unwait.documents.model import Filter
    from unwait.documents.search import fuse
    from unwait.documents.static_vectors import StaticEmbedder

    root, embedder = corpus.root_of(), StaticEmbedder()
    asked = judgments(corpus, 50 if short else QUERIES)
    prefix = f"{root}/"
    found: dict[str, Any] = {}
    async with unwait.open_store(str(scratch / f"{corpus.package}.db")) as store:
        report = await unwait.ingest(corpus.judged(), store=store, summarise="none", progress=False)
        assert report.failed == 0, report.causes
        for name, (package, kind) in SETS.items():
            if package != corpus.package:
                continue
            ways: dict[str, list[list[str]]] = {FUSION: [], FULL_TEXT: [], VECTORS: []}
            for query, vector in zip(
                asked[kind], await embedder.embed([query.text for query in asked[kind]]), strict=True
            ):
                texts, near = await store.find(query.text, vector, embedder.name, DEPTH, Filter())
                both = fuse("", texts, near, ENOUGH)  # without the words, which only snippets need
                for way, chunks in ((FUSION, both), (FULL_TEXT, texts), (VECTORS, near)):
                    ways[way].append(found_pages((it.uri.removeprefix(prefix) for it in chunks), query))
            scores = {way: score(pages, asked[kind]) for way, pages in ways.items()}
            for metric in ("recall", "mrr"):
                better = max(scores[FULL_TEXT][metric], scores[VECTORS][metric])
                scores[FUSION][f"{metric}_ahead"] = scores[FUSION][metric] - better
            found |= {f"{name}: {way}": said for way, said in scores.items()}
    await embedder.aclose()
    return found
