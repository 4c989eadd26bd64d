"""The layout of an answer: reasoning, SEARCH/REPLACE blocks and code blocks.

Reasoning contains drafts that the model has rejected, so nothing in it may be applied. When in
doubt more is dropped: asking again costs one call, applying a draft spoils the experiment.

1. Text between an opening and a closing tag is reasoning. Tags nest.
2. A closing tag without an opening one ends reasoning that began with the text. The same holds for
   the channel `final` of a model that writes in channels.
3. Reasoning without an end means that there is no answer.
4. A tag inside complete code or between backticks is text. Complete code is a SEARCH/REPLACE block
   with all of its markers, or a closed code block that can be parsed.

Everything takes time linear in the length of the answer.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nanoevolve_jax.codegen.validation.parsing import parse

LONGEST_QUOTE = 80  # characters of an answer that a message quotes
LONGEST_CODE = 100_000  # characters of a text that is parsed to decide whether it is code

# Words that may follow SEARCH or REPLACE: a colon, or one file name, block number or the like.
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

_WORD = (
    r"(?P<word>(?:[a-z]{1,12}[_:▁-]){0,3}(?:think|thinking|thoughts?|reason|reasoning|reflections?"
    r"|analysis|scratch_?pad|monologue|deliberation|chain_of_thought|cot|antthinking|drafts?"
    r"|critique|brainstorm(?:ing)?|rationale|plan|planning)"
    r"(?:[_-]?(?:process|content|text|blocks?|steps?|start|end))?)"
)
_TAG = re.compile(
    rf"""
    <[|｜]?(?P<slash>/)?{_WORD}(?:\s[^<>]{{0,200}})?[|｜]?>
    | (?<![\w)\]])\[(?P<slash2>/)?(?:think|thinking|thoughts?|reasoning)\](?!\()
    | ◁(?P<slash3>/)?(?:think|thinking)▷
    | \A\s*Thinking\.{{3}}[ ]*$
    | ^(?P<slash4>\.{{3}}done)[ ]thinking\.[ ]*$
    | (?P<end><channel\|>|<\|(?:end|call|return)\|>)
    | <\|channel\|?>\s*(?P<channel>\w+)(?:[^<\n]{{0,80}}<\|message\|>)?
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_STRIPPED_CHANNEL = re.compile(r"\s*analysis[A-Z]")  # a server has removed the special tokens
_STRIPPED_FINAL = "assistantfinal"
_LAST_TOKENS = re.compile(r"(?:\s*+(?:<[|｜][\w▁]{1,40}[|｜]>|</s>|<end_of_turn>))++\s*+\Z")
_TAIL = 200  # characters at the end of an answer in which last tokens are looked for


class EditError(ValueError):
    """An answer that gives no source; the message is for the author of the answer."""


def plain(answer: str) -> str:
    """Returns an answer with plain blanks and line ends, without colours and zero-width marks."""
    return _ESCAPE.sub("", answer).translate(_PLAIN).replace("\r\n", "\n").replace("\r", "\n")


# Blocks -------------------------------------------------------------------------------------


class Block(NamedTuple):
    """One SEARCH/REPLACE block, as lines."""

    search: tuple[str, ...]
    replace: tuple[str, ...]
    indent: int  # blanks before its SEARCH marker

    def dedented(self) -> "Block":
        """Returns the block moved to the left by the indentation of its marker."""
        parts = (self.search, self.replace)
        return Block(*(tuple(_dedented(x, self.indent) for x in part) for part in parts), 0)


class Code(NamedTuple):
    """One code block."""

    language: str  # in lower case; empty if it names none
    text: str

    @property
    def is_python(self) -> bool:
        """Whether its language is a name of Python."""
        return _PYTHON.fullmatch(self.language) is not None


def blocks(lines: Sequence[str]) -> Iterator[Block]:
    """Yields the SEARCH/REPLACE blocks of an answer.

    Raises:
      EditError: If a marker is missing or ambiguous, because an edit could be lost.
    """
    parts: list[list[str]] = []  # lines of the current block, one list per part
    indent = 0
    for line in lines:
        mark = line.strip()
        if _begins_block(line):
            if parts:
                raise EditError("a SEARCH begins inside a block; end that with >>>>>>> REPLACE")
            parts, indent = [[]], len(line) - len(line.lstrip())
        elif len(parts) == 1 and _divides(line):
            parts.append([])
        elif _REPLACE.fullmatch(mark) or (len(parts) == 2 and _ends_block(line)):
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
      EditError: If the last one is not closed.
    """
    fence, language, indent = "", "", 0
    inside: list[str] = []
    for line in lines:
        if not fence:
            if opened := _opened_fence(line):
                fence, language = opened
                indent, inside = len(line) - len(line.lstrip()), []
        elif _closes_fence(line, fence):
            yield Code(language, "\n".join(inside) + "\n")
            fence = ""
        else:
            inside.append(_dedented(line, indent))
    if fence:
        raise EditError("the last code block is not closed")


def _begins_block(line: str) -> bool:
    return "<<<<<" in line and _SEARCH.fullmatch(line.strip()) is not None


def _divides(line: str) -> bool:
    return "=====" in line and _DIVIDER.fullmatch(line.strip()) is not None


def _ends_block(line: str) -> bool:
    if ">>>>>" not in line:
        return False
    mark = line.strip()
    return (_REPLACE.fullmatch(mark) or _BARE_END.fullmatch(mark)) is not None


def _opened_fence(line: str) -> tuple[str, str] | None:
    """Returns the fence and the language of a line that opens a code block."""
    if "```" not in line and "~~~" not in line:
        return None
    match = _FENCE.fullmatch(line.strip())
    if match is None or (match[1][0] == "`" and "`" in match[3]):
        return None
    return match[1], match[2].lower()


def _closes_fence(line: str, fence: str) -> bool:
    mark = line.strip()
    return mark.startswith(fence) and not mark.strip(fence[0])


def _dedented(line: str, indent: int) -> str:
    return line[min(indent, len(line) - len(line.lstrip())) :]


# Reasoning ----------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """A line, the part of a line beside a tag, or a tag."""

    text: str
    tag: re.Match | None = None


def without_reasoning(answer: str) -> str:
    """Returns an answer without the reasoning in it.

    Args:
      answer: Text with plain line ends, see `plain`.

    Raises:
      EditError: If reasoning has no end.
    """
    if _STRIPPED_CHANNEL.match(answer):
        _, final, answer = answer.rpartition(_STRIPPED_FINAL)
        if not final:
            raise _unclosed("analysis")
    if _TAG.search(answer):
        pieces = list(_pieces(answer))
        if not _is_code(pieces):
            answer = "".join(_kept(pieces))
    return answer[:-_TAIL] + _LAST_TOKENS.sub("", answer[-_TAIL:])


def _kept(pieces: Sequence[_Piece]) -> list[str]:
    """Returns the texts outside of reasoning."""
    kept: list[str] = []
    depth = 0
    in_channel = False
    tag_before = ""  # the last tag, if only blanks came after it
    last_tag = ""
    here = 0
    while here < len(pieces):
        text, tag = pieces[here]
        following = here + 1
        if tag is None or _between_backticks(pieces, here):
            if depth == 0:
                following = _end_of_code(pieces, here)
                kept.extend(piece.text for piece in pieces[here:following])
            tag_before = "" if text.strip() else tag_before
        elif tag["end"] and (in_channel or tag[0].startswith("<|")):
            if in_channel:  # otherwise it ends the message
                depth, in_channel = 0, False
            kept.append("\n")
        elif tag["channel"] and tag["channel"].lower() == "final":
            depth, in_channel = 0, False
            kept = []
        elif _closes(tag):
            if depth == 0:
                kept = []
            depth = max(depth - 1, 0)
            kept.append("\n")
            tag_before = ""
        else:  # a model may repeat the tag that its template has opened
            depth += not (text.lower() == tag_before or (in_channel and tag["channel"]))
            in_channel = in_channel or bool(tag["channel"])
            last_tag, tag_before = text, text.lower()
        here = following
    if depth:
        raise _unclosed(last_tag)
    return kept


def _unclosed(tag: str) -> EditError:
    shown = " ".join(tag.split())[:LONGEST_QUOTE]
    return EditError(
        f"the answer ends inside its reasoning ({shown!r} has no end); end the reasoning and give "
        "the edits after it"
    )


def _pieces(text: str) -> Iterator[_Piece]:
    """Splits a text at its lines and tags; the pieces joined are the text."""

    def lines(part: str) -> Iterator[_Piece]:
        return (_Piece(line[0]) for line in re.finditer(r"[^\n]*\n|[^\n]+", part))

    start = 0
    for tag in _TAG.finditer(text):
        if not tag[0].endswith("/>"):  # an empty element encloses nothing
            yield from lines(text[start : tag.start()])
            yield _Piece(tag[0], tag)
            start = tag.end()
    yield from lines(text[start:])


def _closes(tag: re.Match) -> bool:
    word = (tag["word"] or "").lower()
    slashes = (tag[name] for name in ("slash", "slash2", "slash3", "slash4", "end"))
    return any(slashes) or word.startswith("end") or word.endswith(("_end", "-end"))


def _between_backticks(pieces: Sequence[_Piece], here: int) -> bool:
    """Returns whether a piece is a tag that the text only mentions."""
    return (
        0 < here < len(pieces) - 1
        and pieces[here - 1].text.endswith("`")
        and pieces[here + 1].text.startswith("`")
    )


def _end_of_code(pieces: Sequence[_Piece], start: int) -> int:
    """Returns where the complete code that begins at a piece ends, or else the next piece."""
    fence = _opened_fence(pieces[start].text)
    if not fence and not _begins_block(pieces[start].text):
        return start + 1
    divided = False
    for place in range(start + 1, len(pieces)):
        line = pieces[place].text
        if fence and _closes_fence(line, fence[0]):
            return place + 1 if _is_code(pieces[start + 1 : place]) else start + 1
        if _begins_block(line) or (fence and _opened_fence(line)):
            break
        if not fence and divided and _ends_block(line):
            return place + 1
        divided = divided or _divides(line)
    return start + 1


def _is_code(pieces: Sequence[_Piece]) -> bool:
    """Returns whether pieces are Python whose tags can only be in strings and comments."""
    tags = [place for place, piece in enumerate(pieces) if piece.tag]
    if not tags:
        return True
    for place in tags:  # a tag in brackets on a line of its own is also a list in Python
        before = "".join(piece.text for piece in pieces[max(place - 1, 0) : place])
        if pieces[place].text[0] == "[" and not before.rpartition("\n")[2].strip():
            return False
    text = "".join(piece.text for piece in pieces)
    if len(text) > LONGEST_CODE:
        return False
    try:
        parse(textwrap.dedent(text))
        return True
    except (SyntaxError, ValueError, RecursionError, MemoryError, SystemError):
        return False
