"""HTML to text: one walk over the parsed page, in plain loops.

The parser's time grows with the square of a page's nesting, whatever its size. What is nested deeper than any page
that a person wrote is made flat before it is parsed: it loses its structure and keeps its words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unwait.documents.model import SourceFailed, Text
from unwait.documents.plain import Outline, check_length, file_name, shortened

try:
    from selectolax.lexbor import LexborHTMLParser, SelectolaxError
except ImportError as error:  # pragma: no cover
    raise ImportError('HTML needs selectolax: pip install "unwait[documents]"') from error

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MOST_TAGS = 2_000_000  # those that begin and those that end; each takes about 280 bytes in the parsed page
_SMALL = 1000  # tags; a page with fewer cannot be nested so deep that it matters
_SHORT = 30_000  # characters; a shorter page has no tag with so many attributes that it matters
_STEP = 200_000  # characters
_DEEPEST = 400
_MOST_ATTRIBUTES = 500  # of one tag
_MOST_FOLLOWED = 10  # times that the attributes in a page may be read, where tags seem to begin within tags
_LOOKED_BACK = 10  # open elements among which an end tag looks for its start
_LONGEST_VALUE = 2000  # characters of what the page says of itself
_DEEPEST_INDENT = 6

_SKIPPED = _names(
    "script style template noscript noembed noframes iframe select datalist title desc metadata defs annotation"
    " annotation-xml link meta base -comment"
)
_BLOCKS = _names(
    "address blockquote body caption center details dialog div dl dt fieldset figcaption figure form header hgroup hr"
    " legend nav footer aside optgroup p search section summary tbody tfoot thead"
)
_FRAMING = frozenset(("nav", "footer", "aside"))
_HIDDEN = "[hidden], [style*='display:none' i], [style*='display: none' i], dialog:not([open])"
_HIDDEN_WORDS = ("hidden", "HIDDEN", "display", "DISPLAY", "<dialog", "<DIALOG")
# The heading of a note is not that of what comes after the note.
_NO_SECTION = (
    ":is(.note, .tip, .warning, .caution, .important, .admonition, blockquote) :is(h1, h2, h3, h4, h5, h6)"
)
_NO_SECTION_WORDS = (
    "note",
    "tip",
    "warning",
    "caution",
    "important",
    "admonition",
    "<blockquote",
    "<BLOCKQUOTE",
)
# What frames a page: by role, and by the class names of DocBook and Sphinx.
_FRAME = (
    "[role=navigation], [role=banner], [role=contentinfo], [role=complementary], [role=search],"
    " .navheader, .navfooter, .sphinxsidebar, div.footer"
)
_FRAME_WORDS = ("role=", "ROLE=", "role =", "navheader", "navfooter", "sphinxsidebar", "footer")

_META = {
    "author": "author",
    "article:author": "author",
    "dc.creator": "author",
    "description": "description",
    "og:description": "description",
    "dc.description": "description",
    "article:published_time": "published",
    "date": "published",
    "dc.date": "published",
    "dcterms.created": "published",
    "content-language": "language",
    "dc.language": "language",
}

_VOID = _names(
    "area base basefont bgsound br col embed frame hr image img input keygen link meta param source track wbr"
)
# Their end is implied by the next, so they do not nest in themselves.
_IMPLIED = _names("p li dd dt tr td th tbody thead tfoot option optgroup rb rp rt rtc html head body")
# Left open, these are opened again in each block that follows.
_FORMATTING = _names("a b big code em font i nobr s small strike strong tt u")
_SCOPES = _names("applet button caption marquee object select table template svg math")
_NOT_NESTED = _VOID | _IMPLIED | {f"/{tag}" for tag in _VOID | _IMPLIED} | {None}
# What has no end runs to the end of the page, lest each of many beginnings look for it.
_COMMENT = r"!--(?:-?>|.*?--!?>|.*)"
_TAG = re.compile(
    rf"<(?:{_COMMENT}|script\b(?:.*?</script|.*)|style\b(?:.*?</style|.*)|(/?[a-z][^\s/>]*))", re.DOTALL
)
_TAG_IN_DRAWN = re.compile(rf"<(?:{_COMMENT}|(/?[a-z][^\s/>]*))", re.DOTALL)
_DRAWING = re.compile(
    r"<svg\b[^<>]*+(?<!/)>[^<]*+(?:</?(?:path|circle|rect|line|polygon|polyline|ellipse|use|stop|image|g|defs|text"
    r"|tspan|marker|symbol|lineargradient|radialgradient|clippath|mask|pattern|filter|animate)\b[^<]*+)*+"
)
_ENDS_ITSELF = re.compile(r"<[a-z][^<>]*/>")
_ATTRIBUTE = r"[\s/]*+[^\s/>=]++(?:\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s>\"'][^\s>]*+)?+)?+"
_ATTRIBUTES = re.compile(_ATTRIBUTE)
_WITH_MANY = re.compile(rf"<[a-z][^\s/>]*+((?:{_ATTRIBUTE}){{8,}}+)")
_ANY_TAG = re.compile(r"</?([a-zA-Z][^\s/>]*)[^>]*>?")
_KEPT_WHEN_FLAT = _names("script style template noscript textarea title meta head body html")


def html(text: str, name: str, *, max_characters: int) -> Text:
    """The text of a page, its title, its headings as sections, and what it says of itself.

    Without what frames it (navigation, footers, hidden elements), if anything is left then. Raises SourceFailed
    "empty", "too large", "broken".
    """
    page = parsed(text)
    root, body = page.root, page.body
    title, metadata = _about(root, page.head)
    writer = _Writer(max_characters)
    if body is not None:
        hidden = _found(page, text, _HIDDEN, _HIDDEN_WORDS)
        asides = _found(page, text, _NO_SECTION, _NO_SECTION_WORDS)
        frame = _found(page, text, _FRAME, _FRAME_WORDS)
        writer.walk(body, hidden | frame, asides, framing=False)
        if not writer.length:
            writer = _Writer(max_characters)
            writer.walk(body, hidden, asides, framing=True)
    if not writer.length:
        raise SourceFailed("the page has no text; it may be made by scripts", kind="empty")
    outline = writer.outline
    return Text(
        "".join(writer.out), title or outline.first or file_name(name), "html", outline.marks(), metadata
    )


def parsed(text: str) -> LexborHTMLParser:
    """The page, made flat first if it is nested so deep that this would take long. Raises SourceFailed."""
    if (tags := text.count("<")) > _MOST_TAGS:
        raise SourceFailed(
            f"it has more than {_MOST_TAGS:,} tags; split it into smaller pages", kind="too large"
        )
    if (tags > _SMALL or len(text) > _SHORT) and _too_deep(text.lower()):
        text = _flat(text)
    try:
        return LexborHTMLParser(text)
    except (SelectolaxError, ValueError, RuntimeError) as error:
        raise SourceFailed(f"the page cannot be parsed: {error}", kind="broken") from None


def _found(page: LexborHTMLParser, text: str, selector: str, words: Sequence[str]) -> set[int]:
    """The elements that a selector finds, which takes long, in a page with one of the words that it needs."""
    if any(word in text for word in words):
        return {node.mem_id for node in page.css(selector)}
    return set()


class _Writer:
    """Text in blocks: what has been written, and the line that is being written."""

    def __init__(self, max_characters: int) -> None:
        self.out: list[str] = []  # in turn what separates and what is separated
        self.length = 0
        self.outline = Outline()
        self._max_characters = max_characters
        self._inline: list[str] = []  # of the current line, as it comes
        self._verbatim = 0
        self._between = 0  # line breaks due before what comes next
        self._fresh = False  # in an item or a cell without text: a block that begins there begins on its line
        self._prefix = ""  # of an item without text
        self._lists = 0
        self._after_item = False
        self._headings: list[tuple[int, int] | None] = []  # what had been written when each began
        self._articles = 0
        self._tables: list[tuple[int, bool]] = []  # the rows that tables began in
        self._in_row = 0  # texts written since the row began
        self._row_broken = False  # they take more than one line
        self._beside = False  # what comes next stands beside a cell

    def walk(self, body: LexborNode, left_out: set[int], asides: set[int], *, framing: bool) -> None:
        """Write what is below `body`, without these elements and, unless `framing`, without what frames a page.

        Headings among `asides` begin no section.
        """
        inline, starts, ends = self._inline, _STARTS, _ENDS
        skipped = _SKIPPED if framing else _SKIPPED | _FRAMING
        parents: list[LexborNode] = []
        node = body
        while True:
            tag = node.tag or ""
            if tag == "-text":
                words = node.text_content
                # The sign of a link to the paragraph or the heading itself.
                if words and words != "¶" and not (words == "#" and self._headings):
                    inline.append(words)
            elif (tag not in skipped or (tag == "aside" and self._articles)) and not (
                left_out and node.mem_id in left_out
            ):
                if (start := starts.get(tag)) is not None:
                    start(self)
                    if asides and node.mem_id in asides:
                        self._headings[-1] = None
                if (child := node.first_child) is not None:
                    parents.append(node)
                    node = child
                    continue
                if (end := ends.get(tag)) is not None:
                    end(self, tag)
            while parents:
                if (following := node.next) is not None:
                    node = following
                    break
                node = parents.pop()
                if (end := ends.get(tag := node.tag or "")) is not None:
                    end(self, tag)
            else:
                return

    def _write(self, text: str) -> None:
        if self._beside:
            separator = " | "
            self._beside = False
        else:
            separator = "\n" * self._between if self.out else ""
            self._row_broken = self._in_row > 0
        self._in_row += 1
        separator += self._prefix
        self._prefix = ""
        self._between = 0
        self._fresh = self._after_item = False
        self.out += (separator, text)
        self.length += len(separator) + len(text)
        check_length(self.length, self._max_characters)

    def _end_line(self) -> None:
        if self._inline:
            text = " ".join("".join(self._inline).split())
            self._inline.clear()
            if text:
                self._write(text)

    def _boundary(self, breaks: int) -> None:
        """What comes next is another block, with so many line breaks before it."""
        if self._verbatim:
            if self._inline and not self._inline[-1].endswith("\n"):
                self._inline.append("\n")
            return
        self._end_line()
        if not self._fresh and self._between < breaks:
            self._between = breaks

    def _start_block(self) -> None:
        self._boundary(2)

    def _end_block(self, tag: str) -> None:
        self._boundary(2)

    def _break(self) -> None:
        if self._verbatim:
            self._inline.append("\n")
            return
        self._end_line()
        if not self._fresh:
            self._between = min(self._between + 1, 2)

    def _start_article(self) -> None:
        self._boundary(2)
        self._articles += 1

    def _end_article(self, tag: str) -> None:
        self._boundary(2)
        self._articles -= 1

    def _start_heading(self) -> None:
        self._boundary(2)
        self._headings.append((len(self.out), self.length))

    def _end_heading(self, tag: str) -> None:
        self._boundary(2)
        before = self._headings.pop()
        if before is not None and len(self.out) > before[0]:
            index, length = before
            title = " ".join(self.out[index + 1 : index + 40 : 2])
            self.outline.heading(length + len(self.out[index]), int(tag[1]), title)

    def _start_pre(self) -> None:
        self._boundary(2)
        self._verbatim += 1

    def _end_pre(self, tag: str) -> None:
        self._verbatim -= 1
        if not self._verbatim:
            text = "".join(self._inline)
            self._inline.clear()
            if text.strip():
                self._write(text.lstrip("\n").rstrip())
        self._boundary(2)

    def _start_list(self) -> None:
        self._boundary(1 if self._lists else 2)
        self._lists += 1
        self._after_item = False

    def _end_list(self, tag: str) -> None:
        self._lists -= 1
        self._boundary(1 if self._lists else 2)
        self._after_item = False

    def _start_item(self) -> None:
        self._boundary(1)
        if self._after_item:
            self._between = 1
        self._fresh = True
        self._prefix = "  " * min(self._lists - 1, _DEEPEST_INDENT) + "- "

    def _end_item(self, tag: str) -> None:
        self._boundary(1)
        self._fresh = False
        self._prefix = ""
        self._after_item = True

    def _start_definition(self) -> None:
        self._boundary(1)
        self._between = 1
        self._fresh = True

    def _end_definition(self, tag: str) -> None:
        self._boundary(2)
        self._fresh = False

    def _start_table(self) -> None:
        self._boundary(2)
        if self._beside:
            self._beside = False
            self._between = 1
        self._tables.append((self._in_row, self._row_broken))
        self._in_row = 0
        self._row_broken = False

    def _end_table(self, tag: str) -> None:
        self._boundary(2)
        in_row, broken = self._tables.pop()
        self._row_broken = broken or self._in_row > 0
        self._in_row += in_row

    def _start_row(self) -> None:
        self._boundary(1)
        if self._in_row:
            self._between = 2 if self._row_broken else 1
        self._in_row = 0
        self._row_broken = self._beside = False
        self._fresh = True

    def _start_cell(self) -> None:
        self._boundary(1)
        self._beside = self._in_row > 0 and not self._row_broken
        self._fresh = True

    def _end_cell(self, tag: str) -> None:
        self._boundary(1)
        self._fresh = self._beside = False


_STARTS: dict[str, Callable[[_Writer], None]] = {
    **dict.fromkeys(_BLOCKS, _Writer._start_block),
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), _Writer._start_heading),
    **dict.fromkeys(("ul", "ol", "menu", "dir"), _Writer._start_list),
    **dict.fromkeys(("pre", "listing", "xmp", "plaintext", "textarea"), _Writer._start_pre),
    **dict.fromkeys(("article", "main"), _Writer._start_article),
    **dict.fromkeys(("td", "th"), _Writer._start_cell),
    "br": _Writer._break,
    "dd": _Writer._start_definition,
    "li": _Writer._start_item,
    "table": _Writer._start_table,
    "tr": _Writer._start_row,
}
_ENDS: dict[str, Callable[[_Writer, str], None]] = {
    **dict.fromkeys(_BLOCKS, _Writer._end_block),
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), _Writer._end_heading),
    **dict.fromkeys(("ul", "ol", "menu", "dir"), _Writer._end_list),
    **dict.fromkeys(("pre", "listing", "xmp", "plaintext", "textarea"), _Writer._end_pre),
    **dict.fromkeys(("article", "main"), _Writer._end_article),
    **dict.fromkeys(("td", "th", "tr"), _Writer._end_cell),
    "dd": _Writer._end_definition,
    "li": _Writer._end_item,
    "table": _Writer._end_table,
}


def _about(root: LexborNode | None, head: LexborNode | None) -> tuple[str, dict[str, Any]]:
    """The page's title, and what it says of itself: language, description, author, published."""
    title, found = "", {}
    if root is not None and (language := root.attributes.get("lang")):
        found["language"] = shortened(language)
    node = head.first_child if head is not None else None
    while node is not None:
        tag = node.tag
        if tag == "title" and not title:
            title = shortened(node.text())
        elif tag == "meta":
            attributes = node.attributes
            named = attributes.get("name") or attributes.get("property") or attributes.get("http-equiv") or ""
            value = attributes.get("content")
            if value and (field := _META.get(named.lower())) and field not in found:
                found[field] = " ".join(value[:_LONGEST_VALUE].split())
        node = node.next
    return title, {field: value for field, value in found.items() if value}


def _too_deep(text: str) -> bool:
    """Whether parsing may take very long or very much memory: an estimate, of the text in lower case, rather too high.

    It follows the open elements as far as it can without knowing all of the parser's rules; an end tag that ends
    nothing for sure ends nothing here.
    """
    # In steps, and match by match: a pattern at work lets no other thread run.
    if _crowded(text):
        return True
    if drawn := "<svg" in text:
        text = _DRAWING.sub(_undrawn, text)
    pattern = _TAG_IN_DRAWN if drawn or "<math" in text else _TAG
    open_elements: list[str] = []
    formatting = reopened = 0
    most_reopened = 5 * _SMALL
    for match in pattern.finditer(text):
        tag = match[1]
        most_reopened += 5
        if tag in _NOT_NESTED:
            reopened += formatting
        elif tag[0] != "/":
            open_elements.append(tag)
            if tag in _FORMATTING:
                formatting += 1
            else:
                reopened += formatting
            if len(open_elements) > _DEEPEST or reopened > most_reopened:
                return True
        elif open_elements:
            name = tag[1:]
            if open_elements[-1] == name:
                open_elements.pop()
                formatting -= name in _FORMATTING
            elif (below := _closes(open_elements, name)) is not None:
                formatting -= name in _FORMATTING
                del open_elements[below:]
    return reopened > most_reopened


def _crowded(text: str) -> bool:
    """Whether a tag may have too many attributes; also if it takes too long to find out."""
    # With a space before each tag: else all that begin within one name or value would be followed to its end.
    text = text.replace("<", " <")
    left = _MOST_FOLLOWED * len(text)
    for start in range(0, len(text), _STEP):
        position = start
        while match := _WITH_MANY.search(text, position, start + 2 * _STEP):
            first, end = match.span(1)
            left -= end - first
            if left < 0:
                return True
            if end - first >= 2 * _MOST_ATTRIBUTES:
                count = sum(1 for _ in _ATTRIBUTES.finditer(text, first, end))
                if count >= _MOST_ATTRIBUTES:
                    return True
            position = match.start() + 1
    return False


def _undrawn(match: re.Match[str]) -> str:
    """A drawing without the elements that end themselves."""
    return _ENDS_ITSELF.sub("", match[0])


def _closes(open_elements: list[str], tag: str) -> int | None:
    """From where on an end tag ends the open elements; None if that is not clear."""
    for below in range(len(open_elements) - 1, max(-1, len(open_elements) - 1 - _LOOKED_BACK), -1):
        if open_elements[below] == tag:
            return below
        if open_elements[below] in _FORMATTING or open_elements[below] in _SCOPES:
            return None
    return None


def _flat(text: str) -> str:
    """The page without its elements: a rule, which nothing is in, for each tag that begins or ends a block."""

    def replace(match: re.Match[str]) -> str:
        tag = match[1].lower()
        if tag in _KEPT_WHEN_FLAT:
            return match[0] if len(match[0]) < 1000 else f"{match[0][: match.end(1) - match.start()]}>"
        return "<hr>" if tag in _STARTS else ""

    return _ANY_TAG.sub(replace, text)
