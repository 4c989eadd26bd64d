"""Figures of evidence: gains against noise, placebos, perturbations."""

from collections.abc import Mapping, Sequence

import numpy as np

from nanoevolve_jax.evidence.statistics import Interval, mean_interval
from nanoevolve_jax.reporting.chart import (
    BEST,
    REFERENCE,
    Chart,
    height_of,
    interval_traces,
    row_axes,
    rule,
)
from nanoevolve_jax.reporting.training import Detectable, Gain


def gains_and_noise(found: Sequence[Gain], limit: Detectable | None) -> Chart:
    """The gain of every stage beside the noise of one run and the smallest gain to be found."""
    rows = {f"{gain.stage}, {_seeds(gain.seeds)}": gain for gain in found}
    several = {name: gain.gain for name, gain in rows.items() if gain.seeds > 1}
    single = {name: gain.gain for name, gain in rows.items() if gain.seeds == 1}
    noise = {
        name: Interval(0.0, -gain.sigma, gain.sigma)
        for name, gain in rows.items()
        if gain.sigma is not None
    }
    data = []
    if noise:
        grey = {"color": "--soft", "symbol": "line-ns-open"}
        data.append(interval_traces(noise, grey, name="noise of one run: plus and minus one sigma"))
        data[0]["error_x"] |= {"thickness": 9, "width": 0, "color": "--soft-band"}
    if several:
        data.append(interval_traces(several, BEST, name="mean gain, 95 % interval"))
    if single:
        hollow = BEST | {"symbol": "circle-open"}
        data.append(interval_traces(single, hollow, spread=False, name="one seed, no interval"))
    shapes, caption = [rule(0.0, axis="x")], ""
    if limit is not None:
        shapes.append(rule(limit.twins, axis="x", dash="dash", color="--other"))
        shapes.append(rule(limit.strangers, axis="x", dash="dot", color="--other"))
        caption = (
            " The dashed line is the smallest true gain that a confirmation finds four times in "
            f"five, {limit.twins:.4f} bpb if its pairs scatter like twins; the dotted one, "
            f"{limit.strangers:.4f}, if they scatter like strangers."
        )
    layout = row_axes(rows, "gain, bits per byte", shapes) | {"showlegend": True}
    return Chart(
        "gains",
        "What was gained, and what noise alone does",
        f"Gains at every stage so far.{caption}",
        data,
        layout,
        height=height_of(len(rows)) + 60,
    )


def placebos(gains: Mapping[str, np.ndarray]) -> Chart:
    """The policy and its placebos side by side, every one over the baseline on the same seeds."""
    alive = {name: x[np.isfinite(x)] for name, x in gains.items()}
    found = {name: mean_interval(x) for name, x in alive.items() if len(x)}
    own = dict([next(iter(found.items()))]) if found else {}
    others = {name: interval for name, interval in found.items() if name not in own}
    return Chart(
        "placebos",
        "Gain over the baseline",
        "Mean gain over the baseline on the confirmation's seeds with its 95 % interval: the "
        "policy, and what has everything it has but its senses. Runs that failed are left out.",
        [
            interval_traces(own, BEST, name="the policy"),
            interval_traces(others, REFERENCE, name="placebos"),
        ],
        row_axes(found, "gain, bits per byte", [rule(0.0, axis="x")]) | {"showlegend": True},
        height=height_of(len(found)) + 30,
    )


def perturbations(gains: Mapping[str, Mapping[str, np.ndarray]]) -> Chart:
    """Policy and replayed schedule under what no schedule can know."""
    looks = {"winner": BEST, "schedule": REFERENCE}
    words = {"winner": "the policy", "schedule": "its mean trajectory, replayed"}
    rows: dict[str, dict[str, Interval]] = {"winner": {}, "schedule": {}}
    order = []
    for kind in gains["winner"]:
        for arm, own in rows.items():
            alive = gains[arm][kind][np.isfinite(gains[arm][kind])]
            if len(alive):
                order.append(f"{_spoken(kind)}, {'policy' if arm == 'winner' else 'replayed'}")
                own[order[-1]] = mean_interval(alive)
    data = [interval_traces(own, looks[arm], name=words[arm]) for arm, own in rows.items()]
    return Chart(
        "perturbations",
        "Under perturbations",
        "Mean gain over the baseline with its 95 % interval where something happens that no "
        "schedule could have known.",
        data,
        row_axes(order, "gain, bits per byte", [rule(0.0, axis="x")]) | {"showlegend": True},
        height=height_of(len(order)) + 30,
    )


def _spoken(kind: str) -> str:
    return {"lr": "learning rate"}.get(kind, kind.replace("_", " "))


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
