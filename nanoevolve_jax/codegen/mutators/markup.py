"""The layout of an answer: its lines, SEARCH/REPLACE blocks and code blocks.

Everything here takes time linear in the length of the answer.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

LONGEST_QUOTE = 80
"""Characters of an answer in a message; messages stand in books and on screens."""

# What may follow SEARCH or REPLACE: a colon, or one file name, block number or the like.
_LABEL = (
    r"""(?!\w)[ \t:("'`\[]*+(?:(?:file|path|block|lines?)[ \t:#]*+)?+"""
    r"""[\w./\\-]*+[ \t:)"'`\]]*+"""
)
_SEARCH = re.compile(rf"<{{5,9}}+[ \t]*+SEARCH{_LABEL}", re.IGNORECASE)
_DIVIDER = re.compile(r"={5,9}")
_REPLACE = re.compile(rf">{{5,9}}+[ \t]*+REPLACE{_LABEL}", re.IGNORECASE)
_BARE_END = re.compile(r">{5,9}")
_ALMOST = re.compile(r"<{3,}+[ \t]*+SEARCH\b|>{3,}+[ \t]*+REPLACE\b", re.IGNORECASE)
_FENCE = re.compile(r"(`{3,16}+|~{3,16}+)(?![`~])[ \t]*+\{?[.]?([\w+-]*+)([^\n]*+)")
_PYTHON = re.compile(r"(?:i?python|py)\d*|jax", re.IGNORECASE)

_BLANK = (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)
_INVISIBLE = (0xAD, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A))
_ESCAPE = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
_PLAIN = dict.fromkeys(_BLANK, " ") | dict.fromkeys((*_INVISIBLE, 0xFEFF), None)


class EditError(ValueError):
    """An answer from which no source can be made; the message is for the author of the answer."""


class Block(NamedTuple):
    """One SEARCH/REPLACE block, as lines."""

    search: tuple[str, ...]
    replace: tuple[str, ...]
    indent: int  # blanks before its SEARCH marker

    def dedented(self) -> "Block":
        """The block moved to the left by the indentation of its marker."""
        search, replace = (
            tuple(_dedented(line, self.indent) for line in part)
            for part in (self.search, self.replace)
        )
        return Block(search, replace, 0)


class Code(NamedTuple):
    """One code block."""

    language: str  # in lower case; empty if none is named
    text: str

    @property
    def is_python(self) -> bool:
        """Whether its language is a name of Python."""
        return _PYTHON.fullmatch(self.language) is not None


def plain(answer: str) -> str:
    """An answer with plain blanks and line ends, and without colours and invisible characters."""
    return _ESCAPE.sub("", answer).translate(_PLAIN).replace("\r\n", "\n").replace("\r", "\n")


def begins_block(line: str) -> bool:
    """Whether a line is a SEARCH marker."""
    return "<<<<<" in line and _SEARCH.fullmatch(line.strip()) is not None


def divides(line: str) -> bool:
    """Whether a line is the marker between the two parts of a block."""
    return "=====" in line and _DIVIDER.fullmatch(line.strip()) is not None


def ends_block(line: str) -> bool:
    """Whether a line is a REPLACE marker; its angle brackets alone suffice."""
    if ">>>>>" not in line:
        return False
    mark = line.strip()
    return (_REPLACE.fullmatch(mark) or _BARE_END.fullmatch(mark)) is not None


def opened_fence(line: str) -> tuple[str, str] | None:
    """The fence and the language of a line that can open a code block."""
    if "```" not in line and "~~~" not in line:
        return None
    match = _FENCE.fullmatch(line.strip())
    if match is None or (match[1][0] == "`" and "`" in match[3]):
        return None
    return match[1], match[2].lower()


def closes_fence(line: str, fence: str) -> bool:
    """Whether a line closes a code block that a fence has opened."""
    mark = line.strip()
    return mark.startswith(fence) and not mark.strip(fence[0])


def blocks(lines: Sequence[str]) -> Iterator[Block]:
    """Yields the SEARCH/REPLACE blocks of an answer.

    Raises:
      EditError: if a marker is missing or cannot be understood, because the edits that are left may
        be only half of what was meant.
    """
    parts: list[list[str]] = []  # the parts of the current block that were read so far
    indent = 0
    for line in lines:
        mark = line.strip()
        if begins_block(line):
            if parts:
                raise EditError("a SEARCH begins inside a block; end that with >>>>>>> REPLACE")
            parts, indent = [[]], len(line) - len(line.lstrip())
        elif len(parts) == 1 and divides(line):
            parts.append([])
        elif _REPLACE.fullmatch(mark) or (len(parts) == 2 and ends_block(line)):
            if not parts:
                raise EditError("a >>>>>>> REPLACE has no <<<<<<< SEARCH before it")
            if len(parts) == 1:
                raise EditError("a SEARCH has no line ======= before its >>>>>>> REPLACE")
            yield Block(tuple(parts[0]), tuple(parts[1]), indent)
            parts = []
        elif _ALMOST.match(mark):
            raise EditError(
                "a marker must be <<<<<<< SEARCH or >>>>>>> REPLACE on a line of its own, got "
                f"{mark[:LONGEST_QUOTE]!r}"
            )
        elif parts:
            parts[-1].append(line)
    if parts:
        raise EditError("the last SEARCH/REPLACE block does not end with >>>>>>> REPLACE")


def code_blocks(lines: Sequence[str]) -> Iterator[Code]:
    """Yields the code blocks of an answer, without the indentation of their fences.

    Raises:
      EditError: if the last one is not closed.
    """
    fence, language, indent = "", "", 0
    inside: list[str] = []
    for line in lines:
        if not fence:
            if opened := opened_fence(line):
                fence, language = opened
                indent, inside = len(line) - len(line.lstrip()), []
        elif closes_fence(line, fence):
            yield Code(language, "\n".join(inside) + "\n")
            fence = ""
        else:
            inside.append(_dedented(line, indent))
    if fence:
        raise EditError("the last code block is not closed")


def _dedented(line: str, indent: int) -> str:
    """A line without up to `indent` of its leading blanks."""
    return line[min(indent, len(line) - len(line.lstrip())) :]
