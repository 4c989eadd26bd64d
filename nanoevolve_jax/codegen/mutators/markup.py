"""Parses the layout of an answer: reasoning, SEARCH/REPLACE blocks and code blocks.

Reasoning contains drafts that the model has rejected, so nothing in it may be applied. Ambiguous
text is treated as reasoning, because another try costs only a call, while an applied draft would
invalidate the experiment.

1. Text between an opening and a closing tag is reasoning. Tags can be nested.
2. A closing tag without an opening tag ends reasoning that began at the start of the text. If a
   model writes in channels, the start of the channel `final` does the same.
3. An answer whose reasoning has no end is invalid.
4. A tag between backticks is text. A tag anywhere else counts, even in a code comment.

The running time of each function is linear in the length of the answer.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

LONGEST_QUOTE = 80  # largest number of characters that a message quotes from an answer

# Text that may follow SEARCH or REPLACE, such as a colon, a file name or a block number.
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
_STRIPPED_CHANNEL = re.compile(r"\s*analysis[A-Z]")  # start if a server removed special tokens
_STRIPPED_FINAL = "assistantfinal"
_LAST_TOKENS = re.compile(r"(?:\s*+(?:<[|｜][\w▁]{1,40}[|｜]>|</s>|<end_of_turn>))++\s*+\Z")
_TAIL = 200  # number of characters at the end of an answer that are searched for last tokens


class EditError(ValueError):
    """Error raised if an answer cannot be applied. The message addresses the model."""


def plain(answer: str) -> str:
    """Returns an answer in plain characters.

    Unusual spaces become plain spaces, and all line breaks become line feeds. Colour codes and
    invisible characters are removed.

    Args:
      answer: Text of the answer.
    """
    return _ESCAPE.sub("", answer).translate(_PLAIN).replace("\r\n", "\n").replace("\r", "\n")


# Blocks -------------------------------------------------------------------------------------


class Block(NamedTuple):
    """SEARCH/REPLACE block."""

    search: tuple[str, ...]  # lines to replace
    replace: tuple[str, ...]  # new lines
    indent: int  # number of spaces before the SEARCH marker

    def dedented(self) -> "Block":
        """Returns the block with its lines dedented by the indentation of its marker."""
        parts = (self.search, self.replace)
        return Block(*(tuple(_dedented(x, self.indent) for x in part) for part in parts), 0)


class Code(NamedTuple):
    """Code block of an answer."""

    language: str  # name of the language in lower case; empty if there is none
    text: str

    @property
    def is_python(self) -> bool:
        """Whether the language of the block is Python."""
        return _PYTHON.fullmatch(self.language) is not None


def blocks(lines: Sequence[str]) -> Iterator[Block]:
    """Yields the SEARCH/REPLACE blocks of an answer.

    Args:
      lines: Lines of the answer.

    Raises:
      EditError: If a marker is missing or ambiguous, because an edit could otherwise be lost.
    """
    parts: list[list[str]] = []  # lines of the current block, one list per part
    indent = 0
    for line in lines:
        mark = line.strip()
        if _SEARCH.fullmatch(mark):
            if parts:
                raise EditError("a SEARCH begins inside a block; end that with >>>>>>> REPLACE")
            parts, indent = [[]], len(line) - len(line.lstrip())
        elif len(parts) == 1 and _DIVIDER.fullmatch(mark):
            parts.append([])
        elif _REPLACE.fullmatch(mark) or (len(parts) == 2 and _BARE_END.fullmatch(mark)):
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
    """Yields the code blocks of an answer, dedented by the indentation of their fences.

    Args:
      lines: Lines of the answer.

    Raises:
      EditError: If the last code block is not closed.
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


def without_reasoning(answer: str) -> str:
    """Returns an answer without its reasoning.

    Args:
      answer: Text that `plain` returned.

    Raises:
      EditError: If the reasoning has no end.
    """
    if _STRIPPED_CHANNEL.match(answer):
        _, final, answer = answer.rpartition(_STRIPPED_FINAL)
        if not final:
            raise _unclosed("analysis")
    kept: list[str] = []
    depth, start, last = 0, 0, ""
    in_channel = False
    for tag in _TAG.finditer(answer):
        between = answer[start : tag.start()]
        mentioned = between.endswith("`") and answer[tag.end() : tag.end() + 1] == "`"
        if mentioned or tag[0].endswith("/>"):  # empty elements contain no reasoning
            continue
        kept += [between, "\n"] if depth == 0 else []
        start = tag.end()
        if tag["channel"] and tag["channel"].lower() == "final":
            kept, depth, in_channel = [], 0, False
        elif tag["end"] and (in_channel or tag[0].startswith("<|")):
            if in_channel:  # outside a channel, the tag ends the message
                depth, in_channel = 0, False
        elif _closes(tag):
            if depth == 0:
                kept = []
            depth = max(depth - 1, 0)
        else:  # a model may repeat an opening tag that its template has already written
            repeated = not between.strip() and tag[0].lower() == last.lower()
            depth += not (repeated or (in_channel and tag["channel"]))
            in_channel = in_channel or bool(tag["channel"])
        last = tag[0]
    if depth:
        raise _unclosed(last)
    text = "".join([*kept, answer[start:]])
    return text[:-_TAIL] + _LAST_TOKENS.sub("", text[-_TAIL:])


def _unclosed(tag: str) -> EditError:
    shown = " ".join(tag.split())[:LONGEST_QUOTE]
    return EditError(
        f"the answer ends inside its reasoning ({shown!r} has no end); end the reasoning and give "
        "the edits after it"
    )


def _closes(tag: re.Match) -> bool:
    word = (tag["word"] or "").lower()
    slashes = (tag[name] for name in ("slash", "slash2", "slash3", "slash4", "end"))
    return any(slashes) or word.startswith("end") or word.endswith(("_end", "-end"))
