"""Types of sealed documents, which are checked when a document is read.

All values are JSON values, so a number that is not finite is null. A valid seal only excludes
accidental changes, because anyone can write a document and compute its seal. The types of its
fields are therefore checked as well. `NotRequired` marks fields that older documents lack, and
fields that are written but not read.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution.job import CandidateDocument, Seed
from nanoevolve_jax.execution.json_files import Count, Id

Positive = Annotated[float, Meta(gt=0)]
Bpb = list[float | None]
"""Bits per byte, float[seeds]; null where a run failed."""


class _Spent(TypedDict):
    runs: Count
    failed: Count
    tokens: Count


# The calibration -----------------------------------------------------------------------------


class NoiseResult(TypedDict):
    """Seed noise at one horizon, in bpb."""

    steps: Count
    n: Count
    sigma: Positive
    sigma_low: float
    sigma_high: Positive
    correlation: NotRequired[float]
    paired_sigma: Annotated[float, Meta(ge=0)]


class _Noises(TypedDict):
    screen: NoiseResult
    full: NoiseResult
    repeat_difference: float


class _Panel(TypedDict):
    auc: float
    good: NotRequired[list[str]]
    bad: NotRequired[list[str]]
    seeds: NotRequired[Count]
    horizons: NotRequired[dict[str, Any]]  # a `panel.PanelRanking` and its bpb, per horizon
    shortest_horizon: NotRequired[int | None]


class _Scale(TypedDict):
    sigma: float
    shrinkage: float
    horizon_slope: float


class Measurements(TypedDict):
    """Measurements of a calibration on the tuned baseline."""

    noise: _Noises
    scale: _Scale
    panel: _Panel


class TuningResult(TypedDict):
    """The tuned recipe and the search that produced it."""

    runs: Count
    failed: Count
    widenings: list[list[str]]
    at_edge: list[str]
    ranges: dict[str, list[float]]
    shortlist: dict[str, dict[str, Any]]
    chosen: str
    recipe: NotRequired[dict[str, float]]


class CalibrationDocument(TypedDict):
    """The fields of `calibration.json` that are read."""

    evaluation: dict[str, Any]
    fingerprint: Id
    seal: str
    recipe: dict[str, float]
    scale: dict[str, float]
    noise: _Noises
    panel: _Panel
    spent: dict[str, _Spent]
    config: dict[str, Any]


# Promotion -----------------------------------------------------------------------------------


class PromotionDocument(TypedDict):
    """The fields of `promotion.json` that are read."""

    candidate: Id | None
    comparator: Id
    first_round: list[Id]


# The card ------------------------------------------------------------------------------------


class _Test(TypedDict):
    mean: float | None
    sd: float | None
    n: Count
    p: float
    low: float | None
    high: float | None


class RateSearch(TypedDict):
    """The search for the best factor on an arm's learning rate."""

    factors: NotRequired[list[float]]
    bpb: NotRequired[list[Bpb]]
    chosen: float | None
    edge: str | None


class _RateSearches(TypedDict):
    baseline: RateSearch
    winner: RateSearch


class OtherReference(TypedDict):
    """The comparison with a reference other than the decisive one."""

    id: Id
    outcome: NotRequired[str]
    reason: NotRequired[str]
    test: _Test
    learning_rates: RateSearch
    bpb: NotRequired[Bpb]


class _Rules(TypedDict):
    first_seeds: Count
    first_p: float
    seeds: Count
    p: float
    min_gain: float
    worst: float
    confirmations: Count


class TargetResult(TypedDict):
    """The steps and compute that each arm needs for the baseline's mean final bpb."""

    bpb: float
    baseline_steps: float
    winner_steps: float | None
    winner_steps_over_baseline: NotRequired[float | None]
    winner_cost_over_baseline: float | None


class ConfirmationResult(TypedDict):
    """The outcome of a confirmation and all results on which it is based."""

    outcome: Literal["win", "null", "continue"]
    reason: str
    pairs: Count
    test: _Test
    gain_in_sigma: float | None
    paired_sd_in_sigma: float | None
    rules: _Rules
    loosened: dict[str, float]
    learning_rates: _RateSearches
    baseline_bpb: Bpb
    winner_bpb: Bpb
    others: NotRequired[list[OtherReference]]
    to_target: TargetResult | None


class PowerResult(TypedDict):
    """The power of a confirmation for a standard deviation of the gains of pairs."""

    paired_sigma_in_sigma: float
    power_at_one_sigma: float
    minimum_detectable_effect_in_sigma: NotRequired[float | None]


# The power under each assumption about the noise of pairs, see `confirmation.power_results`.
PowerResults = TypedDict(  # noqa: UP013
    "PowerResults", {"twins": PowerResult, "strangers": PowerResult}
)


class TestedArms(TypedDict):
    """Both arms as they were tested, which is all that a replay needs."""

    baseline: CandidateDocument
    winner: CandidateDocument


class _Placebos(TypedDict):
    baseline: Bpb
    winner: Bpb
    constants: dict[str, Bpb]
    schedule: Bpb
    yoked: Bpb
    built_in: NotRequired[Bpb]


class _PanelBpb(TypedDict):
    winner: list[Bpb]
    schedule: list[Bpb]
    baseline: list[Bpb]


class _Perturbations(TypedDict):
    perturbations: list[str]
    bpb: _PanelBpb


class AttributionResult(TypedDict):
    """Results of the placebos and the perturbation panel."""

    pairs: NotRequired[Count]
    step_share: float
    donors: NotRequired[Count]
    best_constants: str
    bpb: _Placebos
    panel: _Perturbations | None
    contrasts: dict[str, _Test]
    trajectory: NotRequired[list[float] | None]


class _Cell(TypedDict):
    baseline: Bpb
    winner: Bpb


class TransferResult(TypedDict):
    """Results for other learning rates and horizons, for less compute and for a wider model."""

    cells: Annotated[dict[str, _Cell], Meta(min_length=1)]
    cheaper: _Cell
    wider: _Cell


class ExportResult(TypedDict):
    """The comparison of a policy with its exported file for optax."""

    max_relative_l2: float | None
    flips: Count
    held: NotRequired[Count]
    passes: bool


class _Interval(TypedDict):
    mean: float
    low: float
    high: float


class PhasesResult(TypedDict):
    """The changes of gate and actuators during training, see `attribution.phases`."""

    n: Count
    thirds: dict[str, list[_Interval]]
    drivers: dict[str, _Interval]


class _Level(TypedDict):
    level: Count
    missing: str | None
    static: bool


class _Verdict(TypedDict):
    label: str
    release: NotRequired[str | None]


class _Reference(TypedDict):
    id: Id
    spec: dict[str, Any]
    recipe: dict[str, float]


class _CardCalibration(TypedDict):
    seal: str
    evaluation: NotRequired[str]
    sigma: Positive
    sigma_interval: tuple[float, float]
    paired_sigma: float
    panel_auc: float
    repeat_difference: float


class _ConfirmConfig(TypedDict):
    steps: Count


class _Config(TypedDict):
    confirm: _ConfirmConfig


class TrialResult(TypedDict):
    """The parts of a card that a trial produces.

    A retuned baseline has only the field `confirmation`, which is null.
    """

    power: NotRequired[PowerResults]
    confirmation: ConfirmationResult | None
    exploratory: NotRequired[bool]
    fold: NotRequired[Count]
    seeds: NotRequired[list[Seed]]
    arms: NotRequired[TestedArms]
    phases: NotRequired[PhasesResult | None]
    attribution: NotRequired[AttributionResult | None]
    transfer: NotRequired[TransferResult | None]
    export: NotRequired[ExportResult | None]


class Card(TrialResult):
    """Contents of an evidence card."""

    id: Id
    change: str
    spec: dict[str, Any]
    sources: NotRequired[dict[str, str]]
    baseline: _Reference
    static: bool
    retuned_baseline: bool
    verdict: _Verdict
    level: _Level
    calibration: _CardCalibration
    campaigns: Count
    confirmations: Count
    evaluations: Count
    config: _Config
    spent: dict[str, _Spent]
    commands: list[str]
    versions: dict[str, str]
    device: dict[str, str | int]
    fingerprints: dict[str, str]
    seal: NotRequired[str]  # added when the card is written


# Consistency ---------------------------------------------------------------------------------

_CONFIRMED = ("power", "exploratory", "fold", "seeds", "arms", "attribution")


def require_consistent(card: Mapping[str, Any], path: Any) -> None:
    """Checks the rules of a card that involve several fields.

    Args:
      card: Card whose types have been checked.
      path: Path of the card, for the error message.

    Raises:
      EvidenceError: If a rule is broken. The message names the first such rule.
    """
    for problem in _inconsistencies(card):
        raise EvidenceError(f"{path} cannot be read as an evidence file: {problem}")


def _inconsistencies(card: Mapping[str, Any]) -> Iterator[str]:
    confirmation = card["confirmation"]
    if confirmation is None:
        if not card["retuned_baseline"]:
            yield "confirmation must be there unless the candidate is a retuned baseline"
        return
    for name in _CONFIRMED:
        if name not in card:
            yield f"{name} must be there, got nothing"
    runs = {len(confirmation[f"{arm}_bpb"]) for arm in ("baseline", "winner")}
    if runs | {len(card["seeds"])} != {confirmation["pairs"]}:
        pairs = confirmation["pairs"]
        yield f"confirmation.pairs must be the number of seeds and of runs, got {pairs}"
    if confirmation["test"]["mean"] is not None and confirmation["gain_in_sigma"] is None:
        yield "confirmation.gain_in_sigma must be a number, got null"
    attribution, transfer = card["attribution"], card.get("transfer")
    tests = {"confirmation": confirmation["test"]}
    tests |= {f"others {other['id']}": other["test"] for other in confirmation.get("others", [])}
    if attribution is not None:
        tests |= attribution["contrasts"]
        bpb = attribution["bpb"]
        if _ragged([bpb["baseline"], bpb["winner"], bpb["schedule"], bpb["yoked"]]) or _ragged(
            [bpb["baseline"], *bpb["constants"].values()]
        ):
            yield "attribution.bpb must have lists of one length"
        panel = attribution["panel"]
        if panel is not None:
            rows = [row for arm in panel["bpb"].values() for row in arm]
            if _ragged([panel["perturbations"], *rows]) or _ragged(panel["bpb"].values()):
                yield "attribution.panel.bpb must have a number per perturbation and seed"
    if transfer is not None:
        arms = [cell[arm] for cell in transfer["cells"].values() for arm in ("baseline", "winner")]
        others = [list(transfer[name].values()) for name in ("cheaper", "wider")]
        if _ragged(arms) or any(map(_ragged, others)):
            yield "transfer must have lists of one length"
    for name, test in tests.items():
        if test["mean"] is not None and None in (test["low"], test["high"]):
            yield f"the test of {name} must have an interval"
    export = card.get("export")
    if export is not None and export["passes"] and export["max_relative_l2"] is None:
        yield "export.max_relative_l2 must be a number, got null"


def _ragged(lists: Any) -> bool:
    """Returns whether some of the lists have different lengths. Other values are ignored."""
    return len({len(values) for values in lists if isinstance(values, Sequence)}) > 1
