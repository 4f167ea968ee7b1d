"""HTML to text: blocks, lists, tables, sections; what frames a page; pages made to break a parser."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwait.documents import html as module
from unwait.documents.html import html
from unwait.documents.model import SourceFailed, Text


def of(page: str, name: str = "https://a.org/docs/page.html", max_characters: int = 10_000_000) -> Text:
    return html(page, name, max_characters=max_characters)


def sections(text: Text) -> list[tuple[str, tuple[str, ...]]]:
    """Each section's path, and how its text begins."""
    return [(text.text[mark.offset :].partition("\n")[0], mark.section) for mark in text.marks]


def test_paragraphs_are_blocks_and_white_space_in_them_is_one_space() -> None:
    page = "<p>One\n   <b>bold</b>&nbsp;word,\tand</p>tail<div>two<div>three</div>four</div><pre>\n a\n   b\n</pre>end"
    assert of(page).text == "One bold word, and\n\ntail\n\ntwo\n\nthree\n\nfour\n\n a\n   b\n\nend"


def test_words_run_on_over_inline_elements_and_not_over_blocks() -> None:
    assert of("<p>un<i>wait</i>ed<sup>2</sup> <span>x</span><p>y").text == "unwaited2 x\n\ny"


def test_line_breaks_are_lines_and_two_of_them_a_paragraph() -> None:
    assert of("<p>a<br>b<br/><br>c<br></p>d").text == "a\nb\n\nc\n\nd"
    assert of("<pre>a<br>b</pre>").text == "a\nb"


def test_lists_are_lines_with_dashes_indented_by_their_depth() -> None:
    page = "<p>x</p><ul><li>a<li><p>b</p><p>more</p></li><li>c<ol><li>d</li><li>e</li></ol></li></ul>y"
    assert of(page).text == "x\n\n- a\n- b\n\nmore\n- c\n  - d\n  - e\n\ny"


def test_definitions_stand_below_their_terms() -> None:
    assert (
        of("<dl><dt>a</dt><dd><p>one</p><p>two</p></dd><dt>b<dd>three</dl>").text
        == "a\none\n\ntwo\n\nb\nthree"
    )


def test_rows_of_tables_are_lines_with_bars() -> None:
    page = (
        "<table><caption>T</caption><thead><tr><th>k</th><th>v</th></tr></thead>"
        "<tr><td><p>a</p></td><td><p>b</p></td><td></td></tr><tr><td>c<td>d</table>end"
    )
    assert of(page).text == "T\nk | v\na | b\nc | d\n\nend"


def test_a_table_that_lays_out_a_page_keeps_its_blocks() -> None:
    page = "<table><tr><td><h1>T</h1><p>a</p><table><tr><td>x<td>y</table></td><td>b</td></tr></table>c"
    assert of(page).text == "T\n\na\n\nx | y\n\nb\n\nc"


def test_sections_follow_the_headings_and_their_words_are_in_the_text() -> None:
    page = "intro<h1>A</h1>a<h2>B <i>b</i></h2>b<h4>C</h4>c<h3>D</h3>d<h2>E<a>¶</a></h2>e<h1></h1><h2>F <a>#</a></h2>f"
    text = of(page)
    assert sections(text) == [
        ("intro", ()),
        ("A", ("A",)),
        ("B b", ("A", "B b")),
        ("C", ("A", "B b", "C")),
        ("D", ("A", "B b", "D")),
        ("E", ("A", "E")),
        ("F", ("A", "F")),
    ]


def test_the_heading_of_a_note_begins_no_section() -> None:
    text = of('<h1>A</h1><div class="note"><h3>Note</h3><p>x</p></div><p>y</p>')
    assert sections(text) == [("A", ("A",))]
    assert text.text == "A\n\nNote\n\nx\n\ny"


def test_a_title_is_that_of_the_page_then_the_first_heading_then_the_file() -> None:
    assert of("<title> The\n title </title><h1>H</h1>x<svg><title>no</title></svg>").title == "The title"
    assert of("<title> </title><h2>H <b>b</b></h2>").title == "H b"
    assert of("<p>x").title == "page.html"
    assert html("<p>x", "https://a.org/", max_characters=9).title == "a.org"
    assert len(of(f"<title>{'x' * 100_000}</title><h1>{'y' * 100_000}").title) <= 200


def test_what_a_page_says_of_itself_is_metadata() -> None:
    page = (
        '<html lang="de"><head><meta name="Description" content=" What  it is "><meta name=author content=Ann>'
        '<meta property="article:published_time" content="2024-05-01"><meta name=x content=y></head><p>x'
    )
    assert of(page).metadata == {
        "language": "de",
        "description": "What it is",
        "author": "Ann",
        "published": "2024-05-01",
    }


def test_what_frames_a_page_and_what_is_hidden_is_left_out() -> None:
    page = (
        "<header><h1>T</h1></header><nav>n1</nav><div role=navigation>n2</div><div class='navheader'>n3</div>"
        "<script>s</script><style>s</style><template><p>t</template><noscript>ns</noscript><!-- c -->"
        "<p hidden>h<p style='color:red; display: none'>h</p><dialog>d</dialog><aside>as</aside>"
        "<main>words<aside>of interest</aside></main><select><option>o</select><footer>f</footer>"
    )
    assert of(page).text == "T\n\nwords\n\nof interest"


def test_a_page_that_is_all_frame_keeps_it() -> None:
    assert of("<nav><ul><li>a</li></ul></nav><footer>f</footer><script>s</script>").text == "- a\n\nf"


def test_a_page_of_scripts_only_is_empty() -> None:
    with pytest.raises(SourceFailed, match="scripts") as caught:
        of("<!doctype html><title>T</title><div id=app></div><script>render()</script>")
    assert caught.value.kind == "empty"


def test_too_much_text_is_refused_while_it_is_written() -> None:
    assert len(of("<p>12345</p><p>789", max_characters=10).text) == 10
    with pytest.raises(SourceFailed) as caught:
        of("<p>12345</p><p>7890", max_characters=10)
    assert caught.value.kind == "too large"


def test_text_stays_text() -> None:
    page = "<p>&lt;script&gt;alert(1)&lt;/script&gt; \u202etfel\u202c zero\u200bwidth ' OR 1=1 --"
    assert of(page).text == "<script>alert(1)</script> \u202etfel\u202c zero\u200bwidth ' OR 1=1 --"


MANY = 50_000
HOSTILE: dict[str, Callable[[], str]] = {
    "div": lambda: "<div>" * MANY,
    "b": lambda: "<p><b>" * MANY,
    "different b": lambda: "".join(f"<p><b id={number}></p>" for number in range(MANY)),
    "lists": lambda: "<ul><li>" * MANY,
    "tables": lambda: "<table><tr><td>" * MANY,
    "span": lambda: "<li><span>" * MANY,
    "end tags that end nothing": lambda: "<div><object></div></object>" * MANY,
    "overlap": lambda: "<b><i></b>" * MANY,
    "unknown": lambda: "<x-y>" * MANY + "<p>" * MANY,
    "drawing": lambda: "<svg><div>" + "<path/>" * MANY + "<p>" * MANY,
    "script in a drawing": lambda: "<svg><script></svg>" + "<div>" * MANY + "</script>",
    "comments": lambda: "<!--><div>" * MANY,
    "headings": lambda: "<h1><div>" * MANY,
    "attributes": lambda: "<p " + " ".join(f"a{number}=1" for number in range(MANY)) + ">",
    "attributes without a space": lambda: "<p " + "".join(f'a{number}="1"' for number in range(MANY)) + ">",
    "tags in a name": lambda: "<p>" + "<a" * MANY + ">",
    "tags in a value": lambda: "<p>" + "<a/b=c" * MANY + ">",
    "tags in tags": lambda: "<p>" + ("<a " * 499 + ">") * (MANY // 300),
    "attributes after a bracket": lambda: (
        '<p x=">" ' + "/".join(f"a{number}" for number in range(MANY)) + ">"
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_page_nested_to_break_the_parser_takes_no_time_and_keeps_its_words(kind: str) -> None:
    started = time.process_time()
    text = of(f"<html><body><p>first words</p>{HOSTILE[kind]()}last words")
    # Without care for them these take from 5 seconds to hours.
    assert time.process_time() - started < 3
    assert text.text.startswith("first words")
    assert text.text.endswith("last words")


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("paragraphs", "<p>x</p>" * MANY),
        ("open paragraphs", "<p>x" * MANY),
        ("items", "<ul>" + "<li><b>x</b>" * MANY),
        ("rows", "<table>" + "<tr><td>x<td><i>y</i>" * MANY),
        ("icons", "<p>x<svg viewBox='0 0 1 1'><g><path d='M0 0'/><path d='M1 1'/></g></svg></p>" * MANY),
        ("spans", "<pre>" + "<span class=k><a href=x>x</a></span>\n" * MANY),
        ("scripts", "<div>x<script>document.write('<div><div>')</script></div>" * MANY),
    ],
)
def test_a_long_page_of_ordinary_nesting_keeps_its_structure(kind: str, page: str) -> None:
    assert not module._too_deep(page.lower())


def test_a_page_of_millions_of_tags_is_refused() -> None:
    with pytest.raises(SourceFailed) as caught:
        of("<p>" * 2_000_001)
    assert caught.value.kind == "too large"


INLINE = ["b", "i", "a", "span", "code", "em", "x-y", "font", "sup"]
BLOCKS = [
    "p",
    "div",
    "section",
    "article",
    "h1",
    "h2",
    "h3",
    "h6",
    "ul",
    "ol",
    "li",
    "dl",
    "dt",
    "dd",
    "blockquote",
]
TABLES = [
    "table",
    "tr",
    "td",
    "th",
    "tbody",
    "caption",
    "pre",
    "main",
    "header",
    "hr",
    "br",
    "center",
    "form",
]
tags = st.sampled_from(INLINE + BLOCKS + TABLES)
pieces = st.one_of(
    tags.map(lambda tag: f"<{tag}>"),
    tags.map(lambda tag: f"</{tag}>"),
    st.just(" "),
    st.just("\n"),
    st.integers(0, 9999).map(lambda number: f"w{number}."),
)


@given(st.lists(pieces, max_size=60))
def test_any_tags_keep_all_visible_words_in_the_parsers_order(page: list[str]) -> None:
    """The parser may move words out of a table; what it holds as text is what is written, in that order."""
    source = "".join(page)
    tree = module.LexborHTMLParser(source)
    expected = "".join(tree.body.text().split()) if tree.body is not None else ""
    if not expected:
        with pytest.raises(SourceFailed):
            of(source)
        return
    text = of(source)
    lines = [line.lstrip().removeprefix("- ") for line in text.text.split("\n")]
    written = "".join("".join(lines).replace(" | ", "").split())
    assert written == expected
    offsets = [mark.offset for mark in text.marks]
    assert offsets == sorted(set(offsets))
    assert offsets[0] == 0
    assert offsets[-1] <= len(text.text)
    if "<pre>" not in page:
        assert "\n\n\n" not in text.text
    assert text.text.strip("\n") == text.text


@given(st.lists(pieces, max_size=60))
def test_a_page_made_flat_keeps_its_words(page: list[str]) -> None:
    source = "".join(page)
    flat = of(module._flat(f"<p>0{source}")).text
    words = [piece for piece in page if piece.startswith("w")]
    assert "".join(flat.split()) == "".join(["0", *words])
