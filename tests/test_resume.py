"""A search that was killed at any moment ends as one that never was."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from killed_search import MOMENTS
from test_search import SETTINGS, write_corpus

from nanoevolve_jax.evolution import run_folder
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution import checkpoint
from nanoevolve_jax.execution.checkpoint import Checkpoint, CheckpointError, Checkpoints

SCRIPT = Path(__file__).parent / "killed_search.py"
OF_THE_PROCESS = ("wall_seconds", "xla_compilations")  # not of the records
LONGER = {"train.steps": 12, "search.generations": 3, "checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(folder, flags) of a tiny search with a checkpoint after every segment."""
    folder = tmp_path_factory.mktemp("killed")
    corpus = write_corpus(folder / "corpus")
    fields = SETTINGS | LONGER
    fields |= {"data.corpus": f"parquet:{corpus}", "data.cache_dir": str(folder / "cache")}
    return folder, [f"--config.{name}={value}" for name, value in fields.items()]


def start(places, workdir, moment="never", count=0.0, **kwargs):
    """The search's process."""
    command = [sys.executable, str(SCRIPT), moment, str(count), "--config=configs/screen.py"]
    return subprocess.Popen(
        [*command, *places[1], f"--config.workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=SCRIPT.parent.parent,
        **kwargs,
    )


def run(places, workdir, moment="never", count=0.0):
    """(exit status, stdout, stderr) of a search."""
    process = start(places, workdir, moment, count)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def contents(workdir):
    """Everything that two runs of one search must share, byte for byte."""
    summary = json.loads((workdir / "summary.json").read_text())
    for name in OF_THE_PROCESS:
        summary.pop(name)
    telemetry = {p.name: p.read_bytes() for p in sorted((workdir / "telemetry").glob("*.npz"))}
    return (workdir / "archive.jsonl").read_bytes(), telemetry, json.dumps(summary)


@pytest.fixture(scope="module")
def whole(places):
    """The folder of a search that nothing interrupted."""
    workdir = places[0] / "whole"
    status, _, err = run(places, workdir)
    assert status == 0, err
    return workdir


def survive(places, whole, workdir, kills):
    """Kills the search at every (moment, count) in turn, lets it end, and compares."""
    killed = 0
    for moment, count in kills:
        status, _, err = run(places, workdir, moment, count)
        assert status in (0, -signal.SIGKILL), err
        killed += status != 0
    status, _, err = run(places, workdir)
    assert status == 0, err
    assert contents(workdir) == contents(whole)
    return killed


def test_a_search_killed_in_the_middle_of_all_it_writes_ends_the_same(places, whole, tmp_path):
    kills = [("segment", 3), ("checkpoint", 2), ("append", 1), ("telemetry", 2)]
    assert survive(places, whole, tmp_path / "run", kills) == len(kills)


def test_a_torn_archive_is_cut_off_and_said_so(places, whole, tmp_path):
    workdir = tmp_path / "run"
    assert run(places, workdir, "append", 1)[0] == -signal.SIGKILL
    torn = (workdir / "archive.jsonl").stat().st_size
    status, out, err = run(places, workdir)
    assert status == 0, err
    assert f"{torn} bytes of an unfinished generation are cut off" in out.replace("\n", " ")
    assert contents(workdir) == contents(whole)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(places, whole, tmp_path):
    rng = np.random.default_rng(0)
    took = time.monotonic()
    assert run(places, tmp_path / "timed")[0] == 0
    took = time.monotonic() - took
    killed = searches = 0
    while killed < 20:
        kills = [
            (moment, rng.uniform(0.3, 0.9) * took if moment == "seconds" else rng.integers(1, 4))
            for moment in [*rng.permutation(MOMENTS), "seconds"]
        ]
        killed += survive(places, whole, tmp_path / f"run{searches}", kills)
        searches += 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_the_segment_saves_and_goes_on(places, whole, tmp_path, number):
    workdir = tmp_path / "run"
    process = start(places, workdir)
    while not list(workdir.glob("checkpoints/[0-9]*")):  # training has begun
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this segment" in out
    assert err.strip() == "stopped and saved; the same command goes on from here"
    _, out, _ = run(places, workdir)
    assert "resuming inside a batch" in out
    assert contents(workdir) == contents(whole)


def flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    """Leaves the first half."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("part", "damage"), [("population", flip), ("population", truncate), ("search", os.remove)]
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    places, whole, tmp_path, interrupted, part, damage
):
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    newest = max((p for p in (workdir / "checkpoints").iterdir()), key=lambda p: int(p.name))
    files = [p for p in (newest / part).rglob("*") if p.is_file() and p.stat().st_size > 40]
    damage(max(files, key=lambda p: p.stat().st_size))
    status, out, err = run(places, workdir)
    assert status == 0, err
    assert f"checkpoint {newest.name} is damaged" in out
    assert "resuming inside a batch" in out  # from the one before
    assert contents(workdir) == contents(whole)


@pytest.fixture(scope="module")
def interrupted(places):
    """The folder of a search killed after some checkpoints of its first generation."""
    workdir = places[0] / "interrupted"
    assert run(places, workdir, "settled", 4)[0] == -signal.SIGKILL
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2"]
    return workdir


def test_a_second_process_on_the_same_folder_is_refused_at_once(places, tmp_path):
    workdir = tmp_path / "run"
    first = start(places, workdir)
    while not (workdir / ".lock").exists() or not (workdir / ".lock").read_text():
        assert first.poll() is None
        time.sleep(0.01)
    status, _, err = run(places, workdir)
    first.kill()
    first.communicate()
    assert status == 2
    assert f"config.workdir={str(workdir)!r} is in use by process {first.pid}" in err
    assert err.count("\n") == 1


def limited(size):
    """What makes a process fail at files of more than `size` bytes, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [1_000, 6_000])  # too few for config.json, for a checkpoint
def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(places, whole, tmp_path, size):
    workdir = tmp_path / "run"
    process = start(places, workdir, preexec_fn=limited(size))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    # The threads of Orbax may be in the middle of a line.
    (line,) = re.findall(r"error: .*", err)
    assert "File too large" in line or "cannot be written" in line
    if size == 1_000:  # the threads of Orbax have more to say
        assert err == f"{line}\n"
    status, _, err = run(places, workdir)
    assert status == 0, err
    assert contents(workdir) == contents(whole)


def test_a_disk_without_room_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda folder: usage)
    run_folder.require_space(tmp_path, 10**6)
    with pytest.raises(ArchiveError, match=r"at least 2 GB free, got .* with 0\.00 GB free"):
        run_folder.require_space(tmp_path, 2 * 10**9)


def test_a_checkpoint_is_not_begun_that_has_no_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: usage)
    checkpoints = Checkpoints(tmp_path, seconds=0)
    state = Checkpoint({}, {}, {"weights": np.zeros(1000, np.float32)})
    with pytest.raises(CheckpointError, match=r"bytes are needed and 100 are free; what was"):
        checkpoints.boundary(lambda: state)
    checkpoints.close()
    assert not any((tmp_path / "checkpoints").iterdir())
