"""The sections of a report: sentences, figures and tables, in the order they are read.

A section whose data a search does not have says so in a sentence.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.evidence import transfer
from nanoevolve_jax.evidence.attribution import drive_shares
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.levels import Ladder, level_of
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evidence.runs import spent_by_stage
from nanoevolve_jax.evidence.score import pareto_front
from nanoevolve_jax.evidence.statistics import Interval
from nanoevolve_jax.evidence.verdict import STEP_SHARE
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.campaign import SCREENING, screening_spent
from nanoevolve_jax.execution.settings import make_task
from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.gate import static_actuators
from nanoevolve_jax.policy.spec import Actuators, OptimizerSpec, Sensors
from nanoevolve_jax.reporting import charts, training
from nanoevolve_jax.reporting.charts import Chart
from nanoevolve_jax.reporting.explain import explain, recorded
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.operators import operators
from nanoevolve_jax.reporting.words import against, telling_card

_NO_TELEMETRY = "No telemetry of it is in this folder, so there is nothing to draw."
_UNITS = {
    "update_multiplier": "factor",
    "trust_ratio_mix": "share",
    "clip_threshold": "threshold",
    "second_moment_beta": "decay",
    "orthogonal_mix": "share",
}


class Table(NamedTuple):
    """Rows of text; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False  # opened by whoever wants the numbers of a figure


class Group(NamedTuple):
    """Figures that stand together."""

    title: str | None
    charts: Sequence[Chart]
    small: bool = False  # many small ones beside each other


class Section(NamedTuple):
    """One section of the page."""

    name: str  # of its element
    title: str
    sentences: Sequence[str]
    groups: Sequence[Group] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()  # below figures and tables


class Fact(NamedTuple):
    """One of the few figures at the top."""

    name: str
    value: str
    note: str


def facts(history: History) -> list[Fact]:
    """The figures that belong beside the verdict."""
    record, records = training.subject(history), history.records
    level, missing = win_level(history)
    found = training.stage_gains(history, record)
    dead = sum(r.failure is not None for r in records)
    spent = spent_by_stage(history.runs) | {SCREENING: _screening(history)}
    runs, tokens = (sum(stage[k] for stage in spent.values()) for k in ("runs", "tokens"))
    facts = [Fact("Win level", level, f"not higher: {missing}" if missing else "of 5")]
    if found:
        last = found[-1]
        interval = (
            f"95 % interval {last.gain.low:+.4f} to {last.gain.high:+.4f}"
            if last.seeds > 1
            else "one seed, no interval"
        )
        place = f"{last.stage}, over {last.against}; {interval}"
        facts.append(Fact(f"Gain of {record.id}, bpb", f"{last.gain.mean:+.4f}", place))
    cost = f"{record.cost / history.baseline.cost:.3f}x"
    return [
        *facts,
        Fact("Cost of a step", cost, f"FLOPs of {record.id} over the baseline's"),
        Fact(
            "Candidates",
            f"{len(records):,}",
            f"{records[-1].generation} generations after the founders; {dead} failed",
        ),
        Fact("Training runs", f"{runs:,}", f"{tokens:,} tokens, calibration not counted"),
    ]


def win_level(history: History) -> tuple[str, str | None]:
    """(the level, what keeps it there)."""
    card = telling_card(history)
    if card is not None:
        return str(card["level"]["level"]), card["level"]["missing"]
    if history.config.calibration == UNCALIBRATED:
        return "0", level_of(Ladder()).missing
    if history.calibration is None:
        return "unknown", "the calibration is not where the search found it"
    noise, panel = history.calibration["noise"], history.calibration["panel"]
    found = level_of(Ladder(panel["auc"], noise["repeat_difference"]))
    return str(found.level), found.missing if found.level < 1 else "nothing is confirmed"


def sections(history: History) -> dict[str, Section]:
    """Every section but that of the candidates, by name."""
    made = (
        curves(history),
        policy(history),
        drivers(history),
        front(history),
        operator_section(history),
        noise(history),
        placebos(history),
        compute(history),
        origin(history),
    )
    return {section.name: section for section in made}


# Training ----------------------------------------------------------------------------------


def curves(history: History) -> Section:
    """Validation curves of the baseline and the best."""
    record = training.subject(history)
    found = training.curves(history, record)
    title = "Validation curves"
    if found is None:
        return Section("curves", title, [_NO_TELEMETRY])
    said = []
    if record.id == tournament.BASELINE_ID:
        said = ["No other candidate survived, so the baseline stands alone."]
    head = ["step", *found.arms]
    several = len(found.arms[record.id]) > 1
    rows = [
        [f"{step:,}", *(_spread(arm[:, i], several) for arm in found.arms.values())]
        for i, step in enumerate(found.steps)
    ]
    shown = charts.spaced(len(rows), 12)
    caption = "Bits per byte, mean and 95 % interval" if several else "Bits per byte, one seed"
    table = Table(caption, head, [rows[i] for i in shown], folded=True)
    return Section("curves", title, said, [Group(None, charts.validation(found))], [table])


def _spread(values: np.ndarray, several: bool) -> str:
    mean, low, high = (float(x[0]) for x in training.band(values[:, None]))
    return f"{mean:.4f} ({low:.4f} to {high:.4f})" if several else f"{mean:.4f}"


def policy(history: History) -> Section:
    """What the policy does: gate, actuators, sensors, and the same in words."""
    record = training.subject(history)
    said = explain(history, record)
    title = f"What {record.id} does"
    where, columns = recorded(history, record)
    if not columns:
        return Section("policy", title, [*said, _NO_TELEMETRY])
    enabled = bool(record.spec.control.enabled)
    gate = charts.trajectory(
        "gate",
        columns,
        title="Gate",
        unit="gate",
        note="0 is aggressive, 1 conservative."
        + ("" if enabled else " It is not in use: this is what it would have been."),
        read=enabled,
        between=(0.0, 1.0),
        height=240,
    )
    usual = static_actuators(history.baseline.spec)._asdict()
    acting = moving_actuators(canonical(record.spec)) if enabled else []
    actuators = [
        charts.trajectory(
            name,
            columns,
            title=name,
            unit=_UNITS[name],
            note="" if name in acting else _idle(record.spec, name),
            read=name in acting,
            baseline=float(usual[name]),
        )
        for name in Actuators._fields
    ]
    weights = record.spec.control.coefficients._asdict()
    sensors = [
        charts.trajectory(
            name,
            columns,
            title=name,
            unit="normalised",
            note=f"Weight in the gate: {weights[name]:g}"
            + (", so it is not read." if weights[name] == 0 or not enabled else "."),
            read=enabled and weights[name] != 0,
        )
        for name in Sensors._fields
    ]
    groups = [
        Group(None, [gate]),
        Group("The five actuators", actuators, small=True),
        Group("The six sensors, as the gate sees them", sensors, small=True),
    ]
    where = f"Figures are from {where}; grey and dotted: nothing depends on it."
    return Section("policy", title, said, groups, notes=[where])


def _idle(spec: OptimizerSpec, actuator: str) -> str:
    """Why no gate moves an actuator."""
    if not spec.control.enabled:
        return "Fixed: there is no gate."
    poles = (spec.control.aggressive, spec.control.conservative)
    same = getattr(poles[0], actuator) == getattr(poles[1], actuator)
    return "Fixed: both poles are equal." if same else "Its stage is off: nothing reads it."


def drivers(history: History) -> Section:
    """What drives the gate."""
    record, title = training.subject(history), "What drives the gate"
    if not record.spec.control.enabled:
        return Section("drivers", title, [f"{record.id} uses no gate, so nothing drives it."])
    _, columns = recorded(history, record)
    if not columns:
        return Section("drivers", title, [_NO_TELEMETRY])
    found = training.shares([drive_shares(run, record.spec) for run in columns])
    if not found:
        still = f"The gate of {record.id} stands still: nothing that it senses changes."
        return Section("drivers", title, [still])
    several = len(columns) > 1
    rows = [[name, _interval(share, ".1%", several)] for name, share in found.items()]
    return Section(
        "drivers",
        title,
        [],
        [
            Group(
                None,
                [
                    charts.drivers(found, len(columns)),
                    charts.drive(training.drive_terms(columns, record.spec)),
                ],
            )
        ],
        [Table("Share of the drive's variance", ["sensor", "share"], rows, folded=True)],
    )


def _interval(found: Interval, form: str, several: bool) -> str:
    if not several:
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"


# The search --------------------------------------------------------------------------------


def front(history: History) -> Section:
    """The Pareto front over loss, cost and instability, in the screening run."""
    merits = {r.id: r.merit for r in history.records if all(map(math.isfinite, r.merit))}
    on_front = pareto_front(merits)
    baseline = history.baseline
    rows = [
        [
            name,
            f"{merits[name].val_bpb:.4f}",
            f"{merits[name].cost / baseline.cost:.3f}x",
            f"{merits[name].instability:.4f}",
        ]
        for name in sorted(on_front, key=lambda name: merits[name].val_bpb)
    ]
    return Section(
        "front",
        "Pareto front",
        [
            f"{len(on_front)} of {len(merits)} candidates that trained are on the front: no other "
            "one is at least as good in validation loss, cost and instability, and better in one. "
            "One screening run each, on one shared seed."
        ],
        [Group(None, charts.front(merits, on_front, baseline.id))],
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
                "all failed" if row.gain is None else _interval(row.gain, "+.4f", row.interval),
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
    groups = [Group(None, [charts.operator_gains(rows)])] if usable else []
    return Section("operators", title, said, groups, [table])


def _no_promotion(history: History) -> str:
    if history.config.calibration == UNCALIBRATED:
        return "This search had no calibration, so it held no promotion."
    return "Its promotion has not ended."


# Evidence ----------------------------------------------------------------------------------


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
    groups = [Group(None, [charts.gains_and_noise(found, limit)])] if found else []
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
    groups = [Group(None, [charts.placebos(gains)])]
    panel = found["panel"]
    if panel is not None:
        groups[0].charts.append(charts.perturbations(training.panel_gains(panel)))
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


# Compute and origin ------------------------------------------------------------------------


def compute(history: History) -> Section:
    """Runs, tokens and FLOPs by stage."""
    config = history.config
    main = make_task(config).model.flops_per_token
    wide = make_task(transfer.wider(config)).model.flops_per_token
    calibration = history.calibration["spent"] if history.calibration else {}
    spent = calibration | {SCREENING: _screening(history)} | spent_by_stage(history.runs)
    wider = {run.stage for run in history.runs if run.program == transfer.WIDER}
    flops = {n: x["tokens"] * (wide if n in wider else main) for n, x in spent.items()}
    total = {key: sum(x[key] for x in spent.values()) for key in ("runs", "failed", "tokens")}
    rows = [_spent(name, part, flops[name]) for name, part in spent.items()]
    rows.append(_spent("all", total, sum(flops.values())))
    said = [
        f"{total['runs']:,} training runs over {total['tokens']:,} tokens. FLOPs are those of the "
        "model, forward and backward, by the counting rule of PaLM; the optimizer's and "
        "validation's come on top."
    ]
    if history.summary is None:
        said.append("The search has not ended.")
    else:
        seconds = history.summary["wall_seconds"]
        said.append(f"The process that ended the search ran for {seconds:,.1f} s.")
    if config.calibration == UNCALIBRATED:
        said.append("There was no calibration, so none was spent on tuning the baseline.")
    elif history.calibration is None:
        said.append(
            "What its calibration took is not counted: it is not where the search found it."
        )
    head = ["stage", "runs", "failed", "tokens", "model FLOPs"]
    return Section("compute", "Compute spent", said, tables=[Table("By stage", head, rows)])


def _screening(history: History) -> dict[str, int]:
    config = history.config
    return screening_spent(history.records, config.train.batch_size * config.model.sequence_len)


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
