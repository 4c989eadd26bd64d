"""The tokenizer: round trips, byte lengths, determinism, and its file."""

import itertools
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.data import tokenizer as module
from nanoevolve_jax.data.corpus import CorpusError, load_corpus
from nanoevolve_jax.data.tokenizer import (
    PATTERN,
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    Tokenizer,
    pieces,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    corpus = load_corpus("stdlib", cache_dir=tmp_path_factory.mktemp("cache"))
    return [document for _, document in zip(range(1500), corpus.train(), strict=False)]


@pytest.fixture(scope="module")
def tokenizer(documents):
    return train_tokenizer(documents, 512)


def test_the_vocabulary_has_bytes_merges_and_special_tokens(tokenizer):
    assert tokenizer.vocab_size == 512
    assert set(tokenizer.ranks[:256]) == {bytes([i]) for i in range(256)}
    assert tokenizer.bos == 512 - 9
    assert tokenizer.decode([tokenizer.bos]) == "<|bos|>"
    assert len(SPECIAL_TOKENS) == 9


@given(st.lists(st.text(max_size=60), max_size=4))
def test_decoding_inverts_encoding_and_bytes_add_up(tokenizer, texts):
    lengths = tokenizer.token_bytes()
    encoded = tokenizer.encode(texts)
    assert len(encoded) == len(texts)
    for text, ids in zip(texts, encoded, strict=True):
        assert ids[0] == tokenizer.bos
        assert tokenizer.decode(ids[1:]) == text
        assert lengths[ids].sum() == len(text.encode())
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_text_that_looks_like_a_special_token_is_ordinary(tokenizer):
    text = "".join(SPECIAL_TOKENS)
    (ids,) = tokenizer.encode([text])
    assert max(ids[1:]) < tokenizer.bos
    assert tokenizer.decode(ids[1:]) == text


MANY = 1_100_000  # more equal characters than tiktoken's expressions can process at once


@pytest.mark.parametrize(
    "text",
    [" " * MANY, "\t" * MANY + "x", "\xa0" * MANY, "x\n" + " \t" * MANY + "\n\ny"]
    + [unit * (MANY // 4 // len(unit)) for unit in ("\n", "a", "7!", "\0'", "e\u0301", "<|bos|>")],
    ids=lambda text: repr(text[:4]),
)
def test_very_long_runs_are_encoded_like_any_other_text(tokenizer, text):
    ids, after = tokenizer.encode([text, "after it"])
    assert tokenizer.decode(ids[1:]) == text and tokenizer.bos not in ids[1:]
    assert [after] == tokenizer.encode(["after it"])


@given(st.text(alphabet=" \t\n\xa0ab!7'", max_size=200))
def test_only_documents_with_long_runs_of_blanks_are_cut(tokenizer, text):
    """With windows of 8, a document with shorter runs is encoded in one piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLANK_WINDOW", 8)
        parts = pieces(text)
        (ids,) = tokenizer.encode([text])
    assert "".join(parts) == text and (all(parts) or parts == [""])
    longest = max(map(len, re.findall(r"\s+", text)), default=0)
    assert longest >= 8 or parts == [text]
    assert max(len(run) for part in parts for run in [*re.findall(r"\s+", part), ""]) < 2 * 8
    assert tokenizer.decode(ids[1:]) == text
    if len(parts) == 1:
        assert ids[1:] == tokenizer._encoding.encode_ordinary(text)


def test_training_accepts_documents_of_blanks(documents):
    odd = ["", " " * MANY, "\t" * MANY, "\n" * MANY, "a" * MANY, "\0" * MANY]
    assert train_tokenizer([*odd, *documents], 300, max_chars=10**6).vocab_size == 300


def test_a_panic_of_the_library_is_an_error_that_names_the_document(tokenizer, monkeypatch):
    monkeypatch.setattr(
        "nanoevolve_jax.data.tokenizer._BLANK_WINDOW", 10 * MANY
    )  # disables the guard
    with pytest.raises(CorpusError) as error:
        tokenizer.encode(["fine", "odd" + " " * MANY, "fine"])
    assert "\n" not in str(error.value)
    assert "config.data.corpus: document 'odd" in str(error.value)
    assert f"of {MANY + 3} characters cannot be tokenised" in str(error.value)


def test_a_lone_surrogate_is_refused_by_training():
    with pytest.raises(CorpusError, match=r"Unicode text, got '\\ud800' in 'a\\ud800b' of 3"):
        train_tokenizer(["fine", "a\ud800b"], 300)


def test_encoding_agrees_with_merging_by_hand(tokenizer, documents):
    """Byte-pair encoding by definition joins the pair of lowest rank until none is left."""
    import regex

    ranks = {token: rank for rank, token in enumerate(tokenizer.ranks)}
    text = "".join(documents[:3])[:2000] + " it's 12345 naïve 日本語\r\n\n   x"
    expected = []
    for word in regex.findall(PATTERN, text):
        parts = [bytes([b]) for b in word.encode()]
        while len(parts) > 1:
            joined = [a + b for a, b in itertools.pairwise(parts)]
            best = min(range(len(joined)), key=lambda i: ranks.get(joined[i], 1 << 30))
            if joined[best] not in ranks:
                break
            parts[best : best + 2] = [joined[best]]
        expected += [ranks[part] for part in parts]
    assert tokenizer.encode([text])[0][1:] == expected


def test_token_bytes_are_zero_for_specials_only(tokenizer):
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int32 and lengths.shape == (512,)
    assert (lengths[-9:] == 0).all() and (lengths[:-9] > 0).all()


def test_same_documents_give_the_same_tokenizer_in_another_process(tmp_path, repository):
    texts = [f"def function_{i}(argument):\n    return argument + {i}\n" for i in range(200)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code = (
        "import json, sys; from nanoevolve_jax.data.tokenizer import train_tokenizer\n"
        "print(train_tokenizer(json.load(open(sys.argv[1])), 300).fingerprint)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "texts.json"],
        cwd=repository, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    assert printed == train_tokenizer(texts, 300).fingerprint


def test_different_tokenizers_have_different_fingerprints(tokenizer, documents):
    other = list(documents)
    random.Random(0).shuffle(other)
    assert train_tokenizer(other[:700], 512).fingerprint != tokenizer.fingerprint
    assert Tokenizer(tokenizer.ranks, tokenizer.pattern + "|x").fingerprint != tokenizer.fingerprint


def test_training_stops_reading_at_max_chars():
    read = []

    def texts():
        for i in range(1000):
            read.append(i)
            yield f"some words of document number {i} and then some more of them"

    reports = []
    tokens = train_tokenizer(texts(), 280, 1000, lambda *report: reports.append(report))
    assert tokens.vocab_size == 280 and len(read) < 30
    assert reports[-1][1:] == (1000, 1000)


def test_save_and_load_are_inverse_and_leave_no_temporary_file(tokenizer, tmp_path):
    path = tmp_path / "deep" / "tokenizer.json"
    tokenizer.save(path)
    assert Tokenizer.load(path) == tokenizer
    assert Tokenizer.load(path).fingerprint == tokenizer.fingerprint
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    path.write_text(path.read_text()[:-30])
    with pytest.raises(CorpusError, match=r"tokenizer\.json is damaged"):
        Tokenizer.load(path)


@pytest.mark.parametrize("size", [-1, 0, 256, SMALLEST_VOCABULARY - 1])
def test_a_vocabulary_below_the_smallest_is_an_error(size):
    with pytest.raises(CorpusError, match=rf"data\.vocab_size must be at least 265 .* got {size}"):
        train_tokenizer(["text"], size)


def test_the_smallest_vocabulary_has_only_bytes(tokenizer):
    smallest = train_tokenizer(["text"], SMALLEST_VOCABULARY)
    assert smallest.encode(["ab"]) == [[smallest.bos, *smallest.encode(["a"])[0][1:], 98]]


def test_too_little_text_for_the_vocabulary_is_an_error():
    with pytest.raises(CorpusError, match=r"data\.vocab_size must be at most 26\d, .* got 1024"):
        train_tokenizer(["abc abc"], 1024)


def test_an_error_of_the_documents_is_not_changed():
    def texts():
        yield "fine"
        raise CorpusError("data.corpus: the shard is damaged")

    with pytest.raises(CorpusError, match=r"data\.corpus: the shard is damaged"):
        train_tokenizer(texts(), 300)
