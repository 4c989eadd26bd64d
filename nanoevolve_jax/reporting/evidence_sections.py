"""Sections on what a gain is worth: noise, and placebos."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evidence.verdict import STEP_SHARE
from nanoevolve_jax.reporting import evidence_charts, training
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.section import Group, Section, Table
from nanoevolve_jax.reporting.words import telling_card


def noise(history: History) -> Section:
    """The noise floor, and what could be found above it."""
    title = "Noise floor and minimum detectable effect"
    found = training.stage_gains(history, training.subject(history))
    limit = training.detectable(history)
    if limit is None:
        reason = (
            "This search had no calibration: how far two seeds of one policy lie apart was not "
            "measured, so neither the noise floor nor the smallest gain that could be found is "
            "known."
            if history.config.calibration == UNCALIBRATED
            else "The calibration is not where the search found it, so its noise is not shown."
        )
        return Section("noise", title, [reason])
    groups = [Group(None, [evidence_charts.gains_and_noise(found, limit)])] if found else []
    document = history.calibration
    measured, panel = document["noise"], document["panel"]
    table = Table(
        "Noise of the tuned baseline, bits per byte",
        ["horizon", "steps", "seeds", "sigma between seeds (95 % interval)", "of twins on a seed"],
        [
            [
                name,
                f"{part['steps']:,}",
                str(part["n"]),
                f"{part['sigma']:.4f} ({part['sigma_low']:.4f} to {part['sigma_high']:.4f})",
                f"{part['paired_sigma']:.4f}",
            ]
            for name, part in (("screening", measured["screen"]), ("full", measured["full"]))
        ],
    )
    sigma = measured["full"]["sigma"]
    said = [
        f"Seeds alone move the final loss by {sigma:.4f} bpb (one standard deviation at the full "
        "horizon). With its rules, a confirmation finds a true gain of "
        f"{_detected(limit.twins)} four times in five if the gains of its pairs scatter as those "
        f"of twins do, and of {_detected(limit.strangers)} if they scatter as strangers do.",
        f"The evaluator tells good from bad specs with an AUC of {panel['auc']:.3f}; a run that "
        f"was repeated differed by {measured['repeat_difference']:g} bpb.",
    ]
    return Section("noise", title, said, groups, [table])


def _detected(effect: float) -> str:
    return f"{effect:.4f} bpb" if math.isfinite(effect) else "no size that was tried"


def placebos(history: History) -> Section:
    """What has everything that the policy has but its senses."""
    title, card = "Placebos", telling_card(history)
    if card is None:
        return Section(
            "placebos",
            title,
            [
                "No candidate of this search has been confirmed, so no placebo was run: they are "
                "asked only after a win."
            ],
        )
    found = card.get("attribution")
    if found is None:
        reason = (
            "it only retunes the baseline"
            if card["retuned_baseline"]
            else f"its confirmation ended as '{card['confirmation']['outcome']}'"
            if card["confirmation"]["outcome"] != "win"
            else "its confirmation was to end there"
        )
        said = [sentence(card), f"No placebo was run for {card['id']}: {reason}."]
        return Section("placebos", title, said)
    gains = training.placebo_gains(found)
    failed = {name: int(np.sum(~np.isfinite(x))) for name, x in gains.items()}
    groups = [Group(None, [evidence_charts.placebos(gains)])]
    panel = found["panel"]
    if panel is not None:
        groups[0].charts.append(evidence_charts.perturbations(training.panel_gains(panel)))
    said = [
        f"{sentence(card)}",
        "Placebos get everything the policy has but its senses, in the same compiled program: "
        "the gate held at constants, its mean trajectory replayed, another seed's trajectory. "
        f"The step alone explains {found['step_share']:.0%} of the variance of its gate"
        + ("" if found["step_share"] <= STEP_SHARE else ", as it does of a schedule")
        + f"; the best constants are '{found['best_constants']}'.",
    ]
    if panel is None:
        said.append("The perturbation panel was not needed.")
    if any(failed.values()):
        runs = ", ".join(f"{count} of '{name}'" for name, count in failed.items() if count)
        said.append(f"Runs that failed: {runs}.")
    tables = [_tests("Contrasts, paired by seed", found["contrasts"])]
    return Section("placebos", title, said, groups, tables)


def _tests(caption: str, tests: Mapping[str, Mapping[str, Any]]) -> Table:
    """Paired tests by name."""
    head = ["comparison", "mean gain, bpb", "95 % interval", "p, one-sided", "pairs"]

    def row(name: str, test: Mapping[str, Any]) -> list[str]:
        usable = test["mean"] is not None and math.isfinite(test["mean"])
        mean = f"{test['mean']:+.4f}" if usable else "a run failed"
        interval = f"{test['low']:+.4f} to {test['high']:+.4f}" if usable else ""
        return [name, mean, interval, f"{test['p']:.3g}", str(test["n"])]

    return Table(caption, head, [row(*item) for item in tests.items()])
