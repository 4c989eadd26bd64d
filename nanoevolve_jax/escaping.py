"""Escapes text from outside, so that every character of it can be seen where it is shown.

Only Python's own library is imported, because `nanoevolve --help` must answer at once.
"""

import re

# Characters that count as printable and are drawn as nothing: fillers and variation selectors.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)


def visible(text: object) -> str:
    """Returns the text as one line in which every character can be seen.

    Control characters, line breaks, directional overrides, zero-width characters and lone
    surrogates become backslash escapes.
    """
    text = str(text)
    if text.isprintable() and not _BLANK.search(text):
        return text
    return "".join(
        character
        if character.isprintable() and not _BLANK.match(character)
        else character.encode("unicode_escape").decode()
        for character in text
    )


def visible_lines(text: object) -> str:
    """Returns the text with everything but line breaks and tabs escaped, as in `visible`."""
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    parts = re.split(r"([\n\t])", text)
    return "".join(part if part in ("\n", "\t") else visible(part) for part in parts)
