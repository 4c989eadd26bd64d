"""Deployment: folders that need nothing of this machine, and what comes back as a line of a log."""

import base64
import contextlib
import io
import json
import os
import shutil
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from histories import family, write_folder
from jax import export
from ml_collections import ConfigDict
from nanoevolve_jax.configs.base import SETTINGS as FIELDS
from nanoevolve_jax.data import places
from nanoevolve_jax.data.errors import CorpusError
from test_search import SETTINGS, make_config, write_corpus

from nanoevolve_jax import compare, site
from nanoevolve_jax.codegen import trace
from nanoevolve_jax.codegen.deployment import book, folder, intact, paired, reply
from nanoevolve_jax.codegen.deployment.engine import result_of
from nanoevolve_jax.codegen.deployment.folder import Order, make_folder, portable, read_folder
from nanoevolve_jax.codegen.deployment.intact import JOB, FolderError, job_id
from nanoevolve_jax.evidence.comparison import Arm, shared_seeds
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.sealed import FORMAT, seal_of, write_sealed
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.json_files import to_text
from nanoevolve_jax.execution.settings import ConfigError, get_setting, make_baseline
from nanoevolve_jax.execution.threads import visible_cores
from nanoevolve_jax.execution.train import TELEMETRY
from nanoevolve_jax.policy.certified import Certified, Code, digest
from nanoevolve_jax.policy.slots import SCALAR, SLOTS, shape_key
from nanoevolve_jax.policy.spec import ANNEALING, TRUST_RATIO
from nanoevolve_jax.policy.spec_json import SpecError
from nanoevolve_jax.terminal.console import Console

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


def test_a_folder_chooses_no_place_and_no_connection_where_it_is_trained(config, tmp_path):
    place = sent(config, Arm("x", TRUST_RATIO, {}), tmp_path)
    hostile = {"workdir": "/theirs", "engine": "ray", "calibration": "/theirs/calibration.json"}
    hostile |= {"data.cache_dir": "/theirs", "ray.address": "10.0.0.7:6379", "track.wandb": True}
    found = read_folder(place, with_fields(place, hostile)).config
    for path in hostile:
        assert get_setting(found, path) == FIELDS[path].default
    assert (found.threads, found.devices) == (visible_cores(), config.devices)


@pytest.mark.parametrize("text", ["parquet:/etc", "parquet:../text", "parquet:text/..", "x:text"])
def test_a_folder_trains_on_its_own_text_or_on_one_that_has_a_name(config, tmp_path, text):
    place = sent(config, Arm("x", TRUST_RATIO, {}), tmp_path)
    name = with_fields(place, {"data.corpus": text})
    with pytest.raises(ConfigError, match=r"data\.corpus of job\.json must be parquet:text"):
        read_folder(place, name)


def with_fields(place, fields):
    """Sets fields of the config of a folder; its new id."""
    document = json.loads((place / JOB).read_text())
    changed = ConfigDict(document["config"])
    changed.update_from_flattened_dict(fields)
    content = to_text(document | {"config": changed.to_dict()}).encode()
    (place / JOB).write_bytes(content)
    return job_id(content)


def changed(place):
    (place / "nanoevolve_jax" / "model" / "gpt.py").write_text(
        "raise SystemExit('imported before it was checked')\n"
    )


def removed(place):
    (place / "nanoevolve_jax" / "data" / "rows.py").unlink()


def added(place):
    (place / "jax.py").write_text("")  # would be imported instead of the library


def linked(place):
    (place / "nanoevolve_jax" / "data" / "rows.py").unlink()
    (place / "nanoevolve_jax" / "data" / "rows.py").symlink_to("/etc/hostname")


def ordered_otherwise(place):
    document = json.loads((place / intact.JOB).read_text())
    document["seeds"] = [1]
    (place / intact.JOB).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (changed, "nanoevolve_jax/model/gpt.py is not the file that job.json"),
        (removed, "nanoevolve_jax/data/rows.py is missing from the folder"),
        (added, "jax.py is no file of the folder"),
        (linked, "nanoevolve_jax/data/rows.py of a job's folder is a link"),
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


@pytest.mark.parametrize("content", [b"[" * 200_000, b"[1]", b'{"seal": "0123456789abcdef"}'])
def test_a_result_of_another_form_is_no_result(content):
    line = reply.MARK + base64.b64encode(zlib.compress(content)).decode()
    with pytest.raises(EvidenceError, match="damaged"):
        reply.from_log(line + "\n", "nano-1")
    without = {"kind": reply.KIND, "format": FORMAT}
    content = json.dumps(without | {"seal": seal_of(without)}).encode()
    line = reply.MARK + base64.b64encode(zlib.compress(content)).decode()
    with pytest.raises(EvidenceError, match="damaged"):
        reply.from_log(line + "\n", "nano-1")


@pytest.mark.parametrize(
    "changes",
    [
        {"candidate": []},
        {"candidate": None},
        {"candidate": [RUN | {"val_bpb": "x"}]},
        {"candidate": [RUN | {"val_bpb": None}]},
        {"candidate": [{}]},
        {"baseline": [RUN, RUN]},
    ],
)
def test_a_sealed_result_of_another_form_is_refused_wherever_it_is_read(tmp_path, changes):
    line = reply.to_line(RESULT | changes)
    with pytest.raises(EvidenceError, match="damaged"):
        reply.from_log(f"{line}\n", "nano-1")
    entry = book.Entry("nano-1", "runs/a:g1", "local", str(tmp_path), 1.0)
    write_sealed(tmp_path / book.RESULT, reply.KIND, RESULT | changes)
    assert entry.result is None


@pytest.mark.parametrize(
    "changes", [{"steps": None}, {"curve": [[1]]}, {"telemetry": {"shape": [9, 14], "float32": ""}}]
)
def test_a_run_of_another_form_is_refused(changes):
    run = RUN | {"train_loss": 1.0, "failed_step": None, "steps": 1, "curve": [[1, 0.5]]}
    run |= {"telemetry": reply.pack(np.zeros((1, len(TELEMETRY)), np.float32))}
    assert result_of(run).telemetry.shape == (1, len(TELEMETRY))
    with pytest.raises(EvidenceError, match="the result in the job's log is damaged"):
        result_of(run | changes)


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


def test_whoever_follows_a_job_hears_at_once_whether_it_waits_or_runs(monkeypatch, capsys):
    entry = book.Entry("nano-1", "mine", "local", "", 1.0)
    seen = iter(["pending", "pending", "running", "running", "failed"])
    logs = iter(["", "", "one\n", "one\ntwo\n", "one\ntwo\nthree"])

    def poll(job, address):
        return trace.cluster.State(job, next(seen), "no reason")

    monkeypatch.setattr(trace.cluster, "poll", poll)
    monkeypatch.setattr(trace.cluster, "log", lambda job, address: next(logs))
    monkeypatch.setattr(trace, "_TICK", 0.0)
    assert trace.trace(entry, follow=True) == trace.FAILED
    states = [f"nano-1, mine: {state}" for state in ("pending", "running", "failed")]
    told = [states[0], states[1], "one", "two", "three", states[2], "no reason"]
    assert capsys.readouterr().out.splitlines() == told


def test_the_environment_of_a_local_ray_has_no_keys():
    pytest.importorskip("ray")
    from nanoevolve_jax.codegen.deployment import head

    given = {"OPENAI_API_KEY": SECRET, "PATH": "/bin", "HOME": "/home/me", "HF_TOKEN": SECRET}
    found = head.environment(given)
    assert SECRET not in found.values()
    assert found["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]


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


def test_a_run_folder_chooses_neither_the_text_that_is_uploaded_nor_the_machine(config, tmp_path):
    from nanoevolve_jax.codegen.deploy import deployment

    run = write_folder(tmp_path / "run", family())
    (tmp_path / "private").mkdir()
    written = json.loads((run / "config.json").read_text())
    hostile = {"data.corpus": f"parquet:{tmp_path / 'private'}", "codegen.isolation": "available"}
    hostile |= {"data.cache_dir": str(tmp_path / "theirs"), "ray.gpus": 8, "threads": 999}
    changed = ConfigDict(written["config"])
    changed.update_from_flattened_dict(hostile)
    written |= {"config": changed.to_dict(), "fingerprints": {"corpus": "0123456789abcdef"}}
    (run / "config.json").write_text(json.dumps(written))
    named = config.copy_and_resolve_references()
    config.data.corpus = "stdlib"
    with pytest.raises(ConfigError, match=r"config\.data\.corpus must be parquet:DIR"):
        deployment(f"{run}:g001c01", config)
    for here, corpus in ((named, named.data.corpus), (config, f"parquet:{tmp_path / 'mine'}")):
        (tmp_path / "mine").mkdir(exist_ok=True)
        places.remember(config.data.cache_dir, "0123456789abcdef", tmp_path / "mine")
        found = deployment(f"{run}:g001c01", here)
        assert found.corpus == corpus
        assert found.order.config.ray.gpus == -1
        assert found.order.config.threads == visible_cores()
    assert not (tmp_path / "theirs").exists()
