"""Calibration, search, promotion, confirmation and replay from end to end on a tiny model."""

import contextlib
import io
import json
import math
import shutil
import socket
from collections import Counter

import numpy as np
import pytest
from events import read_events
from ml_collections import ConfigDict
from test_search import SETTINGS as SEARCH
from test_search import make_config, write_corpus

from nanoevolve_jax import calibrate, confirm, replay, search, site
from nanoevolve_jax.configs import confirm as confirm_config
from nanoevolve_jax.configs import replay as replay_config
from nanoevolve_jax.configs.base import SETTINGS, get_config
from nanoevolve_jax.evidence import confirmation, eligibility, trial
from nanoevolve_jax.evidence.calibration_file import load_calibration
from nanoevolve_jax.evidence.comparison import LR_FACTORS
from nanoevolve_jax.evidence.confirmation import WIN, decide
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.ledger import ledger_path, open_ledger
from nanoevolve_jax.evidence.levels import level_of_card
from nanoevolve_jax.evidence.replay import is_record, record_path
from nanoevolve_jax.evidence.runs import read_runs
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.evidence.verdict import Panel, PlaceboEvidence, judge
from nanoevolve_jax.evolution import archive, promotion
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.plan import phases
from nanoevolve_jax.evolution.run_folder import read_search
from nanoevolve_jax.execution.engine import LocalEngine
from nanoevolve_jax.execution.settings import ConfigError, get_setting
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.tracking.points import stage_name

TINY = SEARCH | {
    "data.folds": 6,
    "search.generations": 1,
    "search.population": 4,
    "search.control_every": 4,
    "promote.first": 3,
    "promote.first_seeds": 2,
    "promote.final": 2,
    "promote.final_seeds": 1,
    "confirm.steps": 9,
    "confirm.lr_seeds": 2,
    "calibrate.tuning_runs": 6,
    "calibrate.panel_seeds": 2,
}


def settings(folder, **changes):
    places = {
        "data.corpus": f"parquet:{folder / 'corpus'}",
        "data.cache_dir": str(folder / "cache"),
    }
    return TINY | places | {k.replace("__", "."): v for k, v in changes.items()}


def act(command, *arguments):
    """Runs a command in this process and returns its output and its result."""
    patch, output = pytest.MonkeyPatch(), io.StringIO()
    with patch.context() as p, contextlib.redirect_stdout(output):
        p.setattr(site, "use_devices", lambda config: config.devices)  # JAX is already initialised
        returned = command(*arguments)
    return output.getvalue(), returned


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Returns a folder with a corpus and a finished calibration."""
    folder = tmp_path_factory.mktemp("evidence")
    write_corpus(folder / "corpus")
    act(calibrate.calibrate, make_config(settings(folder), folder / "calibration"))
    return folder


def calibrated(folder, name, **changes):
    path = folder / "calibration" / "calibration.json"
    return make_config(settings(folder, calibration=str(path), **changes), folder / name)


def on_this_machine(config, folder, **changes):
    """Returns the config with the devices and the cache that the searches of this module use."""
    config.devices, config.data.cache_dir = TINY["devices"], str(folder / "cache")
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def confirm_settings(folder, run, candidate="promoted", **changes):
    config = on_this_machine(confirm_config.get_config(), folder, **changes)
    config.workdir, config.candidate = str(run), candidate
    return config


def run_confirm(folder, name, *arguments, **changes):
    """Confirms a candidate and returns the output."""
    run = confirm_settings(folder, folder / name, *arguments, **changes)
    return act(confirm.confirm, run)[0]


@pytest.fixture(scope="module")
def searched(workshop):
    return act(search.search, calibrated(workshop, "run"))[0]


@pytest.fixture(scope="module")
def confirmed(workshop, searched):
    return run_confirm(workshop, "run")


@pytest.fixture
def trains_nothing(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(LocalEngine, "run", refuse)


def document(workshop, *names):
    return json.loads(workshop.joinpath(*names).read_text())


def records_of(workshop, name="run"):
    return archive.load_all(workshop / name / "archive.jsonl")


# Calibration -------------------------------------------------------------------------------


def test_a_calibration_holds_noise_panel_and_the_best_recipe_of_its_shortlist(workshop):
    calibration = document(workshop, "calibration", "calibration.json")
    assert calibration["noise"]["repeat_difference"] == 0.0
    for name in ("screen", "full"):
        noise = calibration["noise"][name]
        assert noise["n"] == 8 and 0 < noise["sigma_low"] < noise["sigma"] < noise["sigma_high"]
    paired = calibration["noise"]["screen"]["paired_sigma"]
    scale, panel, tuning = (calibration[part] for part in ("scale", "panel", "tuning"))
    assert scale["shrinkage"] == pytest.approx((paired / scale["sigma"]) ** 2)
    assert len(panel["good"]) >= 6 <= len(panel["bad"]) and 0 <= panel["auc"] <= 1
    listed = tuning["shortlist"]
    assert set(listed) - {"before"} == {"default", "best", "second", "centroid", "surrogate"}
    means = {name: np.mean(entry["bpb"]) for name, entry in listed.items()}
    assert tuning["chosen"] == min(means, key=means.get)
    assert calibration["recipe"] == listed[tuning["chosen"]]["recipe"]
    runs = TINY["calibrate.tuning_runs"] + len(tuning["widenings"])
    assert tuning["runs"] == runs == calibration["spent"]["calibrate: tune"]["runs"]


def test_calibrating_again_trains_nothing_and_changes_nothing(workshop, trains_nothing):
    path = workshop / "calibration" / "calibration.json"
    before = path.read_bytes()
    act(calibrate.calibrate, make_config(settings(workshop), workshop / "calibration"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__steps": 5}, r"horizon\.screen is 5 and was 6"),
        ({"confirm__steps": 12}, r"horizon\.full is 12 and was 9"),
        ({"model__n_layer": 2}, r"model\.n_layer is 2 and was 1"),
        ({"data__vocab_size": 290}, r"tokenizer is .* and was"),
        ({"data__validation_rows": 4}, r"validation_rows is 4 and was 8"),
    ],
)
def test_a_calibration_of_another_evaluation_is_refused_by_name(workshop, changes, message):
    with pytest.raises(EvidenceError, match=message):
        act(search.search, calibrated(workshop, "refused", **changes))
    assert not (workshop / "refused").exists()


def test_a_calibration_on_other_text_or_that_was_damaged_is_refused(workshop, tmp_path):
    whole = (workshop / "calibration" / "calibration.json").read_bytes()
    (tmp_path / "calibration").mkdir()
    shutil.copytree(workshop / "corpus", tmp_path / "corpus")
    path = tmp_path / "calibration" / "calibration.json"
    for damaged in (whole[: len(whole) // 2], whole.replace(b'"n": 8', b'"n": 80', 1)):
        path.write_bytes(damaged)
        with pytest.raises(EvidenceError):
            act(search.search, calibrated(tmp_path, "run"))
    path.write_bytes(whole)
    shard = tmp_path / "corpus" / "shard_00000.parquet"
    shutil.copy(shard, tmp_path / "corpus" / "shard_00002.parquet")
    with pytest.raises(EvidenceError, match=r"corpus is .* and was"):
        act(search.search, calibrated(tmp_path, "run"))


# Promotion ---------------------------------------------------------------------------------


def test_promotion_gives_fresh_seeds_to_the_best_and_scores_all_seeds(workshop, searched):
    promoted = document(workshop, "run", "promotion.json")
    scale = document(workshop, "calibration", "calibration.json")["scale"]
    records = records_of(workshop)
    assert "against the tuned baseline" in searched
    assert len(promoted["first_round"]) == 3 and len(promoted["second_round"]) == 2
    baseline = records[0]
    assert len(baseline.seeds) == 1 + 2 + 1
    reference = dict(zip(baseline.seeds, baseline.val_bpb, strict=True))
    for r in records:
        rounds = (r.id in promoted["first_round"]) * 2 + (r.id in promoted["second_round"])
        controls = r.recipe is not None or r.id == "nanochat"
        assert len(r.seeds) == 1 + (3 if controls else rounds)
        assert r.seeds == baseline.seeds[: len(r.seeds)]
        gains = [reference[s] - x for s, x in zip(r.seeds, r.val_bpb, strict=True)]
        expected = sum(gains) / (len(gains) + scale["shrinkage"])
        expected -= scale["horizon_slope"] * max(0.0, math.log(r.cost / baseline.cost))
        assert r.score == pytest.approx(expected / scale["sigma"])
    statuses = [r.status for r in records]
    assert statuses.count("promoted") == (promoted["candidate"] is not None)
    assert document(workshop, "run", "summary.json")["compared_with"] == "the tuned baseline"


def test_searching_again_changes_nothing(workshop, searched, confirmed, trains_nothing):
    files = [workshop / "run" / name for name in ("archive.jsonl", "promotion.json")]
    before = [path.read_bytes() for path in files]
    folder = workshop / "run" / "tensorboard" / "search"
    events = read_events(folder)  # written before promotion changed the scores
    act(search.search, calibrated(workshop, "run"))
    assert read_events(folder) == events
    assert [path.read_bytes() for path in files] == before


# Confirmation ------------------------------------------------------------------------------


def card_of(workshop):
    paths = (workshop / "run" / "evidence").glob("*.json")
    (path,) = (path for path in paths if not is_record(path))
    return path, json.loads(path.read_text())


def other_candidate(workshop):
    """Returns a candidate that promotion did not choose."""
    promoted = document(workshop, "run", "promotion.json")
    return next(name for name in promoted["first_round"] if name != promoted["candidate"])


def test_a_confirmation_leaves_a_card_a_page_and_the_compute_that_was_spent(workshop, confirmed):
    path, card = card_of(workshop)
    pairs = card["confirmation"]["pairs"]
    assert confirmed.index("power: ") < confirmed.index("learning rate of ")
    assert pairs in (8, 20) and len(card["seeds"]) == pairs and card["fold"] == 2
    spent = card["spent"]
    assert spent["confirm: test"]["runs"] == 2 * pairs
    assert {"search: screening", "calibrate: tune"} <= set(spent)
    page = path.with_suffix(".md").read_text()
    for number in (*card["confirmation"]["baseline_bpb"], *card["confirmation"]["winner_bpb"]):
        assert f"{number:.4f}" in page
    (verdict,) = (line for line in confirmed.splitlines() if " paired seeds" in line)
    assert f"**{verdict}**" in page


def test_the_commands_on_a_card_lead_from_nothing_to_it(workshop, confirmed):
    path, card = card_of(workshop)
    calibrating, searching, confirming, replaying = card["commands"]
    for command in (calibrating, searching):
        assert f"--config.data.corpus=parquet:{workshop / 'corpus'}" in command
        assert "--config.train.steps=6" in command
    # Calibration starts with this recipe, and the search uses the tuned one.
    assert "--config.recipe.momentum=0.97" in calibrating and "recipe" not in searching
    assert f"--config.workdir={workshop / 'calibration'}" in calibrating
    assert f"--config.calibration={workshop / 'calibration' / 'calibration.json'}" in searching
    run = f"--config.workdir={workshop / 'run'}"
    assert run in searching and confirming.endswith(f"{run} --config.candidate={card['id']}")
    assert replaying == f"python -m nanoevolve_jax.replay --config.devices=2 {path}"


def test_event_files_hold_every_run_of_every_stage(workshop, confirmed):
    for name in ("calibration", "run"):
        by_stage = {}
        for run in read_runs(workshop / name):
            by_stage.setdefault(run.stage, []).append(run.val_bpb)
        assert by_stage
        for stage, finals in by_stage.items():
            events = read_events(workshop / name / "tensorboard" / stage_name(stage))
            points = np.array(events["run/val_bpb"])
            numbers = np.flatnonzero(np.isfinite(finals))
            np.testing.assert_array_equal(points[:, 0], numbers + 1)
            np.testing.assert_allclose(points[:, 1], np.array(finals)[numbers], rtol=1e-6)
    picked = document(workshop, "run", "promotion.json")["candidate"]
    assert picked is None or "policy/gate" in read_events(workshop / "run/tensorboard" / picked)


def test_a_run_folder_older_than_a_setting_can_be_confirmed(workshop, searched, tmp_path):
    written = document(workshop, "run", "config.json")
    del written["config"]["compare"], written["config"]["track"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    shutil.copy(workshop / "run" / "calibration.json", tmp_path)
    assert read_search(confirm_settings(workshop, tmp_path)).config.compare.seeds == 4


def test_seeds_and_folds_of_the_stages_are_disjoint(workshop, confirmed):
    _, card = card_of(workshop)
    stages = {"search": {(r.seeds[0], 0) for r in records_of(workshop)}}
    for name in ("calibration", "run"):
        for run in read_runs(workshop / name):
            stages.setdefault(run.stage, set()).add((run.job["seed"], run.job["fold"]))
    seeds, folds = ({k: {x[i] for x in v} for k, v in stages.items()} for i in (0, 1))
    tested, tested_folds = seeds.pop("confirm: test"), folds.pop("confirm: test")
    assert tested == set(card["seeds"])
    assert not any(tested & earlier for earlier in seeds.values())
    assert not any(tested_folds & earlier for earlier in folds.values())
    assert not seeds["promote"] & (seeds["search"] | seeds["calibrate: tune"])


def test_confirming_again_trains_nothing_and_uses_no_further_fold(
    workshop, confirmed, trains_nothing
):
    """A copied calibration leads to the same ledger, so it cannot buy another confirmation."""
    path, card = card_of(workshop)
    before = path.read_bytes()
    run_confirm(workshop, "run")
    assert path.read_bytes() == before
    evaluation = card["calibration"]["evaluation"]
    ledger = open_ledger(ledger_path(workshop / "cache", evaluation), evaluation, 6)
    assert len(ledger.confirmations()) == 1
    copied = shutil.copytree(workshop / "calibration", workshop / "copy") / "calibration.json"
    calibration = load_calibration(copied, json.loads(copied.read_text())["evaluation"])
    other = promotion.ledger_of(calibrated(workshop, "run"), calibration)
    assert len(other.confirmations()) == 1 <= other.campaigns()


def test_a_candidate_that_breaks_a_constraint_consumes_nothing(workshop, searched, monkeypatch):
    before = {p: p.read_bytes() for p in (workshop / "cache" / "ledgers").glob("*.jsonl")}
    monkeypatch.setattr(eligibility, "STATE_LIMIT", 0.5)
    other = other_candidate(workshop)
    with pytest.raises(EvidenceError, match=f"'{other}': .* above 0.5"):
        run_confirm(workshop, "run", other)
    assert len(before) == 1 and all(path.read_bytes() == x for path, x in before.items())


def test_a_second_candidate_is_exploratory_and_cannot_win(workshop, confirmed):
    other = other_candidate(workshop)
    output = run_confirm(workshop, "run", other)
    card = document(workshop, "run", "evidence", f"{other}.json")
    assert "exploratory" in output and card["exploratory"] and card["level"]["level"] <= 2
    assert document(workshop, "run", "summary.json")["winners"] == []
    # Restore the folder for the other tests.
    for suffix in ("json", "md"):
        (workshop / "run" / "evidence" / f"{other}.{suffix}").unlink()


# Replay ------------------------------------------------------------------------------------


def replay_settings(workshop):
    return on_this_machine(replay_config.get_config(), workshop)


def replayed(workshop, path, pairs=1, settings=None):
    """Returns whether a replay agrees, and its output."""
    config = settings or replay_settings(workshop)
    output, agrees = act(lambda: replay.replay(config, path, pairs, Console(width=200)))
    return agrees, output


def test_a_replay_is_recorded_beside_its_card_whether_it_agrees_or_not(
    workshop, confirmed, tmp_path
):
    path, card = card_of(workshop)
    agrees, output = replayed(workshop, path, pairs=2)
    record = read_sealed(record_path(path), "replay")
    assert agrees and "agrees exactly" in output and str(record_path(path)) in output
    assert (record["card"], record["agrees"], record["exact"]) == (card["seal"], True, True)
    assert record["baseline_bpb"] == card["confirmation"]["baseline_bpb"][:2]
    other = tmp_path / "evidence" / "card.json"
    other.parent.mkdir()
    text = json.dumps(card["confirmation"]["winner_bpb"][0])
    other.write_text(path.read_text().replace(text, "1.0", 1))
    with pytest.raises(EvidenceError, match="changed after it was written"):
        replayed(workshop, other)
    card["confirmation"]["winner_bpb"][0] = 1.0
    sealed = write_sealed(other, "evidence", card)
    agrees, output = replayed(workshop, other)
    record = read_sealed(record_path(other), "replay")
    assert not agrees and "DISAGREES" in output
    assert (record["card"], record["agrees"]) == (sealed["seal"], False)


def test_a_replay_whose_record_cannot_be_written_reports_that_in_one_line(
    workshop, confirmed, monkeypatch
):
    def full(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(replay, "write_sealed", full)
    agrees, output = replayed(workshop, card_of(workshop)[0])
    (line,) = (line for line in output.splitlines() if "cannot be written" in line)
    assert agrees and "(Read-only file system)" in line


def test_a_text_that_is_a_folder_is_found_by_its_fingerprint_or_named(
    workshop, confirmed, tmp_path
):
    path, _ = card_of(workshop)
    settings = replay_settings(workshop)
    settings.data.cache_dir = str(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"config\.data\.corpus must be parquet:DIR"):
        replayed(workshop, path, settings=settings)
    other = shutil.copytree(workshop / "corpus", tmp_path / "other")
    shutil.copy(other / "shard_00001.parquet", other / "shard_00002.parquet")
    settings.data.corpus = f"parquet:{other}"
    with pytest.raises(EvidenceError, match="the corpus must have fingerprint"):
        replayed(workshop, path, settings=settings)
    for corpus in (f"parquet:{shutil.copytree(workshop / 'corpus', tmp_path / 'corpus')}", "same"):
        settings.data.corpus = corpus
        assert replayed(workshop, path, settings=settings)[0]


# Hostile documents -------------------------------------------------------------------------

PLACES = {
    **{"workdir": "{0}/workdir", "data.cache_dir": "{0}/cache", "calibration": "{0}/c.json"},
    **{"engine": "ray", "ray.address": "{1}", "ray.gpus": 1, "distributed": "auto"},
    **{"devices": 4096, "threads": 4096, "track.wandb": True, "track.mlflow": True},
    **{"track.project": "{0}/project", "codegen.isolation": "available", "plan": True},
    **{"codegen.providers": "{0}/providers.toml", "codegen.address": "http://{1}"},
    **{"data.corpus": "parquet:{0}/text", "attribute.switch_corpus": "parquet:{0}/text"},
}


@pytest.fixture
def canary(tmp_path):
    """Yields config fields that name a folder and a server, which must not be touched."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        place = tmp_path / "canary"
        address = f"127.0.0.1:{server.getsockname()[1]}"
        yield {
            path: value.format(place, address) if isinstance(value, str) else value
            for path, value in PLACES.items()
        }
        assert not place.exists()
        with pytest.raises(BlockingIOError):
            server.accept()


def with_fields(config, fields):
    """Returns a document's config with other fields."""
    changed = ConfigDict(config)
    changed.update_from_flattened_dict(fields)
    return changed.to_dict()


def test_the_canary_names_every_place_of_the_table(canary):
    """The attack must cover every new setting that names a place on a machine."""
    places = {path for path, setting in SETTINGS.items() if setting.scope == "machine"}
    numbers = {path for path in places if not isinstance(SETTINGS[path].default, str)}
    assert places - numbers <= {*canary, "codegen.ensemble", "codegen.scope"}


def test_a_hostile_card_chooses_no_place_no_connection_and_no_device(
    workshop, confirmed, canary, tmp_path
):
    _, card = card_of(workshop)
    hostile = tmp_path / "run" / "evidence" / "card.json"
    hostile.parent.mkdir(parents=True)
    write_sealed(hostile, "evidence", card | {"config": with_fields(card["config"], canary)})
    agrees, output = replayed(workshop, hostile)
    assert agrees and "agrees exactly" in output


def test_a_hostile_run_folder_chooses_no_place_no_connection_and_no_device(
    workshop, confirmed, canary, tmp_path
):
    folder = shutil.copytree(workshop / "run", tmp_path / "run")
    written = json.loads((folder / "config.json").read_text())
    run = confirm_settings(workshop, folder)
    texts = ("data.corpus", "attribute.switch_corpus")
    for switch in (canary.pop("attribute.switch_corpus"), "docstrings"):
        changed = with_fields(written["config"], canary | {"attribute.switch_corpus": switch})
        (folder / "config.json").write_text(json.dumps(written | {"config": changed}))
        if switch != "docstrings":  # the user must name a text that has no fingerprint
            with pytest.raises(ConfigError, match=r"attribute\.switch_corpus must be parquet:DIR"):
                act(confirm.confirm, run)
    assert "paired seeds" in act(confirm.confirm, run)[0]
    config, usual = read_history(folder).config, get_config()
    assert config.workdir == str(folder)
    for path in canary.keys() - {"workdir", "calibration", *texts}:
        assert get_setting(config, path) == get_setting(usual, path), path


# Mistakes ----------------------------------------------------------------------------------


def test_what_cannot_be_confirmed_is_named(workshop, searched):
    act(search.search, make_config(settings(workshop), workshop / "plain"))
    with pytest.raises(EvidenceError, match="must be a search with a calibration"):
        run_confirm(workshop, "plain")
    with pytest.raises(ArchiveError, match="finished search"):
        run_confirm(workshop, "nowhere")
    with pytest.raises(ConfigError, match=r"must be promoted or one of \[.*'g009c09'"):
        run_confirm(workshop, "run", "g009c09")


# After a win -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def won(workshop):
    """Confirms a candidate that is declared a win; returns its id, its card and the output."""
    changes = {
        "seed": 7,
        "attribute__donors": 2,
        "attribute__panel_seeds": 2,
        "attribute__switch_corpus": f"parquet:{write_corpus(workshop / 'other')}",
        "transfer__seeds": 2,
        "transfer__width": 2,
    }
    act(search.search, calibrated(workshop, "won", **changes))
    records = records_of(workshop, "won")
    gated = next(r.id for r in records if r.spec.control.enabled and r.failure is None)

    def win(*arguments):
        return decide(*arguments)._replace(outcome=WIN)

    patch = pytest.MonkeyPatch()
    with patch.context() as p:
        p.setattr(confirmation, "decide", win)
        p.setattr(trial, "required_seeds", lambda gain, paired_sigma: 3)
        other = {"attribute__switch_corpus": changes["attribute__switch_corpus"]}
        output = run_confirm(workshop, "won", gated, **other)
    return gated, document(workshop, "won", "evidence", f"{gated}.json"), output


def test_a_win_is_attributed_tried_elsewhere_and_entered_into_the_archive(workshop, won):
    name, card, output = won
    attribution, transfer = card["attribution"], card["transfer"]
    assert card["confirmation"]["outcome"] == "win" and not card["exploratory"]
    assert set(attribution["bpb"]["constants"]) >= {"gate 0", "gate 1", "its time mean", "gate off"}
    for arm in ("baseline", "winner", "schedule", "yoked"):
        assert len(attribution["bpb"][arm]) == 20
    assert set(transfer["cells"]) == {"lr x0.5", "lr x2", "horizon x0.5", "horizon x2"}
    for cell in transfer["cells"].values():
        assert len(cell["baseline"]) == len(cell["winner"]) == 2
    assert len(transfer["cheaper"]["winner"]) == 3 and "transfer: 3 pairs" in output
    assert transfer["wider"]["winner"] != transfer["cells"]["lr x2"]["winner"]
    assert card["export"]["passes"]
    assert [r.id for r in records_of(workshop, "won") if r.status == "winner"] == [name]
    assert document(workshop, "won", "summary.json")["winners"] == [name]


def arrays(parts):
    """Converts the lists of a document to arrays."""
    if isinstance(parts, dict):
        return {name: arrays(part) for name, part in parts.items()}
    return np.array(parts)


def test_the_verdict_and_the_level_of_a_win_follow_from_its_card(workshop, won):
    name, card, output = won
    attribution, seeds = card["attribution"], card["seeds"]
    panel = attribution["panel"]
    means = panel and Panel(**{k: np.mean(v, axis=1) for k, v in panel["bpb"].items()})
    evidence = PlaceboEvidence(**arrays(attribution["bpb"]), panel=means)
    assert card["verdict"]["label"] == judge(evidence).label
    keys = {
        run.job["seed"]: run.key
        for run in read_runs(workshop / "won")
        if run.job["candidate"] == card["arms"]["winner"] and run.stage == "confirm: test"
    }
    folder = workshop / "won" / "telemetry"
    gates = np.array([np.load(folder / f"{keys[seed]}.npz")["gate"] for seed in seeds])
    assert card["level"] == level_of_card(card, gates)._asdict()
    assert f"{name} beats the tuned baseline" in output
    page = (workshop / "won" / "evidence" / f"{name}.md").read_text()
    assert card["verdict"]["label"] in page and f"Win level {card['level']['level']}" in page
    assert {"attribute: placebos", "transfer: width"} <= set(card["spent"])
    assert all(f"| {stage} |" in page for stage in card["spent"])


# The plan ----------------------------------------------------------------------------------


def spent_in(workshop, name):
    """Returns the number of runs per stage, counted from the run folder's files."""
    return Counter(run.stage for run in read_runs(workshop / name))


def planned(config, cheaper_pairs=0):
    """Returns the planned number of runs per stage for two candidates at once."""
    calls = [call for phase in phases(config, 2)[:-1] for call in phase.calls]
    calls += trial.dry_run(config, 1, cheaper_pairs).after_win
    total = Counter()
    for call in calls:
        total[call.stage] += sum(group.runs for group in call.groups)
    return total


def test_a_calibration_runs_as_often_as_its_plan_says(workshop):
    config = make_config(settings(workshop), workshop / "calibration")
    spent, expected = spent_in(workshop, "calibration"), planned(config)
    assert len(spent) == 4
    # A point that is on the shortlist twice runs once.
    doubles = expected["calibrate: tune_final"] - spent.pop("calibrate: tune_final")
    assert doubles in range(0, 3 * config.calibrate.seeds, config.calibrate.seeds)
    assert spent == {stage: expected[stage] for stage in spent}


def test_search_promotion_and_all_that_follows_a_win_run_as_often_as_planned(workshop, won):
    run = confirm_settings(workshop, workshop / "won", until="confirm")
    config, (_, card, _) = read_search(run).config, won
    spent, expected = spent_in(workshop, "won"), planned(config, cheaper_pairs=3)
    assert len(records_of(workshop, "won")) == expected["search: screening"]
    assert spent["promote"] == expected["promote"]
    # The plan assumes one reference and learning rates that need no extended range.
    confirmed = card["confirmation"]
    arms = [*confirmed["learning_rates"].values()]
    arms += [other["learning_rates"] for other in confirmed["others"]]
    factors = [len(arm["factors"]) for arm in arms]
    assert min(factors) >= len(LR_FACTORS)
    assert spent["confirm: learning rate"] == sum(factors) * config.confirm.lr_seeds
    assert expected["confirm: learning rate"] == 2 * len(LR_FACTORS) * config.confirm.lr_seeds
    # A win at the first look moves runs to attribution.
    moved = ("confirm: test", "attribute: winner", "attribute: baseline")
    more = len(confirmed["others"]) * confirmed["pairs"]
    assert sum(spent[stage] for stage in moved) == expected["confirm: test"] + more
    # A gate that reads only the step is the same on every seed, so yoked equals the schedule.
    bpb = card["attribution"]["bpb"]
    expected["attribute: placebos"] -= config.confirm.seeds * (bpb["yoked"] == bpb["schedule"])
    for stage in expected:
        if stage.startswith(("attribute: ", "transfer: ")):
            assert spent[stage] == expected[stage], stage
    # A candidate that was chosen by hand passes the same checks as finalists of promotion.
    assert spent.pop("confirm: constraints", 1) in (1, 2)
    assert set(spent) - set(moved) <= set(expected)
