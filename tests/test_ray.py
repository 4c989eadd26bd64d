"""The Ray engine: workers that die, hang, join late or do not fit; and life without Ray."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_evidence import TINY
from test_search import SETTINGS, archive_bytes, assert_one_line, read, start, write_corpus

pytest.importorskip("ray", reason="the extra `ray` is not installed")
from ray.cluster_utils import Cluster

LONGER = {"train.steps": 400, "train.segment_steps": 20, "data.max_epochs": 1000.0}
ONE_THREAD = {"devices": 1, "threads": 1, "search.generations": 1, "search.population": 6}


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a search in which every worker has one thread and a batch takes seconds."""
    folder = tmp_path_factory.mktemp("ray")
    places = {
        "data.corpus": f"parquet:{write_corpus(folder / 'corpus')}",
        "data.cache_dir": str(folder / "cache"),
    }
    fields = SETTINGS | LONGER | ONE_THREAD | places
    return [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.fixture(scope="module")
def local(repository_root, flags, tmp_path_factory):
    """The folder of the same search by the local engine."""
    folder = tmp_path_factory.mktemp("local") / "run"
    finish(start(repository_root, *flags, f"--config.workdir={folder}"))
    return folder


@pytest.fixture(scope="module")
def repository_root():
    return Path(__file__).resolve().parent.parent


def finish(process):
    """What a search printed that ended well."""
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


def on_ray(root, flags, folder, **changes):
    """A search on a local Ray with one worker a core."""
    more = [f"--config.{k.replace('__', '.')}={v}" for k, v in changes.items()]
    return start(root, *flags, "--config.engine=ray", f"--config.workdir={folder}", *more)


def busy_workers(process, of=None):
    """The training workers of a search, at least one; their nodes are processes of `of`, or its."""
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
    while not (folder / "archive.jsonl").exists():  # the founders have to live
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
        busy_workers(process, of=os.getpid())[0].suspend()  # or it would be done before they come
        cluster.add_node(num_cpus=1, env_vars={"CLAIMS_JAX": "0.0.1"})
        # Long after the other one was refused; a node that is busy takes its time too.
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
    assert_one_line(process, ["config.ray.address is '127.0.0.1:1'", "allowed: local, auto"])


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
    assert_one_line(runs["ray"], ["config.engine is 'ray'", "pip install", "allowed: local"])
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
        # A ledger of its own: the second of two campaigns is given other seeds and another fold.
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
