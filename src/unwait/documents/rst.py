"""reStructuredText by its lines: headings by their adornment, directives as their content.

Nothing is run: a directive that includes a file or makes a table of contents only is a line that is left out.
"""

from __future__ import annotations

import re
from typing import Any

from unwait.documents.model import Text
from unwait.documents.plain import Outline, file_name, in_steps, lines_of, shortened


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*[ \t]*$")
_DIRECTIVE = re.compile(r"([ \t]*)\.\.[ \t]+(?:\|[^|\n]{1,200}\|[ \t]+)?([\w.:+-]{1,80}?)::(?:[ \t]+(.*))?$")
_FOOTNOTE = re.compile(r"([ \t]*)\.\.[ \t]+(\[[^\]\n]{1,80}\][ \t].*)$")
_COMMENT = re.compile(r"([ \t]*)\.\.(?:[ \t]|$)")
_FIELD = re.compile(r":([A-Za-z][\w -]{0,60}):(?:[ \t]+(.*))?$")
_DOCUMENT_FIELDS = {
    "author": "author",
    "authors": "author",
    "date": "published",
    "language": "language",
    "description": "description",
    "version": "version",
    "status": "status",
}
# What they name or list is not text of this document.
_LEFT_OUT = _names(
    "include literalinclude toctree contents index highlight currentmodule module default-role default-domain image"
    " figure raw meta sectionauthor codeauthor role tabularcolumns replace unicode container class title"
    " rst-class program autosummary automodule autoclass autofunction testsetup testcleanup"
)
# Of these the content is left out as well.
_WITHOUT_CONTENT = _names(
    "include literalinclude toctree contents index raw meta image replace unicode testsetup testcleanup"
)
# Their argument names a language or how it is shown.
_CODE = _names("code code-block sourcecode code-cell ipython doctest testcode testoutput")
_WITHOUT_ARGUMENT = _CODE | {"parsed-literal", "only", "math", "list-table", "csv-table", "tabs"}

_ROLE = re.compile(r"(?<![\w`]):[\w.:+-]{1,80}:`([^`\n]{1,1000})`(?![\w`])")
_LITERAL = re.compile(r"(?<!`)``([^`\n]{1,1000})``(?!`)")
_REFERENCE = re.compile(r"(?<![\w`:])`([^`\n]{1,1000})`_{1,2}(?![\w`])")


def rst(text: str, name: str) -> Text:
    """The text with its headings as sections, without adornment, comments and the marks of directives and roles."""
    lines = [line.expandtabs(8).rstrip() for line in lines_of(text).split("\n")]
    outline = Outline()
    metadata: dict[str, Any] = {}
    styles: list[tuple[str, bool]] = []
    out = _Lines()
    number = 0
    while number < len(lines):
        line = lines[number]
        if (heading := _heading(lines, number)) is not None:
            title, style, number = heading
            if style not in styles:
                styles.append(style)
            title = unmarked(title)
            out.write("")
            outline.heading(out.length, styles.index(style) + 1, title.replace("*", ""))
            out.write(title)
            out.write("")
        elif _is_adornment(line, 4):
            number += 1
        elif match := _DIRECTIVE.match(line):
            number = _directive(lines, number, match, out)
        elif match := _FOOTNOTE.match(line):
            out.write(match[1] + unmarked(match[2]))
            number += 1
        elif match := _COMMENT.match(line):
            number = _past_block(lines, number + 1, len(match[1]))
        elif line.endswith("::"):  # announces literal text
            if line.strip() != "::":
                out.write(unmarked(line[:-1]))
            number = _literal(lines, number + 1, _indent(line), out)
        else:
            match = _FIELD.match(line)
            if match and match[2] and (field := _DOCUMENT_FIELDS.get(match[1].lower())):
                metadata.setdefault(field, shortened(match[2]))
            out.write(in_steps(unmarked, line))
            number += 1
    body = "\n".join(out.lines).rstrip("\n")
    return Text(body, outline.first or file_name(name), "rst", outline.marks(), metadata)


class _Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.length = 0

    def write(self, line: str, *, verbatim: bool = False) -> None:
        """Write a line; of several empty ones, as what is left out leaves them, the first."""
        if line or (self.lines and (verbatim or self.lines[-1])):
            self.lines.append(line)
            self.length += len(line) + 1


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_adornment(line: str, shortest: int) -> bool:
    return len(line) >= shortest and _ADORNMENT.match(line) is not None


def _heading(lines: list[str], number: int) -> tuple[str, tuple[str, bool], int] | None:
    """The heading that begins in this line: its title, its style and the number of the line after it."""
    line = lines[number]
    if (
        not line
        or line[0] == " "
        or (number and lines[number - 1] and not _is_adornment(lines[number - 1], 4))
    ):
        return None
    if _is_adornment(line, 2) and number + 2 < len(lines):
        title, under = lines[number + 1], lines[number + 2]
        if (
            title
            and under == line
            and len(line) >= min(len(title.strip()), 4)
            and not _is_adornment(title, 2)
        ):
            return title.strip(), (line[0], True), number + 3
    if number + 1 < len(lines) and not _is_adornment(line, 2):
        under = lines[number + 1]
        if under and under[0] != " " and _is_adornment(under, min(len(line), 4)) and under != "::":
            return line, (under[0], False), number + 2
    return None


def _past_block(lines: list[str], number: int, indent: int) -> int:
    """The number of the first line from here on that is indented no more than this, past empty ones."""
    while number < len(lines) and (not lines[number] or _indent(lines[number]) > indent):
        number += 1
    return number


def _literal(lines: list[str], number: int, indent: int, out: _Lines) -> int:
    """Write the block that is indented by more than this as it is; the number of the line after it."""
    end = _past_block(lines, number, indent)
    out.write("")
    while number < end and not lines[number]:
        number += 1
    for line in lines[number:end]:
        out.write(line, verbatim=True)
    return end


def _directive(lines: list[str], number: int, match: re.Match[str], out: _Lines) -> int:
    """Write what a directive shows; the number of the line to go on with."""
    indent, name, argument = len(match[1]), match[2].lower(), match[3]
    number += 1
    # Its options are not text.
    while number < len(lines) and _indent(lines[number]) > indent and _FIELD.match(lines[number].lstrip()):
        number += 1
    out.write("")
    if name in _WITHOUT_CONTENT:
        return _past_block(lines, number, indent)
    if argument and name not in _LEFT_OUT and name not in _WITHOUT_ARGUMENT:
        out.write(match[1] + unmarked(argument))
    if name in _CODE:
        return _literal(lines, number, indent, out)
    return number


def unmarked(line: str) -> str:
    """The line with roles, literals and references as their words."""
    if "`" not in line:
        return line
    line = _ROLE.sub(_shown, line)
    line = _LITERAL.sub(r"\1", line)
    return _REFERENCE.sub(_shown, line)


def _shown(match: re.Match[str]) -> str:
    """What a role or a reference shows: its words without the target, `~` and `!` without what they stand for."""
    words: str = match[1]
    if words.endswith(">") and "<" in words:
        return words[: words.rindex("<")].rstrip() or words
    if words.startswith("~"):
        return words[1:].rpartition(".")[2] or words
    return words.removeprefix("!") or words
