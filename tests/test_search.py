"""The search command from end to end, on a model and a text so small that it takes seconds."""

import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanoevolve_jax import search as command
from nanoevolve_jax import site
from nanoevolve_jax.configs import screen
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.engine import LocalEngine
from nanoevolve_jax.execution.measurements import PROGRAMS
from nanoevolve_jax.execution.population import make_programs
from nanoevolve_jax.execution.settings import ConfigError, validate
from nanoevolve_jax.policy.spec import NANOCHAT, TRUST_RATIO

STEPS, BATCH, LENGTH = 6, 4, 16
SENSORS = {
    *("loss_ema", "loss_improvement_ema", "grad_norm_ema", "update_ratio_ema"),
    *("grad_alignment_ema", "step_fraction"),
}
ACTUATORS = {
    *("update_multiplier", "trust_ratio_mix", "clip_threshold", "second_moment_beta"),
    "orthogonal_mix",
}
CONTRACT = {
    *("id", "parent_id", "generation", "operator", "change", "spec", "status", "failure"),
    *("stage", "seeds", "val_bpb", "train_loss", "score", "cost", "pareto"),
}
WORDS = ["the", "a", "gate", "sees", "steps", "of", "loss", "and", "moves", "one", "pole", "grows"]


def write_corpus(folder):
    """Writes two parquet shards of sentences, of which the second is for validation."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("shard_00000", 120), ("shard_00001", 30)):
        texts = [" ".join(rng.choice(WORDS, 30)) + "." for _ in range(count)]
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


SETTINGS = {
    "devices": 2,
    "data.vocab_size": 300,
    "data.validation_rows": 8,
    "model.n_layer": 1,
    "model.n_embd": 24,
    "model.sequence_len": LENGTH,
    "train.steps": STEPS,
    "train.batch_size": BATCH,
    "train.segment_steps": 3,
    "train.evaluations": 2,
    "search.generations": 2,
    "search.population": 3,
    "search.survivors": 2,
    "search.control_every": 5,
    "data.folds": 3,
    "recipe.momentum": 0.97,
    "recipe.second_moment_beta": 0.9,
}


@pytest.fixture(scope="module")
def settings(corpus):
    """Returns the fields of the tiny config by path."""
    places = {"data.corpus": f"parquet:{corpus}", "data.cache_dir": str(corpus.parent / "cache")}
    return SETTINGS | places


def make_config(settings, folder, **changes):
    config = screen.get_config()
    config.update_from_flattened_dict(settings | {"workdir": str(folder)})
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    validate(config)
    return config


def run(settings, folder, **changes):
    """Runs a search in this process and returns its output."""
    patch = pytest.MonkeyPatch()
    output = io.StringIO()
    with patch.context() as p, contextlib.redirect_stdout(output):
        p.setattr(site, "use_devices", lambda config: config.devices)  # JAX is already initialised
        command.search(make_config(settings, folder, **changes))
    return output.getvalue()


def read(folder):
    """Returns the archive as plain JSON, and the summary."""
    lines = (folder / "archive.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """Returns (folder, output) of one uninterrupted search of two generations, newly compiled."""
    make_programs.cache_clear()
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run(settings, folder)


@pytest.mark.parametrize(
    "streams",
    [{0: "closed", 1: "closed", 2: "closed"}, {1: "full", 2: "full"}],
    ids=str,
)
def test_a_finished_search_ends_well_whatever_its_streams_are(
    shell, settings, finished, tmp_path, streams
):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "report.html").unlink()
    flags = [f"--config.{path}={value}" for path, value in settings.items()]
    ended = shell("search", *flags, f"--config.workdir={folder}", folder=tmp_path, streams=streams)
    assert (ended.code, ended.errors) == (0, "")
    assert (folder / "report.html").exists()


# Results of a search ----------------------------------------------------------------------


def dominates(a, b):
    pairs = [(a["val_bpb"][0], b["val_bpb"][0]), (a["cost"], b["cost"])]
    pairs.append((a["instability"][0], b["instability"][0]))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def front(records):
    alive = [r for r in records if r["failure"] is None]
    return [r["id"] for r in alive if not any(dominates(o, r) for o in alive)]


def assert_summary_follows(records, summary):
    """Recomputes every number of a summary from the archive alone."""
    alive = [r for r in records if r["failure"] is None]
    best = max((r for r in alive if r["recipe"] is None), key=lambda r: r["score"])
    baseline = records[0]["val_bpb"][0]
    wall, compiled = summary.pop("wall_seconds"), summary.pop("xla_compilations")
    assert wall >= 0
    assert set(compiled) == {*PROGRAMS, "cache_hits"}
    assert summary == {
        "candidates": len({json.dumps([r["spec"], r["recipe"]]) for r in records}),
        "evaluated": len(alive),
        "dead": len(records) - len(alive),
        "generations": max(r["generation"] for r in records),
        "baseline_val_bpb": baseline,
        "best": {
            "stage": "screen",
            "id": best["id"],
            "val_bpb": best["val_bpb"][0],
            "delta_bpb": best["val_bpb"][0] - baseline,
        },
        "compared_with": "an untuned baseline",
        "pareto": front(records),
        "winners": [],
        "training_runs": len(records),
        "tokens_trained": BATCH * LENGTH * sum(r["steps"][0] for r in records),
    }


def test_the_summary_follows_from_the_archive(finished):
    folder, _ = finished
    assert_summary_follows(*read(folder))


def test_records_hold_the_contract_and_tell_a_consistent_story(finished):
    records, _ = read(finished[0])
    assert [r["generation"] for r in records] == [0] * 3 + [1] * 3 + [2] * 3
    assert records[0]["id"] == "nanochat"
    assert [r["status"] for r in records].count("baseline") == 1
    known = {}
    for record in records:
        assert set(record) >= CONTRACT
        assert record["status"] in ("baseline", "survivor", "rejected")
        assert record["stage"] == "screen"
        assert record["seeds"] == [0]
        assert record["steps"] == [STEPS]
        if record["id"] != "nanochat":
            parent = known[record["parent_id"]]
            assert (record["spec"], record["recipe"]) != (parent["spec"], parent["recipe"])
            assert parent["status"] in ("baseline", "survivor")
        assert record["id"] not in known
        known[record["id"]] = record
    for generation in range(3):
        seen = [r for r in records if r["generation"] <= generation]
        for record in seen:
            if record["generation"] == generation:
                assert record["pareto"] == (record["id"] in front(seen))


def test_scores_follow_from_the_archive(finished):
    records, _ = read(finished[0])
    base_bpb, base_cost = records[0]["val_bpb"][0], records[0]["cost"]
    for r in records:
        expected = base_bpb - r["val_bpb"][0]
        expected -= 0.05 * max(0.0, math.log(r["cost"] / base_cost))
        assert r["score"] == pytest.approx(expected, abs=1e-12)


def test_telemetry_has_every_step_of_every_candidate(finished):
    folder, _ = finished
    records, _ = read(folder)
    files = {path.stem for path in (folder / "telemetry").glob("*.npz")}
    assert files == {r["id"] for r in records}
    for record in records:
        with np.load(folder / "telemetry" / f"{record['id']}.npz") as data:
            columns = dict(data)
        per_step = SENSORS | ACTUATORS | {"gate", "loss", "grad_norm"}
        assert set(columns) == per_step | {"validation_step", "validation_bpb"}
        for name in per_step:
            assert columns[name].shape == (STEPS,)
            assert np.isfinite(columns[name]).all()
        np.testing.assert_allclose(columns["step_fraction"], np.arange(STEPS) / STEPS, rtol=1e-6)
        assert columns["validation_step"].tolist() == [0, 3, 6]
        assert columns["validation_bpb"][-1] == record["val_bpb"][0]
        assert record["train_loss"][0] == pytest.approx(columns["loss"][-1])
        assert ((columns["gate"] >= 0) & (columns["gate"] <= 1)).all()
        assert (columns["grad_norm"] > 0).all()


def test_validation_falls_while_the_baseline_trains(finished):
    folder, output = finished
    with np.load(folder / "telemetry" / "nanochat.npz") as data:
        curve = data["validation_bpb"]
    assert curve[0] > curve[1] > curve[2]
    assert f"{curve[0]:.3f} at step 0" in output
    assert f"{curve[2]:.3f} at step 6" in output


def test_the_output_names_the_best_candidates_and_where_everything_lies(finished):
    folder, output = finished
    _, summary = read(folder)
    assert summary["best"]["id"] in output
    assert f"{summary['best']['val_bpb']:.4f}" in output
    for name in ("report.html", "summary.json", "archive.jsonl", "telemetry", "config.json"):
        assert (folder / name).exists()
        assert str(folder / name) in output


# Repeated and resumed searches -------------------------------------------------------------


def archive_bytes(folder):
    return (folder / "archive.jsonl").read_bytes()


def test_a_seed_of_its_own_gives_another_archive(settings, finished, tmp_path):
    run(settings, tmp_path / "other", seed=1, search__generations=1)
    other, _ = read(tmp_path / "other")
    records, _ = read(finished[0])
    assert other[0]["val_bpb"] != records[0]["val_bpb"]
    assert [r["spec"] for r in other[3:6]] != [r["spec"] for r in records[3:6]]


def test_a_search_that_goes_on_equals_one_that_never_stopped(settings, finished, tmp_path):
    folder = tmp_path / "run"
    run(settings, folder, search__generations=1)
    half = archive_bytes(folder)
    assert archive_bytes(finished[0]).startswith(half)
    output = run(settings, folder, search__generations=2)
    assert "resuming after generation 1: 6 candidates known" in output
    assert archive_bytes(folder) == archive_bytes(finished[0])
    assert_summary_follows(*read(folder))


def test_a_finished_search_run_again_trains_nothing_and_changes_nothing(
    settings, finished, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "archive.jsonl").write_bytes(archive_bytes(finished[0]))
    (folder / "telemetry").mkdir()
    for path in (finished[0] / "telemetry").iterdir():
        (folder / "telemetry" / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_bytes((finished[0] / "config.json").read_bytes())

    def refuse(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(LocalEngine, "run", refuse)
    run(settings, folder)
    assert archive_bytes(folder) == archive_bytes(finished[0])
    assert_summary_follows(*read(folder))


@pytest.mark.parametrize("where", ["inside a line", "between lines"])
def test_an_archive_cut_in_its_last_generation_resumes_to_the_same_bytes(
    settings, finished, tmp_path, where
):
    whole = archive_bytes(finished[0])
    lines = whole.splitlines(keepends=True)
    cut = b"".join(lines[:7]) + (lines[7][:100] if where == "inside a line" else b"")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((finished[0] / "config.json").read_bytes())
    (folder / "archive.jsonl").write_bytes(cut)
    (folder / "telemetry").mkdir()
    (folder / "telemetry" / "nanochat.npz").write_bytes(
        (finished[0] / "telemetry" / "nanochat.npz").read_bytes()
    )
    run(settings, folder)
    assert archive_bytes(folder) == whole


def test_an_interrupted_generation_leaves_what_was_complete(
    settings, finished, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    real = LocalEngine.run

    def interrupted(self, jobs, on_progress=lambda progress: None):
        for number, result in enumerate(real(self, jobs, on_progress)):
            if jobs[0].candidate.spec != NANOCHAT and number == 2:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(settings, folder)
    assert len(archive_bytes(folder).splitlines()) == 3
    run(settings, folder)
    assert archive_bytes(folder) == archive_bytes(finished[0])


# Failures ---------------------------------------------------------------------------------


def poison(monkeypatch, target):
    """Makes every run of one policy diverge."""
    real = LocalEngine.run

    def run_poisoned(self, jobs, on_progress=lambda progress: None):
        def dose(job):
            if job.candidate.spec != target:
                return job
            recipe = job.candidate.recipe._replace(embedding_lr=math.nan)
            return job._replace(candidate=job.candidate._replace(recipe=recipe))

        return real(self, [dose(job) for job in jobs], on_progress)

    monkeypatch.setattr(LocalEngine, "run", run_poisoned)


def test_a_candidate_that_diverges_is_dead_and_the_search_goes_on(
    settings, finished, tmp_path, monkeypatch
):
    poison(monkeypatch, TRUST_RATIO)
    folder = tmp_path / "run"
    output = run(settings, folder)
    records, summary = read(folder)
    assert_summary_follows(records, summary)
    healthy, _ = read(finished[0])
    dead = records[1]
    assert dead["id"] == "trust_ratio"
    assert dead["status"] == "dead"
    # The first update diverges, so step 1 is the first whose loss shows it.
    assert dead["failure"] == {"reason": "non-finite loss", "step": 1}
    assert (dead["val_bpb"], dead["train_loss"], dead["score"]) == ([None], [None], None)
    assert dead["steps"] == [1]
    assert not dead["pareto"]
    # Candidates in the same batch and generation are unaffected.
    assert [r["val_bpb"] for r in (records[0], records[2])] == [
        r["val_bpb"] for r in (healthy[0], healthy[2])
    ]
    assert len(records) == 9
    assert all(r["failure"] is None and r["parent_id"] != "trust_ratio" for r in records[3:])
    assert summary["dead"] == 1
    assert "1 dead" in output
    with np.load(folder / "telemetry" / "trust_ratio.npz") as data:
        assert data["loss"].shape == (1,)
        assert np.isfinite(data["loss"]).all()


def test_a_recipe_that_kills_the_baseline_is_an_error_and_stays_one(
    settings, tmp_path, monkeypatch
):
    poison(monkeypatch, NANOCHAT)
    for _ in range(2):
        with pytest.raises(ConfigError, match="must train the baseline, got non-finite"):
            run(settings, tmp_path / "run")
    assert json.loads(archive_bytes(tmp_path / "run").splitlines()[0])["status"] == "dead"


def test_a_workdir_of_other_settings_is_refused_and_kept(settings, tmp_path):
    folder = tmp_path / "run"
    run(settings, folder, search__generations=1)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(ArchiveError, match=r"train\.steps is 5 and was 6"):
        run(settings, folder, train__steps=5)
    other = write_corpus(tmp_path / "corpus")
    table = pq.read_table(other / "shard_00000.parquet")
    pq.write_table(table.slice(1), other / "shard_00000.parquet")
    with pytest.raises(ArchiveError, match="a run with the same corpus"):
        run(settings, folder, data__corpus=f"parquet:{other}")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


# The command line --------------------------------------------------------------------------


def flags_of(settings, workdir):
    return [f"--config.{k}={v}" for k, v in (settings | {"workdir": workdir}).items()]


def start(repository, *arguments, command="search", **variables):
    """Starts a command without the environment variables whose value is None."""
    variables = os.environ | {"PYTHONPATH": str(repository), "COLUMNS": "40"} | variables
    return subprocess.Popen(
        [sys.executable, "-m", f"nanoevolve_jax.{command}", *arguments],
        cwd=repository,
        env={name: value for name, value in variables.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_one_line(process, parts):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1, errors
    for part in parts:
        assert part in errors


def test_cudnn_is_refused_where_there_is_no_gpu():
    config = screen.get_config("d4")
    config.devices = 2
    with pytest.raises(ConfigError, match="attention must be xla on a cpu, got 'cudnn'"):
        site.use_devices(config)


def test_six_generations_in_another_process_begin_like_two_and_compile_each_program_once(
    repository, settings, finished, tmp_path
):
    folder, home = tmp_path / "run", tmp_path / "home"
    afresh = {"JAX_COMPILATION_CACHE_DIR": None, "XDG_CACHE_HOME": str(home)}
    process = start(repository, *flags_of(settings | {"search.generations": 6}, folder), **afresh)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors == ""
    assert "generation 6: best" in output
    assert archive_bytes(folder).startswith(archive_bytes(finished[0]))
    records, six = read(folder)
    assert len(records) == 3 + 6 * 3
    assert six["xla_compilations"] == {name: 1 for name in PROGRAMS} | {"cache_hits": 0}
    assert_summary_follows(records, six)

    again = tmp_path / "again"
    process = start(repository, *flags_of(settings, again), **afresh)
    output, errors = process.communicate(timeout=300)
    assert errors == ""
    assert archive_bytes(again) == archive_bytes(finished[0])
    compiled = read(again)[1]["xla_compilations"]
    assert compiled.pop("cache_hits") >= len(PROGRAMS)
    assert set(compiled.values()) == {0}
    kept = home / "nanoevolve" / "xla"
    assert kept.stat().st_mode & 0o777 == 0o700 and any(kept.iterdir())
