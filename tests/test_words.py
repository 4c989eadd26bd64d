"""The verdict and the lineage in words: what they name, and what they must not claim."""

import numpy as np
import pytest
from histories import family, make_history
from records import make_record

from nanoevolve_jax.policy.spec import FIELDS
from nanoevolve_jax.reporting.words import gains, lineage, short_name, shorten, verdict


def promoted(records, bpb=(1.991, 1.985, 1.975)):
    """The records after promotion gave the child and the baseline two fresh seeds."""
    more = {"seeds": [0, 7, 8], "train_loss": [3.5] * 3, "steps": [6] * 3}
    more |= {"instability": [0.01] * 3}
    changed = {
        "nanochat": records[0]._replace(val_bpb=[2.0, 2.0, 2.0], **more),
        "g001c00": records[2]._replace(val_bpb=list(bpb), status="promoted", **more),
    }
    return [changed.get(record.id, record) for record in records]


def make_card(name="g001c00", *, mean=0.01, outcome="win", level=3, **fields):
    test = {"mean": mean, "low": mean - 0.002, "high": mean + 0.002, "p": 0.001, "n": 8}
    found = {"test": test, "pairs": 8, "gain_in_sigma": 2.0, "outcome": outcome, "reason": "why"}
    return {
        "id": name,
        "verdict": {"label": "better constants"},
        "retuned_baseline": False,
        "exploratory": False,
        "attribution": None,
        "confirmation": found,
        "level": {"level": level, "missing": None},
    } | fields


def test_without_a_calibration_nothing_is_claimed(tmp_path):
    assert verdict(make_history(tmp_path, family())) == (
        "Nothing is confirmed: g001c00 screened 0.0090 bpb better than an untuned baseline on one "
        "seed, and nothing can win against an untuned baseline (win level 0)."
    )


def test_a_search_under_way_is_said_to_be(tmp_path):
    said = verdict(make_history(tmp_path, family(), summary=None))
    assert "the search has not ended: so far g001c00 screened 0.0090" in said


def test_a_search_that_found_nothing_says_so(tmp_path):
    records = [make_record(status="baseline"), make_record("g001c00", bpb=2.1, score=-0.1)]
    said = verdict(make_history(tmp_path, records))
    assert "none of 1 candidates screened better" in said
    assert "g001c00" not in said


def test_what_promotion_picked_is_compared_on_fresh_seeds_alone(tmp_path):
    document = {"candidate": "g001c00", "comparator": "nanochat"}
    history = make_history(tmp_path, promoted(family()), calibrated=True, promotion=document)
    assert verdict(history) == (
        "Nothing is confirmed yet: promotion picked g001c00, 0.0200 bpb better than the tuned "
        "baseline over 2 fresh seeds, which chose it and so cannot test it (win level 1)."
    )


def test_a_promotion_that_is_worse_on_fresh_seeds_is_called_worse(tmp_path):
    document = {"candidate": "g001c00", "comparator": "nanochat"}
    records = promoted(family(), bpb=(1.9, 2.01, 2.03))
    history = make_history(tmp_path, records, calibrated=True, promotion=document)
    assert "picked g001c00, 0.0200 bpb worse than" in verdict(history)


def test_a_promotion_that_picked_nothing_says_so(tmp_path):
    document = {"candidate": None, "comparator": "nanochat"}
    history = make_history(tmp_path, family(), calibrated=True, promotion=document)
    assert verdict(history).startswith("Nothing is confirmed: promotion picked nothing")


@pytest.mark.parametrize(("auc", "repeat"), [(0.8, 0.0), (0.95, 1e-4)])
def test_an_evaluator_that_fails_its_own_test_is_of_level_0(tmp_path, auc, repeat):
    calibration = {"panel": {"auc": auc}, "noise": {"repeat_difference": repeat}}
    history = make_history(tmp_path, family(), calibrated=True)._replace(calibration=calibration)
    assert "(win level 0)" in verdict(history)


def test_a_calibration_that_is_elsewhere_leaves_the_level_open(tmp_path):
    history = make_history(tmp_path, family(), calibrated=True)._replace(calibration=None)
    assert "win level not known" in verdict(history)


def test_a_win_and_a_null_are_told_by_their_card(tmp_path):
    records = promoted(family())
    won = make_history(tmp_path, records, calibrated=True, cards={"g001c00": make_card()})
    assert verdict(won) == (
        "g001c00 beats the tuned baseline over 8 paired seeds, +0.0100 bpb (+2.00 sigma), 95 % "
        "interval +0.0080 to +0.0120, p = 0.001: better constants (win level 3)."
    )
    null = make_card(outcome="null", mean=0.001, level=1)
    lost = make_history(tmp_path, records, calibrated=True, cards={"g001c00": null})
    assert "is not distinguishable from the tuned baseline" in verdict(lost)
    assert verdict(lost).endswith("(win level 1).")


def test_the_promoted_candidates_card_goes_before_others(tmp_path):
    cards = {"g009c00": make_card("g009c00"), "g001c00": make_card(outcome="null", level=1)}
    history = make_history(tmp_path, promoted(family()), calibrated=True, cards=cards)
    assert verdict(history).startswith("g001c00 is not distinguishable")
    del cards["g001c00"]
    assert verdict(history).startswith("g009c00 beats")


def test_gains_pair_seeds_and_not_places():
    reference = make_record(seeds=[3, 1], val_bpb=[2.0, 3.0])
    record = make_record("a", seeds=[1, 2, 3], val_bpb=[2.5, 9.0, 2.1])
    np.testing.assert_allclose(gains(record, reference), [0.5, -0.1])


def test_a_lineage_names_every_ancestor_from_the_founder_on():
    assert lineage(family(), "g001c00") == [
        "generation 0, nanochat: NanoChat's optimizer under the recipe, the baseline",
        "generation 0, preset annealing: gate off -> on",
        "generation 1, adjust_gate_weight: grad_alignment 0.7 -> 1.1",
    ]


def test_a_control_is_called_one():
    assert lineage(family(), "g001c01")[-1] == (
        "generation 1, adjust_recipe: recipe momentum 0.8335 -> 0.8 (a control: only the recipe)"
    )


def test_no_two_fields_share_a_short_name():
    assert len({short_name(path) for path in FIELDS}) == len(FIELDS)


def test_every_part_of_a_change_is_shortened():
    change = "recipe.embedding_lr 0.3 -> 0.2; control.aggressive.clip_threshold 2.0 -> 1.5"
    assert shorten(change) == "recipe embedding_lr 0.3 -> 0.2; aggressive clip_threshold 2.0 -> 1.5"
