"""Calibrate, search, promote, confirm and replay, end to end on a tiny model and text."""

import contextlib
import io
import json
import math
import shutil
import socket

import numpy as np
import pytest
from events import read_events
from ml_collections import ConfigDict
from nanoevolve_jax.configs import confirm as confirm_config
from nanoevolve_jax.configs import replay as replay_config
from nanoevolve_jax.configs.base import SETTINGS, get_config
from test_search import SETTINGS as SEARCH
from test_search import assert_one_line, make_config, start, write_corpus

from nanoevolve_jax import calibrate, confirm, replay, search, site
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
from nanoevolve_jax.evidence.work import total_runs
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


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a corpus and a finished calibration."""
    folder = tmp_path_factory.mktemp("evidence")
    write_corpus(folder / "corpus")
    act(folder, calibrate.calibrate, make_config(settings(folder), folder / "calibration"))
    return folder


def settings(folder, **changes):
    places = {
        "data.corpus": f"parquet:{folder / 'corpus'}",
        "data.cache_dir": str(folder / "cache"),
    }
    return TINY | places | {k.replace("__", "."): v for k, v in changes.items()}


def act(folder, command, *arguments):
    """Runs a command in this process; returns what it printed."""
    patch, output = pytest.MonkeyPatch(), io.StringIO()
    with patch.context() as p, contextlib.redirect_stdout(output):
        p.setattr(site, "use_devices", lambda config: config.devices)  # JAX has begun long ago
        command(*arguments)
    return output.getvalue()


def calibrated(folder, name, **changes):
    path = folder / "calibration" / "calibration.json"
    return make_config(settings(folder, calibration=str(path), **changes), folder / name)


def confirm_settings(folder, name, candidate="promoted", **changes):
    config = confirm_config.get_config()
    config.workdir, config.candidate = str(folder / name), candidate
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return on_this_machine(config, folder)


def replay_settings(folder):
    return on_this_machine(replay_config.get_config(), folder)


def on_this_machine(config, folder):
    """The devices and the cache that searches of this module use."""
    config.devices, config.data.cache_dir = TINY["devices"], str(folder / "cache")
    return config


@pytest.fixture(scope="module")
def searched(workshop):
    return act(workshop, search.search, calibrated(workshop, "run"))


@pytest.fixture(scope="module")
def confirmed(workshop, searched):
    return act(workshop, confirm.confirm, confirm_settings(workshop, "run"))


def document(workshop, *names):
    return json.loads(workshop.joinpath(*names).read_text())


def refuse(*arguments):
    raise AssertionError("trained again")


# Calibration -------------------------------------------------------------------------------


def test_a_calibration_says_what_noise_is_and_repeats_exactly(workshop):
    found = document(workshop, "calibration", "calibration.json")
    assert found["noise"]["repeat_difference"] == 0.0
    for name in ("screen", "full"):
        noise = found["noise"][name]
        assert noise["n"] == 8 and 0 < noise["sigma_low"] < noise["sigma"] < noise["sigma_high"]
    shrinkage = (found["noise"]["screen"]["paired_sigma"] / found["scale"]["sigma"]) ** 2
    assert found["scale"]["shrinkage"] == pytest.approx(shrinkage)
    assert len(found["panel"]["good"]) >= 6 <= len(found["panel"]["bad"])
    assert 0 <= found["panel"]["auc"] <= 1


def test_the_recipe_is_the_best_of_the_shortlist_on_fresh_seeds(workshop):
    found = document(workshop, "calibration", "calibration.json")
    listed = found["tuning"]["shortlist"]
    assert set(listed) - {"before"} == {"default", "best", "second", "centroid", "surrogate"}
    means = {name: np.mean(entry["bpb"]) for name, entry in listed.items()}
    assert found["tuning"]["chosen"] == min(means, key=means.get)
    assert found["recipe"] == listed[found["tuning"]["chosen"]]["recipe"]
    runs = TINY["calibrate.tuning_runs"] + len(found["tuning"]["widenings"])
    assert found["tuning"]["runs"] == runs == found["spent"]["calibrate: tune"]["runs"]


def test_calibrating_again_trains_nothing_and_changes_nothing(workshop, monkeypatch):
    path = workshop / "calibration" / "calibration.json"
    before = path.read_bytes()
    monkeypatch.setattr(LocalEngine, "run", refuse)
    act(workshop, calibrate.calibrate, make_config(settings(workshop), workshop / "calibration"))
    assert path.read_bytes() == before


REFUSED = [
    ({"train__steps": 5}, r"horizon\.screen is 5 and was 6"),
    ({"confirm__steps": 12}, r"horizon\.full is 12 and was 9"),
    ({"model__n_layer": 2}, r"model\.n_layer is 2 and was 1"),
    ({"data__vocab_size": 290}, r"tokenizer is .* and was"),
    ({"data__validation_rows": 4}, r"validation_rows is 4 and was 8"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_calibration_of_another_evaluation_is_refused_by_name(workshop, changes, message):
    with pytest.raises(EvidenceError, match=message):
        act(workshop, search.search, calibrated(workshop, "refused", **changes))
    assert not (workshop / "refused").exists()


def test_a_calibration_on_other_text_is_refused(workshop, tmp_path):
    (tmp_path / "calibration").symlink_to(workshop / "calibration")
    write_corpus(tmp_path / "corpus")
    shard = tmp_path / "corpus" / "shard_00000.parquet"
    (tmp_path / "corpus" / "shard_00002.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(EvidenceError, match=r"corpus is .* and was"):
        act(tmp_path, search.search, calibrated(tmp_path, "run"))


def test_truncated_and_edited_calibrations_are_refused(workshop, tmp_path):
    whole = (workshop / "calibration" / "calibration.json").read_bytes()
    (tmp_path / "calibration").mkdir()
    (tmp_path / "corpus").symlink_to(workshop / "corpus")
    (tmp_path / "cache").symlink_to(workshop / "cache")
    for damaged in (whole[: len(whole) // 2], whole.replace(b'"n": 8', b'"n": 80', 1)):
        (tmp_path / "calibration" / "calibration.json").write_bytes(damaged)
        with pytest.raises(EvidenceError):
            act(tmp_path, search.search, calibrated(tmp_path, "run"))


# Promotion ---------------------------------------------------------------------------------


def test_promotion_gives_fresh_seeds_to_the_best_and_one_goes_on(workshop, searched):
    found = document(workshop, "run", "promotion.json")
    records = {r.id: r for r in archive.load_all(workshop / "run" / "archive.jsonl")}
    assert "against the tuned baseline" in searched
    assert len(found["first_round"]) == 3 and len(found["second_round"]) == 2
    baseline = records["nanochat"]
    assert len(baseline.seeds) == 1 + 2 + 1
    for name, record in records.items():
        rounds = (name in found["first_round"]) * 2 + (name in found["second_round"])
        controls = record.recipe is not None or name == "nanochat"
        assert len(record.seeds) == 1 + (3 if controls else rounds)
        assert record.seeds == baseline.seeds[: len(record.seeds)]
    statuses = [r.status for r in records.values()]
    assert statuses.count("promoted") == (found["candidate"] is not None)
    assert document(workshop, "run", "summary.json")["compared_with"] == "the tuned baseline"


def test_scores_rest_on_all_seeds_of_a_candidate(workshop, searched):
    scale = document(workshop, "calibration", "calibration.json")["scale"]
    records = archive.load_all(workshop / "run" / "archive.jsonl")
    reference = dict(zip(records[0].seeds, records[0].val_bpb, strict=True))
    for r in records:
        gains = [reference[s] - x for s, x in zip(r.seeds, r.val_bpb, strict=True)]
        expected = sum(gains) / (len(gains) + scale["shrinkage"])
        expected -= scale["horizon_slope"] * max(0.0, math.log(r.cost / records[0].cost))
        assert r.score == pytest.approx(expected / scale["sigma"])


def test_searching_again_changes_nothing(workshop, searched, confirmed, monkeypatch):
    files = [workshop / "run" / name for name in ("archive.jsonl", "promotion.json")]
    before = [path.read_bytes() for path in files]
    events = workshop / "run" / "tensorboard" / "search"
    told = read_events(events)  # before promotion scored candidates anew
    monkeypatch.setattr(LocalEngine, "run", refuse)
    act(workshop, search.search, calibrated(workshop, "run"))
    assert read_events(events) == told
    changed = [a != b.read_bytes() for a, b in zip(before, files, strict=True)]
    assert not any(changed)


# Confirmation ------------------------------------------------------------------------------


def card_of(workshop):
    paths = (workshop / "run" / "evidence").glob("*.json")
    (path,) = (path for path in paths if not is_record(path))
    return path, json.loads(path.read_text())


def test_a_confirmation_leaves_a_card_that_says_what_was_spent(workshop, confirmed):
    path, card = card_of(workshop)
    assert confirmed.index("power: ") < confirmed.index("learning rate of ")
    assert card["confirmation"]["pairs"] in (8, 20)
    assert len(card["seeds"]) == card["confirmation"]["pairs"]
    assert card["fold"] == 2
    spent = card["spent"]
    assert spent["confirm: test"]["runs"] == 2 * card["confirmation"]["pairs"]
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
    # The recipe that tuning began with; the search has the one it ended with.
    assert "--config.recipe.momentum=0.97" in calibrating and "recipe" not in searching
    assert f"--config.workdir={workshop / 'calibration'}" in calibrating
    assert f"--config.calibration={workshop / 'calibration' / 'calibration.json'}" in searching
    assert f"--config.workdir={workshop / 'run'}" in searching
    assert confirming.endswith(
        f"--config.workdir={workshop / 'run'} --config.candidate={card['id']}"
    )
    assert replaying == f"python -m nanoevolve_jax.replay --config.devices=2 {path}"


def test_event_files_hold_every_run_of_every_stage_and_whom_promotion_picked(workshop, confirmed):
    for name in ("calibration", "run"):
        by_stage = {}
        for made in read_runs(workshop / name):
            by_stage.setdefault(made.stage, []).append(made.val_bpb)
        assert by_stage
        for stage, finals in by_stage.items():
            events = read_events(workshop / name / "tensorboard" / stage_name(stage))
            told = np.array(events["run/val_bpb"])
            numbers = np.flatnonzero(np.isfinite(finals))
            np.testing.assert_array_equal(told[:, 0], numbers + 1)
            np.testing.assert_allclose(told[:, 1], np.array(finals)[numbers], rtol=1e-6)
    picked = document(workshop, "run", "promotion.json")["candidate"]
    assert picked is None or "policy/gate" in read_events(workshop / "run/tensorboard" / picked)


def test_a_run_folder_older_than_a_setting_can_be_confirmed(workshop, searched, tmp_path):
    written = document(workshop, "run", "config.json")
    del written["config"]["compare"], written["config"]["track"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    shutil.copy(workshop / "run" / "calibration.json", tmp_path)
    found = read_search(on_this_machine(confirm_settings(tmp_path, ""), workshop))
    assert found.config.compare.seeds == 4


def test_seeds_and_folds_of_the_stages_are_disjoint(workshop, confirmed):
    _, card = card_of(workshop)
    stages = {}
    for name in ("calibration", "run"):
        for line in (workshop / name / "runs.jsonl").read_text().splitlines():
            run = json.loads(line)
            stages.setdefault(run["stage"], set()).add((run["job"]["seed"], run["job"]["fold"]))
    stages["search"] = {
        (r.seeds[0], 0) for r in archive.load_all(workshop / "run" / "archive.jsonl")
    }
    tested = stages.pop("confirm: test")
    assert {seed for seed, _ in tested} == set(card["seeds"])
    for earlier in stages.values():
        assert not {seed for seed, _ in tested} & {seed for seed, _ in earlier}
        assert not {fold for _, fold in tested} & {fold for _, fold in earlier}
    promoted = {seed for seed, _ in stages["promote"]}
    assert not promoted & {seed for seed, _ in stages["search"]}
    assert not promoted & {seed for seed, _ in stages["calibrate: tune"]}


def test_confirming_again_trains_nothing_and_uses_no_further_fold(workshop, confirmed, monkeypatch):
    path, card = card_of(workshop)
    before = path.read_bytes()
    monkeypatch.setattr(LocalEngine, "run", refuse)
    act(workshop, confirm.confirm, confirm_settings(workshop, "run"))
    assert path.read_bytes() == before
    evaluation = card["calibration"]["evaluation"]
    ledger = open_ledger(ledger_path(workshop / "cache", evaluation), evaluation, 6)
    assert len(ledger.confirmations()) == 1


def test_a_copied_calibration_leads_to_the_same_ledger(workshop, confirmed):
    """Or every copy would buy a confirmation that counts, and hide the searches before."""
    copied = shutil.copytree(workshop / "calibration", workshop / "copy") / "calibration.json"
    calibration = load_calibration(copied, json.loads(copied.read_text())["evaluation"])
    other = promotion.ledger_of(calibrated(workshop, "run"), calibration)
    assert len(other.confirmations()) == 1 <= other.campaigns()


def test_a_second_candidate_is_exploratory_and_cannot_win(workshop, confirmed):
    found = document(workshop, "run", "promotion.json")
    other = next(name for name in found["first_round"] if name != found["candidate"])
    output = act(workshop, confirm.confirm, confirm_settings(workshop, "run", other))
    card = document(workshop, "run", "evidence", f"{other}.json")
    assert "exploratory" in output and card["exploratory"]
    assert card["level"]["level"] <= 2
    assert document(workshop, "run", "summary.json")["winners"] == []
    # Leaves the folder as the other tests know it.
    for suffix in ("json", "md"):
        (workshop / "run" / "evidence" / f"{other}.{suffix}").unlink()


def test_a_candidate_that_breaks_a_constraint_consumes_nothing(workshop, searched, monkeypatch):
    ledgers = workshop / "cache" / "ledgers"
    before = {path: path.read_bytes() for path in ledgers.glob("*.jsonl")}
    monkeypatch.setattr(eligibility, "STATE_LIMIT", 0.5)
    found = document(workshop, "run", "promotion.json")
    other = next(name for name in found["first_round"] if name != found["candidate"])
    with pytest.raises(EvidenceError, match=f"'{other}': .* above 0.5"):
        act(workshop, confirm.confirm, confirm_settings(workshop, "run", other))
    assert len(before) == 1
    assert all(path.read_bytes() == content for path, content in before.items())


def replayed(workshop, path, pairs=1):
    """(whether a replay agrees, what it printed)."""
    found = []

    def command():
        settings = replay_settings(workshop)
        found.append(replay.replay(settings, path, pairs, Console(width=200)))

    output = act(workshop, command)
    return found[0], output


def test_a_replay_agrees_with_the_card_and_refuses_an_edited_one(workshop, confirmed, tmp_path):
    path, card = card_of(workshop)
    agrees, output = replayed(workshop, path, pairs=2)
    assert agrees and "agrees exactly" in output
    edited = tmp_path / "card.json"
    text = json.dumps(card["confirmation"]["winner_bpb"][0])
    edited.write_text(path.read_text().replace(text, "1.0", 1))
    with pytest.raises(EvidenceError, match="changed after it was written"):
        replay.replay(replay_settings(workshop), edited, 1, Console())


def test_a_replay_is_recorded_beside_its_card_whether_it_agrees_or_not(
    workshop, confirmed, tmp_path
):
    path, card = card_of(workshop)
    agrees, output = replayed(workshop, path)
    record = read_sealed(record_path(path), "replay")
    assert agrees and str(record_path(path)) in output
    assert (record["card"], record["agrees"], record["exact"]) == (card["seal"], True, True)
    assert record["baseline_bpb"] == card["confirmation"]["baseline_bpb"][:1]
    other = tmp_path / "evidence" / "card.json"
    other.parent.mkdir()
    card["confirmation"]["winner_bpb"][0] = 1.0
    sealed = write_sealed(other, "evidence", card)
    agrees, output = replayed(workshop, other)
    record = read_sealed(record_path(other), "replay")
    assert not agrees and "DISAGREES" in output
    assert (record["card"], record["agrees"]) == (sealed["seal"], False)


def test_a_replay_whose_record_cannot_be_written_says_so_in_one_line(
    workshop, confirmed, tmp_path, monkeypatch
):
    path, _ = card_of(workshop)

    def full(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(replay, "write_sealed", full)
    agrees, output = replayed(workshop, path)
    assert agrees
    (line,) = (line for line in output.splitlines() if "cannot be written" in line)
    assert line.endswith("(Read-only file system): no level counts this replay")


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
    """A place that nobody may make, and a server that nobody may call, as fields of a config."""
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
    """The config of a document with other fields."""
    changed = ConfigDict(config)
    changed.update_from_flattened_dict(fields)
    return changed.to_dict()


def test_the_canary_names_every_place_of_the_table(canary):
    """A new field that names a place of a machine belongs in the attack."""
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
    settings = confirm_settings(workshop, "")
    settings.workdir = str(folder)
    texts = ("data.corpus", "attribute.switch_corpus")
    for switch in (canary.pop("attribute.switch_corpus"), "docstrings"):
        changed = with_fields(written["config"], canary | {"attribute.switch_corpus": switch})
        (folder / "config.json").write_text(json.dumps(written | {"config": changed}))
        if switch != "docstrings":  # a text without a fingerprint has to be named here
            with pytest.raises(ConfigError, match=r"attribute\.switch_corpus must be parquet:DIR"):
                act(workshop, confirm.confirm, settings)
    assert "paired seeds" in act(workshop, confirm.confirm, settings)
    found, usual = read_history(folder).config, get_config()
    assert found.workdir == str(folder)
    for path in canary.keys() - {"workdir", "calibration", *texts}:
        assert get_setting(found, path) == get_setting(usual, path), path


def test_a_text_that_is_a_folder_is_found_by_its_fingerprint_or_named(
    workshop, confirmed, tmp_path
):
    path, _ = card_of(workshop)
    settings = replay_settings(workshop)
    settings.data.cache_dir = str(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"config\.data\.corpus must be parquet:DIR"):
        act(workshop, replay.replay, settings, path, 1, Console())
    other = shutil.copytree(workshop / "corpus", tmp_path / "other")
    shutil.copy(other / "shard_00001.parquet", other / "shard_00002.parquet")
    settings.data.corpus = f"parquet:{other}"
    with pytest.raises(EvidenceError, match="made with corpus"):
        act(workshop, replay.replay, settings, path, 1, Console())
    settings.data.corpus = f"parquet:{shutil.copytree(workshop / 'corpus', tmp_path / 'corpus')}"
    act(workshop, replay.replay, settings, path, 1, Console())
    settings.data.corpus = "same"
    act(workshop, replay.replay, settings, path, 1, Console())


def test_without_a_calibration_nothing_can_be_confirmed(workshop):
    plain = make_config(settings(workshop), workshop / "plain")
    act(workshop, search.search, plain)
    with pytest.raises(EvidenceError, match="without a calibration"):
        act(workshop, confirm.confirm, confirm_settings(workshop, "plain"))
    with pytest.raises(ArchiveError, match="finished search"):
        act(workshop, confirm.confirm, confirm_settings(workshop, "nowhere"))


# After a win -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def won(workshop):
    """The card of a candidate whose runs are declared a win, so that all that follows is run."""
    changes = {
        "seed": 7,
        "attribute__donors": 2,
        "attribute__panel_seeds": 2,
        "attribute__switch_corpus": f"parquet:{write_corpus(workshop / 'other')}",
        "transfer__seeds": 2,
        "transfer__width": 2,
    }
    act(workshop, search.search, calibrated(workshop, "won", **changes))
    records = archive.load_all(workshop / "won" / "archive.jsonl")
    gated = next(r.id for r in records if r.spec.control.enabled and r.failure is None)

    def win(*arguments):
        return decide(*arguments)._replace(outcome=WIN)

    patch = pytest.MonkeyPatch()
    with patch.context() as p:
        p.setattr(confirmation, "decide", win)
        p.setattr(trial, "required_seeds", lambda gain, paired_sigma: 3)
        other = {"attribute__switch_corpus": changes["attribute__switch_corpus"]}
        output = act(workshop, confirm.confirm, confirm_settings(workshop, "won", gated, **other))
    return gated, document(workshop, "won", "evidence", f"{gated}.json"), output


def test_a_win_is_attributed_and_tried_elsewhere(won):
    _, card, output = won
    attribution, transfer = card["attribution"], card["transfer"]
    assert card["confirmation"]["outcome"] == "win" and not card["exploratory"]
    assert set(attribution["bpb"]["constants"]) >= {"gate 0", "gate 1", "its time mean", "gate off"}
    for name in ("baseline", "winner", "schedule", "yoked"):
        assert len(attribution["bpb"][name]) == 20
    assert set(transfer["cells"]) == {"lr x0.5", "lr x2", "horizon x0.5", "horizon x2"}
    for cell in transfer["cells"].values():
        assert len(cell["baseline"]) == len(cell["winner"]) == 2
    assert len(transfer["cheaper"]["winner"]) == 3
    assert transfer["wider"]["winner"] != transfer["cells"]["lr x2"]["winner"]
    assert "transfer: 3 pairs" in output


def test_the_verdict_and_the_level_of_a_win_follow_from_its_card(workshop, won):
    name, card, output = won
    panel = card["attribution"]["panel"]
    means = panel and Panel(**{k: np.mean(v, axis=1) for k, v in panel["bpb"].items()})
    evidence = PlaceboEvidence(**attribution_arrays(card), panel=means)
    assert card["verdict"]["label"] == judge(evidence).label
    gates = np.array(
        [
            np.load(workshop / "won" / "telemetry" / f"{key}.npz")["gate"]
            for key in winner_runs(workshop, card)
        ]
    )
    assert card["level"] == level_of_card(card, gates)._asdict()
    assert f"{name} beats the tuned baseline" in output
    page = (workshop / "won" / "evidence" / f"{name}.md").read_text()
    assert card["verdict"]["label"] in page and f"Win level {card['level']['level']}" in page
    assert {"attribute: placebos", "transfer: width"} <= set(card["spent"])
    for stage in card["spent"]:
        assert f"| {stage} |" in page


def attribution_arrays(card):
    found = card["attribution"]["bpb"]
    return {
        name: {k: np.array(v) for k, v in x.items()} if isinstance(x, dict) else np.array(x)
        for name, x in found.items()
    }


def winner_runs(workshop, card):
    """Keys of the winner's runs at its confirmation, by pair."""
    lines = (workshop / "won" / "runs.jsonl").read_text().splitlines()
    keys = {}
    for run in map(json.loads, lines):
        job = run["job"]
        if job["candidate"] == card["arms"]["winner"] and run["stage"] == "confirm: test":
            keys[job["seed"]] = run["key"]
    return [keys[seed] for seed in card["seeds"]]


def test_a_win_stands_in_the_archive_and_the_summary(workshop, won):
    name, _, _ = won
    records = archive.load_all(workshop / "won" / "archive.jsonl")
    assert [r.id for r in records if r.status == "winner"] == [name]
    assert document(workshop, "won", "summary.json")["winners"] == [name]


def test_an_unknown_candidate_is_named_with_those_there_are(workshop, searched):
    with pytest.raises(ConfigError, match=r"must be promoted or one of \[.*'g009c09'"):
        act(workshop, confirm.confirm, confirm_settings(workshop, "run", "g009c09"))


def test_mistakes_of_the_commands_end_in_one_line(repository, tmp_path):
    mistakes = {
        "confirm": (["--config.candidat=x"], ["config.candidat is not", "config.candidate?"]),
        "replay": ([str(tmp_path / "none.json")], ["none.json does not exist"]),
        "calibrate": (["--config.calibration=x"], ["config.calibration", "'x'"]),
    }
    for command, (arguments, parts) in mistakes.items():
        assert_one_line(start(repository, *arguments, command=command), parts)


# The plan ----------------------------------------------------------------------------------


def spent_in(workshop, name):
    """Runs by stage, counted in the folder's own files."""
    found = {}
    for line in (workshop / name / "runs.jsonl").read_text().splitlines():
        stage = json.loads(line)["stage"]
        found[stage] = found.get(stage, 0) + 1
    return found


def planned(config, cheaper_pairs=0):
    """Runs by stage, as planned for two candidates at once."""
    found = {}
    after_win = trial.dry_run(config, 1, cheaper_pairs).after_win
    for one in [*(c for p in phases(config, 2)[:-1] for c in p.calls), *after_win]:
        found[one.stage] = found.get(one.stage, 0) + total_runs([one])
    return found


def test_a_calibration_runs_as_often_as_its_plan_says(workshop):
    config = make_config(settings(workshop), workshop / "calibration")
    spent, expected = spent_in(workshop, "calibration"), planned(config)
    assert len(spent) == 4
    # A point that is on the shortlist twice is run once.
    doubles = expected["calibrate: tune_final"] - spent.pop("calibrate: tune_final")
    assert doubles in range(0, 3 * config.calibrate.seeds, config.calibrate.seeds)
    assert spent == {stage: expected[stage] for stage in spent}


def test_search_promotion_and_all_that_follows_a_win_run_as_often_as_planned(workshop, won):
    config = read_search(confirm_settings(workshop, "won", until="confirm")).config
    spent, expected = spent_in(workshop, "won"), planned(config, cheaper_pairs=3)
    records = archive.load_all(workshop / "won" / "archive.jsonl")
    assert len(records) == expected["search: screening"]
    assert spent["promote"] == expected["promote"]
    # Planned is one reference, and no range that has to reach the candidate's.
    _, card, _ = won
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
    # A gate that senses the step alone moves alike on every seed: yoked is the schedule.
    replayed = card["attribution"]["bpb"]
    doubles = config.confirm.seeds * (replayed["yoked"] == replayed["schedule"])
    expected["attribute: placebos"] -= doubles
    for stage in expected:
        if stage.startswith(("attribute: ", "transfer: ")):
            assert spent[stage] == expected[stage], stage
    # A candidate chosen by hand is asked for what promotion asks its finalists.
    assert spent.pop("confirm: constraints", 1) in (1, 2)
    assert set(spent) - set(moved) <= set(expected)
