"""Packing against a naive packer, batches as a function of (seed, step), and the cache."""

import collections
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time

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
    """Best fit straight from NanoChat's rule, with a linear search for every document."""
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
def test_packing_is_the_rule(documents, row_length, buffer_size):
    packed = [row.tolist() for row in pack(documents, row_length, buffer_size)]
    assert packed == naive_pack(documents, row_length, buffer_size)


@given(documents_of_tokens, st.integers(1, 20), st.integers(1, 12))
def test_rows_are_full_begin_with_bos_and_use_a_document_once(documents, row_length, buffer_size):
    seen = collections.Counter()
    for row in pack(documents, row_length, buffer_size):
        assert row.shape == (row_length,) and row[0] >= 1000
        seen.update(token for token in row.tolist() if token >= 1000)
    assert not seen or max(seen.values()) == 1


def test_packing_skips_empty_documents_and_drops_the_partial_row():
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


def test_the_order_is_fixed_for_ever():
    """The figures of another version or platform must be these too, or resuming is not exact."""
    rows = np.arange(10)[:, None].astype(np.uint16)
    assert batch(rows, 0, 0, 10).ravel().tolist() == GOLDEN[0]
    assert batch(rows, 2**31 - 1, 5, 10).ravel().tolist() == GOLDEN[1]


GOLDEN = [
    [0, 8, 9, 3, 7, 5, 1, 2, 6, 4],
    [8, 4, 2, 1, 6, 0, 9, 3, 5, 7],
]


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_larger_than_the_corpus(batch_size):
    with pytest.raises(CorpusError, match=r"train\.batch_size must be 1 to 10"):
        batch(np.zeros((10, 3), np.uint16), 0, 0, batch_size)


def test_horizon():
    rows = np.zeros((100, 3), np.uint16)
    check_horizon(rows, steps=12, batch_size=8, max_epochs=1)
    check_horizon(rows, steps=30, batch_size=8, max_epochs=2.5)
    with pytest.raises(CorpusError) as error:
        check_horizon(rows, steps=13, batch_size=8, max_epochs=1)
    for words in (
        "train.steps must be at most 12",
        "train.batch_size 8",
        "data.max_epochs 1,",
        "got 13",
    ):
        assert words in str(error.value)
    with pytest.raises(CorpusError, match=r"train\.batch_size must be at most 100.* got 101"):
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


@pytest.fixture
def folder(tmp_path):
    """Three small shards in NanoChat's layout; validation text repeats some training text."""
    path = tmp_path / "text"
    path.mkdir()
    for index, (start, count) in enumerate([(0, 400), (400, 400), (780, 100)]):
        table = pa.table({"text": list(sentences(start, count))})
        pq.write_table(table, path / f"shard_{index:05d}.parquet", row_group_size=100)
    return path


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


def test_limits_take_the_first_rows(folder, tmp_path):
    whole = build(folder, tmp_path / "cache")
    some = build(folder, tmp_path / "cache", max_train_tokens=650, max_validation_tokens=64)
    assert some.train.shape == (21, 33) and some.folds[0].shape == (2, 33)
    np.testing.assert_array_equal(some.train, whole.train[:21])
    np.testing.assert_array_equal(some.folds[0], whole.folds[0][:2])


def test_a_training_row_that_equals_a_validation_row_is_dropped(tmp_path):
    """Different documents can still give the same row, when they differ where it is cropped."""
    folder = tmp_path / "text"
    folder.mkdir()
    start = "the same beginning of a long text, " * 8
    for index, ends in enumerate([("one", "two", "three"), ("four", "five")]):
        others = list(sentences(1000 * index, 300))
        table = pa.table({"text": others[:150] + [start + end for end in ends] + others[150:]})
        pq.write_table(table, folder / f"shard_{index}.parquet")
    rows = build(folder, tmp_path / "cache", sequence_len=8, vocab_size=280)
    assert len(rows.train) and not row_set(rows.train) & row_set(rows.folds[0])


# Folds


def documents_in(tokenizer, rows):
    """The beginnings of the documents that stand whole or cropped in the rows."""
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
    folder = tmp_path / "text"
    folder.mkdir()
    texts = list(sentences(0, 300))
    for index, documents in enumerate((texts[100:], texts[:100] * 3)):
        pq.write_table(pa.table({"text": documents}), folder / f"shard_{index}.parquet")
    rows = build(folder, tmp_path / "cache", folds=3)
    seen = collections.Counter(
        name for fold in rows.folds for name in documents_in(rows.tokenizer, fold)
    )
    assert len(seen) > 80 and max(seen.values()) == 1


def test_a_row_that_an_earlier_fold_holds_is_dropped(tmp_path):
    """Different documents give the same row when they differ where it is cropped."""
    folder = tmp_path / "text"
    folder.mkdir()
    start = "the same beginning of a long text, " * 8
    alike = [start + str(i) for i in range(40)]
    for index, documents in enumerate((sentences(0, 300), [*alike, *sentences(500, 200)])):
        pq.write_table(pa.table({"text": list(documents)}), folder / f"shard_{index}.parquet")
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


def test_folds_that_nothing_fills_are_one_clear_line(folder, tmp_path):
    with pytest.raises(CorpusError, match=r"validation text .* in each of 4 config\.data\.folds"):
        build(folder, tmp_path / "cache", folds=4, sequence_len=2000)
    with pytest.raises(CorpusError, match=r"data\.folds must .* got 500 for the 100 distinct val"):
        build(folder, tmp_path / "cache", folds=500)
    with pytest.raises(CorpusError, match=r"data\.folds must be at least 1, got 0"):
        build(folder, tmp_path / "cache", folds=0)


# Another corpus' tokenizer


def test_rows_of_a_tokenizer_made_elsewhere(folder, tmp_path):
    own = build(folder, tmp_path / "cache")
    other = tmp_path / "other"
    other.mkdir()
    for index in range(2):
        texts = [text.upper() for text in sentences(1000 * index, 300)]
        pq.write_table(pa.table({"text": texts}), other / f"shard_{index}.parquet")
    rows = build(other, tmp_path / "cache", tokenizer=own.tokenizer)
    assert rows.tokenizer == own.tokenizer
    assert rows.fingerprints["tokenizer"] == own.fingerprints["tokenizer"]
    assert rows.fingerprints["rows"] != build(other, tmp_path / "cache").fingerprints["rows"]
    assert " THE RIVER" in own.tokenizer.decode(rows.train.ravel())
    with pytest.raises(
        CorpusError, match=r"vocab_size must be that of the given tokenizer, .* got 320"
    ):
        build(other, tmp_path / "cache", tokenizer=own.tokenizer, vocab_size=320)


# A damaged cache


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_delete(path):
    path.unlink()


def damage_forget_a_fold(path):
    meta = json.loads(path.read_text())
    del meta["files"]["validation_1.bin"]
    path.write_text(json.dumps(meta))


def damage_nest(path):
    path.write_text("[" * 200_000)


def damage_edit(path, edit):
    """Edits a JSON file; nothing in it is taken for granted."""
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(edit(meta)))


EDITS = (
    lambda meta: [],
    lambda meta: meta | {"files": []},
    lambda meta: meta | {"dtype": "object"},
    lambda meta: meta | {"fields": meta["fields"] | {"folds": 10**12}},
    lambda meta: meta | {"fields": meta["fields"] | {"sequence_len": 16}},
)


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        *((functools.partial(damage_edit, edit=edit), "meta.json") for edit in EDITS),
        (damage_nest, "meta.json"),
        (damage_truncate, "train.bin"),
        (damage_flip, "train.bin"),
        (damage_delete, "train.bin"),
        (damage_flip, "validation.bin"),
        (damage_flip, "validation_1.bin"),
        (damage_forget_a_fold, "meta.json"),
        (damage_truncate, "meta.json"),
        (damage_delete, "meta.json"),
    ],
)
def test_a_damaged_cache_is_built_again_with_a_warning(folder, tmp_path, caplog, harm, name):
    good = build(folder, tmp_path / "cache", folds=2)
    before = np.array(good.train)
    (target,) = (tmp_path / "cache" / "rows").iterdir()
    harm(target / name)
    again = build(folder, tmp_path / "cache", folds=2)
    check_good(again)
    np.testing.assert_array_equal(again.train, before)
    assert "damaged" in caplog.text
    assert [path.name for path in (tmp_path / "cache" / "rows").iterdir()] == [target.name]


def drop_a_token(fields):
    return fields | {"ranks": fields["ranks"][:-1]}


def repeat_a_token(fields):
    return fields | {"ranks": [*fields["ranks"][:-1], fields["ranks"][0]]}


def rename_a_special(fields):
    return fields | {"specials": ["x", *fields["specials"][1:]]}


HARM = (
    damage_truncate,
    damage_nest,
    *(
        functools.partial(damage_edit, edit=edit)
        for edit in (drop_a_token, repeat_a_token, rename_a_special)
    ),
)


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_tokenizer_is_trained_again(folder, tmp_path, caplog, harm):
    first = build(folder, tmp_path / "cache")
    (path,) = (tmp_path / "cache" / "tokenizers").iterdir()
    harm(path)
    assert build(folder, tmp_path / "cache").fingerprints == first.fingerprints
    assert "again" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 264}, "special tokens), got 264"),
        ({"vocab_size": 60_000}, "which the text of config.data.corpus yields, got 60000"),
        ({"sequence_len": 0}, "model.sequence_len must be at least 1, got 0"),
        ({"sequence_len": 10**6}, "must have validation text for at least one row"),
        ({"max_train_tokens": -1}, "data.max_train_tokens must be at least 0 (all), got -1"),
        ({"shards": -1}, "data.shards must be at least 0 (all), got -1"),
    ],
)
def test_mistakes_are_one_clear_line(folder, tmp_path, changes, words):
    with pytest.raises(CorpusError) as error:
        build(folder, tmp_path / "cache", **changes)
    assert words in str(error.value) and "\n" not in str(error.value)
    rows = tmp_path / "cache" / "rows"
    assert not rows.exists() or not list(rows.iterdir())


MANY_TEXTS = list(sentences(0, 300))
WORDY = " ".join(sentences(0, 40))
LITTLE_TEXT = {
    "only copies": (
        (MANY_TEXTS, MANY_TEXTS),
        "must have training text, got only 300 copies of validation documents",
    ),
    "only empty documents": (
        (["", None, ""], MANY_TEXTS),
        "must have training text, got only empty documents",
    ),
    "no rows": (([], MANY_TEXTS), "must have training text, got only empty documents"),
    "no validation": (
        (MANY_TEXTS, [None, ""]),
        "must have validation text, got only empty documents",
    ),
    "nearly only copies": (
        ([*MANY_TEXTS, "abc"], MANY_TEXTS),
        "must be at most 267, which the text of config.data.corpus yields, got 300 (without 300 "
        "copies of validation documents)",
    ),
    "training rows that are validation rows": (
        ([WORDY], [WORDY + " "]),
        "must have training rows that are not validation rows, got none",
    ),
    "short training text": (
        ([*MANY_TEXTS, "a stone"], MANY_TEXTS),
        "must have training text for at least one row of config.model.sequence_len 32, got too "
        "little (without 300 copies of validation documents)",
    ),
}


@pytest.mark.parametrize("name", LITTLE_TEXT)
def test_too_little_text_is_blamed_on_the_text(tmp_path, folder, name):
    parts, words = LITTLE_TEXT[name]
    (tmp_path / "little").mkdir()
    for index, texts in enumerate(parts):
        table = pa.table({"text": pa.array(texts, pa.string())})
        pq.write_table(table, tmp_path / "little" / f"shard_{index}.parquet")
    known = name == "short training text"
    tokenizer = build(folder, tmp_path / "cache").tokenizer if known else None
    with pytest.raises(CorpusError) as error:
        build(tmp_path / "little", tmp_path / "cache", tokenizer=tokenizer)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert (
        f"parquet:{tmp_path / 'little'}" in str(error.value) or "config.data.corpus yields" in words
    )


def test_a_document_of_a_million_blanks_gives_rows(tmp_path, folder):
    texts = [" " * 1_100_000, "\t" * 1_100_000, *sentences(0, 400)]
    pq.write_table(pa.table({"text": texts}), folder / "shard_00000.parquet")
    check_good(build(folder, tmp_path / "cache"))


def test_a_wide_vocabulary_needs_32_bits(tmp_path, folder, monkeypatch):
    """Checked with a tokenizer padded by tokens that never occur: training one takes minutes."""
    small = Tokenizer.load(_tokenizer_path(build(folder, tmp_path / "cache"), tmp_path / "cache"))
    extra = tuple(b"\xff" + i.to_bytes(3, "big") for i in range(70_000 - VOCABULARY))
    wide = Tokenizer(small.ranks + extra)
    monkeypatch.setattr("nanoevolve_jax.data.rows.train_tokenizer", lambda *args, **kwargs: wide)
    rows = build(folder, tmp_path / "cache", vocab_size=70_000)
    assert rows.train.dtype == np.uint32 and (rows.train[:, 0] == 70_000 - 9).all()


def _tokenizer_path(rows, cache):
    return cache / "tokenizers" / f"{rows.fingerprints['corpus']}-{rows.tokenizer.vocab_size}.json"


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


def test_a_killed_build_leaves_nothing_that_counts(folder, tmp_path, repository):
    cache = tmp_path / "cache"
    builder = start_builder(repository, folder, cache, "stall")
    assert builder.stdout.readline() == "stalled\n"
    at_work = list((cache / "rows").iterdir())
    assert len(at_work) == 1 and (at_work[0] / "train.bin").exists()
    # While it lives, another build leaves its folder alone.
    rows = build(folder, cache, sequence_len=16)
    assert at_work[0].exists()
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    builder.stdout.close()

    rows = build(folder, cache)
    check_good(rows)
    names = sorted(path.name for path in (cache / "rows").iterdir())
    assert len(names) == 2 and rows.fingerprints["rows"] in names and at_work[0].name not in names


def test_two_builders_at_once_agree_with_each_other_and_with_one(folder, tmp_path, repository):
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


def test_the_slower_builder_takes_what_the_faster_one_published(folder, tmp_path):
    reports = []

    def overtaken(what, done, total):
        if what == "packing train rows" and not reports:
            reports.append(what)
            build(folder, tmp_path / "cache")

    check_good(build(folder, tmp_path / "cache", progress=overtaken))
    assert reports and len(list((tmp_path / "cache" / "rows").iterdir())) == 1


# Real text


def test_stdlib_rows_are_many_disjoint_and_quick_to_get_again(tmp_path):
    settings = {"vocab_size": 1024, "sequence_len": 128, "cache_dir": tmp_path}
    rows = build_rows("stdlib", max_train_tokens=600_000, **settings)
    assert len(rows.train) > 4000 and len(rows.folds[0]) > 300
    assert not row_set(rows.train) & row_set(rows.folds[0])
    start = time.monotonic()
    again = build_rows("stdlib", max_train_tokens=600_000, **settings)
    assert time.monotonic() - start < 3  # under 0.5 s on an idle machine
    assert again.fingerprints == rows.fingerprints


def test_stdlib_has_text_for_every_fold_and_docstrings_to_switch_to(tmp_path):
    settings = {"vocab_size": 1024, "sequence_len": 128, "cache_dir": tmp_path, "folds": 8}
    rows = build_rows("stdlib", max_train_tokens=200_000, **settings)
    assert min(map(len, rows.folds)) > 150
    other = build_rows("docstrings", tokenizer=rows.tokenizer, **settings)
    assert len(other.train) > 3000 and min(map(len, other.folds)) > 20
    assert other.fingerprints["tokenizer"] == rows.fingerprints["tokenizer"]


def test_classics_rows_are_disjoint(tmp_path, repository, folder):
    classics = repository.parent / "shared" / "data" / "classics"
    source = classics if classics.is_dir() else folder
    rows = build_rows(
        f"parquet:{source}", vocab_size=300, sequence_len=64, cache_dir=tmp_path / "cache",
        shards=1, max_train_tokens=20_000, max_validation_tokens=20_000,
    )  # fmt: skip
    assert len(rows.train) > 50 and len(rows.folds[0]) > 20
    assert not row_set(rows.train) & row_set(rows.folds[0])
