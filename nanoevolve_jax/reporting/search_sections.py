"""Sections on the search: its front, its operators, its compute, what it was run with."""

import math
from collections.abc import Mapping

from nanoevolve_jax.evidence import transfer
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.execution.settings import make_task
from nanoevolve_jax.reporting import search_charts
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.operators import operators
from nanoevolve_jax.reporting.overview import front as pareto
from nanoevolve_jax.reporting.overview import spent
from nanoevolve_jax.reporting.section import Group, Section, Table, with_interval
from nanoevolve_jax.reporting.words import against, telling_card


def front(history: History) -> Section:
    """The Pareto front over loss, cost and instability, in the screening run."""
    merits = {r.id: r.merit for r in history.records if all(map(math.isfinite, r.merit))}
    on_front = [record.id for record in pareto(history.records)]
    baseline = history.baseline
    rows = [
        [
            name,
            f"{merits[name].val_bpb:.4f}",
            f"{merits[name].cost / baseline.cost:.3f}x",
            f"{merits[name].instability:.4f}",
        ]
        for name in on_front
    ]
    return Section(
        "front",
        "Pareto front",
        [
            f"{len(on_front)} of {len(merits)} candidates that trained are on the front: no other "
            "one is at least as good in validation loss, cost and instability, and better in one. "
            "One screening run each, on one shared seed."
        ],
        [Group(None, search_charts.front(merits, on_front, baseline.id))],
        [
            Table(
                "The front",
                ["candidate", "bits per byte", "cost", "instability, nats"],
                rows,
                folded=True,
            )
        ],
    )


def operator_section(history: History) -> Section:
    """What every operator brought."""
    entrants = history.promotion and history.promotion["first_round"]
    rows, title = operators(history.records, entrants), "Operators"
    if not rows:
        return Section("operators", title, ["No operator has been tried yet."])
    table = Table(
        "Operators of this search",
        [
            *("operator", "tried", "failed", "survived", "promoted"),
            "mean gain over the parent, bpb (95 % interval)",
        ],
        [
            [
                row.name,
                *(str(x) for x in (row.tried, row.failed, row.survived)),
                "-" if row.promoted is None else str(row.promoted),
                "all failed" if row.gain is None else with_interval(row.gain, "+.4f", row.interval),
            ]
            for row in rows
        ],
    )
    said = [
        "Children were screened on one shared seed, as their parents were: an interval shows how "
        "the children of an operator scatter, and not how seeds do. Those that failed have no "
        "gain; survived means among the survivors when its generation ended, promoted that it was "
        "given fresh seeds."
    ]
    if entrants is None:
        said.append(_no_promotion(history))
    usable = any(row.gain is not None for row in rows)
    groups = [Group(None, [search_charts.operator_gains(rows)])] if usable else []
    return Section("operators", title, said, groups, [table])


def _no_promotion(history: History) -> str:
    if history.config.calibration == UNCALIBRATED:
        return "This search had no calibration, so it held no promotion."
    return "Its promotion has not ended."


def compute(history: History) -> Section:
    """Runs, tokens and FLOPs by stage."""
    config = history.config
    main = make_task(config).model.flops_per_token
    wide = make_task(transfer.wider(config)).model.flops_per_token
    calibration = history.calibration["spent"] if history.calibration else {}
    stages = calibration | spent(history)
    wider = {run.stage for run in history.runs if run.program == transfer.WIDER}
    flops = {n: x["tokens"] * (wide if n in wider else main) for n, x in stages.items()}
    total = {key: sum(x[key] for x in stages.values()) for key in ("runs", "failed", "tokens")}
    rows = [_spent(name, part, flops[name]) for name, part in stages.items()]
    rows.append(_spent("all", total, sum(flops.values())))
    said = [
        f"{total['runs']:,} training runs over {total['tokens']:,} tokens. FLOPs are those of the "
        "model, forward and backward, by the counting rule of PaLM; the optimizer's and "
        "validation's come on top."
    ]
    if history.summary is None:
        said.append("The search has not ended.")
    elif (seconds := history.summary.get("wall_seconds")) is not None:
        said.append(f"The process that ended the search ran for {seconds:,.1f} s.")
    if config.calibration == UNCALIBRATED:
        said.append("There was no calibration, so none was spent on tuning the baseline.")
    elif history.calibration is None:
        said.append(
            "What its calibration took is not counted: it is not where the search found it."
        )
    head = ["stage", "runs", "failed", "tokens", "model FLOPs"]
    return Section("compute", "Compute spent", said, tables=[Table("By stage", head, rows)])


def _spent(name: str, part: Mapping[str, int], flops: float) -> list[str]:
    return [name, *(f"{part[key]:,}" for key in ("runs", "failed", "tokens")), f"{flops:.3g}"]


def origin(history: History) -> Section:
    """What the search was run with, and what checks it."""
    config, described = history.config, history.description
    shape = config.model
    rows = [
        ["corpus", str(config.data.corpus)],
        ["model", f"{shape.n_layer} layers, width {shape.n_embd}, {shape.sequence_len} tokens"],
        ["a screening run", f"{config.train.steps:,} steps of {config.train.batch_size} rows"],
        ["seed of the campaign", str(config.seed)],
        ["compared with", against(history)],
        *([name, str(value)] for name, value in described.get("device", {}).items()),
        *([name, str(value)] for name, value in described.get("versions", {}).items()),
        *(
            [f"fingerprint of {name}", str(value)]
            for name, value in described.get("fingerprints", {}).items()
        ),
    ]
    said = [
        f"Evidence for {name}: {sentence(card)}"
        for name, card in history.cards.items()
        if card is not telling_card(history)
    ]
    return Section("origin", "What this search was", said, tables=[Table("", ["", ""], rows)])
