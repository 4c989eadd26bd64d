"""The evidence card: its page, its level, and the effect of a replay on the level."""

import json
import math

import confirmed
import numpy as np
import pytest
from benches import AGREES, arm, card_of, make_bench, make_trial
from markdown_it import MarkdownIt

from nanoevolve_jax import replay
from nanoevolve_jax.configs import replay as replay_config
from nanoevolve_jax.configs.base import get_config
from nanoevolve_jax.evidence import levels, trial
from nanoevolve_jax.evidence.card import KIND, read_card
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.levels import level_of_card
from nanoevolve_jax.evidence.page import sentence, to_markdown
from nanoevolve_jax.evidence.replay import KIND as REPLAY
from nanoevolve_jax.evidence.replay import (
    agrees,
    read_replay,
    record_path,
    recorded_pairs,
    with_replay,
)
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.evidence.statistics import paired_test
from nanoevolve_jax.evidence.verdict import Unattributed, judge
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.policies import find_policy
from nanoevolve_jax.reporting.summary import verdict
from nanoevolve_jax.terminal.console import Console

POLICY, BASELINE = arm("candidate", ANNEALING), arm("nanochat", NANOCHAT)
COMMITTED = ("evidence", "again")  # cards of results/classics_cpu


def committed(repository, name):
    return repository / "results" / "classics_cpu" / name / "g002c05.json"


def gains_05(job):
    """Returns a loss in which the policy gains 0.05 bpb, with a little noise per seed."""
    enabled = job.candidate.spec.control.enabled
    noise = np.random.default_rng([job.seed, enabled, job.steps]).normal(0, 0.002)
    return 2.0 + noise - 0.05 * enabled


@pytest.fixture(scope="module")
def full():
    """Returns a complete card and gates that fall over training."""
    bench = make_bench(gains_05, gate_of=lambda job: np.linspace(0.9, 0.1, job.steps))
    tried, _ = make_trial(bench, POLICY, BASELINE, until="transfer")
    return card_of(tried, bench, POLICY, BASELINE), tried.gates


# The page


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_card_gives_its_committed_page_byte_for_byte(repository, name):
    path = committed(repository, name)
    assert to_markdown(read_card(path)).encode() == path.with_suffix(".md").read_bytes()


def test_conditions_phases_and_rules_stand_on_the_page_with_their_numbers(full):
    card, _ = full
    page = to_markdown(card)
    transfer = card["transfer"]
    conditions = transfer["cells"] | {"95 % of the compute": transfer["cheaper"]}
    conditions |= {"the wider model": transfer["wider"]}
    assert len(conditions) == 6
    for name, cell in conditions.items():
        test = paired_test(np.subtract(cell["baseline"], cell["winner"]))
        interval = f"{test.low:+.4f} to {test.high:+.4f}"
        assert f"| {name} | {test.mean:+.4f} | {interval} | {test.p:.3g} | {test.n} |" in page
    for name, thirds in card["phases"]["thirds"].items():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {name} |"))
        for third in thirds:
            assert f"{third['mean']:.3f} ({third['low']:.3f} to {third['high']:.3f})" in line
    assert "a win at p <= 0.01 after 8 pairs or at p <= 0.04 after 20;" in page
    assert "Looser" not in page


def test_a_failed_run_elsewhere_stands_on_the_page(full):
    wider = {"baseline": [2.0], "winner": [None]}
    broken = full[0] | {"transfer": full[0]["transfer"] | {"wider": wider}}
    assert "| the wider model | a run failed |  | 1 | 1 |" in to_markdown(broken)


def test_the_page_says_whether_the_export_does_what_was_trained(full):
    card, gates = full
    assert "it agrees with what was trained" in to_markdown(card)
    assert "DOES NOT AGREE" in to_markdown(card | {"export": AGREES | {"passes": False}})
    older = {name: part for name, part in card.items() if name != "export"}
    assert "Written as a file" not in to_markdown(older)
    assert level_of_card(older, gates) == level_of_card(card, gates)


def test_a_retuned_baseline_keeps_the_rungs_below_a_win():
    """A retuned baseline cannot be confirmed, but the evaluator still separates it."""
    bench = make_bench(gains_05)
    retuned = arm("retuned", NANOCHAT._replace(update_multiplier=1.3))
    label = judge(Unattributed.RETUNED)
    tried = trial.Trial({"confirmation": None}, label, None, "nanochat")
    card = card_of(tried, bench, retuned, BASELINE)
    assert card["level"] == {"level": 1, "missing": "it is a retuned baseline", "static": True}
    assert "is a retuned baseline" in sentence(card)
    assert "Win level 1; not higher because it is a retuned baseline" in to_markdown(card)


def structure(page):
    """Returns the types of the parts of a page without their text."""
    blocks = MarkdownIt("commonmark").enable("table").parse(page)
    return [part.type for block in blocks for part in [block, *(block.children or [])]]


EVIL = (
    *("![x](http://x/)", "[here](http://x/)", "<http://x/>", "<img src=x onerror=alert(1)>"),
    *("<!-- ", "`", "a | b", "\\", "\\[here](http://x/)", "\n\n## Verdict: win\n", "\n```\n"),
    "\u2028# x",
)


@pytest.mark.parametrize("evil", EVIL)
def test_strings_of_a_card_are_only_text_on_its_page(full, evil):
    def page(text):
        card = dict(full[0])
        card |= {"id": text, "change": text, "baseline": card["baseline"] | {"id": text}}
        card |= {"level": {"level": 1, "missing": text}, "commands": [text]}
        card |= {"fingerprints": {text: text}, "sources": {text: "x"}}
        card |= {"spent": {text: {"runs": 1, "failed": 0, "tokens": 1}}}
        card |= {"verdict": card["verdict"] | {"label": text}}
        return to_markdown(card)

    assert structure(page(f"x{evil}y")) == structure(page("xy"))


# The level


@pytest.mark.parametrize(
    ("export", "passes"), [(AGREES, True), ({"passes": False}, False), (None, None)]
)
def test_the_ladder_reads_the_export_from_the_card(full, monkeypatch, export, passes):
    card, gates = full
    seen = []
    monkeypatch.setattr(levels, "level_of", seen.append)
    level_of_card(card | {"export": export}, gates)
    assert [ladder.export_passes for ladder in seen] == [passes]


def test_a_level_needs_an_actuator_that_acts_to_move(full):
    card, gates = full
    assert card["level"]["level"] == 1 and "no actuator moves" in card["level"]["missing"]
    thirds = {"update_multiplier": [{"mean": x} for x in (1.1, 1.0, 0.9)], "gate": []}
    assert level_of_card(card | {"phases": {"thirds": thirds}}, gates).level == 4


# Reading and replaying a card


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_card_can_be_replayed_where_its_text_is_named(repository, tmp_path, name):
    path = committed(repository, name)
    card, settings = read_sealed(path, KIND), replay_config.get_config()
    settings.data.cache_dir = str(tmp_path)
    with pytest.raises(ConfigError, match=r"parquet:DIR, the folder of the text c55e8876c73aa453"):
        replay.config_of(card, settings, path)
    settings.data.corpus = "parquet:mine"
    config = replay.config_of(card, settings, path)
    pairs = recorded_pairs(card, config, path, 64, find_code=None)
    assert (config.data.corpus, config.workdir) == ("parquet:mine", get_config().workdir)
    assert pairs.bpb.shape == (2, card["confirmation"]["pairs"])
    np.testing.assert_array_equal(pairs.bpb[1], card["confirmation"]["winner_bpb"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("seeds", 5), ("seeds", ["a"]), ("seeds", [2**40]), ("fold", 99), ("fold", None)),
        *(("arms", {"baseline": {}}), ("calibration", []), ("confirmation", {"reason": "x"})),
        ("confirmation", {"baseline_bpb": [1.0], "winner_bpb": ["2"]}),
        *(("config", 3), ("fingerprints", None), ("id", None)),
    ],
)
def test_a_card_of_another_form_is_refused_in_one_line(repository, tmp_path, field, value):
    card = read_sealed(committed(repository, "evidence"), KIND) | {field: value}
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


BEFORE = np.array([[2.00, 2.01, 2.02], [1.95, 1.97, 1.99]])
FAILED = np.where([[False, True, False]], math.nan, BEFORE)


@pytest.mark.parametrize(
    ("before", "now", "limit", "expected"),
    [
        (BEFORE, BEFORE, 0.0, True),
        (BEFORE, BEFORE + 1e-9, 0.0, False),
        (FAILED, FAILED, 0.0, True),
        (BEFORE, BEFORE + 0.1, 0.001, True),  # on another text or device with the same gains
        (BEFORE, BEFORE + [[0.002], [0.0]], 0.001, False),
        (FAILED, FAILED + 0.1, 0.001, True),  # both runs failed before and now
        (FAILED, BEFORE, 0.001, False),
        (BEFORE, FAILED, 0.001, False),
    ],
)
def test_gains_agree_within_the_limit_if_the_same_runs_failed(before, now, limit, expected):
    assert agrees(before, now, limit) == expected


# The record of a replay


@pytest.fixture(scope="module")
def searched(repository, tmp_path_factory):
    """Returns a run folder whose winner lacks only a replay for level 5."""
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
    replayed = with_replay(read_sealed(path, KIND), read_replay(path))["level"]
    return replayed["level"], replayed["missing"]


def test_a_replay_that_agrees_lifts_its_card_from_level_4_to_5_wherever_a_level_is_shown(
    card, searched
):
    assert level(card) == (4, "it was not replayed")
    record(card)
    assert level(card) == (5, None)
    history = read_history(searched)
    assert list(history.cards) == [confirmed.WINNER]
    assert verdict(history).endswith("(win level 5).")
    assert find_policy(confirmed.WINNER, searched).origin.level == 5


@pytest.mark.parametrize("answer", [False, 1, "yes", None])
def test_a_replay_that_disagrees_does_not_count(card, answer):
    record(card, agrees=answer)
    assert level(card) == (4, "its replay disagreed")


@pytest.mark.parametrize("seal", ["0" * 16, None, 5])
def test_the_replay_of_another_card_does_not_count(card, seal):
    record(card, card=seal)
    assert level(card) == (4, "it was not replayed")


def test_an_edited_replay_is_refused(card):
    record(card, agrees=False)
    path = record_path(card)
    path.write_text(path.read_text().replace("false", "true"))
    with pytest.raises(EvidenceError, match="changed after it was written"):
        level(card)


@pytest.mark.parametrize("lower", [0, 1, 2, 3])
def test_a_replay_does_not_lift_a_card_below_level_4(card, lower):
    document = read_sealed(card, KIND)
    document["level"] = {"level": lower, "missing": "why", "static": False}
    own = {"card": document["seal"], "agrees": True}
    assert with_replay(document, own)["level"] == document["level"]


def test_a_card_that_claims_level_5_itself_is_not_believed(card):
    document = read_sealed(card, KIND)
    document["level"] = {"level": 5, "missing": None, "static": False}
    assert with_replay(document, None)["level"]["level"] == 4
    document["export"] = document["export"] | {"passes": False}
    own = {"card": document["seal"], "agrees": True}
    assert with_replay(document, own)["level"]["level"] == 4
