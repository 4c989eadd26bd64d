"""Deployment: folders that need nothing of this machine, jobs on a cluster of two nodes."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from histories import family, write_folder
from jax import export
from rich.console import Console
from test_search import SETTINGS, make_config, write_corpus

from data.errors import CorpusError
from nanoevolve_jax import compare, site
from nanoevolve_jax.codegen.deployment import book, folder, intact, paired, reply
from nanoevolve_jax.codegen.deployment.folder import Order, make_folder, portable, read_folder
from nanoevolve_jax.codegen.deployment.intact import FolderError
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.exploration import shared_seeds
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.execution.settings import ConfigError, make_baseline
from nanoevolve_jax.policy.certified import Certified, Code, digest
from nanoevolve_jax.policy.slots import SCALAR, SLOTS, shape_key
from nanoevolve_jax.policy.spec import ANNEALING, TRUST_RATIO
from nanoevolve_jax.policy.spec_json import SpecError

SECRET = "sk-not-to-be-seen-anywhere"


def certified_gate(expression):
    """A gate of one expression of the sensor `step_fraction`, with a certificate of trust."""
    contract, source = SLOTS["gate"], f"def gate(sensors, features, control):\n    {expression}\n"
    leaves, tree = jax.tree.flatten(contract.arguments(SCALAR))

    def flat(*arguments):
        sensors, _, _ = jax.tree.unflatten(tree, arguments)
        return (eval(expression, {"jnp": jnp, "x": sensors.step_fraction}),)

    (lanes,) = export.symbolic_shape("lanes")
    abstract = [jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype) for x in leaves]
    made = export.export(jax.jit(jax.vmap(flat)), platforms=("cpu", "cuda"))(*abstract)
    program, key = bytes(made.serialize()), shape_key(SCALAR)
    facts = {"sha256": digest(program), "flops": 1, "baseline_flops": 1, "bytes": 1, "memory": 1}
    certificate = {"format": 1, "slot": "gate", "dtype": "float32", "computation": expression}
    certificate |= {"source_sha256": digest(source.encode()), "programs": {key: facts}}
    return Certified(source, certificate, {key: program})


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    place = tmp_path_factory.mktemp("deploy")
    write_corpus(place / "corpus")
    return place


@pytest.fixture
def config(workshop):
    """A config of the user's own text."""
    places = {"data.corpus": f"parquet:{workshop / 'corpus'}"}
    places |= {"data.cache_dir": str(workshop / "cache")}
    return make_config(SETTINGS | places, workshop / "run", compare__seeds=2)


def order_of(config, arm):
    baseline = Arm("baseline", make_baseline(config), {})
    seeds, steps = tuple(shared_seeds(config)), config.train.steps
    return Order(portable(config), arm, baseline, seeds, SCREEN_FOLD, steps, None)


def sent(config, arm, place):
    """The folder of an arm."""
    return make_folder(order_of(config, arm), place, config.data.corpus)


@pytest.fixture
def trust_ratio(config, tmp_path):
    """A folder whose text is the user's own."""
    return sent(config, Arm("trust_ratio", TRUST_RATIO, {}), tmp_path)


def trained(place, monkeypatch):
    """What the folder gives, trained in this process as on a cluster."""
    order = read_folder(place, place.name)
    monkeypatch.chdir(place)
    monkeypatch.setattr(site, "use_devices", lambda config: config.devices)  # JAX has begun
    order.config.data.cache_dir = str(place.parent / "cache")
    return paired.train(order, Console(file=io.StringIO()))


# The folder --------------------------------------------------------------------------------


def test_a_folder_says_what_it_was_made_of(config, tmp_path):
    arm = Arm("control", ANNEALING, {"matrix_lr": 0.5}, 2.0)
    order = order_of(config, arm)._replace(text={"corpus": "a", "tokenizer": "b"}, seeds=(7, 3))
    place = make_folder(order, tmp_path, config.data.corpus)
    found = read_folder(place, place.name)
    assert found.config.to_dict() == order.config.to_dict()
    assert found.candidate == arm._replace(id="candidate")
    assert found._replace(config=None, candidate=None) == order._replace(
        config=None, candidate=None
    )


def test_its_bytes_depend_on_neither_machine_nor_place(workshop, config, tmp_path):
    arm = Arm("one", TRUST_RATIO, {})
    moved = config.copy_and_resolve_references()
    shutil.copytree(workshop / "corpus", tmp_path / "elsewhere")
    moved.data.corpus, moved.data.cache_dir = f"parquet:{tmp_path / 'elsewhere'}", "other"
    moved.workdir, moved.track.project, moved.ray.address = "mine", "p", "10.0.0.7:6379"
    first, second = sent(config, arm, tmp_path / "a"), sent(moved, arm, tmp_path / "b")
    assert first.name == second.name
    assert first == sent(config, arm._replace(id="two"), tmp_path / "a")  # names are no part
    moved.train.steps += 1
    assert sent(moved, arm, tmp_path / "b").name != first.name


def test_nothing_of_the_environment_and_no_path_of_this_machine_is_in_it(
    config, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    place = sent(config, Arm("x", TRUST_RATIO, {}), tmp_path)
    root = Path(folder.__file__).resolve().parents[3]
    for path in filter(Path.is_file, place.rglob("*")):
        content = path.read_bytes()
        assert SECRET.encode() not in content
        if path.suffix != ".py":
            for local in (Path.home(), root, tmp_path, config.data.cache_dir):
                assert str(local).encode() not in content
    kinds = {path.suffix for path in place.rglob("*") if path.is_file()}
    assert kinds == {".json", ".parquet", ".py"}


def changed(place):
    (place / "model" / "gpt.py").write_text("raise SystemExit('imported before it was checked')\n")


def removed(place):
    (place / "data" / "rows.py").unlink()


def added(place):
    (place / "jax.py").write_text("")  # would be imported instead of the library


def linked(place):
    (place / "data" / "rows.py").unlink()
    (place / "data" / "rows.py").symlink_to("/etc/hostname")


def ordered_otherwise(place):
    document = json.loads((place / intact.JOB).read_text())
    document["seeds"] = [1]
    (place / intact.JOB).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (changed, "model/gpt.py is not the file that job.json"),
        (removed, "data/rows.py is missing from the folder"),
        (added, "jax.py is no file of the folder"),
        (linked, "data/rows.py of a job's folder is a link"),
        (ordered_otherwise, "job.json of job nano-.* is not the one that was submitted"),
    ],
)
def test_a_folder_that_was_touched_is_refused(trust_ratio, tamper, message):
    read_folder(trust_ratio, trust_ratio.name)
    tamper(trust_ratio)
    with pytest.raises(FolderError, match=message):
        read_folder(trust_ratio, trust_ratio.name)


def resealed(place):
    """A forger's folder: every hash in `job.json` fits what is there now; its job's id."""
    document = json.loads((place / intact.JOB).read_text())
    files = {name: digest((place / name).read_bytes()) for name in document["files"]}
    (place / intact.JOB).write_text(json.dumps(document | {"files": files}))
    return intact.job_id((place / intact.JOB).read_bytes())


def test_code_that_was_exchanged_is_refused_even_if_all_hashes_were_made_anew(config, tmp_path):
    code = Code((certified_gate("jnp.tanh(x)"),))
    place = sent(config, Arm("coded", ANNEALING, {}, code=code), tmp_path)
    program = next(place.glob("code/*/scalar.stablehlo"))
    program.write_bytes(certified_gate("x * x").programs["scalar"])
    with pytest.raises(FolderError, match=r"scalar.*is not the one it names"):
        read_folder(place, resealed(place))


def test_text_that_is_too_large_to_travel_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "TEXT_BYTES", 100)
    with pytest.raises(CorpusError, match="that travel with a candidate"):
        sent(config, Arm("x", TRUST_RATIO, {}), tmp_path)


# What is trained ---------------------------------------------------------------------------


def test_what_a_folder_gives_is_what_a_comparison_here_gives(
    config, trust_ratio, monkeypatch, workshop
):
    found = trained(trust_ratio, monkeypatch)
    (workshop / "spec.json").write_text(
        json.dumps(json.loads((trust_ratio / intact.JOB).read_text())["arms"]["candidate"])
    )
    monkeypatch.chdir(workshop)
    with contextlib.redirect_stdout(io.StringIO()):
        compare.compare(config, ["nanochat", "spec.json"])
    local = json.loads((workshop / "run" / "compare" / "comparison.json").read_text())
    arms = [[run["val_bpb"] for run in found[arm]] for arm in ("baseline", "candidate")]
    assert arms == local["bpb"]
    assert found["versions"] == local["versions"] and found["device"] == local["device"]
    assert found["text"] == {name: local["fingerprints"][name] for name in ("corpus", "tokenizer")}


def test_code_travels_and_changes_what_is_trained(config, tmp_path, monkeypatch):
    code = Code((certified_gate("jnp.where(x < 0.5, 0.0, 1.0)"),))
    order = order_of(config, Arm("coded", ANNEALING, {}, code=code))
    order = order._replace(baseline=Arm("plain", ANNEALING, {}))
    place = make_folder(order, tmp_path, config.data.corpus)
    assert read_folder(place, place.name).candidate.code == code
    found = trained(place, monkeypatch)
    for run, other in zip(found["candidate"], found["baseline"], strict=True):
        assert run["val_bpb"] != other["val_bpb"] and run["failure"] is None


def test_other_text_than_the_searchs_is_refused(config, tmp_path, monkeypatch):
    order = order_of(config, Arm("x", TRUST_RATIO, {}))
    order = order._replace(text={"corpus": "0", "tokenizer": "0"})
    place = make_folder(order, tmp_path, config.data.corpus)
    with pytest.raises(FolderError, match="allowed: the text of the search"):
        trained(place, monkeypatch)


# The result --------------------------------------------------------------------------------

RUN = {"val_bpb": 0.1 + 0.2, "failure": None}
RESULT = {"job": "nano-1", "candidate": [RUN], "baseline": [RUN | {"val_bpb": 0.5}]}


def test_a_result_comes_back_through_a_log_as_it_was():
    log = f"noise\n{reply.to_line(RESULT)}\nmore noise\n"
    found = reply.from_log(log, "nano-1")
    assert {name: found[name] for name in RESULT} == RESULT
    assert reply.from_log("noise\n", "nano-1") is None
    assert reply.from_log(reply.to_line(RESULT), "nano-1") is None  # its end is still to come


@pytest.mark.parametrize("cut", [40, 100])
def test_a_result_that_was_cut_or_is_anothers_is_no_result(cut):
    line = reply.to_line(RESULT)
    with pytest.raises(EvidenceError, match="damaged"):
        reply.from_log(line[:cut] + line[cut + 4 :] + "\n", "nano-1")
    with pytest.raises(EvidenceError, match="has the result of job nano-1"):
        reply.from_log(line + "\n", "nano-2")


def test_a_result_in_words():
    assert reply.in_words(RESULT) == "gain +0.2000 bpb, better on 1 of 1 seeds"
    dead = RESULT | {"candidate": [{"val_bpb": None, "failure": "non-finite loss"}]}
    assert reply.in_words(dead) == "failed on 1 of 1 seeds: non-finite loss"


def test_the_book_keeps_entries_and_results(tmp_path):
    entry = book.Entry("nano-1", "runs/a:g1", "local", str(tmp_path / "a"), 1.0)
    book.enter(tmp_path, entry)
    book.enter(tmp_path, entry._replace(job="nano-0", sent=2.0))
    (tmp_path / book.FOLDER / "torn.json").write_text("{")
    assert [one.job for one in book.entries(tmp_path)] == ["nano-1", "nano-0"]
    assert book.find(tmp_path, "nano-1") == entry and entry.result is None
    path = entry.keep(reply.from_log(reply.to_line(RESULT) + "\n", "nano-1"))
    assert entry.result["candidate"] == [RUN]
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert entry.result is None


def test_the_environment_of_a_local_ray_has_no_keys():
    pytest.importorskip("ray")
    from nanoevolve_jax.codegen.deployment import head

    given = {"OPENAI_API_KEY": SECRET, "PATH": "/bin", "HOME": "/home/me", "HF_TOKEN": SECRET}
    found = head.environment(given)
    assert SECRET not in found.values()
    assert found["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]


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
    output, errors = process.communicate(timeout=120)
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


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("anealing", SpecError, "spec is 'anealing'; allowed: a preset"),
        ("nowhere:g1", ArchiveError, "candidate's folder is 'nowhere'; allowed: the folder of a"),
        ("{run}:g9", ArchiveError, "candidate is 'g9'; allowed: an id of"),
    ],
)
def test_a_candidate_that_is_not_there_is_named(config, tmp_path, name, error, message):
    from nanoevolve_jax.codegen.deploy import deployment

    write_folder(tmp_path / "run", family())
    with pytest.raises(error, match=message):
        deployment(name.format(run=tmp_path / "run"), config)


def test_a_candidate_of_a_run_folder_is_sent_as_its_search_trained_it(config, tmp_path):
    from nanoevolve_jax.codegen.deploy import deployment

    write_folder(tmp_path / "run", family())
    found = deployment(f"{tmp_path / 'run'}:g001c01", config)  # a control
    assert found.order.candidate.recipe == {"momentum": 0.8}
    assert found.order.steps == found.order.config.train.steps == 100  # not that of `config`
    assert found.order.seeds == tuple(shared_seeds(config))
    assert found.place == tmp_path / "run"


@pytest.mark.parametrize("address", ["here", "http://127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_that_cannot_be_used_is_one_line(address):
    pytest.importorskip("ray")
    from nanoevolve_jax.codegen.deployment.server import connected

    with (
        pytest.raises(ClusterError, match=f"^address is '{address}'.*; allowed: local.*$"),
        connected(address),
    ):
        pass


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
    assert "trust_ratio: running" in finish(run("trace", job, "--nofollow", cwd=place))
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
