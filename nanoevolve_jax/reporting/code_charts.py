"""Figures of rewritten code: gain and cost of proposals."""

from collections.abc import Sequence

from nanoevolve_jax.evolution.proposals import Entry
from nanoevolve_jax.reporting.chart import MANY, Chart, numbers, plain, rule, titled

_SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up", "x")


def gain_and_cost(found: Sequence[tuple[Entry, float]]) -> Chart:
    """What rewritten functions gained over their parents, against what asking for them cost.

    Args:
      found: trained proposals and their gains in bpb.
    """
    paid = any(entry.dollars for entry, _ in found)
    cost = [e.dollars if paid else e.input_tokens + e.output_tokens for e, _ in found]
    unit = "dollars" if paid else "tokens"
    providers = sorted({entry.provider for entry, _ in found})
    data = []
    for i, provider in enumerate(providers):
        own = [k for k, (entry, _) in enumerate(found) if entry.provider == provider]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain(provider),
                "x": numbers([cost[k] for k in own]),
                "y": numbers([found[k][1] for k in own]),
                "text": [plain(str(found[k][0].candidate)) for k in own],
                "hovertemplate": f"%{{text}}<br>%{{y}} bpb<br>%{{x}} {unit}<extra></extra>",
                "marker": {
                    "color": MANY[i % len(MANY)][0],
                    "symbol": _SYMBOLS[i % len(_SYMBOLS)],
                    "size": 9,
                },
                "cliponaxis": False,
            }
        )
    return Chart(
        "code_gains",
        "Gain and cost of rewritten functions",
        f"Bits per byte below the parent in screening, against the {unit} that the proposal took; "
        "above 0 a candidate is better than its parent. One seed each.",
        data,
        titled(unit, "gain over the parent, bpb", shapes=[rule(0.0, axis="y")])
        | {"showlegend": True},
    )
