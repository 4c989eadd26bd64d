"""The hub download, tested against a local server that answers as the hub does.

The server implements `HEAD` and `GET /datasets/REPO/resolve/main/FILE` with the hub's headers
(commit, linked size and SHA-256, a redirect to the content, byte ranges), and faults on
demand.
"""

import hashlib
import http.server
import io
import re
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanoevolve_jax.data import hub
from nanoevolve_jax.data.corpus import CorpusError, load_corpus
from nanoevolve_jax.data.rows import build_rows

REPO = "someone/some-text"
NAME = "shard_00000.parquet"
CONTENT = np.random.default_rng(0).bytes(300_000)


class Hub(http.server.ThreadingHTTPServer):
    """A server with files, a queue of faults, and a log of its requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"/datasets/{REPO}/resolve/main/{NAME}": CONTENT}
        self.faults = []  # one per request for content
        self.requests = []  # (method, path, Range header)
        self.ranges = True
        self.announced = {}  # announced SHA-256 values that differ from the content's

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def content_requests(self):
        return [seen for method, path, seen in self.requests if path.startswith("/cdn/")]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub_server = self.server
        hub_server.requests.append((self.command, self.path, self.headers.get("Range")))
        assert "Authorization" not in self.headers
        if self.path.startswith("/cdn/"):
            return self.send_content(hub_server.files[self.path.removeprefix("/cdn")])
        content = hub_server.files.get(self.path)
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send(404, headers)
        digest = hub_server.announced.get(self.path, hashlib.sha256(content).hexdigest())
        headers = {
            "X-Repo-Commit": "c" * 40,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{digest}"',
            # The content is on another host, as for the real hub. The client follows redirects to
            # the same host even for HEAD.
            "Location": f"http://localhost:{hub_server.server_port}/cdn{self.path}",
        }
        return self.send(302, headers)

    def send(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_content(self, content):
        fault = self.server.faults.pop(0) if self.server.faults else None
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if fault == "busy":
            return self.send(503, {})
        if fault == "corrupt":
            content = content[:1000] + b"?" + content[1001:]
        start = int(asked[1]) if asked and self.server.ranges else 0
        body, headers = content[start:], {"Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        return self.send(206 if start else 200, headers, body)

    def log_message(self, *args):
        del args


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with Hub() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server, folder, **changes):
    settings = {"endpoint": server.endpoint, "backoff_seconds": 0.001} | changes
    return hub.fetch(REPO, NAME, folder, **settings)


def refused(server, folder, **changes):
    with pytest.raises(CorpusError) as error:
        fetch(server, folder, **changes)
    message = str(error.value)
    assert "\n" not in message and message.startswith("config.data.corpus") and NAME in message
    assert not (folder / NAME).exists()
    return message


def parts(folder):
    return list(folder.glob(".*.part"))


def test_a_download_is_complete_reported_and_not_repeated(server, tmp_path):
    reports = []
    path = fetch(server, tmp_path, progress=lambda *report: reports.append(report))
    assert path.read_bytes() == CONTENT and not parts(tmp_path)
    assert {(what, total) for what, _, total in reports} == {(f"downloading {NAME}", len(CONTENT))}
    assert [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)
    assert reports[-1][1] == len(CONTENT)
    server.requests.clear()
    assert fetch(server, tmp_path) == path
    assert not server.requests  # from now on it works without a network


def test_a_cut_connection_is_resumed_where_it_stopped(server, tmp_path):
    server.faults = ["cut", "cut"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    half, three_quarters = len(CONTENT) // 2, len(CONTENT) // 2 + len(CONTENT) // 4
    assert server.content_requests() == [None, f"bytes={half}-", f"bytes={three_quarters}-"]


def test_the_next_call_resumes_what_a_failed_one_kept(server, tmp_path):
    server.faults = ["cut", "busy"]
    refused(server, tmp_path, attempts=1)
    (part,) = parts(tmp_path)
    assert part.read_bytes() == CONTENT[: len(CONTENT) // 2]
    server.requests.clear()
    server.faults = []
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.content_requests() == [f"bytes={len(CONTENT) // 2}-"]
    assert not parts(tmp_path)


def test_a_killed_download_is_resumed(server, tmp_path, repository):
    code = (
        "import os, sys; from nanoevolve_jax.data import hub\n"
        "def progress(what, done, total):\n"
        "    if done < total: os.kill(os.getpid(), 9)\n"
        f"hub.fetch({REPO!r}, {NAME!r}, __import__('pathlib').Path(sys.argv[1]),\n"
        "          endpoint=sys.argv[2], progress=progress)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), server.endpoint], cwd=repository
    )
    assert killed.returncode == -9 and not (tmp_path / NAME).exists()
    kept = sum(part.stat().st_size for part in parts(tmp_path))
    assert 0 < kept < len(CONTENT)
    server.requests.clear()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.content_requests() == [f"bytes={kept}-"]


@pytest.mark.parametrize(("ranges", "faults"), [(False, ["cut"]), (True, ["busy", "busy"])])
def test_a_server_without_ranges_or_time_is_retried(server, tmp_path, ranges, faults):
    server.ranges, server.faults = ranges, faults
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_corrupted_bytes_are_refused(server, tmp_path):
    server.faults = ["corrupt"] * 9
    message = refused(server, tmp_path, attempts=3)
    assert "SHA-256" in message and hashlib.sha256(CONTENT).hexdigest() in message
    assert len(server.content_requests()) == 3 and not parts(tmp_path)
    server.faults = ["corrupt"]  # only once, so the next attempt starts again
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_corruption_between_interruptions_ends(server, tmp_path):
    server.faults = ["cut", "corrupt"] * 9
    server.announced = {path: "0" * 64 for path in server.files}
    refused(server, tmp_path, attempts=3)
    assert len(server.content_requests()) < 8


def test_a_new_version_is_not_joined_to_the_part_of_an_old_one(server, tmp_path):
    server.faults = ["cut", "busy"]
    refused(server, tmp_path, attempts=1)
    (path,) = server.files
    server.files[path] = newer = CONTENT[::-1]
    assert fetch(server, tmp_path).read_bytes() == newer
    assert not parts(tmp_path)


def test_a_file_damaged_on_disk_is_downloaded_again(server, tmp_path):
    path = fetch(server, tmp_path)
    path.write_bytes(CONTENT[:-1])
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_missing_file_is_reported_without_retries(server, tmp_path):
    server.files.clear()
    assert "404" in refused(server, tmp_path)
    assert len(server.requests) == 1


def test_an_unreachable_hub_is_an_error_in_one_line(server, tmp_path):
    server.shutdown()
    server.server_close()
    message = refused(server, tmp_path, attempts=2)
    assert f"{server.endpoint}/datasets/{REPO}" in message


def test_a_file_without_a_sha256_is_refused(server, tmp_path):
    server.announced = {path: "a1b2c3" for path in server.files}
    assert "must announce a SHA-256" in refused(server, tmp_path)
    assert not server.content_requests()


def test_concurrent_downloads_happen_once(server, tmp_path):
    threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert len(server.content_requests()) == 1


@pytest.mark.parametrize("shards", [-1, 1823])
def test_too_many_shards_are_an_error(tmp_path, shards):
    with pytest.raises(CorpusError, match=r"config\.data\.shards must be"):
        load_corpus("fineweb_edu", cache_dir=tmp_path, shards=shards)


@pytest.mark.parametrize("name", ["climbmix", "fineweb_edu"])
def test_a_hub_corpus_end_to_end(server, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    dataset = hub.DATASETS[name]
    for index in (0, 1, dataset.last):
        texts = [f"shard {index} document {i}: some words and some others" for i in range(300)]
        file = io.BytesIO()
        pq.write_table(pa.table({"text": texts}), file)
        path = f"/datasets/{dataset.repo}/resolve/main/shard_{index:05d}.parquet"
        server.files[path] = file.getvalue()
    corpus = load_corpus(name, cache_dir=tmp_path, shards=2)
    assert [document.split()[1] for document in corpus.train()] == ["0"] * 300 + ["1"] * 300
    assert {document.split()[1] for document in corpus.validation()} == {str(dataset.last)}
    server.requests.clear()
    rows = build_rows(name, vocab_size=300, sequence_len=16, cache_dir=tmp_path)
    assert len(rows.train) and len(rows.folds[0]) and not server.requests
