"""Deployment folders: their content, the training of a job, and results read from a log."""

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
from msgspec.structs import replace
from test_search import SETTINGS, make_config, write_corpus

from nanoevolve_jax import compare, site
from nanoevolve_jax.codegen import trace
from nanoevolve_jax.codegen.deploy import deployment
from nanoevolve_jax.codegen.deployment import folder, registry, remote
from nanoevolve_jax.codegen.deployment.folder import Submission, make_folder, portable, read_folder
from nanoevolve_jax.configs.base import SETTINGS as FIELDS
from nanoevolve_jax.data import CorpusError, files
from nanoevolve_jax.evidence.comparison import Arm, Bench, shared_seeds
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.sealed import FORMAT, seal_of, write_sealed
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution import ray_server
from nanoevolve_jax.execution.intact import JOB, FolderError, job_id
from nanoevolve_jax.execution.json_files import to_text
from nanoevolve_jax.execution.machine import visible_cores
from nanoevolve_jax.execution.results import RunResult, result_from_json, result_to_json
from nanoevolve_jax.execution.settings import ConfigError, get_setting, make_baseline
from nanoevolve_jax.execution.train import TELEMETRY
from nanoevolve_jax.policy.certified import Certified, Code, digest
from nanoevolve_jax.policy.slots import SCALAR, SLOTS, shape_key
from nanoevolve_jax.policy.spec import ANNEALING, TRUST_RATIO
from nanoevolve_jax.policy.spec_json import SpecError, spec_to_json
from nanoevolve_jax.terminal.console import Console

SECRET = "sk-not-to-be-seen-anywhere"


def certified_gate(expression):
    """Returns certified code for a gate that evaluates one expression of `step_fraction`."""
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
    """Returns a config with the user's own text."""
    places = {"data.corpus": f"parquet:{workshop / 'corpus'}"}
    places |= {"data.cache_dir": str(workshop / "cache")}
    return make_config(SETTINGS | places, workshop / "run", compare__seeds=2)


def submission(config, arm, baseline=None, text=None):
    baseline = baseline or Arm("baseline", make_baseline(config), {})
    bench, steps, seeds = Bench(config, None), config.train.steps, shared_seeds(config)
    runs = [[bench.job(one, seed, SCREEN_FOLD, steps) for seed in seeds] for one in (arm, baseline)]
    arms = dict(zip(("candidate", "baseline"), runs, strict=True))
    return Submission(portable(config), arms, text)


def sent(config, arm, place, **options):
    """Returns the folder that is sent for an arm."""
    return make_folder(submission(config, arm, **options), place, config.data.corpus)


@pytest.fixture
def trust_ratio(config, tmp_path):
    """Returns a folder whose text is the user's own."""
    return sent(config, Arm("trust_ratio", TRUST_RATIO, {}), tmp_path)


def trained(place, monkeypatch):
    """Returns the result of a folder, trained in this process as on a cluster."""
    received = read_folder(place, place.name)
    monkeypatch.chdir(place)
    monkeypatch.setattr(site, "use_devices", lambda config: config.devices)  # JAX has started
    received.config.data.cache_dir = str(place.parent / "cache")
    return remote.train(received, Console(file=io.StringIO()))


# The folder --------------------------------------------------------------------------------


def test_a_folder_holds_the_jobs_that_it_was_made_of(config, tmp_path):
    arm = Arm("control", ANNEALING, {"matrix_lr": 0.5}, 2.0)
    made = submission(config, arm, text={"corpus": "a", "tokenizer": "b"})
    gate = np.linspace(0, 1, config.train.steps, dtype=np.float32)
    made.arms["candidate"][0] = made.arms["candidate"][0]._replace(gate=gate)
    place = make_folder(made, tmp_path, config.data.corpus)
    read = read_folder(place, place.name)
    assert read.config.to_dict() == made.config.to_dict() and read.text == made.text
    keys = [
        {arm: [job.key for job in jobs] for arm, jobs in one.arms.items()} for one in (made, read)
    ]
    assert keys[0] == keys[1]


def test_the_bytes_of_a_folder_depend_on_neither_machine_nor_place(workshop, config, tmp_path):
    arm = Arm("one", TRUST_RATIO, {})
    moved = config.copy_and_resolve_references()
    shutil.copytree(workshop / "corpus", tmp_path / "elsewhere")
    moved.data.corpus, moved.data.cache_dir = f"parquet:{tmp_path / 'elsewhere'}", "other"
    moved.workdir, moved.track.project, moved.ray.address = "mine", "p", "10.0.0.7:6379"
    first, second = sent(config, arm, tmp_path / "a"), sent(moved, arm, tmp_path / "b")
    assert first.name == second.name
    assert first == sent(config, arm._replace(id="two"), tmp_path / "a")  # ids are left out
    moved.train.steps += 1
    assert sent(moved, arm, tmp_path / "b").name != first.name


def test_a_folder_holds_nothing_of_the_environment_and_no_path_of_this_machine(
    config, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    place = sent(config, Arm("x", TRUST_RATIO, {}), tmp_path)
    root = Path(folder.__file__).resolve().parents[3]
    files = [path for path in place.rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content
        if path.suffix != ".py":
            for local in (Path.home(), root, tmp_path, config.data.cache_dir):
                assert str(local).encode() not in content
    assert {path.suffix for path in files} == {".json", ".parquet", ".py"}


def with_fields(place, fields):
    """Sets fields of the config of a folder and returns the new id of the job."""
    document = json.loads((place / JOB).read_text())
    changed = ConfigDict(document["config"])
    changed.update_from_flattened_dict(fields)
    return rewritten(place, document | {"config": changed.to_dict()})


def rewritten(place, document):
    content = to_text(document).encode()
    (place / JOB).write_bytes(content)
    return job_id(content)


def test_a_folder_chooses_no_place_and_no_connection_where_it_is_trained(config, trust_ratio):
    hostile = {"workdir": "/theirs", "engine": "ray", "calibration": "/theirs/calibration.json"}
    hostile |= {"data.cache_dir": "/theirs", "ray.address": "10.0.0.7:6379", "track.wandb": True}
    received = read_folder(trust_ratio, with_fields(trust_ratio, hostile)).config
    for path in hostile:
        assert get_setting(received, path) == FIELDS[path].default
    assert (received.threads, received.devices) == (visible_cores(), config.devices)


@pytest.mark.parametrize("text", ["parquet:/etc", "parquet:../text", "parquet:text/..", "x:text"])
def test_a_folder_trains_on_its_own_text_or_on_a_named_corpus(trust_ratio, text):
    with pytest.raises(ConfigError, match=r"data\.corpus of job\.json must be parquet:text"):
        read_folder(trust_ratio, with_fields(trust_ratio, {"data.corpus": text}))


@pytest.mark.parametrize(
    "changes",
    [{"arms": {}}, {"arms": {"candidate": []}}, {"arms": {"candidate": [{}]}}, {"config": 1}],
)
def test_a_folder_whose_document_has_another_form_is_refused(trust_ratio, changes):
    document = json.loads((trust_ratio / JOB).read_text())
    with pytest.raises(FolderError, match=r"job\.json of job .* cannot be used"):
        read_folder(trust_ratio, rewritten(trust_ratio, document | changes))


def changed(place):
    (place / "nanoevolve_jax" / "model" / "gpt.py").write_text(
        "raise SystemExit('imported before it was checked')\n"
    )


def removed(place):
    (place / "nanoevolve_jax" / "data" / "rows.py").unlink()


def added(place):
    (place / "jax.py").write_text("")  # would be imported instead of the library


def linked(place):
    removed(place)
    (place / "nanoevolve_jax" / "data" / "rows.py").symlink_to("/etc/hostname")


def exchanged(place):
    (place / JOB).write_text((place / JOB).read_text().replace('"seed": ', '"seed": 1'))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (changed, "nanoevolve_jax/model/gpt.py must be as job nano-.* was sent"),
        (removed, "nanoevolve_jax/data/rows.py must be as job nano-.* was sent"),
        (added, "jax.py must not be in the folder"),
        (linked, "nanoevolve_jax/data/rows.py of a job's folder must be a file"),
        (exchanged, "job.json must be the one that job nano-.* was sent with"),
    ],
)
def test_a_folder_that_was_touched_is_refused(trust_ratio, tamper, message):
    read_folder(trust_ratio, trust_ratio.name)
    tamper(trust_ratio)
    with pytest.raises(FolderError, match=message):
        read_folder(trust_ratio, trust_ratio.name)


def test_exchanged_code_is_refused_even_if_all_hashes_are_computed_anew(config, tmp_path):
    code = Code((certified_gate("jnp.tanh(x)"),))
    place = sent(config, Arm("coded", ANNEALING, {}, code=code), tmp_path)
    program = next(place.glob("code/*/scalar.stablehlo"))
    program.write_bytes(certified_gate("x * x").programs["scalar"])
    document = json.loads((place / JOB).read_text())
    document["files"] = {name: digest((place / name).read_bytes()) for name in document["files"]}
    with pytest.raises(FolderError, match=r"scalar.*has another hash"):
        read_folder(place, rewritten(place, document))


def test_text_that_is_too_large_to_travel_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "TEXT_BYTES", 100)
    with pytest.raises(CorpusError, match="must have at most 100 bytes to travel with a job"):
        sent(config, Arm("x", TRUST_RATIO, {}), tmp_path)


# Training ---------------------------------------------------------------------------------


def test_a_folder_gives_the_bits_of_a_comparison_on_this_machine(
    config, trust_ratio, monkeypatch, workshop
):
    result = trained(trust_ratio, monkeypatch)
    (workshop / "spec.json").write_text(json.dumps({"spec": spec_to_json(TRUST_RATIO)}))
    monkeypatch.chdir(workshop)
    with contextlib.redirect_stdout(io.StringIO()):
        compare.compare(config, ["nanochat", "spec.json"])
    local = json.loads((workshop / "run" / "compare" / "comparison.json").read_text())
    arms = [[run["val_bpb"] for run in result[arm]] for arm in ("baseline", "candidate")]
    assert arms == local["bpb"]
    assert result["versions"] == local["versions"] and result["device"] == local["device"]
    assert result["text"] == {name: local["fingerprints"][name] for name in ("corpus", "tokenizer")}


def test_code_travels_and_changes_what_is_trained(config, tmp_path, monkeypatch):
    code = Code((certified_gate("jnp.where(x < 0.5, 0.0, 1.0)"),))
    coded, plain = Arm("coded", ANNEALING, {}, code=code), Arm("plain", ANNEALING, {})
    place = sent(config, coded, tmp_path, baseline=plain)
    assert read_folder(place, place.name).arms["candidate"][0].candidate.code == code
    result = trained(place, monkeypatch)
    for run, other in zip(result["candidate"], result["baseline"], strict=True):
        assert run["val_bpb"] != other["val_bpb"] and run["failure"] is None


def test_other_text_than_the_searchs_is_refused(config, tmp_path, monkeypatch):
    text = {"corpus": "0", "tokenizer": "0"}
    place = sent(config, Arm("x", TRUST_RATIO, {}), tmp_path, text=text)
    with pytest.raises(FolderError, match="fingerprints of the text must be"):
        trained(place, monkeypatch)


# The result --------------------------------------------------------------------------------

RUN = {"val_bpb": 0.1 + 0.2, "failure": None}
RESULT = {"job": "nano-1", "candidate": [RUN], "baseline": [RUN | {"val_bpb": 0.5}]}


def test_a_result_comes_back_through_a_log_as_it_was():
    log = f"noise\n{registry.to_line(RESULT)}\nmore noise\n"
    result = registry.from_log(log, "nano-1")
    assert {name: result[name] for name in RESULT} == RESULT
    assert registry.from_log("noise\n", "nano-1") is None
    assert registry.from_log(registry.to_line(RESULT), "nano-1") is None  # truncated
    with pytest.raises(EvidenceError, match="has the result of job nano-1"):
        registry.from_log(log, "nano-2")


LINE = registry.to_line(RESULT)


def packed(content):
    return registry.MARK + base64.b64encode(zlib.compress(content)).decode()


def sealed(document):
    return packed(json.dumps(document | {"seal": seal_of(document)}).encode())


@pytest.mark.parametrize(
    "line",
    [
        *(
            registry.to_line(RESULT)[:cut] + registry.to_line(RESULT)[cut + 4 :]
            for cut in (40, 100)
        ),
        *(packed(content) for content in (b"[" * 200_000, b"[1]", b'{"seal": "0123456789abcdef"}')),
        sealed({"kind": registry.KIND, "format": FORMAT}),
        sealed({"kind": "card", "format": FORMAT} | RESULT),
    ],
)
def test_a_result_that_is_cut_or_of_another_form_is_refused(line):
    with pytest.raises(EvidenceError, match="damaged"):
        registry.from_log(line + "\n", "nano-1")


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
    with pytest.raises(EvidenceError, match="damaged"):
        registry.from_log(f"{registry.to_line(RESULT | changes)}\n", "nano-1")
    entry = registry.Entry("nano-1", "runs/a:g1", "local", str(tmp_path), 1.0)
    write_sealed(tmp_path / registry.RESULT, registry.KIND, RESULT | changes)
    assert entry.result is None


def test_the_result_of_a_run_survives_json_and_another_form_is_refused():
    telemetry = np.random.default_rng(0).normal(size=(3, len(TELEMETRY))).astype(np.float32)
    curve = np.array([[0, 8.0], [3, np.nan]])
    result = RunResult(float("nan"), 1.0, "non-finite loss", 3, 3, telemetry, curve)
    document = json.loads(json.dumps(result_to_json(result), allow_nan=False))
    again = result_from_json(document)
    for name, value in result._asdict().items():
        np.testing.assert_array_equal(getattr(again, name), value)
    packed = {"shape": [9, 14], "float32": ""}
    for changes in ({"steps": None}, {"curve": [[1]]}, {"telemetry": packed}):
        with pytest.raises(ValueError, match=r"must|cannot"):
            result_from_json(document | changes)


def test_a_result_as_a_phrase():
    assert registry.summary(RESULT) == "gain +0.2000 bpb, better on 1 of 1 seeds"
    dead = RESULT | {"candidate": [{"val_bpb": None, "failure": "non-finite loss"}]}
    assert registry.summary(dead) == "failed on 1 of 1 seeds: non-finite loss"


def test_the_registry_keeps_entries_and_results(tmp_path):
    entry = registry.Entry("nano-1", "runs/a:g1", "local", str(tmp_path / "a"), 1.0)
    registry.add(tmp_path, entry)
    registry.add(tmp_path, replace(entry, job="nano-0", sent=2.0))
    with pytest.raises(ValueError, match="job must be an id"):
        registry.add(tmp_path, replace(entry, job="../nano-0"))
    (tmp_path / registry.FOLDER / "torn.json").write_text("{")
    assert [one.job for one in registry.entries(tmp_path)] == ["nano-1", "nano-0"]
    assert registry.find(tmp_path, "nano-1") == entry and entry.result is None
    path = entry.keep(registry.from_log(registry.to_line(RESULT) + "\n", "nano-1"))
    assert entry.result["candidate"] == [RUN]
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert entry.result is None


def test_trace_prints_each_state_and_each_line_once(monkeypatch, capsys):
    entry = registry.Entry("nano-1", "mine", "local", "", 1.0)
    states = iter(["pending", "pending", "running", "running", "failed"])
    logs = iter(["", "", "one\n", "one\ntwo\n", "one\ntwo\nthree"])
    poll = lambda job, address: trace.jobs.State(job, next(states), "no reason")  # noqa: E731
    monkeypatch.setattr(trace.jobs, "poll", poll)
    monkeypatch.setattr(trace.jobs, "log", lambda job, address: next(logs))
    monkeypatch.setattr(trace, "_TICK", 0.0)
    assert trace.trace(entry, follow=True) == trace.FAILED
    pending, running, failed = (f"nano-1, mine: {s}" for s in ("pending", "running", "failed"))
    lines = [pending, running, "one", "two", "three", failed, "no reason"]
    assert capsys.readouterr().out.splitlines() == lines


def test_the_environment_of_a_local_ray_has_no_keys():
    given = {"OPENAI_API_KEY": SECRET, "PATH": "/bin", "HOME": "/home/me", "HF_TOKEN": SECRET}
    kept = ray_server.environment(given)
    assert SECRET not in kept.values()
    assert kept["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]


# Choice of the candidate --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error", "value"),
    [
        ("anealing", SpecError, "anealing"),
        ("nowhere:g1", ArchiveError, "nowhere"),
        ("{run}:g9", ArchiveError, "g9"),
    ],
)
def test_a_candidate_that_does_not_exist_is_named(config, tmp_path, name, error, value):
    write_folder(tmp_path / "run", family())
    with pytest.raises(error, match=repr(value)):
        deployment(name.format(run=tmp_path / "run"), config)


def test_a_candidate_of_a_run_folder_is_sent_as_its_search_trained_it(config, tmp_path):
    write_folder(tmp_path / "run", family())
    found = deployment(f"{tmp_path / 'run'}:g001c01", config)  # a control
    jobs = found.submission.arms["candidate"]
    assert {job.steps for job in jobs} == {100}  # not the number in `config`
    assert [job.seed for job in jobs] == shared_seeds(config)
    assert found.place == tmp_path / "run"


def test_a_run_folder_chooses_neither_the_text_that_is_sent_nor_the_machine(config, tmp_path):
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
        files.remember_corpus(config.data.cache_dir, "0123456789abcdef", tmp_path / "mine")
        found = deployment(f"{run}:g001c01", here)
        assert found.corpus == corpus
        assert found.submission.config.ray.gpus == -1
        assert found.submission.config.threads == visible_cores()
    assert not (tmp_path / "theirs").exists()
