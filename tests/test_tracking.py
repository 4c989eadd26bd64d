"""Trackers receive each result of a run folder once, and their failures never end a search."""

import errno
import itertools
import json
import math
import shutil
import sqlite3

import numpy as np
import pytest
from events import read_events, runs_of
from records import make_dead, make_record
from tensorboardX import record_writer
from test_resume import OF_THE_PROCESS
from test_search import BATCH, LENGTH, SETTINGS, make_config, run, write_corpus

from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.evolution import archive, tournament
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.execution.train import TELEMETRY
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.tracking import log as module
from nanoevolve_jax.tracking import points
from nanoevolve_jax.tracking.fanout import Trackers
from nanoevolve_jax.tracking.log import Log, opened_log, require_installed
from nanoevolve_jax.tracking.tensorboard import TensorBoard
from nanoevolve_jax.tracking.tracker import Point

# Points -----------------------------------------------------------------------------------


def make_search():
    """Returns a baseline, a better policy, a failed one, a control, and a worse policy."""
    return [
        make_record(bpb=2.5),
        make_record("g001c00", bpb=2.4, score=0.1, generation=1, cost=2e6),
        make_dead("g001c01", generation=1),
        make_record("g002c00", bpb=2.0, score=0.5, generation=2, recipe={"matrix_lr": 0.1}),
        make_record("g002c01", bpb=2.45, score=0.05, generation=2),
    ]


def test_a_searchs_curves_follow_its_records():
    told = points.search_points(make_search(), batch_tokens=10.0)
    assert [point.step for point in told] == [1, 2, 3, 4, 5]
    assert [p.values["best/val_bpb"] for p in told] == [2.5, 2.4, 2.4, 2.4, 2.4]
    assert [p.values["total/dead"] for p in told] == [0, 0, 1, 1, 1]
    assert [p.values["total/tokens"] for p in told] == [60, 120, 150, 210, 270]
    assert [p.values["total/generation"] for p in told] == [0, 1, 1, 2, 2]
    assert told[1].values["candidate/cost_ratio"] == 2.0
    assert told[4].values["candidate/delta_bpb"] == pytest.approx(-0.05)
    assert not any(name.startswith("candidate/val") for name in told[2].values)
    assert all(math.isfinite(x) for point in told for x in point.values.values())


def test_of_a_search_without_a_living_baseline_there_is_no_best():
    (only,) = points.search_points([make_dead("nanochat", parent_id=None)], 10.0)
    assert only.values == {"candidate/cost_ratio": 1, "total/dead": 1, **only.values}
    assert not any(name.startswith("best") for name in only.values)


def test_leaders_are_the_baseline_and_the_best_at_the_end_of_generations():
    assert points.leaders(make_search()) == ["nanochat", "g001c00"]
    assert points.leaders([]) == []
    # Each of these 500 candidates is the best so far, but only the last of each generation gets
    # full telemetry.
    records = [make_record(f"{i}", score=i, generation=i // 50) for i in range(500)]
    assert points.leaders(records) == ["0"] + [f"{50 * g + 49}" for g in range(10)]


def test_the_running_best_is_the_first_survivor():
    rng = np.random.default_rng(0)
    records = [make_record()] + [
        make_dead(f"{i}", generation=i // 5)
        if rng.random() < 0.2
        else make_record(
            f"{i}",
            score=round(rng.normal(), 1),
            generation=i // 5,
            recipe={"matrix_lr": 1.0} if rng.random() < 0.2 else None,
        )
        for i in range(1, 60)
    ]
    bests = tournament.running_best(records)
    for count in range(1, len(records) + 1):
        assert bests[count - 1] is tournament.survivors(records[:count], 1)[0]


def make_columns(steps):
    names = [name for name in TELEMETRY if name != "log_grad_norm"] + ["grad_norm"]
    columns = {name: np.arange(steps) + 100.0 * i for i, name in enumerate(names)}
    ends = np.array([0, steps // 2, steps])
    return columns | {"validation_step": ends, "validation_bpb": np.array([3.0, 2.5, 2.0])}


def test_all_telemetry_is_told_and_of_a_long_run_a_thousand_steps():
    short = points.telemetry_points(make_columns(10))
    assert [point.step for point in short] == list(range(11))
    assert len(short[3].values) == len(TELEMETRY)
    assert short[5].values["validation/bpb"] == 2.5
    assert short[10].values == {"validation/bpb": 2.0}
    long = points.telemetry_points(make_columns(123_457))
    assert points.MOST_STEPS / 2 < len(long) <= points.MOST_STEPS + 3
    assert [point.step for point in long][-2:] == [123_456, 123_457]
    assert all(a.step < b.step for a, b in itertools.pairwise(long))


def test_telemetry_of_a_run_that_failed_at_once_is_told_as_far_as_it_goes():
    columns = {name: column[:0] for name, column in make_columns(4).items()}
    assert points.telemetry_points(columns) == []


class Memory:
    """A tracker that records every call."""

    def __init__(self):
        self.told, self.ended, self.closed = {}, [], False

    def scalars(self, run, points):
        assert run not in self.ended
        self.told.setdefault(run, []).extend(points)

    def end(self, run):
        self.ended.append(run)

    def close(self):
        self.closed = True


def make_run(stage, bpb):
    return Run("key", stage, "main", {}, bpb, 3.0, None, None, 10, 100, [], 0.0)


def test_a_log_tells_each_thing_once_however_often_it_hears_of_it(tmp_path):
    memory, said = Memory(), []
    log = Log(memory, tmp_path, 10.0, said.append)
    records = make_search()
    (tmp_path / "telemetry").mkdir()
    np.savez(tmp_path / "telemetry" / "nanochat.npz", **make_columns(4))
    (tmp_path / "telemetry" / "g001c00.npz").write_bytes(b"PK torn")
    for count in (0, 1, 3, 3, 5):
        log.records(records[:count])
    assert memory.told["search"] == points.search_points(records, 10.0)
    assert memory.told["nanochat"] == points.telemetry_points(make_columns(4))
    assert memory.ended == ["nanochat"]
    (line,) = said
    assert "g001c00.npz cannot be read" in line
    for number, stage in enumerate(("confirm: test", "promote", "confirm: test")):
        log.run(make_run(stage, 2.0 + number))
    assert [(p.step, p.values["run/val_bpb"]) for p in memory.told["confirm/test"]] == [
        *((1, 2.0), (2, 4.0))
    ]


# Event files -------------------------------------------------------------------------------


def test_event_files_are_read_back_as_told_and_begun_afresh_by_every_process(tmp_path):
    told = [Point(step, {"a": 0.1 * step, "b/c": -1.0 * step}) for step in (1, 5, 9)]
    for _ in range(3):
        tracker = TensorBoard(tmp_path)
        tracker.scalars("x/y", told[:1])
        tracker.scalars("x/y", told[1:])
        tracker.close()
    found = read_events(tmp_path / "tensorboard" / "x" / "y")
    assert found["b/c"] == [(1, -1.0), (5, -5.0), (9, -9.0)]
    assert found["a"] == [(s, pytest.approx(0.1 * s)) for s in (1, 5, 9)]


def test_points_are_on_the_disk_before_anything_is_closed_and_a_torn_one_is_left_out(tmp_path):
    tracker = TensorBoard(tmp_path)
    tracker.scalars("run", [Point(step, {"a": step}) for step in range(5)])
    (path,) = (tmp_path / "tensorboard" / "run").iterdir()
    assert len(read_events(path.parent)["a"]) == 5
    path.write_bytes(path.read_bytes()[:-7])  # as `kill -9` leaves it during a write
    assert len(read_events(path.parent)["a"]) == 4


# Several trackers, and their failures -----------------------------------------------------------


class Failing(Memory):
    """A tracker that fails at its second call."""

    def scalars(self, run, points):
        if self.told:
            raise ConnectionError("nobody [/there]\nsecond line")
        super().scalars(run, points)


def test_one_that_fails_is_switched_off_in_a_line_and_the_others_go_on():
    good, bad, said = Memory(), Failing(), []
    trackers = Trackers({"bad": lambda: bad, "good": lambda: good}, said.append)
    for step in range(4):
        trackers.scalars("run", [Point(step, {})])
    trackers.end("run")
    trackers.close()
    assert said == [
        "bad is switched off, and the run continues without it (ConnectionError: nobody [/there])"
    ]
    assert len(good.told["run"]) == 4 and good.ended == ["run"] and good.closed
    assert len(bad.told["run"]) == 1 and not bad.ended and not bad.closed


def test_one_that_cannot_begin_or_end_is_switched_off_too():
    def refuse():
        raise ValueError

    class Stubborn(Memory):
        def close(self):
            raise OSError(errno.ENOSPC, "full")

    said = []
    trackers = Trackers({"a": refuse, "b": Stubborn}, said.append)
    trackers.close()
    assert [line.split(" is")[0] for line in said] == ["a", "b"]


def test_asking_to_stop_is_not_a_failure():
    class Slow(Memory):
        def scalars(self, run, points):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trackers({"slow": Slow}, print).scalars("run", [])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_anything_begins(name, monkeypatch, tmp_path):
    (tmp_path / name).mkdir()  # W&B leaves such a folder in its working directory
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(module.importlib.sys.modules, name, raising=False)
    config = make_config(SETTINGS, tmp_path / "run")
    require_installed(config)
    config.track[name] = True
    with pytest.raises(ConfigError, match=rf"track\.{name}=True needs .*nanoevolve-jax\[{name}\]"):
        require_installed(config)


def test_of_several_processes_only_the_first_tracks(monkeypatch, tmp_path):
    config = make_config(SETTINGS, tmp_path / "run")
    for is_first in (False, True):
        monkeypatch.setattr(hosts, "is_first", lambda is_first=is_first: is_first)
        with opened_log(config, {"config": "f"}, Console().print_line) as log:
            log.records(make_search())
        assert (tmp_path / "run" / "tensorboard").exists() == is_first


# A real search -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    places = {
        "data.corpus": f"parquet:{write_corpus(folder / 'corpus')}",
        "data.cache_dir": str(folder / "cache"),
    }
    return SETTINGS | places


@pytest.fixture(scope="module")
def tracked(settings, tmp_path_factory):
    """Returns the folder of a tiny search with event files."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    run(settings, folder)
    return folder


def results(folder):
    """Returns the bytes of all results that must not depend on the trackers."""
    summary = json.loads((folder / "summary.json").read_text())
    for name in OF_THE_PROCESS:
        del summary[name]
    files = [folder / "archive.jsonl", *sorted((folder / "telemetry").iterdir())]
    fingerprints = json.loads((folder / "config.json").read_text())["fingerprints"]
    return json.dumps(summary), fingerprints, [(f.name, f.read_bytes()) for f in files]


def assert_told(folder):
    """Recomputes every point of a search's event files from its archive and telemetry."""
    records = archive.read(folder / "archive.jsonl")
    events = folder / "tensorboard"
    search = read_events(events / "search")
    baseline = records[0].val_bpb[0]
    bests = [tournament.survivors(records[: i + 1], 1)[0] for i in range(len(records))]
    expected = {
        "candidate/val_bpb": [r.val_bpb[0] for r in records],
        "candidate/delta_bpb": [r.val_bpb[0] - baseline for r in records],
        "candidate/score": [r.score for r in records],
        "best/val_bpb": [best.val_bpb[0] for best in bests],
        "total/generation": [r.generation for r in records],
        "total/dead": [0] * len(records),
    }
    for name, values in expected.items():
        assert [step for step, _ in search[name]] == list(range(1, len(records) + 1))
        np.testing.assert_allclose([x for _, x in search[name]], values, rtol=1e-6, atol=1e-9)
    summary = json.loads((folder / "summary.json").read_text())
    assert search["total/tokens"][-1][1] == summary["tokens_trained"]
    np.testing.assert_allclose(search["best/delta_bpb"][-1][1], summary["best"]["delta_bpb"], 1e-6)

    leaders = {bests[-1].id, "nanochat"} | {
        best.id
        for best, record, after in zip(bests, records, [*records[1:], None], strict=True)
        if after is None or after.generation > record.generation
    }
    assert runs_of(events) == leaders | {"search"}
    for name in leaders:
        found = read_events(events / name)
        with np.load(folder / "telemetry" / f"{name}.npz") as columns:
            curve = zip(columns["validation_step"], columns["validation_bpb"], strict=True)
            np.testing.assert_allclose(found.pop("validation/bpb"), list(curve), rtol=1e-6)
            for tag, told in found.items():
                column = columns[tag.split("/")[1]]
                np.testing.assert_allclose(told, list(enumerate(column)), rtol=1e-6)
            assert len(found) == len(columns.files) - 2


def test_event_files_hold_what_archive_and_telemetry_do(tracked):
    assert_told(tracked)


def test_a_search_that_goes_on_has_every_point_once(settings, tracked, tmp_path):
    folder = tmp_path / "run"
    run(settings, folder, search__generations=1)
    assert_told(folder)
    for generations in (2, 2):
        run(settings, folder, search__generations=generations)
        assert_told(folder)
    assert results(folder) == results(tracked)


def test_event_files_that_were_lost_or_torn_are_made_again(settings, tracked, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tracked, folder)
    shutil.rmtree(folder / "tensorboard" / "nanochat")
    (torn,) = (folder / "tensorboard" / "search").iterdir()
    torn.write_bytes(torn.read_bytes()[:-5])
    run(settings, folder)
    assert_told(folder)


def test_a_search_is_the_same_without_trackers(settings, tracked, tmp_path):
    run(settings, tmp_path / "run", track__tensorboard=False)
    assert results(tmp_path / "run") == results(tracked)
    assert not (tmp_path / "run" / "tensorboard").exists()


def full_file(path):
    """Opens a file on a disk that is full."""
    return open("/dev/full", "wb")


@pytest.mark.parametrize("trouble", ["a file in the place of the folder", "a full disk"])
def test_a_search_is_the_same_when_its_tracker_fails(
    settings, tracked, tmp_path, monkeypatch, trouble
):
    folder = tmp_path / "run"
    if trouble == "a full disk":
        monkeypatch.setattr(record_writer, "open_file", full_file)
    else:
        folder.mkdir()
        (folder / "tensorboard").write_text("mine")
    output = run(settings, folder)
    assert output.count("tensorboard is switched off, and the run continues without it") == 1
    assert results(folder) == results(tracked)


# Weights & Biases and MLflow, where they are installed --------------------------------------


def expected_of(folder):
    """Returns a tracker's expected points as {run: {metric: [(step, value), ...]}}."""
    memory = Memory()
    log = Log(memory, folder, BATCH * LENGTH, print)
    log.records(archive.read(folder / "archive.jsonl"))
    return {run: by_name(points) for run, points in memory.told.items()}


def by_name(points):
    told = {}
    for step, values in points:
        for name, value in values.items():
            told.setdefault(name, []).append((step, pytest.approx(value, rel=1e-12)))
    return told


def test_offline_files_of_wandb_hold_the_search_and_a_second_process_repeats_its_runs(
    settings, tracked, tmp_path, monkeypatch
):
    pytest.importorskip("wandb")
    from wandb_files import read_runs

    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    output = run(settings, folder, track__wandb=True, track__project="mine")
    assert "switched off" not in output
    found, homes = read_runs(folder)
    assert {name: told for (name, _), told in found.items()} == expected_of(folder)
    assert homes == {("mine", "run")}
    assert results(folder) == results(tracked)
    shutil.rmtree(folder / "wandb")  # a second process sends the same data from the run folder
    monkeypatch.setenv("WANDB_PROJECT", "yours")
    run(settings, folder, track__wandb=True, track__project="mine")
    again, homes = read_runs(folder)
    assert again == found
    assert homes == {("yours", "run")}


def test_a_store_of_mlflow_holds_the_search_once_however_often_it_goes_on(
    settings, tracked, tmp_path, monkeypatch
):
    pytest.importorskip("mlflow")
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    folder = tmp_path / "run"
    for generations in (1, 2, 2):
        output = run(settings, folder, track__mlflow=True, search__generations=generations)
        assert "switched off" not in output
        with sqlite3.connect(database) as store:
            names = dict(store.execute("select run_uuid, name from runs where status='FINISHED'"))
            rows = store.execute("select run_uuid, key, step, value from metrics order by step")
            found = {}
            for number, key, step, value in rows:
                found.setdefault(names[number], {}).setdefault(key, []).append((step, value))
            ((experiment,),) = store.execute("select name from experiments where name != 'Default'")
            (parameter,) = store.execute(
                "select distinct value from params where key='search.generations'"
            )
        assert len(names) == len(set(names.values()))
        assert found == expected_of(folder)
        assert experiment == "nanoevolve" and parameter == ("1",)
    assert results(folder) == results(tracked)
