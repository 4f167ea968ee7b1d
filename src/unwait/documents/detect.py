"""What bytes are: a format that is known to be no text, or text, in which encoding and of which format."""

from __future__ import annotations

import codecs
import re

from unwait.documents.model import SourceFailed
from unwait.documents.plain import suffix

_HEAD = 4096  # bytes that tell

# Formats that give no text here, by the bytes they begin with.
_MAGIC = (
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"8BPS", "a Photoshop image"),
    (b"\x7fELF", "an ELF program"),
    (b"MZ", "a Windows program"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O program"),
    (b"\xca\xfe\xba\xbe", "compiled Java"),
    (b"\x00asm", "WebAssembly"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office document"),
    (b"PAR1", "Parquet data"),
    (b"OggS", "an Ogg recording"),
    (b"ID3", "an MP3 recording"),
    (b"fLaC", "a FLAC recording"),
    (b"\x1aE\xdf\xa3", "a Matroska film"),
    (b"wOFF", "a font"),
    (b"wOF2", "a font"),
    (b"\x00\x01\x00\x00\x00", "a font"),
    (b"OTTO\x00", "a font"),
    (b"!<arch>\n", "an archive of object files or a Debian package"),
)
# Formats whose bytes are text, though not of the document.
_TEXTUAL_MAGIC = ((rb"{\rtf", "an RTF document"), (b"%!PS", "a PostScript document"))
_IN_ZIP = (
    (b"word/", "a Word document (.docx)"),
    (b"xl/", "an Excel workbook (.xlsx)"),
    (b"ppt/", "a PowerPoint presentation (.pptx)"),
    (b"mimetypeapplication/epub+zip", "an EPUB book"),
    (b"mimetypeapplication/vnd.oasis.opendocument", "an OpenDocument file"),
)

_CONTROLS = bytes(sorted({*range(32), 127} - set(b"\t\n\v\f\r\b\x1b")))
_PDF = b"%PDF-"
_PDF_TYPES = ("application/pdf", "application/x-pdf")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What a name means on the web, where it is more than what it says.
_SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
# Python's own, which no document means: they run over what they read, or take time that grows with its square.
_NO_CHARSETS = frozenset(("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "utf-7"))
_DECLARED = (
    re.compile(rb"""<meta\s[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE),
    re.compile(rb"""\A\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*["']([\w.:-]{1,40})"""),
    re.compile(rb"""\A(?:[^\n]{0,200}\n)?[ \t\f]*(?:#|//|;|%).{0,100}?coding[:=][ \t]*([\w.-]{1,40})"""),
)

# Each comment ends at its first end: to try others as well would take exponential time.
_COMMENTS = r"\s*+(?><!--.{0,4000}?-->\s*+){0,20}+"
_PAGE = re.compile(
    rf"\s*+(?:<\?xml[^>]{{0,500}}\?>)?{_COMMENTS}<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
_FRAGMENT = re.compile(
    rf"{_COMMENTS}<(?:head|body|title|meta|link|script|style|base|h[1-6]|p|div|table|ul|ol|dl"
    r"|article|section|main|header|nav|a|b|i|em|strong|span|font|center|pre|blockquote|br|hr|img|iframe|form)\b",
    re.IGNORECASE | re.DOTALL,
)
_ANY_TAG = re.compile(r"</?[a-z][a-z0-9]*(?:\s[^<>]{0,500})?/?>", re.IGNORECASE)
_TYPES = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/markdown": "markdown",
    "text/x-markdown": "markdown",
    "text/x-rst": "rst",
    "text/prs.fallenstein.rst": "rst",
}
_SUFFIXES = {
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".shtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdown": "markdown",
    ".mkd": "markdown",
    ".mdx": "markdown",
    ".qmd": "markdown",
    ".rmd": "markdown",
    ".rst": "rst",
    ".rest": "rst",
}
# Suffixes that say no more than that it is text.
_OPEN_SUFFIXES = frozenset(("", ".txt", ".text"))

_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
_ATX = re.compile(r"^#{1,6} +\S", re.MULTILINE)
_LINK = re.compile(r"\[[^\[\]\n]{1,200}\]\([^()\s]{1,500}\)")
_STRONG = re.compile(r"(?<![\w*])\*\*[^\s*][^*\n]{0,200}\*\*(?![\w*])")
_DIRECTIVE = re.compile(r"^[ \t]*+\.\. (?:[\w-]{1,40}(?::[\w-]{1,40})?::|_[^:\n]{1,100}:)", re.MULTILINE)
_UNDERLINED = re.compile(r"^\S[^\n]{0,200}\n([=\-~^*+#\"'`.:])\1{3,200}[ \t]*$", re.MULTILINE)
_ROLE = re.compile(r":[\w-]{1,40}:`[^`\n]{1,200}`|``[^`\n]{1,200}``|`[^`\n]{1,200}`_")
_LOOKED_AT = 50_000  # characters of a text whose structure is looked at


def is_pdf(body: bytes, media_type: str | None, name: str) -> bool:
    """Whether it is a PDF; with something before its header only if its place says so too.

    Raises SourceFailed for what is called a PDF and is neither that nor text.
    """
    head = body[:1024]
    if head.lstrip(b"\xef\xbb\xbf \t\r\n\x00").startswith(_PDF):
        return True
    called = media_type in _PDF_TYPES or suffix(name) == ".pdf"
    if called and _PDF in head:
        return True
    if called and not _looks_like_text(head):
        raise SourceFailed("it is called a PDF but has no PDF header", kind="broken")
    return False


def refuse_binary(body: bytes) -> None:
    """Raise SourceFailed for a format that is known and has no text to extract."""
    head = body[:_HEAD]
    for magic, what in _TEXTUAL_MAGIC:
        if head.startswith(magic):
            raise _refused(what)
    # All of these have control characters; text in an old encoding may begin with the letters of one.
    if not _has_controls(head):
        return
    if head.startswith(b"PK\x03\x04"):
        names = head + body[-_HEAD:]
        raise _refused(next((what for mark, what in _IN_ZIP if mark in names), "a ZIP archive"))
    if head.startswith(b"RIFF"):
        kinds = {b"WEBP": "a WebP image", b"WAVE": "a WAV recording", b"AVI ": "an AVI film"}
        raise _refused(kinds.get(head[8:12], "RIFF data"))
    if head[4:8] == b"ftyp":
        raise _refused("an MPEG-4 film, recording or image")
    if head[257:262] == b"ustar":
        raise _refused("a tar archive")
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise _refused(what)


def _refused(what: str) -> SourceFailed:
    return SourceFailed(f"it is {what}, which gives no text; convert it first", kind="unknown format")


def _has_controls(head: bytes) -> bool:
    return len(head.translate(None, _CONTROLS)) < len(head)


def _looks_like_text(head: bytes) -> bool:
    """Whether there are no control characters, and it is UTF-8."""
    return not _has_controls(head) and _is_utf8(head)


def _is_utf8(head: bytes) -> bool:
    try:
        # A character may be cut off at the end.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def decode(body: bytes, charset: str | None) -> str:
    """The text of bytes: by byte-order mark, by what its place and then the document itself says, as UTF-8.

    What says so is not believed where the bytes are UTF-8 or cannot be what it says. What is left over becomes
    U+FFFD. Raises SourceFailed if it is no text.
    """
    for mark, encoding in _MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(encoding, "replace")
    wide = _utf16_without_mark(body[:_HEAD])
    if wide is not None:
        return body.decode(wide, "replace")
    declared = _codec(charset) or _codec_in(body[:_HEAD])
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = _decode_foreign(body, declared)
    else:
        # A text all of ASCII may still be Japanese in ISO-2022-JP.
        if declared in ("iso2022_jp", "iso2022-jp", "hz") and body.isascii():
            text = body.decode(declared, "replace")
    head = text[:_LOOKED_AT]
    encoded = head.encode("utf-8", "replace")
    controls = len(encoded) - len(encoded.translate(None, _CONTROLS))
    if (controls + head.count("\ufffd")) * 10 > len(head):
        raise SourceFailed("it is neither text nor of a format that is known", kind="unknown format")
    return text


def _decode_foreign(body: bytes, declared: str | None) -> str:
    """The text of bytes that are not UTF-8."""
    if len(body.translate(None, _CONTROLS)) * 100 < len(body) * 95:
        raise SourceFailed("it is neither text nor of a format that is known", kind="unknown format")
    if declared not in (None, "utf-8"):
        try:
            return body.decode(declared)
        except UnicodeDecodeError:
            text = body.decode(declared, "replace")
            if _mostly_readable(text):
                return text
    if (almost := _almost_utf8(body)) is not None:
        return almost
    text = body.decode("utf-8", "replace")
    if _mostly_readable(text):
        return text
    try:
        return body.decode("cp1252")
    except UnicodeDecodeError:
        return text if declared in (None, "utf-8") else body.decode("cp1252", "replace")


def _almost_utf8(body: bytes) -> str | None:
    """The text of UTF-8 with half characters, as some programs write it, or cut off within a character."""
    try:
        text = body.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        # A last character alone may as well be one of another encoding.
        if error.reason != "unexpected end of data" or body[: error.start].isascii():
            return None
        text = body[: error.start].decode("utf-8", "surrogatepass") + "\ufffd"
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _mostly_readable(text: str) -> bool:
    """Whether most of what is not ASCII could be decoded."""
    unreadable = text.count("\ufffd")
    foreign = len(text.encode("utf-8", "replace")) - len(text)  # at least one for each character
    return unreadable * 2 * 4 < foreign


def _utf16_without_mark(head: bytes) -> str | None:
    head = head[: len(head) & ~1]
    if len(head) < 4:
        return None
    even, odd = head[::2], head[1::2]
    empty_even, empty_odd = even.count(0), odd.count(0)
    if empty_odd * 2 > len(odd) and empty_even * 20 <= len(even):
        wide = "utf-16-le"
    elif empty_even * 2 > len(even) and empty_odd * 20 <= len(odd):
        wide = "utf-16-be"
    else:
        return None
    text = head.decode(wide, "ignore")
    return wide if _looks_like_text(text.encode("utf-8", "replace")) else None


def _codec(name: str | None) -> str | None:
    """Python's codec for the name of a charset; None for what is none."""
    if not name:
        return None
    try:
        found = codecs.lookup(name.strip())
        # Refuses what is a codec but no charset, such as zip.
        b"text".decode(found.name, "replace")
    except (LookupError, ValueError):
        return None
    if found.name.replace("_", "-") in _NO_CHARSETS or found.name.startswith(("utf-16", "utf-32")):
        return None
    return _SUPERSETS.get(found.name, found.name)


def _codec_in(head: bytes) -> str | None:
    for pattern in _DECLARED:
        if match := pattern.search(head):
            return _codec(match[1].decode("ascii", "replace"))
    return None


def text_format(text: str, media_type: str | None, name: str) -> str:
    """ "html", "markdown", "rst" or "text": by an HTML document's beginning, by its place, by its structure."""
    ending = suffix(name)
    if _PAGE.match(text):
        return "html"
    said = _TYPES.get(media_type or "") or _SUFFIXES.get(ending)
    if said == "html":
        if _ANY_TAG.search(text, 0, 10 * _LOOKED_AT):
            return "html"
        return _SUFFIXES.get(ending, "text").replace("html", "text")
    if said is not None:
        return said
    if ending not in _OPEN_SUFFIXES or text.startswith("#!"):
        return "text"
    if _FRAGMENT.match(text):
        return "html"
    return _structure(text[:_LOOKED_AT])


def _structure(text: str) -> str:
    """The markup that the text is written in, if it is clear."""
    marked = [_FENCE, _ATX, _LINK, _STRONG]
    restructured = [_DIRECTIVE, _UNDERLINED, _ROLE]
    down = sum(1 for pattern in marked if pattern.search(text))
    re_structured = sum(1 for pattern in restructured if pattern.search(text))
    if re_structured >= 2 and re_structured > down:
        return "rst"
    return "markdown" if down >= 2 else "text"
