"""When runs that were made again say what they said before, and what that does to a level."""

import json
import math

import confirmed
import numpy as np
import pytest
from nanoevolve_jax.configs import replay as replay_config
from nanoevolve_jax.configs.base import get_config

from nanoevolve_jax import replay
from nanoevolve_jax.evidence.card import KIND, read_replay, record_path, with_replay
from nanoevolve_jax.evidence.card import REPLAY_KIND as REPLAY
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.replay import agrees
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.policies import find_policy
from nanoevolve_jax.reporting.summary import verdict
from nanoevolve_jax.terminal.console import Console

BEFORE = np.array([[2.00, 2.01, 2.02], [1.95, 1.97, 1.99]])
SHIFTED = BEFORE + 0.1  # other text or device, the same gains
FAILED = BEFORE.copy()
FAILED[:, 1] = math.nan


@pytest.mark.parametrize(
    ("before", "found", "limit", "expected"),
    [
        (BEFORE, BEFORE, 0.0, True),
        (BEFORE, BEFORE + 1e-9, 0.0, False),
        (FAILED, FAILED, 0.0, True),
        (BEFORE, SHIFTED, 0.001, True),
        (BEFORE, BEFORE + [[0.002], [0.0]], 0.001, False),
        (FAILED, FAILED + 0.1, 0.001, True),  # both failed both times
        (FAILED, BEFORE, 0.001, False),
        (BEFORE, FAILED, 0.001, False),
    ],
)
def test_gains_agree_within_the_limit_and_the_same_runs_failed(before, found, limit, expected):
    assert agrees(before, found, limit) == expected


@pytest.mark.parametrize("name", ["evidence", "again"])
def test_a_committed_card_can_be_replayed_where_its_text_is_named(repository, tmp_path, name):
    path = repository / "results" / "classics_cpu" / name / "g002c05.json"
    card, settings = read_sealed(path, KIND), replay_config.get_config()
    settings.data.cache_dir = str(tmp_path)
    with pytest.raises(ConfigError, match=r"parquet:DIR, the folder of the text c55e8876c73aa453"):
        replay._config_of(card, settings, path)
    settings.data.corpus = "parquet:mine"
    config = replay._config_of(card, settings, path)
    recorded = replay._recorded(card, config, path, 64)
    assert (config.data.corpus, config.workdir) == ("parquet:mine", get_config().workdir)
    assert recorded.bpb.shape == (2, card["confirmation"]["pairs"])
    np.testing.assert_array_equal(recorded.bpb[1], card["confirmation"]["winner_bpb"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seeds", 5),
        ("seeds", ["a"]),
        ("seeds", [2**40]),
        ("fold", 99),
        ("fold", None),
        ("arms", {"baseline": {}}),
        ("calibration", []),
        ("confirmation", {"reason": "x"}),
        ("confirmation", {"baseline_bpb": [1.0], "winner_bpb": ["2"]}),
        ("config", 3),
        ("fingerprints", None),
        ("id", None),
    ],
)
def test_a_card_of_another_form_is_refused_in_one_line(repository, tmp_path, field, value):
    source = repository / "results" / "classics_cpu" / "evidence" / "g002c05.json"
    card = read_sealed(source, KIND) | {field: value}
    if value is None and field == "id":
        del card["id"]
    write_sealed(tmp_path / "card.json", KIND, card)
    settings = replay_config.get_config()
    settings.data.cache_dir = str(tmp_path / "cache")
    if field != "fingerprints":
        settings.data.corpus = "parquet:nowhere"
    with pytest.raises((EvidenceError, ConfigError)) as caught:
        replay.replay(settings, tmp_path / "card.json", 1, Console())
    assert "\n" not in str(caught.value) and "card.json" in str(caught.value)


# The record of a replay --------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(repository, tmp_path_factory):
    """A run folder whose winner has done all that level 5 asks for, except for a replay."""
    folder = confirmed.write(tmp_path_factory.mktemp("replayed") / "run", repository)
    path = folder / "evidence" / f"{confirmed.WINNER}.json"
    card = read_sealed(path, KIND) | {"level": {"level": 4, "missing": "x", "static": False}}
    for cell in (card["transfer"]["cheaper"], card["transfer"]["wider"]):
        cell["winner"] = [bpb - 0.04 - 0.001 * i for i, bpb in enumerate(cell["baseline"])]
    write_sealed(path, KIND, card)
    return folder


@pytest.fixture
def card(searched):
    path = searched / "evidence" / f"{confirmed.WINNER}.json"
    yield path
    record_path(path).unlink(missing_ok=True)


def record(path, **changes):
    """Writes the record of a replay that agrees."""
    seal = json.loads(path.read_text())["seal"]
    write_sealed(record_path(path), REPLAY, {"card": seal, "agrees": True} | changes)


def level(path):
    found = with_replay(read_sealed(path, KIND), read_replay(path))["level"]
    return found["level"], found["missing"]


def test_a_card_without_a_replay_stays_at_level_4(card):
    assert level(card) == (4, "it was not replayed")


def test_a_replay_that_agrees_lifts_its_card_to_level_5_wherever_a_level_is_shown(card, searched):
    record(card)
    assert level(card) == (5, None)
    history = read_history(searched)
    assert list(history.cards) == [confirmed.WINNER]
    assert verdict(history).endswith("(win level 5).")
    assert find_policy(confirmed.WINNER, searched).origin.level == 5


def test_a_replay_that_disagrees_does_not_count(card):
    for answer in (False, 1, "yes", None):
        record(card, agrees=answer)
        assert level(card) == (4, "its replay disagreed")


def test_the_replay_of_another_card_does_not_count(card):
    for seal in ("0" * 16, None, 5):
        record(card, card=seal)
        assert level(card) == (4, "it was not replayed")


def test_an_edited_replay_is_refused(card):
    record(card, agrees=False)
    path = record_path(card)
    path.write_text(path.read_text().replace("false", "true"))
    with pytest.raises(EvidenceError, match="changed after it was written"):
        level(card)


@pytest.mark.parametrize("lower", [0, 1, 2, 3])
def test_a_replay_lifts_no_card_below_level_4(card, lower):
    document = read_sealed(card, KIND)
    document["level"] = {"level": lower, "missing": "why", "static": False}
    own = {"card": document["seal"], "agrees": True}
    assert with_replay(document, own)["level"] == document["level"]


def test_a_card_that_says_level_5_itself_is_not_believed(card):
    document = read_sealed(card, KIND)
    document["level"] = {"level": 5, "missing": None, "static": False}
    assert with_replay(document, None)["level"]["level"] == 4
    document["export"] = document["export"] | {"passes": False}
    own = {"card": document["seal"], "agrees": True}
    assert with_replay(document, own)["level"]["level"] == 4
