"""Drops the reasoning that a model writes before or between the parts of its answer.

Reasoning holds drafts that the model has rejected, so nothing in it may be applied. In doubt more
is dropped: to ask again costs a call, and to apply a draft costs the experiment.

  1. Text between an opening and a closing tag is reasoning. Tags nest.
  2. A closing tag without an opening one ends reasoning that began with the text. The same holds
     for the channel `final` of a model that writes in channels.
  3. Reasoning without an end means that there is no answer.
  4. A tag inside complete code or between backticks is text. Complete code is a SEARCH/REPLACE
     block with all of its markers, or a code block that is closed and can be parsed.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nanoevolve_jax.codegen.mutators import markup
from nanoevolve_jax.codegen.mutators.markup import EditError
from nanoevolve_jax.codegen.validation.parsing import parse

LONGEST_CODE = 100_000
"""Characters of code that is parsed to find out whether it is code."""

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
_STRIPPED_CHANNEL = re.compile(r"\s*analysis[A-Z]")
"""How channels look when a server has removed their special tokens."""
_STRIPPED_FINAL = "assistantfinal"
_LAST_TOKENS = re.compile(r"(?:\s*+(?:<[|｜][\w▁]{1,40}[|｜]>|</s>|<end_of_turn>))++\s*+\Z")
"""Tokens that end a message and that some servers leave in it."""
_TAIL = 200
"""Characters at the end of an answer in which they are looked for."""


class _Piece(NamedTuple):
    """A line, the part of a line beside a tag, or a tag."""

    text: str
    tag: re.Match | None = None


def without_reasoning(answer: str) -> str:
    """Returns an answer without the reasoning in it.

    Args:
      answer: Text with plain line ends, see `markup.plain`.

    Raises:
      EditError: if reasoning has no end.
    """
    if _STRIPPED_CHANNEL.match(answer):
        _, final, answer = answer.rpartition(_STRIPPED_FINAL)
        if not final:
            raise _unclosed("analysis")
    if _TAG.search(answer):
        pieces = list(_pieces(answer))
        if not _is_code(pieces):
            answer = "".join(_kept(pieces))
    return _without_last_tokens(answer)


def _kept(pieces: Sequence[_Piece]) -> list[str]:
    """The texts outside of reasoning."""
    kept: list[str] = []
    depth = 0
    in_channel = False
    tag_before = ""  # if only blanks came after it
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
        else:  # a model may open once more what its template has opened
            depth += not (text.lower() == tag_before or (in_channel and tag["channel"]))
            in_channel = in_channel or bool(tag["channel"])
            last_tag, tag_before = text, text.lower()
        here = following
    if depth:
        raise _unclosed(last_tag)
    return kept


def _unclosed(tag: str) -> EditError:
    shown = " ".join(tag.split())[: markup.LONGEST_QUOTE]
    return EditError(
        f"the answer ends inside its reasoning ({shown!r} has no end); end the reasoning and give "
        "the edits after it"
    )


def _pieces(text: str) -> Iterator[_Piece]:
    """Splits a text at its lines and tags; the pieces joined are the text."""
    start = 0
    for tag in _TAG.finditer(text):
        if tag[0].endswith("/>"):  # opens and closes nothing
            continue
        yield from _lines(text[start : tag.start()])
        yield _Piece(tag[0], tag)
        start = tag.end()
    yield from _lines(text[start:])


def _closes(tag: re.Match) -> bool:
    word = (tag["word"] or "").lower()
    slashes = (tag[name] for name in ("slash", "slash2", "slash3", "slash4", "end"))
    return any(slashes) or word.startswith("end") or word.endswith(("_end", "-end"))


def _between_backticks(pieces: Sequence[_Piece], here: int) -> bool:
    """Whether a piece is a tag that the text only mentions."""
    return (
        0 < here < len(pieces) - 1
        and pieces[here - 1].text.endswith("`")
        and pieces[here + 1].text.startswith("`")
    )


def _end_of_code(pieces: Sequence[_Piece], start: int) -> int:
    """Where the complete code that begins at a piece ends; the next piece if none begins there."""
    line = pieces[start].text
    if markup.begins_block(line):
        return _end_of_block(pieces, start)
    if opened := markup.opened_fence(line):
        return _end_of_fence(pieces, start, opened[0])
    return start + 1


def _end_of_block(pieces: Sequence[_Piece], start: int) -> int:
    divided = False
    for place in range(start + 1, len(pieces)):
        line = pieces[place].text
        if markup.begins_block(line):
            break
        if divided and markup.ends_block(line):
            return place + 1
        divided = divided or markup.divides(line)
    return start + 1


def _end_of_fence(pieces: Sequence[_Piece], start: int, fence: str) -> int:
    for place in range(start + 1, len(pieces)):
        line = pieces[place].text
        if markup.closes_fence(line, fence):
            inside = pieces[start + 1 : place]
            return place + 1 if _is_code(inside) else start + 1
        if markup.begins_block(line) or markup.opened_fence(line):
            break
    return start + 1


def _is_code(pieces: Sequence[_Piece]) -> bool:
    """Whether pieces are Python in which tags can only stand in strings and comments."""
    tags = [place for place, piece in enumerate(pieces) if piece.tag]
    if not tags:
        return True
    for place in tags:  # a tag in brackets on a line of its own is a list of Python as well
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


def _without_last_tokens(text: str) -> str:
    """A text without the tokens that end a message."""
    return text[:-_TAIL] + _LAST_TOKENS.sub("", text[-_TAIL:])


def _lines(text: str) -> Iterator[_Piece]:
    return (_Piece(line[0]) for line in re.finditer(r"[^\n]*\n|[^\n]+", text))
