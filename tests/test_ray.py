"""The Ray engine when workers die, hang, join late or do not fit, and without Ray."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_evidence import TINY
from test_search import SETTINGS, archive_bytes, assert_one_line, read, start, write_corpus
from training import TASK, candidate

from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.execution.checkpoint import Interrupted
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.results import RunResult
from nanoevolve_jax.execution.train import TELEMETRY

pytest.importorskip("ray", reason="the extra `ray` is not installed")
from ray.cluster_utils import Cluster

from nanoevolve_jax.execution.ray_engine import RayEngine

LONGER = {"train.steps": 400, "train.segment_steps": 20, "data.max_epochs": 1000.0}
ONE_THREAD = {"devices": 1, "threads": 1, "search.generations": 1, "search.population": 6}


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Returns flags of a search with one thread per worker whose batches take seconds."""
    folder = tmp_path_factory.mktemp("ray")
    places = {
        "data.corpus": f"parquet:{write_corpus(folder / 'corpus')}",
        "data.cache_dir": str(folder / "cache"),
    }
    fields = SETTINGS | LONGER | ONE_THREAD | places
    return [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.fixture(scope="module")
def local(repository_root, flags, tmp_path_factory):
    """Returns the run folder of the same search on the local engine."""
    folder = tmp_path_factory.mktemp("local") / "run"
    finish(start(repository_root, *flags, f"--config.workdir={folder}"))
    return folder


@pytest.fixture(scope="module")
def repository_root():
    return Path(__file__).resolve().parent.parent


def finish(process):
    """Waits for a search, requires that it succeeds, and returns its output."""
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


def on_ray(root, flags, folder, **changes):
    """Starts a search on a local Ray with one worker per core."""
    more = [f"--config.{k.replace('__', '.')}={v}" for k, v in changes.items()]
    return start(root, *flags, "--config.engine=ray", f"--config.workdir={folder}", *more)


def busy_workers(process, of=None):
    """Waits for training workers among the children of process `of`, by default the search."""
    for _ in range(2400):
        assert process.poll() is None, process.communicate()
        children = psutil.Process(of or process.pid).children(recursive=True)
        names = {child: _command(child) for child in children}
        found = [child for child, name in names.items() if name == "ray::Worker.train"]
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("no worker has begun")


def _command(process):
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def test_a_worker_killed_in_a_generation_changes_no_byte(
    repository_root, flags, local, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("killed") / "run"
    process = on_ray(repository_root, flags, folder)
    busy_workers(process)[0].kill()
    output = finish(process)
    assert "trying it again" in output
    assert archive_bytes(folder) == archive_bytes(local)
    telemetry = [sorted((f / "telemetry").glob("*.npz")) for f in (folder, local)]
    for mine, theirs in zip(*telemetry, strict=True):
        assert mine.name == theirs.name and mine.read_bytes() == theirs.read_bytes()
    for summary in (ours := read(folder)[1]), (other := read(local)[1]):
        summary.pop("wall_seconds"), summary.pop("xla_compilations")
    assert ours == other


@pytest.mark.slow
def test_a_silent_worker_is_given_up_and_its_batch_trained_elsewhere(
    repository_root, flags, local, tmp_path
):
    process = on_ray(repository_root, flags, tmp_path / "run", ray__silence_seconds=15)
    busy_workers(process)[0].suspend()
    output = finish(process)
    assert "it was silent for 15 s); trying it again" in output
    assert archive_bytes(tmp_path / "run") == archive_bytes(local)


@pytest.mark.slow
def test_a_batch_lost_too_often_is_dead_with_the_reason_and_the_search_ends(
    repository_root, flags, local, tmp_path
):
    folder = tmp_path / "run"
    process = on_ray(repository_root, flags, folder, ray__attempts=1, ray__workers=1)
    while not (folder / "archive.jsonl").exists():  # the founders must survive
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    busy_workers(process)[0].kill()
    output = finish(process)
    assert "giving it up" in output
    records, summary = read(folder)
    dead = [record for record in records if record["status"] == "dead"]
    assert dead and all(r["failure"]["reason"].startswith("lost 1 times, at last: ") for r in dead)
    assert summary["dead"] == len(dead)
    reference = {record["id"]: record for record in read(local)[0]}
    for record in records:
        if record not in dead:
            assert record["val_bpb"] == reference[record["id"]]["val_bpb"]


@pytest.mark.slow
def test_a_killed_driver_goes_on_with_what_its_workers_had_finished(
    repository_root, flags, local, tmp_path
):
    folder = tmp_path / "run"
    process = on_ray(repository_root, flags, folder, checkpoint_seconds=0)
    while not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    output = finish(on_ray(repository_root, flags, folder))
    assert "resuming" in output
    assert archive_bytes(folder) == archive_bytes(local)


@pytest.mark.slow
def test_nodes_join_leave_and_are_refused_by_name(repository_root, flags, local, tmp_path):
    folder = tmp_path / "run"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        first = cluster.add_node(num_cpus=1)
        process = subprocess.Popen(
            [sys.executable, str(repository_root / "tests" / "ray_faults.py"), *flags]
            + [f"--config.workdir={folder}", "--config.engine=ray"]
            + [f"--config.ray.address={cluster.address}", "--config.ray.silence_seconds=60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(repository_root / "tests"), "COLUMNS": "200"},
            cwd=repository_root,
        )
        while not (folder / "archive.jsonl").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        busy_workers(process, of=os.getpid())[0].suspend()  # so that the new nodes join in time
        cluster.add_node(num_cpus=1, env_vars={"CLAIMS_JAX": "0.0.1"})
        # This node starts long after the other one is refused; a busy node also takes time.
        cluster.add_node(num_cpus=1, env_vars={"STARTS_AFTER": "30"})
        cluster.remove_node(first, allow_graceful=False)
        output = finish(process)
    finally:
        cluster.shutdown()
    assert "its versions.jax is '0.0.1' and was '" in output
    assert "refused: node " in output
    assert "trying it again" in output
    assert archive_bytes(folder) == archive_bytes(local)


def test_a_cluster_that_is_not_there_is_one_clear_line(repository_root, flags, tmp_path):
    process = on_ray(repository_root, flags, tmp_path / "run", ray__address="127.0.0.1:1")
    assert_one_line(process, ["config.ray.address must be local, auto or", "'127.0.0.1:1'"])


def test_without_ray_the_local_engine_runs_and_the_other_one_is_refused(
    repository_root, flags, local, tmp_path
):
    script = "import sys; sys.modules['ray'] = None; from nanoevolve_jax import command, search\n"
    script += "command.run(search.search)"
    runs = {
        engine: subprocess.Popen(
            [sys.executable, "-c", script, *flags, f"--config.workdir={tmp_path / engine}"]
            + [f"--config.engine={engine}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=repository_root,
        )
        for engine in ("local", "ray")
    }
    assert_one_line(runs["ray"], ["config.engine='ray' needs Ray", "pip install"])
    finish(runs["local"])
    assert archive_bytes(tmp_path / "local") == archive_bytes(local)


@pytest.mark.slow
def test_calibration_search_and_confirmation_on_ray_are_those_of_the_local_engine(
    repository_root, tmp_path
):
    corpus = write_corpus(tmp_path / "corpus")
    fields = TINY | {"devices": 1, "threads": 1}
    fields |= {"data.corpus": f"parquet:{corpus}", "search.population": 2}
    common = [f"--config.{name}={value}" for name, value in fields.items()]
    for engine in ("local", "ray"):
        folder = tmp_path / engine
        # A separate ledger assigns other seeds and another fold to the second of two campaigns.
        flags = [
            *common,
            f"--config.engine={engine}",
            f"--config.data.cache_dir={folder / 'cache'}",
        ]
        calibration = f"--config.workdir={folder / 'calibration'}"
        finish(start(repository_root, *flags, calibration, command="calibrate"))
        calibrated = f"--config.calibration={folder / 'calibration' / 'calibration.json'}"
        finish(start(repository_root, *flags, calibrated, f"--config.workdir={folder / 'run'}"))
        confirm = ("--config=configs/confirm.py", f"--config.workdir={folder / 'run'}")
        confirm += ("--config.devices=1", "--config.threads=1", *flags[len(common) :])
        finish(start(repository_root, *confirm, command="confirm"))
    for name in ("calibration/runs.jsonl", "run/runs.jsonl", "run/archive.jsonl"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


# Stopping ----------------------------------------------------------------------------------


class RecordedPool:
    """A pool whose workers always have another batch to train; it records when it is closed."""

    def __init__(self, events):
        self._events = events

    def train(self, wanted, batches, on_progress):
        result = RunResult(1.0, 1.0, None, None, 1, np.ones((1, len(TELEMETRY))), np.ones((1, 2)))
        try:
            for number, jobs in enumerate(batches):
                yield number, [result] * len(jobs)
                yield None
        finally:
            self._events.append("training closed")


class Asked:
    """Checkpoints of a command that was asked to stop."""

    def restore(self, wanted, template):
        return None

    def stopping(self):
        return True

    def boundary(self, make):
        raise Interrupted


def interrupt(run):
    raise KeyboardInterrupt


def fail(run):
    raise OSError("the disk is full")


@pytest.mark.parametrize(
    ("checkpoints", "on_run", "error"),
    [(Asked(), (), Interrupted), (None, interrupt, KeyboardInterrupt), (None, fail, OSError)],
)
def test_training_is_closed_before_the_connection_ends(tmp_path, checkpoints, on_run, error):
    events = []

    @contextlib.contextmanager
    def connection():
        try:
            yield
        finally:
            events.append("connection ended")

    engine = RayEngine(TASK, RecordedPool(events), ("{}", "main"), 1, checkpoints)
    runs = Runs(tmp_path, {"main": lambda: engine}, on_event=[on_run] if on_run else [])
    jobs = [Job(candidate(), seed, 1) for seed in range(3)]
    # The traceback keeps all frames alive, so garbage collection cannot close anything.
    with pytest.raises(error) as held, connection():
        runs.run(jobs, "screening")
    assert events == ["training closed", "connection ended"], held


def stoppable(root, flags, folder, mark, **changes):
    """Starts a search on a local Ray in a new process group whose environment has a mark."""
    more = [f"--config.{k.replace('__', '.')}={v}" for k, v in changes.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "nanoevolve_jax.search", *flags, "--config.engine=ray"]
        + [f"--config.workdir={folder}", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"MARK": mark, "COLUMNS": "200"},
        cwd=root,
        start_new_session=True,
    )


def read_until(process, text):
    """Reads the lines of a process up to the first that contains a text."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.wait())


def marked(mark):
    """Returns the running processes whose environment has this mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARK") == mark and process.status() != "zombie":
                found.append(process)
    return found


def assert_ends(process, mark, words, seconds=30):
    """Requires that a command ends with code 130 within a time limit and leaves no process."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 130, output
    assert words in output and "Traceback" not in output and "Started a local Ray" not in output
    for _ in range(50):
        if not (left := marked(mark)):
            return
        time.sleep(0.1)
    raise AssertionError(left)


SAVED, BEGUN = "stopped and saved", "the same command resumes"
MOMENTS = [  # line to wait for, delay in seconds, signal, to the group, repeated, expected words
    ("waiting for a worker", 1.0, signal.SIGTERM, False, False, BEGUN),
    ("steps | val bpb", 0.0, signal.SIGTERM, False, False, SAVED),
    ("steps | val bpb", 1.0, signal.SIGINT, True, False, SAVED),  # Ctrl-C in a terminal
    ("steps | val bpb", 0.5, signal.SIGTERM, False, True, BEGUN),
]


@pytest.mark.slow
def test_asked_to_stop_at_any_moment_it_ends_within_seconds_with_all_of_ray_and_resumes(
    repository_root, flags, tmp_path
):
    whole, folder = tmp_path / "local", tmp_path / "run"
    endless = {"search__generations": 1000}  # no search ends before it is stopped
    for text, seconds, number, to_all, again, words in MOMENTS:
        mark = uuid.uuid4().hex
        process = stoppable(repository_root, flags, folder, mark, **endless)
        read_until(process, text)
        time.sleep(seconds)
        os.killpg(process.pid, number) if to_all else process.send_signal(number)
        if again:
            time.sleep(0.2)
            process.send_signal(number)
        assert_ends(process, mark, words)
    archive = folder / "archive.jsonl"
    lines = archive.read_text().splitlines() if archive.exists() else []
    done = max((json.loads(line)["generation"] for line in lines), default=0)
    flags = [*flags, f"--config.search.generations={done + 1}"]
    output = finish(on_ray(repository_root, flags, folder))
    assert "lost a batch" not in output
    finish(start(repository_root, *flags, f"--config.workdir={whole}"))
    assert archive_bytes(folder) == archive_bytes(whole)


@pytest.mark.slow
def test_a_signal_ends_a_search_whose_cluster_does_not_answer(repository_root, flags, tmp_path):
    mark = uuid.uuid4().hex
    process = stoppable(repository_root, flags, tmp_path / "run", mark)
    read_until(process, "waiting for a worker")
    for child in psutil.Process(process.pid).children():
        if child.name() in ("gcs_server", "raylet"):
            child.suspend()
    process.terminate()
    assert_ends(process, mark, BEGUN, seconds=60)


@pytest.mark.slow
def test_a_search_that_no_worker_can_train_for_ends_with_all_of_ray(
    repository_root, flags, tmp_path
):
    mark = uuid.uuid4().hex
    lacking = {"ray__gpus": 1, "ray__wait_seconds": 3}
    process = stoppable(repository_root, flags, tmp_path / "run", mark, **lacking)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "started within config.ray.wait_seconds=3" in output
    assert not marked(mark)


@pytest.mark.slow
def test_ray_never_starts_by_itself_and_an_exit_handler_that_hangs_is_skipped(repository_root):
    script = """
import atexit, os, sys, time
from nanoevolve_jax import command
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.ray_connection import psutil, ray

def main(arguments):
    for use in (lambda: ray.put(1), lambda: ray.remote(print).remote(), lambda: ray.wait([])):
        try:
            use()
        except Exception as error:
            assert not ray.is_initialized(), error
        else:
            raise AssertionError(use)
    assert not psutil.Process().children()
    atexit.register(time.sleep, 600)
    hosts.exit_without_handlers()
    raise KeyboardInterrupt

command.run_on_arguments(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=repository_root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 130, done.stderr
