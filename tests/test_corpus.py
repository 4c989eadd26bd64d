"""Corpora: their documents, their disjoint parts, and errors about them."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.data.corpus import CorpusError, load_corpus
from nanoevolve_jax.data.rows import build_rows
from nanoevolve_jax.data.stdlib import (
    cut,
    docstring_documents,
    docstrings,
    stdlib_documents,
    stdlib_folder,
)


def write_shard(path: Path, documents, kind=None, column="text", group=2) -> Path:
    """Writes one parquet shard in small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({column: pa.array(documents, kind or pa.string())})
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    return load_corpus("stdlib", cache_dir=tmp_path_factory.mktemp("cache"))


def test_the_standard_library_is_split_into_two_large_disjoint_parts(stdlib):
    train, validation = list(stdlib.train()), list(stdlib.validation())
    assert sum(map(len, train)) > 5_000_000
    assert 0.05 < sum(map(len, validation)) / sum(map(len, train)) < 0.2
    assert not set(train) & set(validation)
    assert all(document for document in train + validation)


def test_tests_and_third_party_packages_are_left_out(tmp_path):
    for name in ("a.py", "b/c.py", "test/d.py", "b/tests/e.py", "site-packages/f.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"NAME = '{name}'\n")
    for i in range(60):  # enough files for both parts
        (tmp_path / f"m{i}.py").write_text(f"NUMBER = {i}\n")
    (tmp_path / "generated.py").write_text("# generated from 'X' with gencodec.py.\nTABLE = ()\n")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nNAME = '\xe9'\n")
    train, validation = stdlib_documents(tmp_path)
    text = "".join(train + validation)
    assert "'a.py'" in text and "'b/c.py'" in text
    for unwanted in ("d.py", "e.py", "f.py", "TABLE", "latin"):
        assert unwanted not in text
    assert not set(train) & set(validation)


@pytest.mark.parametrize("read", [stdlib_documents, docstring_documents])
def test_too_few_sources_are_an_error(tmp_path, read):
    for i in range(60):
        (tmp_path / f"m{i}.py").write_text(f"NUMBER = {i}\n" if read is docstring_documents else "")
    with pytest.raises(CorpusError, match=read.__name__.partition("_")[0]):
        read(tmp_path)


@pytest.mark.slow
def test_docstrings_are_prose_and_not_in_the_validation_sources(stdlib, tmp_path):
    corpus = load_corpus("docstrings", cache_dir=tmp_path)
    train, validation = list(corpus.train()), list(corpus.validation())
    assert all(len(d) <= 512 or len(d.splitlines()) == 1 for d in train)
    assert sum(map(len, train)) > 1_000_000 and sum(map(len, validation)) > 50_000
    assert not set(train) & set(validation)
    prose, sources = "\n".join(train), "\n".join(stdlib.train())
    assert prose.count(" = ") / len(prose) < 0.2 * sources.count(" = ") / len(sources)
    # Except for a few copies, lines of training docstrings are not in the validation sources.
    held_out = {line.strip() for line in "".join(stdlib.validation()).splitlines()}
    lines = [line for line in prose.splitlines() if len(line) > 70][:2000]
    assert sum(line.strip() in held_out for line in lines) < 0.01 * len(lines)


def test_docstrings_are_those_of_modules_classes_and_functions():
    source = '''"""Of the module."""
TEXT = """not one"""
class A:
    """Of the class.

        Indented.
    Not.
    """
    async def f(self):
        "Of the \\d method."
        """not one either"""
def g():
    """"""
'''
    expected = ["Of the module.", "Of the class.\n\n    Indented.\nNot.", "Of the \\d method."]
    assert list(docstrings(source)) == expected
    assert list(docstrings('def f():\n    "An escape of no character: \\ud800"\n')) == []
    assert list(docstrings("print 'of another age'")) == list(docstrings("\0")) == []


def test_iterators_are_fresh_and_the_same_each_time(stdlib):
    first = stdlib.train()
    next(first)
    assert list(stdlib.train()) == list(stdlib.train())
    assert list(stdlib.validation()) == list(stdlib.validation())


def test_a_fingerprint_depends_on_the_content_and_not_the_path(tmp_path):
    def fingerprint(folder, last):
        write_shard(tmp_path / folder / "shard_00000.parquet", ["one", "two"])
        write_shard(tmp_path / folder / "shard_00001.parquet", [last])
        return load_corpus(f"parquet:{tmp_path / folder}", cache_dir=tmp_path).fingerprint

    assert fingerprint("a", "three") == fingerprint("b", "three") != fingerprint("a", "other")


@given(st.text(alphabet="ab \n@\r\x0c\u2028", max_size=400), st.integers(1, 50))
def test_cutting_loses_nothing_and_only_single_lines_are_long(text, limit):
    pieces = list(cut(text, limit))
    assert "".join(pieces) == text
    assert all(pieces)
    for piece in pieces:
        assert len(piece) <= limit or len(piece.splitlines()) == 1


def test_sources_are_cut_before_definitions():
    source = "import os\n\n\ndef f():\n    return 1\n\n\n@cache\ndef g():\n    return 2\n"
    assert list(cut(source, 50)) == [source[: source.index("@")], source[source.index("@") :]]


def test_a_real_source_is_cut_into_short_documents():
    source = (stdlib_folder() / "typing.py").read_text("utf-8")
    pieces = list(cut(source, 512))
    assert "".join(pieces) == source
    assert max(map(len, pieces)) <= 512


def test_shards_are_read_in_order_and_the_last_is_validation(tmp_path):
    folder = tmp_path / "shards"
    write_shard(folder / "shard_00001.parquet", ["c", "", None, "d"])
    write_shard(folder / "shard_00000.parquet", ["a", "b", "copy"])
    write_shard(folder / "shard_00002.parquet", ["e", "copy"])
    (folder / "shard_00003.parquet.part").write_bytes(b"unfinished")
    corpus = load_corpus(f"parquet:{folder}", cache_dir=tmp_path)
    # Empty and missing documents are skipped, and so is a training copy of a validation one.
    assert list(corpus.train()) == ["a", "b", "c", "d"]
    assert list(corpus.validation()) == ["e", "copy"]
    limited = load_corpus(f"parquet:{folder}", cache_dir=tmp_path, shards=1)
    assert list(limited.train()) == ["a", "b"]
    assert list(limited.validation()) == ["e", "copy"]
    assert limited.fingerprint != corpus.fingerprint


def test_hidden_files_folders_and_dangling_links_are_not_shards(tmp_path):
    write_shard(tmp_path / "shard_0.parquet", ["a"])
    write_shard(tmp_path / "shard_1.parquet", ["v"])
    before = load_corpus(f"parquet:{tmp_path}", cache_dir=tmp_path).fingerprint
    for name in ("._shard.parquet", ".tmp.parquet", "_shard.parquet"):
        (tmp_path / name).write_bytes(b"unfinished")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "link.parquet").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.parquet")
    corpus = load_corpus(f"parquet:{tmp_path}", cache_dir=tmp_path)
    assert corpus.fingerprint == before
    assert (list(corpus.train()), list(corpus.validation())) == (["a"], ["v"])
    (tmp_path / "shard_2.parquet").symlink_to(tmp_path / "shard_1.parquet")  # counts as a shard
    assert list(load_corpus(f"parquet:{tmp_path}", cache_dir=tmp_path).validation()) == ["v"]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())),
        *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())),
    ],
    ids=str,
)
def test_every_kind_of_text_column_is_read(tmp_path, kind):
    texts = ["naïve", "日本", ""]
    values = [t.encode() for t in texts] if "binary" in str(kind) else texts
    for index in range(2):
        write_shard(tmp_path / f"shard_{index}.parquet", [f"{index}"], group=1)
    pq.write_table(pa.table({"text": pa.array(values).cast(kind)}), tmp_path / "shard_0.parquet")
    corpus = load_corpus(f"parquet:{tmp_path}", cache_dir=tmp_path)
    assert list(corpus.train()) == ["naïve", "日本"]


def damage(path: Path, start: int, count: int = 40) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + count] = b"\xff" * count
    path.write_bytes(content)


def test_row_groups_are_streamed(tmp_path):
    path = write_shard(tmp_path / "shard_0.parquet", [f"document {i}" for i in range(100)])
    write_shard(tmp_path / "shard_1.parquet", ["v"])
    damage(path, pq.ParquetFile(path).metadata.row_group(25).column(0).data_page_offset)
    documents = load_corpus(f"parquet:{tmp_path}", cache_dir=tmp_path).train()
    assert [next(documents) for _ in range(50)][-1] == "document 49"
    with pytest.raises(CorpusError, match=r"shard_0\.parquet is damaged"):
        next(documents)


@pytest.mark.parametrize("name", ["nonsense", "", "stdlib:x", "parquet", "parquet:", "climbmix:3"])
def test_an_unknown_name_or_negative_shards_are_an_error(tmp_path, name):
    with pytest.raises(CorpusError) as error:
        load_corpus(name, cache_dir=tmp_path)
    message = str(error.value)
    assert message.startswith("config.data.corpus must be") and f"got {name!r}" in message
    with pytest.raises(CorpusError, match=r"config\.data\.shards must be .* got -1"):
        load_corpus("stdlib", cache_dir=tmp_path, shards=-1)


def write_two(folder, documents=("a",), kind=None, column="text", **options):
    """Writes a shard under test and a good shard, and returns the path of the first."""
    write_shard(folder / "shard_1.parquet", ["a"])
    return write_shard(folder / "shard_0.parquet", list(documents), kind, column, **options)


def write_table(folder, table):
    write_two(folder)
    pq.write_table(table, folder / "shard_0.parquet")


def two_text_columns():
    return pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])


def unchecked_latin_1():
    raw = pa.array([b"good", b"caf\xe9"], pa.binary())
    return pa.table({"text": pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())})


def as_a_file(folder):
    folder.rmdir()
    folder.write_text("a file, not a folder")


def hidden(folder):
    for index in range(3):
        write_shard(folder / f".shard_{index}.parquet", ["a"])


def with_an_invalid_name(folder):
    path = write_two(folder, column="content")
    path.write_bytes(path.read_bytes().replace(b"content", b"c\xffntent"))


def truncated(folder):
    path = write_two(folder, ["some text"] * 50)
    path.write_bytes(path.read_bytes()[:-20])


def with_broken_pages(folder):
    damage(write_two(folder, [f"document {i}" for i in range(50)], group=50), 4, 300)


NO_COLUMN = "shard_0.parquet must have a column 'text', got "


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder.rmdir(), "an existing folder"),
        (as_a_file, "an existing folder"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "with none"),
        (lambda folder: write_shard(folder / "shard_0.parquet", ["a"]), "at least 2 *.parquet"),
        (hidden, "names that begin with . or _ do not count"),
        (lambda folder: write_two(folder, column="content"), f"{NO_COLUMN}'content'"),
        (
            lambda folder: write_table(folder, pa.table({f"c{i}": [i] for i in range(99)})),
            f"{NO_COLUMN}'c0', 'c1', 'c2', 'c3', 'c4', ",
        ),
        (lambda folder: write_table(folder, two_text_columns()), "one column 'text', got 2"),
        (lambda folder: write_two(folder, [1, 2], pa.int64()), "must be string, got int64"),
        (
            lambda folder: write_two(folder, [["a"]], pa.list_(pa.string())),
            "must be string, got list<",
        ),
        (with_an_invalid_name, "shard_0.parquet cannot be read"),
        (lambda folder: write_two(folder).write_bytes(b""), "shard_0.parquet cannot be read"),
        (lambda folder: write_two(folder).write_bytes(b"text"), "shard_0.parquet cannot be read"),
        (truncated, "shard_0.parquet cannot be read"),
        (with_broken_pages, "shard_0.parquet is damaged"),
        (lambda folder: write_two(folder, [b"caf\xe9"], pa.binary()), "must be UTF-8"),
        (lambda folder: write_table(folder, unchecked_latin_1()), "must be UTF-8"),
    ],
)
def test_an_unusable_folder_is_described_in_one_line(tmp_path, make, words):
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    with pytest.raises(CorpusError) as error:
        list(load_corpus(f"parquet:{folder}", cache_dir=tmp_path).train())
    message = str(error.value)
    assert words in message and str(folder) in message and "\n" not in message


def test_an_unknown_home_folder_is_an_error(tmp_path):
    for name, cache in [("parquet:~no.such.user/x", tmp_path), ("stdlib", "~no.such.user")]:
        with pytest.raises(CorpusError, match=r"home folder, got '~no\.such\.user"):
            build_rows(name, vocab_size=300, sequence_len=8, cache_dir=cache)
