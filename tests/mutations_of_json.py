"""Mutations of JSON documents that remove or replace every node."""

import copy
import json

DEEP = "\0deep\0"  # stands for nested lists that are too deep for an encoder to write
_RAW = {
    '"\\u0000deep\\u0000"': "[" * 100_000 + "]" * 100_000,
    '"\\u0000nan\\u0000"': "NaN",
    '"\\u0000infinity\\u0000"': "-Infinity",
    '"\\u0000huge\\u0000"': "1" + "0" * 5000,
    '"\\u0000overflow\\u0000"': "1e999",
    '"\\u0000lone\\u0000"': '"\\ud800"',
}
VALUES = (
    *(None, True, -1, 0, 3.5, 1 << 62, "", "x", "../../x", [], [None], {}, {"x": 1}),
    *("\0nan\0", "\0infinity\0", "\0huge\0", "\0overflow\0", "\0lone\0", DEEP),
)
TEXTS = (
    *(b"", b" ", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{", b"[]", b"null", b"3", b'"x"', b"{}"),
    *(b"[" * 200_000, b'{"a": 1, "a": 1}', b"\0" * 100),
)
"""Files that are no document at all."""
REMOVED = object()


def paths(document, prefix=()):
    """Yields the paths of all nodes below the root, but only the first and last of each list."""
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = [(i, document[i]) for i in sorted({0, len(document) - 1}) if document]
    else:
        items = []
    for key, child in items:
        yield (*prefix, key)
        yield from paths(child, (*prefix, key))


def mutated(document, path, value):
    """Returns a copy in which the node at a path is replaced or removed."""
    document = copy.deepcopy(document)
    *above, last = path
    node = document
    for key in above:
        node = node[key]
    if value is REMOVED:
        del node[last]
    else:
        node[last] = value
    return document


def to_text(document):
    """Returns the JSON text of a document, including values that JSON cannot represent."""
    text = json.dumps(document)
    for name, raw in _RAW.items():
        text = text.replace(name, raw)
    return text


def is_plain(value):
    """Returns whether JSON can represent a value."""
    return not (isinstance(value, str) and value.startswith("\0"))
