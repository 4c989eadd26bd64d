"""Sections on the evidence: gains against noise, placebos and perturbations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evidence.statistics import Interval, mean_interval
from nanoevolve_jax.evidence.verdict import STEP_SHARE
from nanoevolve_jax.reporting import measurements
from nanoevolve_jax.reporting.elements import (
    BEST,
    COLORS,
    REFERENCE,
    Chart,
    Group,
    Look,
    Section,
    Table,
    height_of,
    interval_trace,
    row_axes,
    rule,
)
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.measurements import DetectableGain, Gain
from nanoevolve_jax.reporting.summary import is_uncalibrated, main_card

_GAIN_AXIS = "gain, bits per byte"

# Noise -------------------------------------------------------------------------------------


def noise_section(history: History) -> Section:
    """Returns the noise floor and the smallest gain that a confirmation can detect."""
    title = "Noise floor and minimum detectable effect"
    document, limit = history.calibration, measurements.detectable_gain(history)
    if document is None or limit is None:
        reason = (
            "This search has no calibration, so the spread between seeds, the noise floor and the "
            "smallest detectable gain are unknown."
            if is_uncalibrated(history)
            else "The calibration is missing from the run folder, so its noise is not shown."
        )
        return Section("noise", title, [reason])
    gains = measurements.stage_gains(history, measurements.subject(history))
    groups = [Group(None, [_gain_chart(gains, limit)])] if gains else []
    noise, panel = document["noise"], document["panel"]
    table = Table(
        "Noise of the tuned baseline, bits per byte",
        ["horizon", "steps", "seeds", "sigma between seeds (95 % interval)", "sigma of a pair"],
        [
            [
                name,
                f"{part['steps']:,}",
                str(part["n"]),
                f"{part['sigma']:.4f} ({part['sigma_low']:.4f} to {part['sigma_high']:.4f})",
                f"{part['paired_sigma']:.4f}",
            ]
            for name, part in (("screening", noise["screen"]), ("full", noise["full"]))
        ],
    )
    sentences = [
        f"The standard deviation of the final loss between seeds is {noise['full']['sigma']:.4f} "
        "bpb at the full horizon. With 80 % probability, a confirmation detects a true gain of "
        f"{_effect(limit.paired)} if the two runs of a pair vary together, as they do with equal "
        f"seeds, and of {_effect(limit.independent)} if they vary independently.",
        f"The evaluator separates good from bad specs with an AUC of {panel['auc']:.3f}. "
        f"Repeating a run changed its loss by {noise['repeat_difference']:g} bpb.",
    ]
    return Section("noise", title, sentences, groups, [table])


def _effect(effect: float) -> str:
    return f"{effect:.4f} bpb" if math.isfinite(effect) else "no size up to 10 sigma"


def _gain_chart(gains: Sequence[Gain], limit: DetectableGain) -> Chart:
    """Returns the gain of each stage beside the noise of one run and the detectable gains."""
    rows = {f"{gain.stage}, {_seeds(gain.seeds)}": gain for gain in gains}
    several = {name: gain.gain for name, gain in rows.items() if gain.seeds > 1}
    single = {name: gain.gain for name, gain in rows.items() if gain.seeds == 1}
    noise = {
        name: Interval(0.0, -gain.sigma, gain.sigma)
        for name, gain in rows.items()
        if gain.sigma is not None
    }
    data = []
    if noise:
        look = Look("soft", symbol="line-ns-open")
        data.append(interval_trace(noise, look, name="noise of one run: plus and minus one sigma"))
        data[0].error_x.update(thickness=9, width=0, color=COLORS["soft-band"])
    if several:
        data.append(interval_trace(several, BEST, name="mean gain and 95 % interval"))
    if single:
        look = BEST._replace(symbol="circle-open")
        data.append(interval_trace(single, look, bars=False, name="one seed, no interval"))
    rules = [
        rule(0.0, axis="x"),
        rule(limit.paired, axis="x", dash="dash", color="other"),
        rule(limit.independent, axis="x", dash="dot", color="other"),
    ]
    return Chart(
        "gains",
        "Gains and noise",
        "Gain at each stage so far. The vertical lines are the smallest true gains that a "
        f"confirmation detects with 80 % probability: dashed, {limit.paired:.4f} bpb, if the runs "
        f"of a pair vary together; dotted, {limit.independent:.4f} bpb, if they vary "
        "independently.",
        data,
        row_axes(rows, _GAIN_AXIS, rules, showlegend=True),
        height=height_of(len(rows)) + 60,
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


# Placebos ----------------------------------------------------------------------------------


def placebo_section(history: History) -> Section:
    """Returns the comparison with placebos, which have no access to the sensors."""
    title, card = "Placebos", main_card(history)
    if card is None:
        reason = (
            "No candidate of this search has been confirmed. Placebos are run only after a "
            "confirmed win."
        )
        return Section("placebos", title, [reason])
    attribution = card.get("attribution")
    if attribution is None:
        outcome = card["confirmation"] and card["confirmation"]["outcome"]
        reason = (
            "it only retunes the baseline"
            if card["retuned_baseline"]
            else f"the outcome of its confirmation is '{outcome}'"
            if outcome != "win"
            else "its confirmation was configured to end before that stage"
        )
        sentences = [sentence(card), f"No placebo was run for {card['id']}, because {reason}."]
        return Section("placebos", title, sentences)
    gains = measurements.placebo_gains(attribution)
    charts = [_placebo_chart(gains)]
    panel = attribution["panel"]
    if panel is not None:
        charts.append(_perturbation_chart(measurements.perturbation_gains(panel)))
    schedule = "" if attribution["step_share"] <= STEP_SHARE else ", as in a schedule"
    sentences = [
        sentence(card),
        "A placebo is the same policy in the same compiled program, but its gate does not react to "
        "the sensors: it is held constant, or replays the policy's mean trajectory or the "
        f"trajectory of another seed. The step alone explains {attribution['step_share']:.0%} of "
        f"the variance of the gate{schedule}. The best constant gate is "
        f"'{attribution['best_constants']}'.",
    ]
    if panel is None:
        sentences.append("The tests under perturbations were not needed.")
    failed = {name: int(np.sum(~np.isfinite(x))) for name, x in gains.items()}
    if any(failed.values()):
        runs = ", ".join(f"{count} of '{name}'" for name, count in failed.items() if count)
        sentences.append(f"Failed runs: {runs}.")
    tables = [_test_table("Contrasts, paired by seed", attribution["contrasts"])]
    return Section("placebos", title, sentences, [Group(None, charts)], tables)


def _placebo_chart(gains: Mapping[str, np.ndarray]) -> Chart:
    finite = {name: x[np.isfinite(x)] for name, x in gains.items()}
    intervals = {name: mean_interval(x) for name, x in finite.items() if len(x)}
    own = dict([next(iter(intervals.items()))]) if intervals else {}
    placebos = {name: interval for name, interval in intervals.items() if name not in own}
    return Chart(
        "placebos",
        "Gain over the baseline",
        "Mean gain over the baseline with its 95 % interval, on the seeds of the confirmation. "
        "Failed runs are left out.",
        [
            interval_trace(own, BEST, name="the policy"),
            interval_trace(placebos, REFERENCE, name="placebos"),
        ],
        row_axes(intervals, _GAIN_AXIS, [rule(0.0, axis="x")], showlegend=True),
        height=height_of(len(intervals)) + 30,
    )


def _perturbation_chart(gains: Mapping[str, Mapping[str, np.ndarray]]) -> Chart:
    looks = {"winner": BEST, "schedule": REFERENCE}
    legend = {"winner": "the policy", "schedule": "its mean trajectory, replayed"}
    short = {"winner": "policy", "schedule": "replayed"}
    rows: dict[str, dict[str, Interval]] = {"winner": {}, "schedule": {}}
    order = []
    for kind in gains["winner"]:
        for arm, own in rows.items():
            finite = gains[arm][kind][np.isfinite(gains[arm][kind])]
            if len(finite):
                phrase = "learning rate" if kind == "lr" else kind.replace("_", " ")
                order.append(f"{phrase}, {short[arm]}")
                own[order[-1]] = mean_interval(finite)
    return Chart(
        "perturbations",
        "Gain under perturbations",
        "Mean gain over the baseline with its 95 % interval when training is disturbed in a way "
        "that a schedule cannot anticipate.",
        [interval_trace(own, looks[arm], name=legend[arm]) for arm, own in rows.items()],
        row_axes(order, _GAIN_AXIS, [rule(0.0, axis="x")], showlegend=True),
        height=height_of(len(order)) + 30,
    )


def _test_table(caption: str, tests: Mapping[str, Mapping[str, Any]]) -> Table:
    head = ["comparison", "mean gain, bpb", "95 % interval", "p, one-sided", "pairs"]

    def row(name: str, test: Mapping[str, Any]) -> list[str]:
        usable = test["mean"] is not None and math.isfinite(test["mean"])
        mean = f"{test['mean']:+.4f}" if usable else "a run failed"
        interval = f"{test['low']:+.4f} to {test['high']:+.4f}" if usable else ""
        return [name, mean, interval, f"{test['p']:.3g}", str(test["n"])]

    return Table(caption, head, [row(*item) for item in tests.items()])
