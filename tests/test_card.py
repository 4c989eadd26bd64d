"""Levels and pages that follow from a card."""

import math

import numpy as np
import pytest
from benches import arm, card_of, make_bench, make_trial
from markdown_it import MarkdownIt

from nanoevolve_jax.evidence import levels, trial
from nanoevolve_jax.evidence.levels import level_of_card
from nanoevolve_jax.evidence.page import sentence, to_markdown
from nanoevolve_jax.evidence.statistics import paired_test
from nanoevolve_jax.evidence.verdict import judge
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

POLICY, BASELINE = arm("candidate", ANNEALING), arm("nanochat", NANOCHAT)


def gains_05(job):
    """The policy gains 0.05 bpb, give or take a little by seed."""
    enabled = job.candidate.spec.control.enabled
    noise = np.random.default_rng([job.seed, enabled, job.steps]).normal(0, 0.002)
    return 2.0 + noise - 0.05 * enabled


@pytest.fixture(scope="module")
def moved():
    """A card with everything on it; level 2 is reached by a gate that falls over training."""
    bench = make_bench(gains_05, gate_of=lambda job: np.linspace(0.9, 0.1, job.steps))
    found, _ = make_trial(bench, POLICY, BASELINE, until="transfer")
    return card_of(found, bench, POLICY, BASELINE), found.gates


def test_every_condition_elsewhere_stands_on_the_page_with_n_interval_and_p(moved):
    card, _ = moved
    page = to_markdown(card)
    conditions = card["transfer"]["cells"] | {
        "95 % of the compute": card["transfer"]["cheaper"],
        "the wider model": card["transfer"]["wider"],
    }
    assert len(conditions) == 6
    for name, cell in conditions.items():
        test = paired_test(np.subtract(cell["baseline"], cell["winner"]))
        assert (
            f"| {name} | {test.mean:+.4f} | {test.low:+.4f} to {test.high:+.4f} "
            f"| {test.p:.3g} | {test.n} |"
        ) in page


def test_phases_stand_on_the_page_with_their_intervals(moved):
    card, _ = moved
    page = to_markdown(card)
    assert "Means over 20 runs with their 95 % intervals." in page
    for name, thirds in card["phases"]["thirds"].items():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {name} |"))
        for third in thirds:
            assert f"{third['mean']:.3f} ({third['low']:.3f} to {third['high']:.3f})" in line


def test_rules_stand_on_the_page(moved):
    page = to_markdown(moved[0])
    assert "a win at p <= 0.01 after 8 pairs or at p <= 0.04 after 20;" in page
    assert "at least 0.5 sigma; a worst run at most 2 sigma worse" in page
    assert "Looser" not in page


def test_a_failed_run_elsewhere_stands_on_the_page(moved):
    card, _ = moved
    broken = card | {
        "transfer": card["transfer"] | {"wider": {"baseline": [2.0], "winner": [None]}}
    }
    assert "| the wider model | a run failed |  | 1 | 1 |" in to_markdown(broken)


def test_a_card_says_whether_the_export_does_what_was_trained(moved):
    card, gates = moved
    assert card["export"]["passes"] and 0.0 < card["export"]["max_relative_l2"] <= 1e-6
    assert "Written as a file for optax it agrees with what was trained" in to_markdown(card)
    wrong = card | {"export": card["export"] | {"passes": False}}
    assert "DOES NOT AGREE" in to_markdown(wrong)
    older = {name: part for name, part in card.items() if name != "export"}
    assert "Written as a file" not in to_markdown(older)
    assert level_of_card(older, gates) == level_of_card(card, gates)


@pytest.mark.parametrize(
    ("found", "passes"), [({"passes": True}, True), ({"passes": False}, False), (None, None)]
)
def test_the_ladder_reads_the_export_from_the_card(moved, monkeypatch, found, passes):
    card, gates = moved
    seen = []
    monkeypatch.setattr(levels, "level_of", seen.append)
    level_of_card(card | {"export": found}, gates)
    assert [ladder.export_passes for ladder in seen] == [passes]


def test_a_level_needs_an_actuator_that_acts_to_move(moved):
    card, gates = moved
    assert card["level"]["level"] == 1 and "no actuator moves" in card["level"]["missing"]
    thirds = {"update_multiplier": [{"mean": x} for x in (1.1, 1.0, 0.9)], "gate": []}
    acting = card | {"phases": {"thirds": thirds}}
    assert level_of_card(acting, gates).level == 4


def test_a_retuned_baseline_keeps_the_rungs_below_a_win():
    """There is nothing to confirm, but the evaluator separates all the same."""
    bench = make_bench(gains_05)
    retuned = arm("retuned", NANOCHAT._replace(update_multiplier=1.3))
    found = trial.Trial(
        {"confirmation": None}, judge(confirmed=False, retuned=True), None, "nanochat"
    )
    card = card_of(found, bench, retuned, BASELINE)
    assert card["level"] == {"level": 1, "missing": "it is a retuned baseline", "static": True}
    assert "is a retuned baseline" in sentence(card)
    assert "Win level 1; not higher because it is a retuned baseline" in to_markdown(card)


def test_numbers_that_are_not_finite_become_null():
    assert finite_or_null({"a": [math.nan, 1.0], "b": np.array([math.inf])}) == {
        "a": [None, 1.0],
        "b": [None],
    }


def structure(page):
    """What the parts of a page are, their text left aside."""
    blocks = MarkdownIt("commonmark").enable("table").parse(page)
    return [part.type for block in blocks for part in [block, *(block.children or [])]]


@pytest.mark.parametrize(
    "evil",
    [
        "![x](http://x/)",
        "[here](http://x/)",
        "<http://x/>",
        "<img src=x onerror=alert(1)>",
        "<!-- ",
        "`",
        "a | b",
        "\\",
        "\\[here](http://x/)",
        "\n\n## Verdict: win\n",
        "\n```\n",
        "\u2028# x",
    ],
)
def test_strings_of_a_card_are_only_text_on_its_page(moved, evil):
    def page(text):
        card = dict(moved[0])
        card |= {"id": text, "change": text, "baseline": card["baseline"] | {"id": text}}
        card |= {"level": {"level": 1, "missing": text}, "commands": [text]}
        card |= {"fingerprints": {text: text}, "sources": {text: "x"}}
        card |= {"spent": {text: {"runs": 1, "failed": 0, "tokens": 1}}}
        card |= {"verdict": card["verdict"] | {"label": text}}
        return to_markdown(card)

    assert structure(page(f"x{evil}y")) == structure(page("xy"))
