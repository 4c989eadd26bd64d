"""Sources of documents: what they give, that their parts are disjoint, and how mistakes read."""

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


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and message.startswith("config.data."), message
    return message


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    return load_corpus("stdlib", cache_dir=tmp_path_factory.mktemp("cache"))


def test_stdlib_is_plenty_of_text_in_two_disjoint_parts(stdlib):
    train, validation = list(stdlib.train()), list(stdlib.validation())
    assert sum(map(len, train)) > 5_000_000
    assert 0.05 < sum(map(len, validation)) / sum(map(len, train)) < 0.2
    assert not set(train) & set(validation)
    assert all(document for document in train + validation)


def test_stdlib_leaves_out_tests_and_other_peoples_packages(tmp_path):
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


def test_stdlib_without_sources_is_a_clear_error(tmp_path):
    with pytest.raises(CorpusError) as error:
        stdlib_documents(tmp_path)
    assert "stdlib" in one_line(error)


def test_docstrings_are_prose_and_keep_out_of_the_other_corpus_validation(stdlib, tmp_path):
    corpus = load_corpus("docstrings", cache_dir=tmp_path)
    train, validation = list(corpus.train()), list(corpus.validation())
    assert all(len(d) <= 512 or len(d.splitlines()) == 1 for d in train)
    assert sum(map(len, train)) > 1_000_000 and sum(map(len, validation)) > 50_000
    assert not set(train) & set(validation)
    prose, sources = "\n".join(train), "\n".join(stdlib.train())
    assert prose.count(" = ") / len(prose) < 0.2 * sources.count(" = ") / len(sources)
    # Lines of training docstrings are not in the validation sources, but for a few copied ones.
    held_out = "".join(stdlib.validation())
    lines = [line for line in prose.splitlines() if len(line) > 70][:2000]
    assert sum(line in held_out for line in lines) < 0.01 * len(lines)


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
    found = ["Of the module.", "Of the class.\n\n    Indented.\nNot.", "Of the \\d method."]
    assert list(docstrings(source)) == found
    assert list(docstrings('def f():\n    "An escape of no character: \\ud800"\n')) == []
    assert list(docstrings("print 'of another age'")) == list(docstrings("\0")) == []


def test_docstrings_without_docstrings_are_a_clear_error(tmp_path):
    for i in range(60):
        (tmp_path / f"m{i}.py").write_text(f"NUMBER = {i}\n")
    with pytest.raises(CorpusError) as error:
        docstring_documents(tmp_path)
    assert "'docstrings'" in one_line(error)


def test_iterators_are_fresh_and_the_same_each_time(stdlib):
    first = stdlib.train()
    next(first)
    assert list(stdlib.train()) == list(stdlib.train())
    assert list(stdlib.validation()) == list(stdlib.validation())


def test_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    def fingerprint(folder, last):
        write_shard(tmp_path / folder / "shard_00000.parquet", ["one", "two"])
        write_shard(tmp_path / folder / "shard_00001.parquet", [last])
        return load_corpus(f"parquet:{tmp_path / folder}", cache_dir=tmp_path).fingerprint

    assert fingerprint("a", "three") == fingerprint("b", "three") != fingerprint("a", "other")


@given(st.text(alphabet="ab \n@\r\x0c\u2028", max_size=400), st.integers(1, 50))
def test_cut_loses_nothing_and_only_lone_lines_are_long(text, limit):
    pieces = list(cut(text, limit))
    assert "".join(pieces) == text
    assert all(pieces)
    for piece in pieces:
        assert len(piece) <= limit or len(piece.splitlines()) == 1


def test_cut_prefers_the_beginnings_of_definitions():
    source = "import os\n\n\ndef f():\n    return 1\n\n\n@cache\ndef g():\n    return 2\n"
    assert list(cut(source, 50)) == [source[: source.index("@")], source[source.index("@") :]]


def test_real_sources_survive_cutting():
    source = (stdlib_folder() / "typing.py").read_text("utf-8")
    pieces = list(cut(source, 512))
    assert "".join(pieces) == source
    assert max(map(len, pieces)) <= 512


def test_parquet_reads_shards_in_order_and_the_last_is_validation(tmp_path):
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


def test_hidden_and_temporary_files_folders_and_dangling_links_are_no_shards(tmp_path):
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
    (tmp_path / "shard_2.parquet").symlink_to(tmp_path / "shard_1.parquet")  # is one
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
def test_unknown_corpus(tmp_path, name):
    with pytest.raises(CorpusError) as error:
        load_corpus(name, cache_dir=tmp_path)
    message = one_line(error)
    assert "data.corpus" in message and repr(name) in message and "fineweb_edu" in message


def make_missing(folder):
    folder.rmdir()


def make_empty(folder):
    (folder / "notes.txt").write_text("no parquet here")


def make_single(folder):
    write_shard(folder / "shard_0.parquet", ["a"])


def make_file(folder):
    folder.rmdir()
    folder.write_text("a file, not a folder")


def make_without_text(folder):
    write_shard(folder / "shard_0.parquet", ["a"], column="content")
    write_shard(folder / "shard_1.parquet", ["a"])


def make_numbers(folder):
    write_shard(folder / "shard_0.parquet", ["a"])
    write_shard(folder / "shard_1.parquet", [1, 2], kind=pa.int64())


def make_lists(folder):
    write_shard(folder / "shard_0.parquet", [["a"]], kind=pa.list_(pa.string()))
    write_shard(folder / "shard_1.parquet", ["a"])


def make_two_columns(folder):
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, folder / "shard_0.parquet")
    write_shard(folder / "shard_1.parquet", ["a"])


def make_wide(folder):
    pq.write_table(pa.table({f"c{i}": [i] for i in range(99)}), folder / "shard_0.parquet")
    write_shard(folder / "shard_1.parquet", ["a"])


def make_names_of_no_text(folder):
    path = write_shard(folder / "shard_0.parquet", ["a"], column="content")
    path.write_bytes(path.read_bytes().replace(b"content", b"c\xffntent"))
    write_shard(folder / "shard_1.parquet", ["a"])


def make_hidden(folder):
    for index in range(3):
        write_shard(folder / f".shard_{index}.parquet", ["a"])


def make_nothing(folder):
    for index in range(2):
        (folder / f"shard_{index}.parquet").write_bytes(b"")


def make_garbage(folder):
    write_shard(folder / "shard_0.parquet", ["a"])
    (folder / "shard_1.parquet").write_bytes(b"this is not parquet")


def make_truncated(folder):
    write_shard(folder / "shard_1.parquet", ["a"])
    path = write_shard(folder / "shard_0.parquet", ["some text"] * 50)
    path.write_bytes(path.read_bytes()[:-20])


def make_broken_pages(folder):
    write_shard(folder / "shard_1.parquet", ["a"])
    path = write_shard(folder / "shard_0.parquet", [f"document {i}" for i in range(50)], group=50)
    damage(path, 4, 300)


def make_latin_binary(folder):
    write_shard(folder / "shard_0.parquet", ["a"])
    write_shard(folder / "shard_1.parquet", [b"caf\xe9"], kind=pa.binary())


def make_latin_string(folder):
    raw = pa.array([b"good", b"caf\xe9"], pa.binary())
    unchecked = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    write_shard(folder / "shard_1.parquet", ["a"])
    pq.write_table(pa.table({"text": unchecked}), folder / "shard_0.parquet")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_missing, "must name a folder"),
        (make_file, "must name a folder"),
        (make_empty, "must hold *.parquet files"),
        (make_single, "at least 2"),
        (make_hidden, "must hold *.parquet files whose names do not begin with . or _"),
        (make_without_text, "shard_0.parquet must have a column 'text', got 'content'"),
        (make_wide, "must have a column 'text', got 'c0', 'c1', 'c2', 'c3', 'c4', "),
        (make_two_columns, "shard_0.parquet must have one column 'text', got 2"),
        (make_numbers, "shard_1.parquet must be string, got int64"),
        (make_lists, "shard_0.parquet must be string, got list<"),
        (make_names_of_no_text, "shard_0.parquet cannot be read"),
        (make_nothing, "shard_0.parquet cannot be read"),
        (make_garbage, "shard_1.parquet cannot be read"),
        (make_truncated, "shard_0.parquet cannot be read"),
        (make_broken_pages, "shard_0.parquet is damaged"),
        (make_latin_binary, "must be UTF-8"),
        (make_latin_string, "must be UTF-8"),
    ],
)
def test_mistakes_about_parquet_are_one_clear_line(tmp_path, make, words):
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    with pytest.raises(CorpusError) as error:
        corpus = load_corpus(f"parquet:{folder}", cache_dir=tmp_path)
        list(corpus.train())
    message = one_line(error)
    assert words in message and str(folder) in message


def test_a_home_folder_that_does_not_exist_is_one_clear_line(tmp_path):
    for name, cache in [("parquet:~no.such.user/x", tmp_path), ("stdlib", "~no.such.user")]:
        with pytest.raises(CorpusError, match=r"home folder, got '~no\.such\.user"):
            build_rows(name, vocab_size=300, sequence_len=8, cache_dir=cache)


def test_negative_shards(tmp_path):
    with pytest.raises(CorpusError, match=r"data\.shards must .* got -1"):
        load_corpus("stdlib", cache_dir=tmp_path, shards=-1)
