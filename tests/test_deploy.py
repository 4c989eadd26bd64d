"""Deployment: commands, and jobs on a cluster of two nodes."""

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

from nanoevolve_jax.codegen.deployment import cluster as jobs_of_cluster
from nanoevolve_jax.codegen.deployment import engine as deployed
from nanoevolve_jax.codegen.deployment import folder
from nanoevolve_jax.codegen.deployment.intact import FolderError
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.execution.checkpoint import Interrupted
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.policy.spec import TRUST_RATIO

# Bad input ---------------------------------------------------------------------------------


def run(command, *arguments, cwd, **changes):
    """A command line; its process."""
    root = Path(folder.__file__).resolve().parents[3]
    return subprocess.Popen(
        [sys.executable, "-m", f"nanoevolve_jax.codegen.{command}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(root), "COLUMNS": "200"} | changes,
    )


def finish(process, code=0):
    """What a command printed."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == code, (output, errors)
    return output if code != 2 else errors


BAD = [
    ("deploy", [], "candidates are 0; allowed: one or more"),
    ("deploy", ["anealing"], "spec is 'anealing'; allowed: a preset, a JSON file, DIR:ID"),
    ("deploy", ["nowhere:g1"], "candidate's folder is 'nowhere'; allowed: the folder of a search"),
    ("deploy", ["run:g9"], "candidate is 'g9'; allowed: an id of"),
    ("deploy", ["nanochat", "--address=here"], "address is 'here'; allowed: local, local:DIR, or"),
    ("deploy", ["nanochat", "--address=http://127.0.0.1:1"], "address is 'http://127.0.0.1:1', "),
    ("deploy", ["nanochat", "--stop"], "arguments are 'nanochat'; allowed: none beside --stop"),
    ("deploy", ["--stop", "--address=http://a:1"], "allowed: local or local:DIR"),
    ("deploy", ["nanochat", "--config.calibration=c.json"], "config.calibration is 'c.json'; al"),
    ("trace", [], "arguments are ''; allowed: the id of one job"),
    ("trace", ["nano-1"], "job is 'nano-1'; allowed: one that was deployed"),
    ("status", ["x"], "arguments are 'x'; allowed: none"),
    ("deployment.remote", ["nano-1"], "job.json of job nano-1 cannot be read"),
]


@pytest.mark.slow
def test_every_mistake_is_one_line_and_sends_nothing(tmp_path):
    pytest.importorskip("ray")
    write_folder(tmp_path / "run", family())
    for name, given, message in BAD:
        errors = finish(run(name, *given, cwd=tmp_path), code=2)
        assert message in errors and errors.startswith("error: ") and errors.count("\n") == 1
    assert not (tmp_path / "cache" / "cluster").exists()


@pytest.mark.parametrize("address", ["here", "http://127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_that_cannot_be_used_is_one_line(address):
    pytest.importorskip("ray")
    from nanoevolve_jax.codegen.deployment.server import connected

    with (
        pytest.raises(ClusterError, match=f"^address is '{address}'.*; allowed: local.*$"),
        connected(address),
    ):
        pass


def test_a_server_that_does_not_answer_is_one_line_in_time(monkeypatch):
    pytest.importorskip("ray")
    from nanoevolve_jax.codegen.deployment import server

    monkeypatch.setattr(server, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match="Timeout"), server.connected(address):
            pass


def test_a_stop_while_runs_are_sent_to_a_cluster_sends_no_more(monkeypatch):
    sent = []
    engine = deployed.DeployedEngine(None, None, "", None, {}, stopping=lambda: bool(sent))
    monkeypatch.setattr(deployed.DeployedEngine, "_folder", lambda self, job: job)
    monkeypatch.setattr(deployed, "job_key", str)
    monkeypatch.setattr(
        jobs_of_cluster, "submit", lambda folder, address, **more: sent.append(folder)
    )
    with pytest.raises(Interrupted):
        next(engine.run(["first", "second"]))
    assert sent == ["first"]


@pytest.mark.slow
def test_a_local_ray_that_is_interrupted_while_it_starts_leaves_no_process(tmp_path):
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray")
    process = run("deploy", "annealing", *fields(TINY), cwd=tmp_path, MARK=tmp_path.name)
    log = tmp_path / "cache" / "cluster" / "head.log"
    while not log.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(2.0)  # some of its processes run by now
    began = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert began
    process.send_signal(signal.SIGTERM)
    assert "interrupted" in finish_interrupted(process)
    assert not began & set(psutil.pids())
    assert not (log.parent / "head.json").exists()


def finish_interrupted(process):
    """What a command that was interrupted printed about that."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    return errors


def test_without_ray_the_way_to_get_it_is_named(monkeypatch):
    from nanoevolve_jax.codegen.deployment.server import connected

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"deployment needs Ray.*pip install"), connected("local"):
        pass


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
    """The address of two nodes of one processor each, on this machine."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    place = tmp_path_factory.mktemp("cluster")
    patch = pytest.MonkeyPatch()
    # What a job's `python` is, and where it keeps text.
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
    """Where commands are run: their cache and their run folders."""
    return tmp_path_factory.mktemp("client")


def status(place, cluster):
    return finish(run("status", f"--address={cluster}", cwd=place))


def jobs_of(output):
    """Ids by name in what `deploy` printed."""
    pairs = [line.split(": ") for line in output.splitlines() if ": nano-" in line]
    return {name: rest.split(",")[0] for name, rest in pairs}


@pytest.mark.slow
def test_deployed_candidates_give_the_bits_of_a_local_run_whoever_is_killed_meanwhile(
    cluster, place
):
    slow = TINY | {"train.steps": 400}
    send = ("deploy", "trust_ratio", "annealing", f"--address={cluster}", *fields(slow))
    jobs = jobs_of(finish(run(*send, cwd=place, OPENAI_API_KEY=SECRET)))
    assert set(jobs) == {"trust_ratio", "annealing"}
    again = jobs_of(finish(run(*send, cwd=place)))
    assert again == jobs

    job = jobs["trust_ratio"]
    client = run("trace", job, cwd=place)
    for line in client.stdout:
        if line.startswith("step "):
            break
    client.send_signal(signal.SIGKILL)
    client.communicate()
    nodes = running_on(cluster, jobs.values())
    state = finish(run("trace", job, "--nofollow", cwd=place))
    assert re.search(r"trust_ratio: (running|succeeded)", state)  # a busy client may come late
    for name, one in jobs.items():
        output = finish(run("trace", one, cwd=place))
        assert f"{one}, {name}: succeeded" in output and "better on" in output
    assert len(nodes) == 2  # one job a node

    finish(local_comparison(place, slow))
    local = json.loads((place / "local" / "compare" / "comparison.json").read_text())["bpb"]
    for index, one in enumerate(jobs.values(), start=1):
        path = place / "runs" / "screen" / "deployed" / one / "result.json"
        found = json.loads(path.read_text())
        assert [run["val_bpb"] for run in found["baseline"]] == local[0]
        assert [run["val_bpb"] for run in found["candidate"]] == local[index]
    assert_no_secret(cluster, jobs.values())

    listed = status(place, cluster)
    for name, one in jobs.items():
        (row,) = [line for line in listed.splitlines() if line.startswith(one)]
        assert name in row and "succeeded" in row and "gain" in row
    assert "fetched before" in finish(run(*send, cwd=place))


def local_comparison(place, settings):
    """The same candidates trained by `compare`, here."""
    root = Path(folder.__file__).resolve().parents[3]
    flags = fields(settings | {"workdir": "local"})
    return subprocess.Popen(
        [sys.executable, "-m", "nanoevolve_jax.compare", "nanochat", "trust_ratio", "annealing"]
        + flags,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


def details(cluster, jobs):
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(cluster)
    return [client.get_job_info(job) for job in jobs]


def running_on(cluster, jobs):
    """The nodes of jobs."""
    return {job.driver_node_id for job in details(cluster, jobs)}


def assert_no_secret(cluster, jobs):
    for job in details(cluster, jobs):
        assert set(job.runtime_env) == {"working_dir"}
        assert SECRET not in repr(job)


@pytest.mark.slow
def test_a_folder_that_is_tampered_with_on_its_way_is_refused_there_and_tried_again_when_whole(
    cluster, place, tmp_path
):
    from ray.job_submission import JobSubmissionClient

    from nanoevolve_jax.codegen.deployment import cluster as jobs

    config = make_config(TINY, tmp_path / "run")
    whole = sent(config, Arm("x", TRUST_RATIO, {}), tmp_path / "whole")
    bad = tmp_path / "bad" / whole.name
    shutil.copytree(whole, bad)
    changed(bad)
    with pytest.raises(FolderError):
        jobs.submit(bad, cluster)
    JobSubmissionClient(cluster).submit_job(
        entrypoint=f"python -B -m nanoevolve_jax.codegen.deployment.remote {whole.name}",
        submission_id=whole.name,
        runtime_env={"working_dir": str(bad)},
        entrypoint_num_cpus=1,
    )
    assert ended(jobs, whole.name, cluster).status == jobs.FAILED
    assert "model/gpt.py is not the file that job.json" in jobs.log(whole.name, cluster)
    assert jobs.result(whole.name, cluster) is None
    given = run("trace", whole.name, f"--address={cluster}", cwd=place)
    assert "failed" in finish(given, code=1)
    assert whole.name in status(place, cluster)  # although it was not sent from here

    assert jobs.submit(whole, cluster) == whole.name
    assert jobs.poll(whole.name, cluster).status == jobs.FAILED  # nobody asked for more
    jobs.submit(whole, cluster, again=True)
    assert ended(jobs, whole.name, cluster).status == jobs.SUCCEEDED
    assert len(jobs.result(whole.name, cluster)["candidate"]) == 2


def ended(jobs, job, cluster):
    """The state of a job at its end."""
    for _ in range(600):
        state = jobs.poll(job, cluster)
        if state.status in jobs.ENDED:
            return state
        time.sleep(0.2)
    raise AssertionError(state)


@pytest.mark.slow
def test_a_job_that_no_node_has_room_for_and_a_job_that_is_stopped(cluster, place, tmp_path):
    from nanoevolve_jax.codegen.deployment import cluster as jobs

    wide = fields(TINY | {"threads": 2})
    errors = finish(run("deploy", "nanochat", f"--address={cluster}", *wide, cwd=place), code=2)
    assert "config.threads is 2" in errors and "none has 2 CPUs" in errors
    config = make_config(TINY, tmp_path / "run", train__steps=100_000)
    long = sent(config, Arm("x", TRUST_RATIO, {}), tmp_path)
    jobs.submit(long, cluster)
    jobs.stop(long.name, cluster)
    assert ended(jobs, long.name, cluster).status == jobs.STOPPED
    assert jobs.poll("nano-0", cluster).status == jobs.LOST


@pytest.mark.slow
def test_a_local_ray_outlives_its_client_is_found_again_and_ends_when_told(place):
    flags = fields(TINY)
    try:
        first = jobs_of(finish(run("deploy", "annealing", *flags, cwd=place, API_KEY=SECRET)))
        head = json.loads((place / "cache" / "cluster" / "head.json").read_text())
        second = jobs_of(finish(run("deploy", "trust_ratio", *flags, cwd=place)))
        assert json.loads((place / "cache" / "cluster" / "head.json").read_text()) == head
        environment = Path(f"/proc/{head['process']}/environ").read_bytes()
        assert SECRET.encode() not in environment and b"RAY_AUTH_MODE=token" in environment
        for name, job in (first | second).items():
            assert f"{name}: succeeded" in finish(run("trace", job, cwd=place))
    finally:
        output = finish(run("deploy", "--stop", cwd=place))
    assert "the local Ray has ended" in output
    assert not Path(f"/proc/{head['process']}").exists()
    assert "no local Ray runs" in finish(run("deploy", "--stop", cwd=place))
    assert "nano-" in finish(run("status", cwd=place))


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
