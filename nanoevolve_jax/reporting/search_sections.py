"""Sections on the search: Pareto front, operators, rewritten code, compute and configuration."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nanoevolve_jax.evidence import transfer
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evidence.score import Merit
from nanoevolve_jax.evidence.statistics import Interval
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.proposals import Entry
from nanoevolve_jax.execution.settings import make_task
from nanoevolve_jax.reporting import rewritten_code, summary
from nanoevolve_jax.reporting.candidates import Operator, operators
from nanoevolve_jax.reporting.elements import (
    BEST,
    LOOKS,
    UNREAD,
    Chart,
    Diff,
    Group,
    Look,
    Section,
    Table,
    axes,
    height_of,
    interval_text,
    interval_trace,
    plain,
    points,
    row_axes,
    rule,
)
from nanoevolve_jax.reporting.history import History

_MAX_POINTS = 800  # candidates drawn off the front: those with the lowest loss
_MAX_NAMES = 12  # a larger front is drawn without names
_NAME_POSITIONS = ("middle right", "middle left", "top center", "bottom center")
_MAX_DIFFS = 3  # proposals shown with their diffs
_MAX_REJECTIONS = 200  # the latest ones
_OUTCOMES = (proposals.CANDIDATE, proposals.REFUSED, proposals.SAME, proposals.FAILED)

# Pareto front ------------------------------------------------------------------------------


def front_section(history: History) -> Section:
    """Returns the Pareto front over loss, cost and instability of the screening runs."""
    merits = {r.id: r.merit for r in history.records if all(map(math.isfinite, r.merit))}
    front = [record.id for record in summary.front(history.records)]
    baseline = history.baseline
    rows = [
        [
            name,
            f"{merits[name].val_bpb:.4f}",
            f"{merits[name].cost / baseline.cost:.3f}x",
            f"{merits[name].instability:.4f}",
        ]
        for name in front
    ]
    head = ["candidate", "bits per byte", "cost", "instability, nats"]
    return Section(
        "front",
        "Pareto front",
        [
            f"{len(front)} of {len(merits)} trained candidates are on the front: no other "
            "candidate is at least as good in loss, cost and instability and better in one of "
            "them. Each has one screening run, all on the same seed."
        ],
        [Group(None, _front_charts(merits, front, baseline.id))],
        [Table("The front", head, rows, folded=True)],
    )


def _front_charts(merits: Mapping[str, Merit], front: Sequence[str], baseline: str) -> list[Chart]:
    """Returns loss against cost and loss against instability."""
    cost = {name: merit.cost / merits[baseline].cost for name, merit in merits.items()}
    instability = {name: merit.instability for name, merit in merits.items()}
    names = "Point at a candidate to see its name."
    if len(merits) - len(front) > _MAX_POINTS:
        names += (
            f" Off the front, only the {_MAX_POINTS} candidates with the lowest loss are drawn."
        )
    charts = []
    for name, title, x, label in (
        ("front_cost", "Loss and cost", cost, "FLOPs of a step, relative to the baseline"),
        ("front_instability", "Loss and instability", instability, "largest rise of loss, nats"),
    ):
        caption = (
            f"Validation loss against {label}. Lower left is better. Diamonds are on the front, "
            f"which also considers the third objective. {names}"
        )
        layout = axes(label, "validation, bits per byte", showlegend=True)
        data = _front_traces(merits, x, front, baseline)
        charts.append(Chart(name, title, caption, data, layout, height=360))
    return charts


def _front_traces(
    merits: Mapping[str, Merit], x: Mapping[str, float], front: Sequence[str], baseline: str
) -> list[Any]:
    others = sorted(merits.keys() - {*front, baseline}, key=lambda name: merits[name].val_bpb)
    groups = {
        "off the front": (others[:_MAX_POINTS], Look("soft", symbol="circle-open").marker(7)),
        "on the front": (
            [n for n in front if n != baseline],
            Look("best", symbol="diamond").marker(11),
        ),
        "baseline": ([baseline], Look("baseline", symbol="square").marker(11)),
    }
    traces = []
    for kind, (names, marker) in groups.items():
        if not names:
            continue
        named = kind == "baseline" or (kind == "on the front" and len(front) <= _MAX_NAMES)
        positions = [_NAME_POSITIONS[i % len(_NAME_POSITIONS)] for i in range(len(names))]
        bpb = [merits[name].val_bpb for name in names]
        traces.append(
            points(
                [x[name] for name in names],
                bpb,
                names,
                "",
                name=kind,
                mode="markers+text" if named else "markers",
                textposition=positions,
                marker=marker | ({"opacity": 0.7} if kind == "off the front" else {}),
            )
        )
    return traces


# Operators ---------------------------------------------------------------------------------


def operators_section(history: History) -> Section:
    """Returns the results of each mutation operator."""
    entrants = history.promotion["first_round"] if history.promotion else None
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
                "all failed" if row.gain is None else interval_text(row.gain, "+.4f", row.interval),
            ]
            for row in rows
        ],
    )
    sentences = [
        "Parents and children were screened on the same seed, so an interval shows the spread of "
        "an operator's children and not the spread over seeds. Failed children have no gain. "
        "Survived counts the children that were among the survivors of their generation; promoted "
        "counts those that got fresh seeds."
    ]
    if entrants is None:
        uncalibrated = summary.is_uncalibrated(history)
        sentences.append(
            "A search without calibration has no promotion."
            if uncalibrated
            else "The promotion has not ended."
        )
    usable = any(row.gain is not None for row in rows)
    groups = [Group(None, [_operator_chart(rows)])] if usable else []
    return Section("operators", title, sentences, groups, [table])


def _operator_chart(rows: Sequence[Operator]) -> Chart:
    gains = {row.name: (row.gain, row.interval) for row in rows if row.gain is not None}
    several = {name: gain for name, (gain, interval) in gains.items() if interval}
    single = {name: gain for name, (gain, interval) in gains.items() if not interval}
    data = []
    if several:
        data.append(interval_trace(several, BEST, name="mean and 95 % interval"))
    if single:
        data.append(interval_trace(single, UNREAD, bars=False, name="one child, no interval"))
    title = "gain over the parent, bits per byte"
    layout = row_axes(gains, title, [rule(0.0, axis="x")], showlegend=True)
    layout.xaxis.range = _limits([gain for gain, _ in gains.values()])
    return Chart(
        "operators",
        "Gain over the parent",
        "Mean loss of the parent minus that of the child in screening; above 0, children are "
        "better than their parents. Long intervals are cut off; the table has their limits.",
        data,
        layout,
        height=height_of(len(gains)) + 30,
    )


def _limits(gains: Sequence[Interval]) -> list[float]:
    """Returns limits that contain all means, and intervals as far as they leave room for those."""
    low, high = min(0.0, *(i.mean for i in gains)), max(0.0, *(i.mean for i in gains))
    room = max(high - low, 1e-6)
    ends = min(i.low for i in gains), max(i.high for i in gains)
    return [max(ends[0], low - room) - 0.1 * room, min(ends[1], high + room) + 0.1 * room]


# Rewritten code ----------------------------------------------------------------------------


def code_section(history: History) -> Section | None:
    """Returns the results of code proposals, or None for a search without code mutation.

    Sources, answers and messages come from outside. The template escapes all of them, and the
    labels of figures are ids.
    """
    totals = rewritten_code.proposal_totals(history)
    if totals is None:
        return None
    best = rewritten_code.best_proposals(history)
    sentences = rewritten_code.proposal_sentences(totals)
    if best:
        entry, gain = best[0]
        start = "Largest gain over a parent" if gain > 0 else "No proposal beats its parent; best"
        sentences.append(f"{start}: {entry.candidate}, {gain:+.4f} bpb in screening, on one seed.")
    paid = [(entry, gain) for entry, gain in best if entry.calls]
    return Section(
        "code",
        "Rewritten code",
        sentences,
        [Group(None, [_cost_chart(paid)])] if paid else [],
        _code_tables(history, totals, best),
        diffs=[_diff(history, entry, gain) for entry, gain in best[:_MAX_DIFFS]],
    )


def _cost_chart(pairs: Sequence[tuple[Entry, float]]) -> Chart:
    """Returns gains in bpb against the cost of the proposals."""
    paid = any(entry.dollars for entry, _ in pairs)
    unit = "dollars" if paid else "tokens"
    data = []
    for i, provider in enumerate(sorted({entry.provider for entry, _ in pairs})):
        own = [(entry, gain) for entry, gain in pairs if entry.provider == provider]
        costs = [e.dollars if paid else e.input_tokens + e.output_tokens for e, _ in own]
        look = LOOKS[i % len(LOOKS)]
        names = [str(entry.candidate) for entry, _ in own]
        gains = [gain for _, gain in own]
        data.append(points(costs, gains, names, unit, name=plain(provider), marker=look.marker(9)))
    return Chart(
        "code_gains",
        "Gain and cost of rewritten functions",
        f"Loss of the parent minus that of the candidate in screening, against the {unit} spent on "
        "the proposal; above 0, the candidate is better. One seed each.",
        data,
        axes(unit, "gain over the parent, bpb", showlegend=True, shapes=[rule(0.0, axis="y")]),
    )


def _diff(history: History, entry: Entry, gain: float) -> Diff:
    """Returns the source changes of a proposal."""
    record = history.record(str(entry.candidate))
    functions = rewritten_code.rewritten_functions(history.records, record)
    own = next((x for x in functions if x["written_in"] == record.id), None)
    sentences = (
        [rewritten_code.author_sentence(own), rewritten_code.certificate_sentence(own)]
        if own
        else []
    )
    text = (record.code or {}).get("diff") or ""
    title = f"{record.id}: {entry.slot} of {entry.parent}, {gain:+.4f} bpb"
    return Diff(title, sentences, list(rewritten_code.diff_lines(text)))


def _code_tables(
    history: History, totals: Mapping[str, Any], best: Sequence[tuple[Entry, float]]
) -> list[Table]:
    gains: dict[str, float] = {}
    for entry, gain in best:
        gains.setdefault(entry.provider, gain)
    head = [
        *("provider", "proposals", "trained", "rejected", "duplicate", "no answer"),
        *("calls", "input tokens", "output tokens", "dollars", "best gain, bpb"),
    ]
    rows = [
        [
            name,
            str(own["proposals"]),
            *(str(own[outcome]) for outcome in _OUTCOMES),
            *(f"{own[x]:,}" for x in ("calls", "input_tokens", "output_tokens")),
            f"{own['dollars']:.4f}",
            f"{gains[name]:+.4f}" if name in gains else "-",
        ]
        for name, own in totals["providers"].items()
    ]
    rejected = [
        [str(e.number), e.slot, e.parent, e.provider, e.reason or "no answer", e.message or ""]
        for e in history.proposals or ()
        if e.outcome in (proposals.REFUSED, proposals.FAILED)
    ][-_MAX_REJECTIONS:]
    tables = [Table("Providers", head, rows)] if rows else []
    if rejected:
        head = ["proposal", "slot", "parent", "provider", "reason", "message"]
        label = "Rejected and unanswered proposals"
        tables.append(Table("", head, rejected, folded=True, summary=label))
    return tables


# Compute and configuration -----------------------------------------------------------------


def compute_section(history: History) -> Section:
    """Returns runs, tokens and FLOPs by stage."""
    config = history.config
    main = make_task(config).model.flops_per_token
    wide = make_task(transfer.wider(config)).model.flops_per_token
    calibration = history.calibration["spent"] if history.calibration else {}
    stages = calibration | summary.spent(history)
    wider = {run.stage for run in history.runs if run.program == transfer.WIDER}
    flops = {n: x["tokens"] * (wide if n in wider else main) for n, x in stages.items()}
    total = {key: sum(x[key] for x in stages.values()) for key in ("runs", "failed", "tokens")}
    rows = [_compute_row(name, part, flops[name]) for name, part in stages.items()]
    rows.append(_compute_row("all", total, sum(flops.values())))
    sentences = [
        f"{total['runs']:,} training runs with {total['tokens']:,} tokens. FLOPs are those of the "
        "model's forward and backward passes, counted as in PaLM; those of the optimizer and of "
        "validation are not included."
    ]
    if history.summary is None:
        sentences.append("The search has not ended.")
    elif (seconds := history.summary.get("wall_seconds")) is not None:
        sentences.append(f"The last process of the search ran for {seconds:,.1f} s.")
    if summary.is_uncalibrated(history):
        sentences.append("Without a calibration, no compute was spent on tuning the baseline.")
    elif history.calibration is None:
        sentences.append("The calibration is missing from the run folder and is not counted.")
    head = ["stage", "runs", "failed", "tokens", "model FLOPs"]
    table = Table("By stage", head, rows)
    return Section("compute", "Compute spent", sentences, tables=[table])


def _compute_row(name: str, part: Mapping[str, int], flops: float) -> list[str]:
    return [name, *(f"{part[key]:,}" for key in ("runs", "failed", "tokens")), f"{flops:.3g}"]


def configuration_section(history: History) -> Section:
    """Returns configuration, device, versions and fingerprints of the search."""
    config, described = history.config, history.description
    shape = config.model
    rows = [
        ["corpus", str(config.data.corpus)],
        ["model", f"{shape.n_layer} layers, width {shape.n_embd}, {shape.sequence_len} tokens"],
        ["screening run", f"{config.train.steps:,} steps of {config.train.batch_size} rows"],
        ["seed", str(config.seed)],
        ["compared with", summary.baseline_phrase(history)],
        *([name, str(value)] for name, value in described.get("device", {}).items()),
        *([name, str(value)] for name, value in described.get("versions", {}).items()),
        *(
            [f"fingerprint of {name}", str(value)]
            for name, value in described.get("fingerprints", {}).items()
        ),
    ]
    sentences = [
        f"Evidence for {name}: {sentence(card)}"
        for name, card in history.cards.items()
        if card is not summary.main_card(history)
    ]
    table = Table("", ["", ""], rows)
    return Section("origin", "Configuration of the search", sentences, tables=[table])
