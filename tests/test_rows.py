"""Packing, batches as a function of (seed, step), and the cache of rows."""

import collections
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.data.corpus import CorpusError, load_corpus
from nanoevolve_jax.data.rows import batch, batches, build_rows, check_horizon, pack
from nanoevolve_jax.data.tokenizer import Tokenizer

VOCABULARY = 300


# Packing


def naive_pack(documents, row_length, buffer_size):
    """Applies NanoChat's best-fit rule directly, with a linear search for every document."""
    source, buffer, rows, row = list(documents), [], [], []
    while True:
        while source and len(buffer) < buffer_size:
            buffer.append(source.pop(0))
        if not buffer:
            return rows
        space = row_length - len(row)
        fitting = [i for i, document in enumerate(buffer) if len(document) <= space]
        if fitting:
            chosen = max(fitting, key=lambda i: (len(buffer[i]), -i))
        else:
            chosen = min(range(len(buffer)), key=lambda i: (len(buffer[i]), i))
        row = row + buffer.pop(chosen)[:space]
        if len(row) == row_length:
            rows.append(row)
            row = []


documents_of_tokens = st.lists(st.integers(1, 30), max_size=60).map(
    lambda lengths: [[1000 + i] + [i] * (length - 1) for i, length in enumerate(lengths)]
)


@given(documents_of_tokens, st.integers(1, 20), st.integers(1, 12))
def test_packing_follows_the_rule_and_uses_a_document_once(documents, row_length, buffer_size):
    packed = [row.tolist() for row in pack(documents, row_length, buffer_size)]
    assert packed == naive_pack(documents, row_length, buffer_size)
    assert all(len(row) == row_length and row[0] >= 1000 for row in packed)
    starts = collections.Counter(token for row in packed for token in row if token >= 1000)
    assert not starts or max(starts.values()) == 1


def test_empty_documents_and_the_partial_row_are_dropped():
    assert [row.tolist() for row in pack([[], [1, 2], [], [3]], 2)] == [[1, 2]]
    assert list(pack([[1, 2]], 3)) == []


# Batches


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**63), st.integers(0, 50))
def test_an_epoch_never_repeats_a_row(count, batch_size, seed, epoch):
    batch_size = min(batch_size, count)
    rows = np.arange(count * 3, dtype=np.uint16).reshape(count, 3)
    per_epoch = count // batch_size
    start = epoch * per_epoch
    seen = batches(rows, seed, start, start + per_epoch, batch_size)
    assert seen.shape == (per_epoch, batch_size, 3) and seen.dtype == np.int32
    assert len(set(seen[..., 0].ravel().tolist())) == per_epoch * batch_size
    assert all(np.array_equal(row, rows[row[0] // 3]) for row in seen.reshape(-1, 3))


def test_a_batch_depends_on_seed_and_step_only():
    rows = np.arange(500).reshape(100, 5).astype(np.uint16)
    steps = [37, 3, 12, 3, 90]
    at_random = [batch(rows, 7, step, 8) for step in steps]
    in_order = batches(rows, 7, 0, 91, 8)
    for step, got in zip(steps, at_random, strict=True):
        np.testing.assert_array_equal(got, in_order[step])
    assert not np.array_equal(batch(rows, 7, 0, 8), batch(rows, 8, 0, 8))
    assert not np.array_equal(batch(rows, 7, 0, 8), batch(rows, 7, 12, 8))  # the next epoch


def test_the_order_never_changes():
    """A run resumed on another version or platform is exact only if the order is the same."""
    rows = np.arange(10)[:, None].astype(np.uint16)
    assert batch(rows, 0, 0, 10).ravel().tolist() == GOLDEN[0]
    assert batch(rows, 2**31 - 1, 5, 10).ravel().tolist() == GOLDEN[1]


GOLDEN = [
    [0, 8, 9, 3, 7, 5, 1, 2, 6, 4],
    [8, 4, 2, 1, 6, 0, 9, 3, 5, 7],
]


def test_too_many_steps_or_too_large_batches_are_an_error():
    rows = np.zeros((100, 3), np.uint16)
    for batch_size in (0, 101):
        with pytest.raises(CorpusError, match=rf"train\.batch_size must be .* 100.* {batch_size}"):
            batch(rows, 0, 0, batch_size)
    check_horizon(rows, steps=12, batch_size=8, max_epochs=1)
    check_horizon(rows, steps=30, batch_size=8, max_epochs=2.5)
    with pytest.raises(CorpusError, match=r"train\.steps must be at most 12, .* got 13"):
        check_horizon(rows, steps=13, batch_size=8, max_epochs=1)
    with pytest.raises(CorpusError, match=r"train\.batch_size must be .* 100, .* got 101"):
        check_horizon(rows, steps=1, batch_size=101, max_epochs=9)


# Building and the cache


WORDS = ("the", "a", "river", "stone", "of", "light", "dark", "walks", "slowly", "under", "old")


def sentences(start, count):
    for i in range(start, start + count):
        state, text = i * 2654435761 % 2**32, []
        for _ in range(5 + i % 60):
            state = (state * 1664525 + 1013904223) % 2**32
            text.append(WORDS[(state >> 16) % len(WORDS)])
        yield f"{i}: " + " ".join(text)


def write_shards(folder, *parts):
    """Writes one shard per part and returns the folder."""
    folder.mkdir(exist_ok=True)
    for index, texts in enumerate(parts):
        table = pa.table({"text": pa.array(list(texts), pa.string())})
        pq.write_table(table, folder / f"shard_{index:05d}.parquet", row_group_size=100)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of three small shards whose validation text repeats some training text."""
    return write_shards(
        tmp_path / "text", sentences(0, 400), sentences(400, 400), sentences(780, 100)
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Returns a cache with the rows of `folder` in two folds."""
    place = tmp_path_factory.mktemp("built")
    parts = sentences(0, 400), sentences(400, 400), sentences(780, 100)
    build(write_shards(place / "text", *parts), place / "cache", folds=2)
    return place / "cache"


def build(folder, cache, **changes):
    settings = {"vocab_size": VOCABULARY, "sequence_len": 32, "cache_dir": cache} | changes
    return build_rows(f"parquet:{folder}", **settings)


def row_set(rows):
    return {row.tobytes() for row in np.asarray(rows)}


def check_good(rows):
    assert rows.train.dtype == rows.folds[0].dtype == np.uint16
    assert len(rows.train) > 100 and len(rows.folds[0]) > 10
    assert rows.train.shape[1] == rows.folds[0].shape[1] == rows.sequence_len + 1 == 33
    assert rows.token_bytes.shape == (VOCABULARY,) and rows.tokenizer.vocab_size == VOCABULARY
    assert (rows.train[:, 0] == VOCABULARY - 9).all()
    assert not row_set(rows.train) & row_set(rows.folds[0])


def test_rows_are_the_packed_documents(folder, tmp_path):
    rows = build(folder, tmp_path / "cache")
    check_good(rows)
    (path,) = (tmp_path / "cache" / "tokenizers").iterdir()
    tokenizer = Tokenizer.load(path)
    corpus = load_corpus(f"parquet:{folder}", cache_dir=tmp_path)
    parts = ((rows.train, corpus.train()), (rows.folds[0], corpus.validation()))
    for part, documents in parts:
        expected = list(pack(tokenizer.encode(list(documents)), 33))
        np.testing.assert_array_equal(part, expected)
    assert rows.fingerprints["corpus"] == corpus.fingerprint
    assert rows.fingerprints["tokenizer"] == tokenizer.fingerprint


def test_a_second_call_reads_the_cache(folder, tmp_path):
    reports = []
    first = build(folder, tmp_path / "cache", progress=lambda *report: reports.append(report))
    assert {what for what, _, _ in reports} == {
        "reading text for the tokenizer", "packing validation rows", "packing train rows"
    }  # fmt: skip
    reports.clear()
    again = build(folder, tmp_path / "cache", progress=lambda *report: reports.append(report))
    assert not reports
    np.testing.assert_array_equal(first.train, again.train)
    assert first.fingerprints == again.fingerprints
    assert isinstance(again.train, np.memmap)


def test_the_cache_key_follows_everything_that_decides_the_rows(folder, tmp_path):
    cache = tmp_path / "cache"
    keys = {
        build(folder, cache, **changes).fingerprints["rows"]
        for changes in (
            {}, {"sequence_len": 16}, {"vocab_size": 320}, {"shards": 1}, {"max_train_tokens": 640},
            {"folds": 2},
        )
    }  # fmt: skip
    assert len(keys) == 6
    pq.write_table(pa.table({"text": list(sentences(900, 100))}), folder / "shard_00002.parquet")
    assert build(folder, cache).fingerprints["rows"] not in keys


def test_limits_keep_the_first_rows(folder, tmp_path):
    whole = build(folder, tmp_path / "cache")
    some = build(folder, tmp_path / "cache", max_train_tokens=650, max_validation_tokens=64)
    assert some.train.shape == (21, 33) and some.folds[0].shape == (2, 33)
    np.testing.assert_array_equal(some.train, whole.train[:21])
    np.testing.assert_array_equal(some.folds[0], whole.folds[0][:2])


def test_a_training_row_that_equals_a_validation_row_is_dropped(tmp_path):
    """Different documents can give the same row if they differ only in the part that is cropped."""
    start = "the same beginning of a long text, " * 8
    parts = []
    for index, ends in enumerate([("one", "two", "three"), ("four", "five")]):
        others = list(sentences(1000 * index, 300))
        parts.append(others[:150] + [start + end for end in ends] + others[150:])
    folder = write_shards(tmp_path / "text", *parts)
    rows = build(folder, tmp_path / "cache", sequence_len=8, vocab_size=280)
    assert len(rows.train) and not row_set(rows.train) & row_set(rows.folds[0])


# Folds


def documents_in(tokenizer, rows):
    """Returns the names of the documents that the rows contain in full or cropped."""
    texts = (tokenizer.decode(row) for row in np.asarray(rows))
    return {part.split(":")[0] for text in texts for part in text.split("<|bos|>") if ":" in part}


def test_folds_share_no_document_and_no_row(folder, tmp_path):
    rows = build(folder, tmp_path / "cache", folds=4)
    assert len(rows.folds) == 4 and all(len(fold) for fold in rows.folds)
    parts = [*rows.folds, rows.train]
    for one, other in itertools.combinations(parts, 2):
        assert not row_set(one) & row_set(other)
        assert not documents_in(rows.tokenizer, one) & documents_in(rows.tokenizer, other)
    numbers = set().union(*(documents_in(rows.tokenizer, fold) for fold in rows.folds))
    assert numbers <= {str(i) for i in range(780, 880)} and len(numbers) > 60


def test_copies_of_a_document_are_in_one_fold(tmp_path):
    texts = list(sentences(0, 300))
    folder = write_shards(tmp_path / "text", texts[100:], texts[:100] * 3)
    rows = build(folder, tmp_path / "cache", folds=3)
    seen = collections.Counter(
        name for fold in rows.folds for name in documents_in(rows.tokenizer, fold)
    )
    assert len(seen) > 80 and max(seen.values()) == 1


def test_a_row_of_an_earlier_fold_is_dropped(tmp_path):
    """Different documents can give the same row if they differ only in the part that is cropped."""
    alike = ["the same beginning of a long text, " * 8 + str(i) for i in range(40)]
    parts = sentences(0, 300), [*alike, *sentences(500, 200)]
    folder = write_shards(tmp_path / "text", *parts)
    rows = build(folder, tmp_path / "cache", sequence_len=8, vocab_size=280, folds=4)
    assert len(set().union(*map(row_set, rows.folds))) == sum(
        len(row_set(fold)) for fold in rows.folds
    )
    beginnings = [[rows.tokenizer.decode(row)[:15] for row in fold] for fold in rows.folds]
    assert sum("<|bos|>the same" in some for some in beginnings) == 1


def test_a_fold_depends_on_its_own_documents_only(folder, tmp_path):
    rows = build(folder, tmp_path / "cache", folds=2)
    corpus = load_corpus(f"parquet:{folder}", cache_dir=tmp_path)
    first = documents_in(rows.tokenizer, rows.folds[0])
    texts = {text.split(":")[0]: text for text in corpus.validation()}
    others = [text for name, text in texts.items() if name not in first]
    some_of_first = [texts[name] for name in sorted(first)][:10]
    table = pa.table({"text": some_of_first + others})
    pq.write_table(table, folder / "shard_00002.parquet")
    again = build(folder, tmp_path / "cache", folds=2, tokenizer=rows.tokenizer)
    np.testing.assert_array_equal(again.folds[1], rows.folds[1])
    assert 0 < len(again.folds[0]) < len(rows.folds[0])


def test_the_limit_of_validation_is_shared_by_the_folds(folder, tmp_path):
    rows = build(folder, tmp_path / "cache", folds=4, max_validation_tokens=4 * 64)
    assert [len(fold) for fold in rows.folds] == [2, 2, 2, 2]


# Another corpus' tokenizer


def test_a_tokenizer_of_another_corpus_can_be_used(folder, tmp_path):
    own = build(folder, tmp_path / "cache")
    parts = ([text.upper() for text in sentences(1000 * i, 300)] for i in range(2))
    other = write_shards(tmp_path / "other", *parts)
    rows = build(other, tmp_path / "cache", tokenizer=own.tokenizer)
    assert rows.tokenizer == own.tokenizer
    assert rows.fingerprints["tokenizer"] == own.fingerprints["tokenizer"]
    assert rows.fingerprints["rows"] != build(other, tmp_path / "cache").fingerprints["rows"]
    assert " THE RIVER" in own.tokenizer.decode(rows.train.ravel())
    with pytest.raises(CorpusError, match=r"vocab_size must be 300, .* got 320"):
        build(other, tmp_path / "cache", tokenizer=own.tokenizer, vocab_size=320)


# A damaged cache


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def nest(path):
    path.write_text("[" * 200_000)


def edited(edit):
    """Returns a function that damages a JSON document by an edit."""
    return lambda path: path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def without_a_fold(meta):
    del meta["files"]["validation_1.bin"]
    return meta


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (edited(lambda meta: []), "meta.json"),
        (edited(lambda meta: meta | {"files": []}), "meta.json"),
        (edited(lambda meta: meta | {"dtype": "object"}), "meta.json"),
        (edited(lambda meta: meta | {"fields": meta["fields"] | {"folds": 10**12}}), "meta.json"),
        (
            edited(lambda meta: meta | {"fields": meta["fields"] | {"sequence_len": 16}}),
            "meta.json",
        ),
        (edited(without_a_fold), "meta.json"),
        (nest, "meta.json"),
        (truncate, "meta.json"),
        (Path.unlink, "meta.json"),
        (truncate, "train.bin"),
        (flip, "train.bin"),
        (Path.unlink, "train.bin"),
        (flip, "validation.bin"),
        (flip, "validation_1.bin"),
    ],
)
def test_damaged_rows_are_built_again_with_a_warning(folder, built, tmp_path, caplog, damage, name):
    cache = shutil.copytree(built, tmp_path / "cache")
    (target,) = (cache / "rows").iterdir()
    before = (target / "train.bin").read_bytes()
    damage(target / name)
    check_good(build(folder, cache, folds=2))
    assert (target / "train.bin").read_bytes() == before and "damaged" in caplog.text
    assert list((cache / "rows").iterdir()) == [target]


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        nest,
        edited(lambda fields: fields | {"ranks": fields["ranks"][:-1]}),
        edited(lambda fields: fields | {"ranks": [*fields["ranks"][:-1], fields["ranks"][0]]}),
        edited(lambda fields: fields | {"specials": ["x", *fields["specials"][1:]]}),
    ],
)
def test_a_damaged_tokenizer_is_trained_again(folder, built, tmp_path, caplog, damage):
    cache = shutil.copytree(built, tmp_path / "cache")
    (rows,) = (cache / "rows").iterdir()
    (path,) = (cache / "tokenizers").iterdir()
    before = path.read_bytes()
    damage(path)
    assert build(folder, cache, folds=2).fingerprints["rows"] == rows.name
    assert path.read_bytes() == before and "again" in caplog.text


# Errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 264}, "config.data.vocab_size must be at least 265"),
        ({"vocab_size": 60_000}, "config.data.vocab_size must be at most"),
        ({"sequence_len": 0}, "config.model.sequence_len must be at least 1, got 0"),
        ({"sequence_len": 10**6}, "must have validation text that fills a row"),
        ({"max_train_tokens": -1}, "config.data.max_train_tokens must be"),
        ({"shards": -1}, "config.data.shards must be"),
        ({"folds": 0}, "config.data.folds must be at least 1, got 0"),
        ({"folds": 500}, "has 100 distinct validation documents, got 500"),
        ({"folds": 4, "sequence_len": 2000}, "in each of config.data.folds=4"),
    ],
)
def test_an_unusable_value_is_an_error_in_one_line(folder, built, tmp_path, changes, words):
    cache = shutil.copytree(built, tmp_path / "cache")
    with pytest.raises(CorpusError) as error:
        build(folder, cache, **changes)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert len(list((cache / "rows").iterdir())) == 1


MANY_TEXTS = list(sentences(0, 300))
WORDY = " ".join(sentences(0, 40))
COPIES = "(300 copies of validation documents are left out)"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((MANY_TEXTS, MANY_TEXTS), ["must have training documents", COPIES]),
        ((["", None, ""], MANY_TEXTS), ["must have training documents"]),
        (([], MANY_TEXTS), ["must have training documents"]),
        ((MANY_TEXTS, [None, ""]), ["must have validation documents"]),
        (([*MANY_TEXTS, "abc"], MANY_TEXTS), ["vocab_size must be at most 267", COPIES]),
        (([WORDY], [WORDY + " "]), ["training rows that are not also validation rows"]),
    ],
)
def test_too_little_text_is_an_error_about_the_text(tmp_path, parts, words):
    with pytest.raises(CorpusError) as error:
        build(write_shards(tmp_path / "little", *parts), tmp_path / "cache")
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_training_text_shorter_than_a_row_is_an_error(folder, built, tmp_path):
    (path,) = (built / "tokenizers").iterdir()
    little = write_shards(tmp_path / "little", [*MANY_TEXTS, "a stone"], MANY_TEXTS)
    with pytest.raises(CorpusError, match=r"training text that fills a row") as error:
        build(little, tmp_path / "cache", tokenizer=Tokenizer.load(path))
    assert COPIES in str(error.value)


def test_a_document_of_a_million_blanks_is_packed(tmp_path, folder):
    texts = [" " * 1_100_000, "\t" * 1_100_000, *sentences(0, 400)]
    pq.write_table(pa.table({"text": texts}), folder / "shard_00000.parquet")
    check_good(build(folder, tmp_path / "cache"))


def test_a_wide_vocabulary_needs_32_bits(folder, built, tmp_path):
    """Padding tokens that never occur widen the vocabulary, because training it takes minutes."""
    (path,) = (built / "tokenizers").iterdir()
    small = Tokenizer.load(path)
    extra = tuple(b"\xff" + i.to_bytes(3, "big") for i in range(70_000 - VOCABULARY))
    rows = build(
        folder, tmp_path / "cache", vocab_size=70_000, tokenizer=Tokenizer(small.ranks + extra)
    )
    assert rows.train.dtype == np.uint32 and (rows.train[:, 0] == 70_000 - 9).all()


# Other processes

BUILD = """
import sys, json, time
from nanoevolve_jax.data.rows import build_rows
def progress(what, done, total):
    if sys.argv[3] == "stall" and what == "packing train rows":
        print("stalled", flush=True)
        time.sleep(60)
rows = build_rows(f"parquet:{sys.argv[1]}", vocab_size=300, sequence_len=32,
                  cache_dir=sys.argv[2], progress=progress)
print(json.dumps([rows.fingerprints, rows.train.sum().item(), len(rows.train)]))
"""


def start_builder(repository, folder, cache, mode="straight"):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(cache), mode],
        cwd=repository, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_build_leaves_no_rows(folder, tmp_path, repository):
    cache = tmp_path / "cache"
    builder = start_builder(repository, folder, cache, "stall")
    assert builder.stdout.readline() == "stalled\n"
    at_work = list((cache / "rows").iterdir())
    assert len(at_work) == 1 and (at_work[0] / "train.bin").exists()
    # Another build leaves the folder of a living build alone.
    rows = build(folder, cache, sequence_len=16)
    assert at_work[0].exists()
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    builder.stdout.close()

    rows = build(folder, cache)
    check_good(rows)
    names = sorted(path.name for path in (cache / "rows").iterdir())
    assert len(names) == 2 and rows.fingerprints["rows"] in names and at_work[0].name not in names


def test_concurrent_builders_agree_with_a_single_one(folder, tmp_path, repository):
    builders = [start_builder(repository, folder, tmp_path / "cache") for _ in range(2)]
    outputs = [builder.communicate(timeout=60)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert json.loads(outputs[0]) == json.loads(outputs[1])
    alone = build(folder, tmp_path / "another")
    check_good(alone)
    assert json.loads(outputs[0]) == [
        alone.fingerprints, int(alone.train.sum(dtype=np.uint64)), len(alone.train)
    ]  # fmt: skip
    assert len(list((tmp_path / "cache" / "rows").iterdir())) == 1


def test_a_slower_builder_uses_the_rows_of_a_faster_one(folder, tmp_path):
    reports = []

    def overtaken(what, done, total):
        if what == "packing train rows" and not reports:
            reports.append(what)
            build(folder, tmp_path / "cache")

    check_good(build(folder, tmp_path / "cache", progress=overtaken))
    assert reports and len(list((tmp_path / "cache" / "rows").iterdir())) == 1


# Real text


def test_standard_library_rows_are_disjoint_and_quick_to_open_again(tmp_path):
    settings = {"vocab_size": 1024, "sequence_len": 128, "cache_dir": tmp_path, "folds": 8}
    rows = build_rows("stdlib", max_train_tokens=300_000, **settings)
    assert len(rows.train) > 2000 and min(map(len, rows.folds)) > 150
    assert not row_set(rows.train) & set().union(*map(row_set, rows.folds))
    start = time.process_time()
    again = build_rows("stdlib", max_train_tokens=300_000, **settings)
    assert time.process_time() - start < 3  # under 0.5 s on an idle machine
    assert again.fingerprints == rows.fingerprints


@pytest.mark.slow
def test_docstrings_have_text_for_every_fold_of_another_tokenizer(tmp_path):
    settings = {"vocab_size": 1024, "sequence_len": 128, "cache_dir": tmp_path, "folds": 8}
    rows = build_rows("stdlib", max_train_tokens=200_000, **settings)
    other = build_rows("docstrings", tokenizer=rows.tokenizer, **settings)
    assert len(other.train) > 3000 and min(map(len, other.folds)) > 20
    assert other.fingerprints["tokenizer"] == rows.fingerprints["tokenizer"]
