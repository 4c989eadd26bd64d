"""The forms of sealed documents, as far as they are read.

A seal shows that a document was not changed by accident. Its form is checked as well, because
anyone can write a document and seal it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from nanoevolve_jax.evidence.confirmation import CONTINUE, NULL, WIN
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution.job import CandidateDocument, Seed
from nanoevolve_jax.execution.json_files import Count, Id

Positive = Annotated[float, Meta(gt=0)]
Bpb = list[float | None]  # float[seeds], null where a run failed


class Spent(TypedDict):
    """What a stage took."""

    runs: Count
    failed: Count
    tokens: Count


# The calibration -----------------------------------------------------------------------------


class _Noise(TypedDict):
    steps: Count
    n: Count
    sigma: Positive
    sigma_low: float
    sigma_high: Positive
    paired_sigma: Annotated[float, Meta(ge=0)]


class _Noises(TypedDict):
    screen: _Noise
    full: _Noise
    repeat_difference: float


class _Panel(TypedDict):
    auc: float


class _Scale(TypedDict):
    sigma: Positive
    shrinkage: float
    horizon_slope: float


class CalibrationDocument(TypedDict):
    """The form of `calibration.json`."""

    evaluation: dict[str, Any]
    fingerprint: Id
    seal: str
    recipe: dict[str, float]
    scale: dict[str, float]
    noise: _Noises
    panel: _Panel
    spent: dict[str, Spent]
    config: dict[str, Any]


# Promotion -----------------------------------------------------------------------------------


class PromotionDocument(TypedDict):
    """The form of `promotion.json`."""

    candidate: Id | None
    comparator: Id
    first_round: list[Id]


# The card ------------------------------------------------------------------------------------


class _Test(TypedDict):
    mean: float | None  # null: a run failed
    sd: float | None
    n: Count
    p: float
    low: float | None
    high: float | None


class _Sweep(TypedDict):
    chosen: float | None
    edge: str | None


class _Sweeps(TypedDict):
    baseline: _Sweep
    winner: _Sweep


class _Other(TypedDict):
    id: Id
    test: _Test
    learning_rates: _Sweep


class _Rules(TypedDict):
    first_seeds: Count
    first_p: float
    seeds: Count
    p: float
    min_gain: float
    worst: float
    confirmations: Count


class _Target(TypedDict):
    bpb: float
    baseline_steps: float
    winner_steps: float | None
    winner_cost_over_baseline: float | None


class _Confirmation(TypedDict):
    outcome: Literal[WIN, NULL, CONTINUE]
    reason: str
    pairs: Count
    test: _Test
    gain_in_sigma: float | None
    paired_sd_in_sigma: float | None
    rules: _Rules
    loosened: dict[str, float]
    learning_rates: _Sweeps
    baseline_bpb: Bpb
    winner_bpb: Bpb
    others: NotRequired[list[_Other]]
    to_target: _Target | None


class _Power(TypedDict):
    paired_sigma_in_sigma: float
    power_at_one_sigma: float


class _Powers(TypedDict):
    twins: _Power
    strangers: _Power


class _Arms(TypedDict):
    baseline: CandidateDocument
    winner: CandidateDocument


class _Placebos(TypedDict):
    baseline: Bpb
    winner: Bpb
    constants: dict[str, Bpb]
    schedule: Bpb
    yoked: Bpb


class _PanelBpb(TypedDict):
    winner: list[Bpb]
    schedule: list[Bpb]
    baseline: list[Bpb]


class _Perturbations(TypedDict):
    perturbations: list[str]
    bpb: _PanelBpb


class _Attribution(TypedDict):
    step_share: float
    best_constants: str
    bpb: _Placebos
    panel: _Perturbations | None
    contrasts: dict[str, _Test]


class _Cell(TypedDict):
    baseline: Bpb
    winner: Bpb


class _Transfer(TypedDict):
    cells: Annotated[dict[str, _Cell], Meta(min_length=1)]
    cheaper: _Cell
    wider: _Cell


class _Export(TypedDict):
    passes: bool
    flips: Count
    max_relative_l2: float | None


class _Interval(TypedDict):
    mean: float
    low: float
    high: float


class _Phases(TypedDict):
    n: Count
    thirds: dict[str, list[_Interval]]
    drivers: dict[str, _Interval]


class _Level(TypedDict):
    level: Count
    missing: str | None
    static: bool


class _Verdict(TypedDict):
    label: str


class _Reference(TypedDict):
    id: Id
    spec: dict[str, Any]
    recipe: dict[str, float]


class _CardCalibration(TypedDict):
    seal: str
    sigma: Positive
    sigma_interval: tuple[float, float]
    paired_sigma: float
    panel_auc: float
    repeat_difference: float


class _ConfirmConfig(TypedDict):
    steps: Count


class _Config(TypedDict):
    confirm: _ConfirmConfig


class Card(TypedDict):
    """The form of an evidence card."""

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
    spent: dict[str, Spent]
    commands: list[str]
    versions: dict[str, str]
    device: dict[str, str | int]
    fingerprints: dict[str, str]
    confirmation: _Confirmation | None
    # What follows is there if there was a confirmation.
    power: NotRequired[_Powers]
    exploratory: NotRequired[bool]
    fold: NotRequired[Count]
    seeds: NotRequired[list[Seed]]
    arms: NotRequired[_Arms]
    phases: NotRequired[_Phases | None]
    attribution: NotRequired[_Attribution | None]
    transfer: NotRequired[_Transfer | None]
    export: NotRequired[_Export | None]


_CONFIRMED = ("power", "exploratory", "fold", "seeds", "arms", "attribution")


def require_consistent(card: Mapping[str, Any], path: Any) -> None:
    """Checks what of a card's form depends on its values.

    Raises:
      EvidenceError: naming what does not fit.
    """
    for problem in _inconsistencies(card):
        raise EvidenceError(f"{path} cannot be read as an evidence file: {problem}")


def _inconsistencies(card: Mapping[str, Any]) -> Iterator[str]:
    found = card["confirmation"]
    if found is None:
        if not card["retuned_baseline"]:
            yield "confirmation must be there unless the candidate is a retuned baseline"
        return
    for name in _CONFIRMED:
        if name not in card:
            yield f"{name} must be there, got nothing"
    counts = {len(card["seeds"]), len(found["baseline_bpb"]), len(found["winner_bpb"])}
    if counts != {found["pairs"]}:
        yield f"confirmation.pairs must be the number of seeds and of runs, got {found['pairs']}"
    if found["test"]["mean"] is not None and found["gain_in_sigma"] is None:
        yield "confirmation.gain_in_sigma must be a number, got null"
    attribution, transfer = card["attribution"], card.get("transfer")
    tests = {"confirmation": found["test"]}
    tests |= {f"others {other['id']}": other["test"] for other in found.get("others", [])}
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
        sides = [cell[arm] for cell in transfer["cells"].values() for arm in ("baseline", "winner")]
        pairs = [list(transfer[name].values()) for name in ("cheaper", "wider")]
        if _ragged(sides) or any(map(_ragged, pairs)):
            yield "transfer must have lists of one length"
    for name, test in tests.items():
        if test["mean"] is not None and None in (test["low"], test["high"]):
            yield f"the test of {name} must have an interval"
    export = card.get("export")
    if export is not None and export["passes"] and export["max_relative_l2"] is None:
        yield "export.max_relative_l2 must be a number, got null"


def _ragged(lists: Any) -> bool:
    return len({len(one) for one in lists if isinstance(one, Sequence)}) > 1
