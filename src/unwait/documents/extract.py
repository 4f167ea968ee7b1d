"""From the bytes of a source to its text, whatever their format is."""

from __future__ import annotations

from unwait.documents.detect import decode, is_pdf, refuse_binary, text_format
from unwait.documents.lines import LINE, line
from unwait.documents.model import Content, SourceFailed, Text
from unwait.documents.plain import check_length, plain

VERSION = "1"
"""Changes when the same bytes give another text, title, marks or metadata."""


def extract(
    content: Content, name: str, *, max_characters: int = 20_000_000, text_field: str = "text"
) -> Text:
    """The text of HTML, Markdown, reStructuredText, PDF, a line of JSON Lines, or of any file that is text.

    `name` is the source's URI. What a format is shows in its bytes, then in what their place says, then in the
    suffix. `text_field` is the field of a line of JSON Lines that has the text. It takes a thread as long as it
    takes: call it in one, PDFs wait for each other there.

    Raises SourceFailed: "unknown format", "broken", "encrypted", "empty" (no text, as in scanned pages), "too large"
    (more than `max_characters`).
    """
    body = content.body
    media_type = content.media_type and content.media_type.partition(";")[0].strip().lower()
    if media_type == LINE:
        text = line(content, name, text_field=text_field, max_characters=max_characters)
    elif not body.strip():
        raise SourceFailed("it is empty", kind="empty")
    elif is_pdf(body, media_type, name):
        # Each format's library is loaded where it is used.
        from unwait.documents.pdf import pdf

        return pdf(body, name, max_characters=max_characters)
    else:
        refuse_binary(body)
        text = _of_characters(decode(body, content.charset), media_type, name, max_characters)
    if not text.text.strip():
        raise SourceFailed("it has no text", kind="empty")
    return text


def _of_characters(text: str, media_type: str | None, name: str, max_characters: int) -> Text:
    format_ = text_format(text, media_type, name)
    if format_ == "html":
        from unwait.documents.html import html

        return html(text, name, max_characters=max_characters)
    check_length(len(text), max_characters)
    if format_ == "markdown":
        from unwait.documents.markdown import markdown

        return markdown(text, name)
    if format_ == "rst":
        from unwait.documents.rst import rst

        return rst(text, name)
    return plain(text, name)
