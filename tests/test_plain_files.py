"""A run folder's files: commands read only regular files and write nothing outside the folder."""

import os
import shutil
import socket

import pytest
from histories import family, write_folder

from nanoevolve_jax.evidence.trajectories import save_telemetry
from nanoevolve_jax.evolution.run_folder import holding, require_free
from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.checkpoint import Checkpoints
from nanoevolve_jax.execution.json_files import read_json, write_json
from nanoevolve_jax.execution.plain_files import FileError, open_in_place, read_plain, write_whole


@pytest.fixture
def outside(tmp_path):
    """Returns a user's folder with files that must not change."""
    place = tmp_path / "outside"
    (place / "0").mkdir(parents=True)
    (place / "precious").write_text("precious")
    (place / "0" / "precious").write_text("precious")
    return place


@pytest.fixture
def folder(tmp_path):
    """Returns a run folder."""
    folder = write_folder(tmp_path / "run", family())
    for name in ("evidence", "checkpoints", "code", "proposals/0000/try-1"):
        (folder / name).mkdir(parents=True)
    for name in ("summary.json", ".lock", "runs.jsonl", "report.html", "proposals/0000/try-1/lock"):
        (folder / name).write_text("{}")
    return folder


def content(place):
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None
        for path in sorted(place.rglob("*"))
    }


WRITTEN = (
    *(".lock", "archive.jsonl", "runs.jsonl", "config.json", "summary.json", "report.html"),
    *("telemetry", "checkpoints", "evidence", "code", "proposals", "proposals/0000/try-1"),
    *("proposals/0000/try-1/lock", "telemetry/nanochat.npz", ".summary.json.17", "anything"),
)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_link_in_a_run_folder_is_refused_before_anything_is_written(folder, outside, name):
    path = folder / name
    target = outside if path.is_dir() else outside / "precious"
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    before = content(outside), content(folder)
    for use in (lambda: require_free(folder), lambda: holding(folder).__enter__()):
        with pytest.raises(FileError, match=rf"{name} must be a file or folder, got a link"):
            use()
    assert (content(outside), content(folder)) == before


@pytest.mark.parametrize("name", [".lock", "archive.jsonl", "runs.jsonl"])
def test_a_second_name_of_a_file_outside_is_refused(folder, outside, name):
    (folder / name).unlink()
    os.link(outside / "precious", folder / name)
    with pytest.raises(FileError, match=rf"{name} must be a file with one name, got one with 2"):
        holding(folder).__enter__()
    with pytest.raises(FileError, match="one name"):
        open_in_place(folder / name)
    assert (outside / "precious").read_text() == "precious"


@pytest.mark.parametrize("kind", ["a pipe", "a socket"])
def test_neither_pipes_nor_sockets_are_waited_for(folder, kind, monkeypatch):
    path = folder / ".lock"
    path.unlink()
    monkeypatch.chdir(folder)  # socket paths must be short
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        socket.socket(socket.AF_UNIX).bind(".lock")
    with pytest.raises(FileError, match=f"must be a file or folder, got {kind}"):
        holding(folder).__enter__()
    for use in (read_plain, read_json, journal.read, open_in_place):
        with pytest.raises(FileError, match=f"must be a regular file, got {kind}"):
            use(path)


def test_a_device_is_not_read():
    with pytest.raises(FileError, match="/dev/zero must be a regular file, got a device"):
        read_plain(os.path.join("/dev", "zero"))


def test_a_file_of_terabytes_is_not_read(tmp_path):
    path = tmp_path / "summary.json"
    path.touch()
    os.truncate(path, 1 << 42)
    with pytest.raises(FileError, match="must have at most 1,073,741,824 bytes, got 4,398,046,511"):
        read_json(path)


def test_the_run_folder_itself_may_be_a_link(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    with holding(link):
        assert (folder / ".lock").read_text().startswith("process")


def test_a_file_that_is_replaced_is_not_written_through_a_link(tmp_path, outside):
    path = tmp_path / "document.json"
    for name in (path, tmp_path / f".document.json.{os.getpid()}"):
        name.symlink_to(outside / "precious")
    before = content(outside)
    write_json(path, {"a": 1})
    assert content(outside) == before
    assert not path.is_symlink() and read_json(path) == {"a": 1}
    write_whole(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_a_linked_folder_is_neither_written_to_nor_cleared(tmp_path, outside):
    (outside / "7.orbax-checkpoint-tmp").mkdir()
    before = content(outside)
    for name in ("checkpoints", "telemetry"):
        (tmp_path / name).symlink_to(outside)
    with pytest.raises(FileError, match="checkpoints must be a folder, got a link"):
        Checkpoints(tmp_path, seconds=0)
    with pytest.raises(FileError, match="telemetry must be a folder, got a link"):
        save_telemetry(tmp_path, "g001c00", {"loss": [1.0]})
    assert content(outside) == before


@pytest.mark.parametrize("command", ["search", "calibrate", "confirm", "autonomous"])
def test_a_command_ends_in_one_line_at_a_link(shell, folder, outside, command):
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(outside / "precious")
    line = ["-m", "nanoevolve_jax.codegen.autonomous"] if command == "autonomous" else [command]
    extra = ["--config.codegen.ensemble=ollama"] if command == "autonomous" else []
    code, _, errors = shell(*line, f"--config.workdir={folder}", *extra, folder=outside)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert (outside / "precious").read_text() == "precious"
