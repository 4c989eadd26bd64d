"""Sealed documents are read only if they are unchanged."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.sealed import FORMAT, read_sealed, write_sealed

# The last digits, exponents and letter case of these numbers can change without changing their
# value.
DOCUMENT = {
    "sigma": 0.30000000000000004,
    "tiny": 1e-05,
    "large": 1e16,
    "none": None,
    "words": 'naïve "quoted"',
    "nested": {"b": [1, 2.5, True], "a": {}},
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """Returns a sealed file and its bytes; a test that changes the file must restore it."""
    path = tmp_path_factory.mktemp("sealed") / "document.json"
    write_sealed(path, "calibration", DOCUMENT)
    return path, path.read_bytes()


def refused(path, content):
    """Returns the single line of the error with which this content is refused."""
    path.write_bytes(content)
    with pytest.raises(EvidenceError) as error:
        read_sealed(path, "calibration")
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "document.json"
    written = write_sealed(path, "calibration", DOCUMENT)
    assert read_sealed(path, "calibration") == written
    assert DOCUMENT.items() <= written.items()
    assert (written["kind"], written["format"]) == ("calibration", FORMAT)


def test_keys_and_tuples_are_sealed_as_json_has_them(tmp_path):
    path = tmp_path / "document.json"
    written = write_sealed(path, "card", {"horizons": {9: "a", 10: "b"}, "pair": (1, 2)})
    assert read_sealed(path, "card") == written
    assert written["horizons"] == {"9": "a", "10": "b"} and written["pair"] == [1, 2]


@given(st.integers(0, 10**6), st.integers(1, 255))
@example(0, 1)
def test_a_changed_byte_is_refused(sealed, position, change):
    path, content = sealed
    damaged = bytearray(content)
    damaged[position % len(content)] ^= change
    refused(path, damaged)


def test_no_byte_is_left_unprotected(sealed):
    """This covers bytes that leave the value equal, such as an exponent's case or a last digit."""
    path, content = sealed
    for position in range(len(content)):
        for change in (1, ord("e") ^ ord("E")):
            damaged = bytearray(content)
            damaged[position] ^= change
            refused(path, damaged)


def test_a_file_cut_anywhere_is_refused(sealed):
    path, content = sealed
    for length in range(len(content)):
        refused(path, content[:length])
    refused(path, content + b" ")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_json_lacks_is_refused(sealed, number):
    path, content = sealed
    refused(path, content.replace(b"1e-05", number.encode()))


def test_an_edited_value_is_said_to_be_edited(sealed):
    path, content = sealed
    document = json.loads(content) | {"sigma": 0.1}
    assert "was changed after it was written" in refused(
        path, (json.dumps(document, indent=2) + "\n").encode()
    )


def test_another_kind_another_format_and_other_json_are_refused(sealed):
    path, content = sealed
    path.write_bytes(content)
    with pytest.raises(EvidenceError, match="must be a card file, got 'calibration'"):
        read_sealed(path, "card")
    newer = json.loads(content) | {"format": FORMAT + 1}
    assert f"must be {FORMAT}, got {FORMAT + 1}" in refused(path, json.dumps(newer).encode())
    for other in (b"[]", b"3", b"null", b"{}"):
        assert "must be a calibration file" in refused(path, other)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(EvidenceError, match=r"none\.json does not exist"):
        read_sealed(tmp_path / "none.json", "card")
    with pytest.raises(EvidenceError, match="cannot be read as a card"):
        read_sealed(tmp_path, "card")


def test_a_document_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "document.json"
    old = write_sealed(path, "card", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_sealed(path, "card", {"a": math.nan})
    assert read_sealed(path, "card") == old and len(list(tmp_path.iterdir())) == 1
