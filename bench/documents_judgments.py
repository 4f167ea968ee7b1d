"""Questions with the pages that people who know the answer name for them, from the corpora themselves.

Three kinds, all made by the authors of the documentation for readers, none for a benchmark:

- `index`: an entry of the book's index → the pages it sends to;
- `sentence`: a sentence that sends a reader to a section of another page, without the words of the link → that
  page. The page with the sentence is taken out of what was found, for it has all the words;
- `faq`: a question of Python's FAQ → the pages that its answer links to. The FAQ is taken out.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

from documents_corpus import POSTGRESQL, Corpus
from selectolax.lexbor import LexborHTMLParser, LexborNode

SEED = 4
MOST_PAGES = 5
MOST_FOR_A_PAGE = 3  # sentences: dozens of commands say the same of dependent objects
FEWEST_WORDS, MOST_WORDS = 6, 40
SPACE = re.compile(r"\s+")
SEE_ALSO = re.compile(r",?\s*\(?[Ss]ee(?: also)?\b.*$")
# A link to a section: "Section 13.3" in DocBook, :ref: and :doc: in Sphinx. Without the name of a function or a
# parameter, the sentence around it says too little to find anything by.
NUMBERED = re.compile(r"(?:Section|Chapter|Appendix)\s")
SECTION_LINK = "span.std-ref, span.doc"
AUDITING = "auditing event"
POINTER = re.compile(r"\(?(?:[Ss]ee|[Rr]efer to|consult)?(?: also)?\s*\x00\d+\x00\s*\)?")
SENTENCE_END = re.compile(r"(?<=[.!?;:])\s+")
LINK = "\x00"
GAP = re.compile(r" ([,.;:)])")


@dataclass(frozen=True, repr=False)
class Query:
    """What is typed, and the relevant pages (paths below the corpus). `hidden`: its pages are not to be found."""

    text: str
    pages: frozenset[str]
    hidden: str = ""

    def __repr__(self) -> str:
        """The same in each process, which a set's is not."""
        return f"{self.text} {sorted(self.pages)} {self.hidden}"


def plain(text: str) -> str:
    return SPACE.sub(" ", text).strip()


def target(page: str, node: LexborNode) -> str | None:
    """The page that a link leads to, as a path below the corpus; None if that is elsewhere."""
    href = unquote(urldefrag(node.attributes.get("href") or "").url)
    if not href or "://" in href or href.startswith(("mailto:", "/")) or not href.endswith(".html"):
        return None
    parts: list[str] = []
    for part in [*page.split("/")[:-1], *href.split("/")]:
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def children(node: LexborNode, *tags: str) -> list[LexborNode]:
    return [child for child in node.iter() if child.tag in tags]


def holds(node: LexborNode, tags: str) -> bool:
    """Whether there are such elements inside it; a selector finds the node itself as well."""
    return any(found.mem_id != node.mem_id for found in node.css(tags))


def own_words(node: LexborNode) -> str:
    """The text of an entry itself, without those of the list below it."""
    return plain(
        "".join(child.text() for child in node.iter(include_text=True) if child.tag not in ("ul", "dl"))
    )


def docbook_entries(node: LexborNode, above: str) -> Iterator[tuple[str, set[str]]]:
    """(words, pages) of a DocBook index: <dt>term, <a>title</a>, <a>title</a></dt><dd><dl>…</dl></dd>."""
    words = above
    for child in children(node, "dt", "dd"):
        if child.tag == "dt":
            first = next(iter(child.iter(include_text=True)), None)
            term = plain(first.text()) if first is not None and first.tag == "-text" else ""
            words = plain(f"{above} {SEE_ALSO.sub('', term).rstrip(', ')}")
            pages = {page for link in child.css("a.indexterm") if (page := target("", link))}
            if pages and term:
                yield words, pages
        else:
            for deeper in children(child, "dl"):
                yield from docbook_entries(deeper, words)


def sphinx_entries(node: LexborNode, above: str) -> Iterator[tuple[str, set[str]]]:
    """(words, pages) of a Sphinx index: <li><a>words</a>, <a>[1]</a><ul>…</ul></li>."""
    for child in children(node, "li"):
        own = re.sub(r",? \[\d+\]", "", own_words(child)).rstrip(", ")
        # "close() (aifc.aifc method)" has "(generator method)" below it: another's.
        words = plain(f"{above.partition('(')[0] if own.startswith('(') else above} {own}")
        links = (link for link in children(child, "a", "strong") if link.tag == "a")
        pages = {page for link in links if (page := target("", link))}
        if pages:
            yield words, pages
        for deeper in children(child, "ul"):
            yield from sphinx_entries(deeper, words)


def index_entries(corpus: Corpus, root: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    if corpus is POSTGRESQL:
        tree = LexborHTMLParser((root / "bookindex.html").read_bytes().decode())
        entries = [entry for top in tree.css("div.indexdiv > dl") for entry in docbook_entries(top, "")]
    else:
        # The page of all letters has each entry once more.
        tree = LexborHTMLParser((root / "genindex-all.html").read_bytes().decode())
        entries = [
            entry for top in tree.css("table.genindextable td > ul") for entry in sphinx_entries(top, "")
        ]
    for words, pages in entries:
        found[words] |= pages
    return found


def sentences(page: str, root: Path, known: set[str]) -> Iterator[Query]:
    """The sentences of a page with one link to another page, without the words of that link."""
    tree = LexborHTMLParser((root / page).read_bytes().decode())
    for paragraph in tree.css("p, dd, li"):
        if holds(paragraph, "p, li, dd, dt, pre, table"):
            continue
        links = [(link, link.text(), target(page, link)) for link in paragraph.css("a[href]")]
        if not links or len(links) > 3:
            continue
        for place, (link, _, _) in enumerate(links):
            link.replace_with(f" {LINK}{place}{LINK} ")
        for sentence in SENTENCE_END.split(plain(paragraph.text())):
            places = [int(place) for place in re.findall(f"{LINK}(\\d+){LINK}", sentence)]
            if len(places) != 1:
                continue
            link, said, to = links[places[0]]
            # "Raises an auditing event", four hundred times.
            if AUDITING in said or not (NUMBERED.match(said) or link.css_first(SECTION_LINK)):
                continue
            words = GAP.sub(r"\1", plain(POINTER.sub(" ", sentence))).lstrip(" ,.;:")
            if to in known and to != page and FEWEST_WORDS <= len(words.split()) <= MOST_WORDS:
                yield Query(words, frozenset({to}), page)


def faq(root: Path, known: set[str]) -> Iterator[Query]:
    for path in sorted((root / "faq").glob("*.html")):
        page = path.relative_to(root).as_posix()
        for section in LexborHTMLParser(path.read_bytes().decode()).css("section"):
            heading = section.css_first("h2, h3")
            if heading is None or holds(section, "section"):
                continue
            words = plain(heading.text()).rstrip("¶")
            links = {to for link in section.css("p a[href], li a[href]") if (to := target(page, link))}
            links = {to for to in links & known if not to.startswith("faq/")}
            if links and len(links) <= MOST_PAGES:
                yield Query(words, frozenset(links), "faq/")


def sample(queries: Iterable[Any], count: int | None) -> list[Any]:
    """So many different ones, the same each time."""
    queries = sorted(set(queries), key=repr)
    return queries if count is None else random.Random(SEED).sample(queries, min(count, len(queries)))


def few_for_each(queries: list[Query], most: int) -> list[Query]:
    """At most so many queries for the same pages."""
    seen: Counter[frozenset[str]] = Counter()
    kept = []
    for query in sample(queries, len(queries)):
        seen[query.pages] += 1
        if seen[query.pages] <= most:
            kept.append(query)
    return kept


def judgments(corpus: Corpus, count: int | None = None) -> dict[str, list[Query]]:
    """The queries by kind, at most `count` of each, chosen at random and the same in each run."""
    pages = corpus.judged()
    root = corpus.root_of()
    names = [page.relative_to(root).as_posix() for page in pages]
    known = set(names)
    entries = ((words, pages & known) for words, pages in index_entries(corpus, root).items())
    kinds = {
        "index": [Query(words, frozenset(to)) for words, to in entries if 1 <= len(to) <= MOST_PAGES],
        "sentence": few_for_each(
            [query for name in names for query in sentences(name, root, known)], MOST_FOR_A_PAGE
        ),
    }
    if corpus is not POSTGRESQL:
        kinds["faq"] = list(faq(root, known))
    return {kind: sample(queries, count) for kind, queries in kinds.items()}
