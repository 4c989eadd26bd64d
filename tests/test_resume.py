"""A search that is killed at any moment ends as an uninterrupted search does."""

import functools
import itertools
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
from training import TASK, candidate, make_engine

from nanoevolve_jax.evolution import run_folder
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution import checkpoint, population
from nanoevolve_jax.execution.checkpoint import (
    Checkpoint,
    CheckpointError,
    Checkpoints,
    Interrupted,
)
from nanoevolve_jax.execution.job import Job

SCRIPT = Path(__file__).parent / "killed_search.py"
OF_THE_PROCESS = ("wall_seconds", "xla_compilations")  # facts about the process, not the records
LONGER = {"train.steps": 12, "search.generations": 3, "checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Returns (folder, flags) of a tiny search with a checkpoint after every segment."""
    folder = tmp_path_factory.mktemp("killed")
    corpus = write_corpus(folder / "corpus")
    fields = SETTINGS | LONGER
    fields |= {"data.corpus": f"parquet:{corpus}", "data.cache_dir": str(folder / "cache")}
    return folder, [f"--config.{name}={value}" for name, value in fields.items()]


def start(places, workdir, moment="never", count=0.0, **kwargs):
    """Starts the search and returns its process."""
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
    """Runs a search and returns (exit status, stdout, stderr)."""
    process = start(places, workdir, moment, count)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def contents(workdir):
    """Returns everything that two runs of one search must share, byte for byte."""
    summary = json.loads((workdir / "summary.json").read_text())
    for name in OF_THE_PROCESS:
        summary.pop(name)
    telemetry = {p.name: p.read_bytes() for p in sorted((workdir / "telemetry").glob("*.npz"))}
    return (workdir / "archive.jsonl").read_bytes(), telemetry, json.dumps(summary)


@pytest.fixture(scope="module")
def whole(places):
    """Returns the run folder of an uninterrupted search."""
    workdir = places[0] / "whole"
    status, _, err = run(places, workdir)
    assert status == 0, err
    return workdir


def survive(places, whole, workdir, kills):
    """Kills the search at each (moment, count), lets it finish, and compares the results."""
    killed = 0
    for moment, count in kills:
        status, _, err = run(places, workdir, moment, count)
        assert status in (0, -signal.SIGKILL), err
        killed += status != 0
    status, _, err = run(places, workdir)
    assert status == 0, err
    assert contents(workdir) == contents(whole)
    return killed


def test_a_search_killed_twice_ends_as_if_it_had_never_been_killed(places, whole, tmp_path):
    workdir = tmp_path / "run"
    assert run(places, workdir, "segment", 3)[0] == -signal.SIGKILL
    assert run(places, workdir, "append", 1)[0] == -signal.SIGKILL
    torn = (workdir / "archive.jsonl").stat().st_size
    status, out, err = run(places, workdir)
    assert status == 0, err
    assert f"{torn} bytes of an unfinished generation are cut off" in out.replace("\n", " ")
    assert contents(workdir) == contents(whole)


@pytest.mark.slow
def test_a_search_killed_while_it_writes_ends_the_same(places, whole, tmp_path):
    kills = [("checkpoint", 2), ("telemetry", 2)]
    assert survive(places, whole, tmp_path / "run", kills) == len(kills)


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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_it_finishes_the_segment_saves_and_resumes(places, whole, tmp_path, number):
    workdir = tmp_path / "run"
    process = start(places, workdir)
    while not list(workdir.glob("checkpoints/[0-9]*")):  # training has started
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this segment" in out
    assert err.strip() == "stopped and saved; the same command resumes"
    _, out, _ = run(places, workdir)
    assert "resuming inside a batch" in out
    assert contents(workdir) == contents(whole)


@pytest.mark.slow
def limited(size):
    """Returns a function that limits file sizes to `size` bytes, which simulates a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [1_000, 6_000])  # too small for config.json, for a checkpoint
def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(places, whole, tmp_path, size):
    workdir = tmp_path / "run"
    process = start(places, workdir, preexec_fn=limited(size))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    # Orbax's threads may be in the middle of a line.
    (line,) = re.findall(r"error: .*", err)
    assert "File too large" in line or "cannot be written" in line
    if size == 1_000:  # otherwise Orbax's threads may print more
        assert err == f"{line}\n"
    status, _, err = run(places, workdir)
    assert status == 0, err
    assert contents(workdir) == contents(whole)


# The engine in this process ----------------------------------------------------------------

JOBS = [Job(candidate(), seed, 10) for seed in range(3)]


@functools.lru_cache
def programs():
    return population.make_programs(TASK, devices=1, lanes=2)


def train(folder, stop_after=None):
    """Trains `JOBS` with checkpoints after all segments; returns (results or None, log lines)."""
    calls, lines = itertools.count(1), []
    stopping = lambda: stop_after is not None and next(calls) >= stop_after  # noqa: E731
    checkpoints = Checkpoints(folder, seconds=0, stopping=stopping, log=lines.append)
    engine = make_engine(programs())._replace(checkpoints=checkpoints, log=lines.append)
    try:
        return list(engine.run(JOBS)), lines
    except Interrupted:
        return None, lines
    finally:
        checkpoints.close()


def assert_same(results, expected):
    for result, other in zip(results, expected, strict=True):
        for mine, theirs in zip(result, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.fixture(scope="module")
def uninterrupted():
    return list(make_engine(programs()).run(JOBS))


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_an_engine_resumes_at_any_segment_with_the_same_bits(tmp_path, uninterrupted, stop_after):
    assert train(tmp_path, stop_after)[0] is None
    results, (line, *_) = train(tmp_path)
    assert line.startswith("resuming inside a batch")
    assert_same(results, uninterrupted)


def flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    """Keeps the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("part", "damage"), [("population", flip), ("population", truncate), ("search", os.remove)]
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path, uninterrupted, part, damage
):
    assert train(tmp_path, 2)[0] is None
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = [p for p in (newest / part).rglob("*") if p.is_file() and p.stat().st_size > 40]
    damage(max(files, key=lambda path: path.stat().st_size))
    results, lines = train(tmp_path)
    assert f"checkpoint {newest.name} is damaged" in lines[0]
    assert lines[1].startswith("resuming inside a batch")
    assert_same(results, uninterrupted)


def test_a_second_process_on_the_same_folder_is_refused_at_once(tmp_path):
    with (
        run_folder.holding(tmp_path),
        pytest.raises(ArchiveError, match=f"is in use by process {os.getpid()}"),
        run_folder.holding(tmp_path),
    ):
        pass


def test_a_disk_without_room_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda folder: usage)
    run_folder.require_space(tmp_path, 10**6)
    with pytest.raises(ArchiveError, match=r"at least 2 GB free, got .* with 0\.00 GB free"):
        run_folder.require_space(tmp_path, 2 * 10**9)


def test_a_checkpoint_without_room_is_not_started(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: usage)
    checkpoints = Checkpoints(tmp_path, seconds=0)
    state = Checkpoint({}, {}, {"weights": np.zeros(1000, np.float32)})
    with pytest.raises(CheckpointError, match=r"bytes are needed and 100 are free"):
        checkpoints.boundary(lambda: state)
    checkpoints.close()
    assert not any((tmp_path / "checkpoints").iterdir())
