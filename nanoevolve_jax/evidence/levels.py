"""The win levels: the highest level that the records of a candidate support."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from nanoevolve_jax.errors import apart
from nanoevolve_jax.evidence.confirmation import WIN
from nanoevolve_jax.evidence.statistics import Floats, PairedTest, paired_test

AUC = 0.9
GATE_SHIFT = 0.1  # least change of the gate from the first third of training to the last
ACTUATOR_SHIFT = 0.05  # least change of an actuator between two thirds, relative to its mean
SIGN_SHARE = 7 / 8  # least share of seeds on which the gate moves in the same direction
CELL_FLOOR = -0.5  # least mean gain in a condition of level 4, in sigmas
CHEAPER_P = 0.001
_BEFORE_REPLAY = 4  # the level that a replay can lift by one


class Level(NamedTuple):
    """A level and the reason why it is not higher."""

    level: int  # from 0 to 5
    missing: str | None  # reason why the next level is not reached
    static: bool  # whether the gate cannot move, so that level 2 does not apply


class Ladder(NamedTuple):
    """The records that decide the level of a candidate. None marks what was not measured."""

    panel_auc: float | None = None
    repeat_difference: float | None = None  # difference of a repeated run, in bpb
    static: bool = False
    gates: np.ndarray | None = None  # float[seeds, steps], NaN for failed runs
    actuators: Mapping[str, Sequence[float]] | None = None  # mean in each third of training
    no_win: str | None = "it is not confirmed"  # reason why it is not a win; None: it is a win
    cells: Mapping[str, np.ndarray] | None = None  # gains, float[seeds]; NaN for failed runs
    sigma: float = math.nan  # standard deviation of the baseline between seeds, in bpb
    cheaper: np.ndarray | None = None  # gains at 95 % of the compute, float[seeds]
    wider: np.ndarray | None = None  # gains of a wider model, float[seeds]
    export_passes: bool | None = None
    replay_passes: bool | None = None


def _separates(ladder: Ladder) -> str | None:
    if ladder.panel_auc is None:
        return "there is no calibration"
    if ladder.panel_auc < AUC:
        auc, least = apart(ladder.panel_auc, AUC, 3, "f")
        return f"the panel's AUC is {auc}, below {least}"
    if ladder.repeat_difference != 0:
        return f"a repeated run differed by {ladder.repeat_difference:g} bpb"
    return None


def _moves_with_phase(ladder: Ladder) -> str | None:
    if ladder.gates is None or ladder.actuators is None:
        return "the gate's trajectories were not recorded"
    if not np.all(np.isfinite(ladder.gates)):
        return "a run failed, so that its gate is not known on every seed"
    thirds = np.array_split(ladder.gates, 3, axis=1)
    shift = thirds[0].mean(1) - thirds[2].mean(1)
    agree = max(np.mean(shift > 0), np.mean(shift < 0))
    if agree < SIGN_SHARE:
        same, least = apart(100.0 * float(agree), 100.0 * SIGN_SHARE, 0, "f")
        return f"the gate moves the same way on only {same} % of the seeds, below {least} %"
    if abs(shift.mean()) < GATE_SHIFT:
        moved, least = apart(abs(float(shift.mean())), GATE_SHIFT, 3, "f")
        return f"the gate moves by {moved} over training, below {least}"
    spread = {
        name: (max(values) - min(values)) / max(abs(float(np.mean(values))), 1e-12)
        for name, values in ladder.actuators.items()
    }
    if not spread:
        return "its gate moves no actuator"
    name = max(spread, key=lambda name: spread[name])
    if spread[name] < ACTUATOR_SHIFT:
        moved, least = apart(100.0 * spread[name], 100.0 * ACTUATOR_SHIFT, 1, "f")
        return f"no actuator moves by {least} %; {name} moves by {moved} %"
    return None


def lower_bound(gains: Floats) -> float:
    """Returns the one-sided 95 % lower confidence bound of a mean gain; -inf if a run failed."""
    test = paired_test(gains)
    if test.n < 2 or not math.isfinite(test.mean):
        return -math.inf
    return float(test.mean - stats.t.ppf(0.95, test.n - 1) * test.sd / math.sqrt(test.n))


def pooled(cells: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the mean gain of each seed over all cells.

    Cells share seeds and validation text, so their gains are correlated. Only seeds are
    independent, so a confidence bound must be based on seeds instead of cells.

    Args:
      cells: Gains by the name of the cell; float[seeds] each.

    Returns:
      Mean gains; float64[seeds].
    """
    return np.mean(list(cells.values()), axis=0)


def _holds(ladder: Ladder) -> str | None:
    if ladder.cells is None:
        return "other learning rates and horizons were not tried"
    for name, gains in ladder.cells.items():
        if not np.all(np.isfinite(gains)):
            return f"a run died at {name}"
        if np.mean(gains) < CELL_FLOOR * ladder.sigma:
            return f"at {name} it gains {np.mean(gains) / ladder.sigma:.2f} sigma"
    bound = lower_bound(pooled(ladder.cells))
    return None if bound > 0 else f"the pooled lower bound is {bound:+.4f} bpb"


def _is_worth_adopting(ladder: Ladder) -> str | None:
    if ladder.cheaper is None or ladder.wider is None:
        return "less compute and more width were not tried"
    test: PairedTest = paired_test(ladder.cheaper)
    if not (test.mean > 0 and test.p < CHEAPER_P):
        return f"with 95 % of the compute p is {test.p:.3g}"
    if lower_bound(ladder.wider) <= 0:
        return f"on the wider model the lower bound is {lower_bound(ladder.wider):+.4f} bpb"
    if ladder.replay_passes is None:
        return "it was not replayed"
    if not ladder.replay_passes:
        return "its replay disagreed"
    if not ladder.export_passes:
        return "its export has not passed"
    return None


def level_of(ladder: Ladder) -> Level:
    """Returns the highest level that is reached together with all lower levels.

    Args:
      ladder: Records of the candidate.
    """
    steps = {
        1: _separates,
        2: _moves_with_phase,
        3: lambda ladder: ladder.no_win,
        4: _holds,
        5: _is_worth_adopting,
    }
    if ladder.static:
        del steps[2]  # level 2 requires a gate that moves
    reached = 0
    for level, check in steps.items():
        missing = check(ladder)
        if missing is not None:
            return Level(reached, missing, ladder.static)
        reached = level
    return Level(reached, None, ladder.static)


def required_seeds(effect: float, paired_sigma: float, most: int = 64) -> int:
    """Returns the number of pairs for which a test at level `CHEAPER_P` has a power of 0.8.

    Args:
      effect: Expected mean gain, in bpb.
      paired_sigma: Standard deviation of the gain of a pair, in bpb.
      most: Maximum number of pairs. At the maximum, the test may have less power.

    Returns:
      Number of pairs, from 3 to `most`.
    """
    if effect <= 0:
        return most
    for n in range(3, most):
        limit = stats.t.isf(CHEAPER_P, n - 1)
        if stats.nct.sf(limit, n - 1, effect / paired_sigma * math.sqrt(n)) >= 0.8:
            return n
    return most


def no_win(card: Mapping[str, Any]) -> str | None:
    """Returns the reason why a card is not a win that counts, or None if it is."""
    if card["retuned_baseline"]:
        return "it is a retuned baseline"
    if card["confirmation"]["outcome"] != WIN:
        return "it is not confirmed"
    if card["exploratory"]:
        return "its confirmation was exploratory"
    attribution = card["attribution"]
    if attribution is not None and None in attribution["bpb"]["winner"]:
        return f"its run on pair {attribution['bpb']['winner'].index(None) + 1} failed"
    return None


def cell_gains(cell: Mapping[str, Any]) -> np.ndarray:
    """Returns the gains in a condition of a card's `transfer`; float64[seeds], NaN if failed."""
    baseline, winner = (
        np.array([math.nan if x is None else x for x in cell[arm]], np.float64)
        for arm in ("baseline", "winner")
    )
    return baseline - winner


def level_of_card(card: Mapping[str, Any], gates: np.ndarray | None) -> Level:
    """Returns the level that a card supports.

    Args:
      card: Evidence card.
      gates: Gate trajectories of the candidate; float[seeds, steps]. None if there are none.
    """
    return level_of(_ladder_of(card, gates))


def level_with_replay(card: Mapping[str, Any], passes: bool | None) -> Level:
    """Returns the level of a card together with its replay, on which only level 5 depends.

    Args:
      card: Evidence card that already has a `level`.
      passes: Whether a replay of the card agreed. None if there was no replay.
    """
    own = Level(**card["level"])
    if own.level < _BEFORE_REPLAY:
        return own
    missing = _is_worth_adopting(_ladder_of(card, None)._replace(replay_passes=passes))
    return Level(_BEFORE_REPLAY + (missing is None), missing, own.static)


def _ladder_of(card: Mapping[str, Any], gates: np.ndarray | None) -> Ladder:
    calibration = card["calibration"]
    moved, phases, exported = (card.get(part) for part in ("transfer", "phases", "export"))
    ladder = Ladder(
        panel_auc=calibration["panel_auc"],
        repeat_difference=calibration["repeat_difference"],
        static=card["static"],
        gates=gates if gates is not None and gates.size else None,
        no_win=no_win(card),
        sigma=calibration["sigma"],
        export_passes=exported and exported["passes"],
    )
    if phases is not None:
        actuators = {
            name: [third["mean"] for third in thirds]
            for name, thirds in phases["thirds"].items()
            if name != "gate"
        }
        ladder = ladder._replace(actuators=actuators)
    if moved is not None:
        ladder = ladder._replace(
            cells={name: cell_gains(cell) for name, cell in moved["cells"].items()},
            cheaper=cell_gains(moved["cheaper"]),
            wider=cell_gains(moved["wider"]),
        )
    return ladder
