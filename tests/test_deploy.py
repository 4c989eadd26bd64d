"""Deployment commands, and their jobs on a cluster of two nodes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from histories import family, write_folder
from test_deployed_folder import SECRET, changed, sent
from test_search import make_config

from nanoevolve_jax.codegen.deployment import folder, jobs
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.execution import ray_server
from nanoevolve_jax.execution.checkpoint import Interrupted
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.execution.intact import FolderError
from nanoevolve_jax.execution.ray_engine import RayEngine
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.policy.spec import TRUST_RATIO

ROOT = Path(folder.__file__).resolve().parents[3]

# Bad input ---------------------------------------------------------------------------------


def run(command, *arguments, cwd, **changes):
    """Starts a command line and returns its process."""
    return subprocess.Popen(
        [sys.executable, "-m", f"nanoevolve_jax.{command}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | changes,
    )


def deploy(*arguments, **options):
    return run("codegen.deploy", *arguments, **options)


def trace(*arguments, **options):
    return run("codegen.trace", *arguments, **options)


def finish(process, code=0):
    """Waits for a command and returns its output, or its errors if it must fail."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == code, (output, errors)
    return errors if code in (2, 130) else output


BAD = [
    ("deploy", [], "candidates must be given"),
    ("deploy", ["anealing"], "'anealing'"),
    ("deploy", ["nowhere:g1"], "'nowhere'"),
    ("deploy", ["run:g9"], "'g9'"),
    ("deploy", ["nanochat", "--address=here"], "address must be local, local:DIR or http"),
    ("deploy", ["nanochat", "--address=http://127.0.0.1:1"], "got 'http://127.0.0.1:1'"),
    ("deploy", ["nanochat", "--stop"], "arguments must be absent with --stop, got 'nanochat'"),
    ("deploy", ["--stop", "--address=http://a:1"], "address must be local or local:DIR"),
    ("deploy", ["nanochat", "--config.calibration=c.json"], "config.calibration must be none"),
    ("trace", [], "arguments must be the id of one job"),
    ("trace", ["nano-1"], "job must be one that was sent from here"),
    ("status", ["x"], "arguments must be absent, got 'x'"),
    ("deployment.remote", ["nano-1"], "job.json of job nano-1 cannot be read"),
]


@pytest.mark.slow
def test_every_mistake_is_one_line_and_sends_nothing(tmp_path):
    pytest.importorskip("ray")
    write_folder(tmp_path / "run", family())
    for name, given, message in BAD:
        errors = finish(run(f"codegen.{name}", *given, cwd=tmp_path), code=2)
        assert message in errors and errors.startswith("error: ") and errors.count("\n") == 1
    assert not (tmp_path / "cache" / "cluster").exists()


@pytest.mark.parametrize("address", ["here", "http://127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_that_cannot_be_used_is_one_line(address):
    pytest.importorskip("ray")
    with (
        pytest.raises(ClusterError, match=f"^address must be local, .*, got '{address}'.*$"),
        ray_server.connected(address),
    ):
        pass


def test_a_server_that_does_not_answer_is_one_line_in_time(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_server, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match="Timeout"), ray_server.connected(address):
            pass


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install"), ray_server.connected("local"):
        pass


class Checkpoints:
    """Checkpoints of a user who asks to stop after the first job is sent."""

    def __init__(self, stopping):
        self.stopping = stopping

    def restore(self, wanted, template):
        return None

    def boundary(self, make):
        if self.stopping():
            raise Interrupted


def test_a_stop_while_runs_are_sent_to_a_cluster_sends_no_more(tmp_path, monkeypatch):
    from test_stream import CALM

    names = []
    monkeypatch.setattr(jobs, "submit", lambda folder, *_: names.append(folder.name))
    config = make_config(TINY, tmp_path / "run")
    pool = jobs.JobPool(config, "local", tmp_path, {})
    engine = RayEngine(None, pool, ("", ""), 1, Checkpoints(lambda: bool(names)))
    with pytest.raises(Interrupted):
        next(engine.run([CALM, CALM._replace(seed=9)]))
    assert len(names) == 1


@pytest.mark.slow
def test_a_local_ray_that_is_interrupted_while_it_starts_leaves_no_process(tmp_path):
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray")
    process = deploy("annealing", *fields(TINY), cwd=tmp_path, MARK=tmp_path.name)
    log = tmp_path / "cache" / "cluster" / "head.log"
    while not log.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(2.0)  # some of its processes are running by now
    children = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert children
    process.send_signal(signal.SIGTERM)
    assert "interrupted" in finish(process, code=130)
    assert not children & set(psutil.pids())
    assert not (log.parent / "head.json").exists()


# A cluster of two nodes --------------------------------------------------------------------

TINY = {
    "data.corpus": "docstrings",
    "data.max_train_tokens": 100_000,
    "data.vocab_size": 300,
    "data.validation_rows": 8,
    "data.max_epochs": 1000.0,
    "data.folds": 3,
    "model.n_layer": 1,
    "model.n_embd": 24,
    "model.sequence_len": 16,
    "train.steps": 40,
    "train.batch_size": 4,
    "train.segment_steps": 5,
    "compare.seeds": 2,
    "threads": 1,
}


def fields(settings):
    return [f"--config.{name}={value}" for name, value in settings.items()]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Yields the address of a cluster with two nodes of one processor each on this machine."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    place = tmp_path_factory.mktemp("cluster")
    patch = pytest.MonkeyPatch()
    # Jobs run this `python` and keep their text in this cache.
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("XDG_CACHE_HOME", str(place))
    port = free_port()
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": port}
    head |= {"dashboard_agent_listen_port": free_port()}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes.add_node(num_cpus=1, dashboard_agent_listen_port=free_port())
        yield f"http://127.0.0.1:{port}"
    finally:
        nodes.shutdown()
        patch.undo()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns the working directory of the commands, which holds their cache and run folders."""
    return tmp_path_factory.mktemp("client")


def jobs_of(output):
    """Returns the job ids by candidate from the output of `deploy`."""
    pairs = [line.split(": ") for line in output.splitlines() if ": nano-" in line]
    return {name: rest.split(",")[0] for name, rest in pairs}


@pytest.mark.slow
def test_deployed_candidates_give_the_bits_of_a_local_run_when_a_client_is_killed(cluster, place):
    slow = TINY | {"train.steps": 400}
    send = ("trust_ratio", "annealing", f"--address={cluster}", *fields(slow))
    sent = jobs_of(finish(deploy(*send, cwd=place, OPENAI_API_KEY=SECRET)))
    assert set(sent) == {"trust_ratio", "annealing"}
    assert jobs_of(finish(deploy(*send, cwd=place))) == sent

    job = sent["trust_ratio"]
    client = trace(job, cwd=place)
    for line in client.stdout:
        if line.startswith("step "):
            break
    client.send_signal(signal.SIGKILL)
    client.communicate()
    nodes = {info.driver_node_id for info in details(cluster, sent.values())}
    state = finish(trace(job, "--nofollow", cwd=place))
    assert re.search(r"trust_ratio: (running|succeeded)", state)  # a slow client may print late
    for name, one in sent.items():
        output = finish(trace(one, cwd=place))
        assert f"{one}, {name}: succeeded" in output and "better on" in output
    assert len(nodes) == 2  # one job per node

    names = ("nanochat", "trust_ratio", "annealing")
    finish(run("compare", *names, *fields(slow | {"workdir": "local"}), cwd=place))
    local = json.loads((place / "local" / "compare" / "comparison.json").read_text())["bpb"]
    for index, one in enumerate(sent.values(), start=1):
        path = place / "runs" / "screen" / "deployed" / one / "result.json"
        result = json.loads(path.read_text())
        assert [run["val_bpb"] for run in result["baseline"]] == local[0]
        assert [run["val_bpb"] for run in result["candidate"]] == local[index]
    for info in details(cluster, sent.values()):
        assert set(info.runtime_env) == {"working_dir"} and SECRET not in repr(info)

    rows = finish(run("codegen.status", f"--address={cluster}", cwd=place)).splitlines()
    for name, one in sent.items():
        (row,) = [line for line in rows if line.startswith(one)]
        assert name in row and "succeeded" in row and "gain" in row
    assert "fetched before" in finish(deploy(*send, cwd=place))


def client_of(cluster):
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(cluster)


def details(cluster, names):
    return [client_of(cluster).get_job_info(name) for name in names]


@pytest.mark.slow
def test_a_tampered_folder_is_refused_on_the_cluster_and_tried_again_when_whole(
    cluster, place, tmp_path
):
    config = make_config(TINY, tmp_path / "run")
    whole = sent(config, Arm("x", TRUST_RATIO, {}), tmp_path / "whole")
    bad = tmp_path / "bad" / whole.name
    shutil.copytree(whole, bad)
    changed(bad)
    with pytest.raises(FolderError):
        jobs.submit(bad, cluster)
    client_of(cluster).submit_job(
        entrypoint=f"python -B -m nanoevolve_jax.codegen.deployment.remote {whole.name}",
        submission_id=whole.name,
        runtime_env={"working_dir": str(bad)},
        entrypoint_num_cpus=1,
    )
    assert ended(whole.name, cluster).status == jobs.FAILED
    assert "model/gpt.py must be as job" in jobs.log(whole.name, cluster)
    assert jobs.result(whole.name, cluster) is None
    assert "failed" in finish(trace(whole.name, f"--address={cluster}", cwd=place), code=1)
    # The job is listed although another process submitted it.
    assert whole.name in finish(run("codegen.status", f"--address={cluster}", cwd=place))

    assert jobs.submit(whole, cluster) == whole.name
    assert ended(whole.name, cluster).status == jobs.SUCCEEDED
    assert len(jobs.result(whole.name, cluster)["candidate"]) == 2


def ended(job, cluster):
    """Waits for the end of a job and returns its state."""
    for _ in range(600):
        state = jobs.poll(job, cluster)
        if state.status in jobs.ENDED:
            return state
        time.sleep(0.2)
    raise AssertionError(state)


@pytest.mark.slow
def test_a_job_that_no_node_has_room_for_and_a_job_that_is_stopped(cluster, place, tmp_path):
    wide = fields(TINY | {"threads": 2})
    errors = finish(deploy("nanochat", f"--address={cluster}", *wide, cwd=place), code=2)
    assert "config.threads" in errors and "no node has 2 CPUs" in errors
    config = make_config(TINY, tmp_path / "run", train__steps=100_000)
    long = sent(config, Arm("x", TRUST_RATIO, {}), tmp_path)
    jobs.submit(long, cluster)
    client_of(cluster).stop_job(long.name)
    assert ended(long.name, cluster).status == jobs.STOPPED
    assert jobs.poll("nano-0", cluster).status == jobs.LOST


@pytest.mark.slow
def test_a_local_ray_outlives_its_client_is_found_again_and_ends_on_request(place):
    head_file = place / "cache" / "cluster" / "head.json"
    try:
        first = jobs_of(finish(deploy("annealing", *fields(TINY), cwd=place, API_KEY=SECRET)))
        head = json.loads(head_file.read_text())
        second = jobs_of(finish(deploy("trust_ratio", *fields(TINY), cwd=place)))
        assert json.loads(head_file.read_text()) == head
        environment = Path(f"/proc/{head['process']}/environ").read_bytes()
        assert SECRET.encode() not in environment and b"RAY_AUTH_MODE=token" in environment
        for name, job in (first | second).items():
            assert f"{name}: succeeded" in finish(trace(job, cwd=place))
    finally:
        output = finish(deploy("--stop", cwd=place))
    assert "the local Ray has ended" in output
    assert not Path(f"/proc/{head['process']}").exists()
    assert "no local Ray runs" in finish(deploy("--stop", cwd=place))
    assert "nano-" in finish(run("codegen.status", cwd=place))


@pytest.mark.slow
def test_a_campaign_of_code_screened_by_jobs_has_the_records_of_one_screened_here(cluster, place):
    from autonomous_run import providers
    from autonomous_run import run as campaign

    from nanoevolve_jax.evolution import archive

    profiles = providers(place, "http://127.0.0.1:1")
    own = {"devices": 1, "threads": 1, "codegen__proposals": 2, "codegen__ensemble": "scripted"}
    found = []
    for name, address in (("jobs", cluster), ("here", "none")):
        output = campaign(place, place / name, profiles, codegen__address=address, **own)
        assert "all 2 proposals are made" in output
        found.append(archive.load_all(place / name / "archive.jsonl"))
    jobs, here = found
    assert [r.id for r in jobs] == [r.id for r in here]
    assert {"p0000", "p0001"} <= {r.id for r in jobs}
    for one, other in zip(jobs, here, strict=True):
        assert (one.val_bpb, one.instability) == (other.val_bpb, other.instability)
    assert len(list((place / "jobs" / "deployed" / "sent").iterdir())) == len(jobs)
