"""Exported files train as the search did, and deviations are detected."""

import functools
from collections import Counter

import numpy as np
import pytest
from specs import EVERYTHING, wandered_spec

from nanoevolve_jax.exports.agreement import (
    FLIPS,
    PARAMETERS,
    SHAPES,
    Agreement,
    check_optax,
    check_torch,
    compare,
)
from nanoevolve_jax.exports.features import features_of
from nanoevolve_jax.exports.source import source_of
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

RANDOM = {f"random {seed}": wandered_spec(seed) for seed in range(20)}
FEW = {"nanochat": NANOCHAT, "annealing": ANNEALING, "everything": EVERYTHING}


def assert_agrees(check, spec, framework):
    found = check(spec, source_of(spec, framework, "some policy"))
    assert found.passes, found


@pytest.mark.parametrize("spec", FEW.values(), ids=FEW.keys())
def test_the_file_for_optax_agrees_step_for_step(spec):
    assert_agrees(check_optax, spec, "optax")


@pytest.mark.parametrize("spec", FEW.values(), ids=FEW.keys())
def test_the_file_for_torch_agrees_step_for_step(spec):
    pytest.importorskip("torch")
    assert_agrees(check_torch, spec, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("spec", RANDOM.values(), ids=RANDOM.keys())
def test_files_of_random_policies_agree_step_for_step(spec):
    assert_agrees(check_optax, spec, "optax")
    pytest.importorskip("torch")
    assert_agrees(check_torch, spec, "torch")


def test_the_random_policies_use_everything_there_is():
    used = Counter()
    for spec in RANDOM.values():
        f = features_of(spec)
        used.update(f.weights)
        used.update(name for name, dial in f.dials._asdict().items() if dial.moves)
        used.update([f.clip, f"decay {f.decay}", f"orthogonal {f.orthogonal}"])
        used.update(["momentum after" if f.momentum_after else "momentum before"])
        used.update(["trust ratio"] if f.trust_ratio else [])
        used.update(["nesterov" if f.nesterov else "heavy ball"])
        used.update(["second moment" if f.second_moment else "no second moment"])
        used.update([] if f.gate else ["no gate"])
    everything = {
        *(f"decay {name}" for name in ("none", "decoupled", "cautious")),
        *(f"orthogonal {name}" for name in ("only", "mixed", "never")),
        *("none", "update_rms", "global_norm", "no gate", "trust ratio"),
        *("momentum before", "momentum after", "nesterov", "heavy ball"),
        *("second moment", "no second moment"),
        *EVERYTHING.control.coefficients._fields,
        *EVERYTHING.control.aggressive._fields,
    }
    assert not everything - set(used), everything - set(used)


MISTAKES = {
    "the first coefficient": ("8.156554524902461", "8.157370180354951"),
    "the last coefficient": ("0.42323551169305323", "0.42328"),
    "the norm before the iteration": ("* 1.01 +", "* 1.0101 +"),
    "a pole": ("SECOND_MOMENT_BETA = (0.9,", "SECOND_MOMENT_BETA = (0.9001,"),
    "the gate's bias": ("BIAS = -0.5", "BIAS = -0.502"),
    "a weight": ('"loss_ema": 1.0', '"loss_ema": 1.002'),
    "a normaliser": ('"grad_norm_ema": 0.5,\n    "update', '"grad_norm_ema": 0.501,\n    "update'),
    "a window": ("LONG_WINDOW = 8.0", "LONG_WINDOW = 8.01"),
    "an average": ("EMA_BETA = 0.98", "EMA_BETA = 0.9801"),
    "entries that never had a gradient": ("u * p >= 0", "u * p > 0"),
    "no look ahead": ("u = u + beta * (mu - u)", "u = mu"),
    "the shape factor": ("p.shape[-2] / p.shape[-1]", "p.shape[-1] / p.shape[-2]"),
    "which entries are sampled": ("samples.append(x[", "samples.append(x.flip(-1)["),
    "the wrong side": ("return x * (min(x.shape[-2:])", "return x * (max(x.shape[-2:])"),
    "what is remembered": ("_copy(mu, (", "_copy(u, ("),
    "a loss that is not finite": ("torch.isfinite(loss)", "~torch.isinf(loss)"),
    "a spike that raises its own limit": ("_mean(norm_before)[LONG], log_", "log_grad_norm, log_"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_the_file_for_torch_is_caught(mistake):
    pytest.importorskip("torch")
    source = source_of(EVERYTHING, "torch", "everything")
    assert source.count(mistake[0]) == 1
    assert not check_torch(EVERYTHING, source.replace(*mistake)).passes


@pytest.mark.parametrize(
    "mistake",
    [("2.3465413258596377", "2.3467759799922237"), ("u * weights >= 0", "u * weights > 0")],
    ids=["a coefficient that is off by 1e-4", "entries that never had a gradient"],
)
def test_a_mistake_in_the_file_for_optax_is_caught(mistake):
    source = source_of(NANOCHAT, "optax", "nanochat")
    assert source.count(mistake[0]) == 1
    assert not check_optax(NANOCHAT, source.replace(*mistake)).passes


# A cautious step in NumPy. A few entries of its gradients are within rounding error of 0.
TINY = ((0, 1), (2, 3))


def cautious_step(step, noise=0.0, turned=(), nan=False, gate=0.0):
    after = []
    for p, g in zip(step.params, step.grads, strict=True):
        u = g / np.sqrt(np.mean(np.square(g)))
        for place in TINY:
            u[place] = (1e-9 + noise) * np.sign(p[place])
        mask = u * p >= 0
        for place in turned:
            mask[place] = ~mask[place]
        p = p - step.learning_rate * (u + step.weight_decay * np.where(mask, p, 0.0))
        after.append(np.full_like(p, np.nan) if nan else p)
    return after, {"count": step.state["count"] + 1, "gate": np.float32(gate)}


def found_by(**changes):
    exported = functools.partial(cautious_step, **changes)
    return compare(NANOCHAT, cautious_step, exported, steps=3)


def test_signs_that_rounding_turns_are_counted_and_left_out():
    assert found_by() == Agreement(0.0, 0.0, 0, 0, 3 * sum(a * b for a, b in SHAPES), 3)
    flipped = found_by(noise=-1e-8)
    assert flipped.flips == 3 * len(SHAPES) * len(TINY)
    assert flipped.max_relative_l2 < PARAMETERS


def test_signs_of_updates_that_are_not_tiny_count_as_mistakes():
    found = found_by(turned=[(1, 1)])
    assert found.flips == 0 and found.max_relative_l2 > 100 * PARAMETERS
    assert not found.passes


def test_more_flips_than_rounding_makes_do_not_pass():
    entries = 10_000
    most = int(FLIPS * entries)
    assert Agreement(0.0, 0.0, most, 0, entries, 50).passes
    assert not Agreement(0.0, 0.0, most + 1, 0, entries, 50).passes


def test_a_step_that_is_not_a_number_does_not_pass():
    found = found_by(nan=True)
    assert not found.passes
    assert found.to_json() == {"max_relative_l2": None, "flips": 0, "held": 0, "passes": False}


def gated_step(step, rounding=0.0, scale=1.0):
    """Takes a step whose length is the gate; the gate can be held."""
    sensed = np.float32(0.5) + np.float32(rounding)
    gate = sensed if np.isnan(step.gate) else step.gate
    pairs = zip(step.params, step.grads, strict=True)
    after = [p - step.learning_rate * np.float32(scale) * gate * g for p, g in pairs]
    return after, {"count": step.state["count"] + 1, "gate": np.float32(gate)}


@pytest.mark.parametrize(
    ("changes", "passes", "held"),
    [
        ({"rounding": 0.0}, True, 0),
        ({"rounding": 8e-5}, False, 3),  # occurs at every step, so it is not rounding
        ({"rounding": 3e-4}, False, 0),  # too far for rounding
        ({"scale": 1.0 + 1e-4}, False, 0),  # the gates agree, but their effects do not
    ],
)
def test_a_gate_is_held_only_where_the_two_are_within_rounding(changes, passes, held):
    exported = functools.partial(gated_step, **changes)
    found = compare(NANOCHAT, gated_step, exported, steps=3)
    assert (found.passes, found.held) == (passes, held), found


def test_a_gate_off_by_rounding_at_a_few_steps_passes():
    def exported(step):
        return gated_step(step, rounding=8e-5 if step.state["count"] == 4 else 0.0)

    found = compare(NANOCHAT, gated_step, exported, steps=10)
    assert found.passes and found.held == 1
