"""Parity checks of the optimizer that a search trains, under the baseline spec.

They belong to the command `model.parity`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanoevolve_jax.execution.schedules import (
    Recipe,
    lr_multiplier,
    muon_momentum,
    muon_weight_decay,
    nanochat_groups,
    nanochat_labels,
    nanochat_optimizer,
)
from nanoevolve_jax.model import gpt, nanochat
from nanoevolve_jax.model.loss import mean_loss
from nanoevolve_jax.model.reference import BadReference, Check, Reference, within, worst
from nanoevolve_jax.policy.spec import NANOCHAT, OptimizerSpec
from nanoevolve_jax.policy.transform import MATRIX, AdamWGroup, adamw, evolved_muon

LOSS_GATE = 5e-6
SCHEDULE_GATE = 2e-7  # a few float32 roundings of values near 1
STEP_GATE = 2e-7  # parameters and moments after a kernel's step
FLIPS = 1e-3  # share of entries that may exceed it, because signs of products near 0 may flip
PARAMS_GATE = 3e-4  # relative L2 of each parameter after optimizer steps
MOMENTUM_WARMUP_STEPS = 400  # NanoChat's value for every horizon


def make_recipe(args: Mapping[str, Any], peaks: Mapping[str, float]) -> Recipe:
    """Returns the recipe for NanoChat's schedule arguments and peak learning rates by label."""
    total = args["num_iterations"]
    return Recipe(
        matrix_lr=peaks.get(MATRIX, 0.0),
        embedding_lr=peaks.get("embedding", 0.0),
        unembedding_lr=peaks.get("unembedding", 0.0),
        scalar_lr=peaks.get("x0", 0.0),
        smear_lr=peaks.get("smear", 0.0),
        weight_decay=args["weight_decay"],
        warmup_fraction=args["warmup_steps"] / total,
        warmdown_fraction=args["warmdown_ratio"],
        final_lr_fraction=args["final_lr_frac"],
        momentum_warmup_fraction=MOMENTUM_WARMUP_STEPS / total,
    )


def schedule_values(recipe: Recipe, steps: np.ndarray, total: int) -> dict[str, jax.Array]:
    """Returns learning rate multiplier, momentum and weight decay at each step."""
    return {
        "lrm": lr_multiplier(recipe, steps, total),
        "momentum": muon_momentum(NANOCHAT.momentum, recipe, steps, total),
        "wd": muon_weight_decay(recipe, steps, total),
    }


def check_schedules(reference: Reference) -> list[Check]:
    """Compares every schedule of a kernel file at all of its steps."""
    numbers = sorted({key.split("/")[0] for key in reference.group("schedule/")})
    checks = []
    for number in numbers:
        prefix = f"schedule/{number}"
        args = reference.json(f"{prefix}/args")
        total = args["num_iterations"]
        values = schedule_values(make_recipe(args, {}), np.arange(total + 1), total)
        for name, got in values.items():
            want = reference.array(f"{prefix}/{name}", total + 1)
            checks.append(within(f"{prefix}/{name}", got, want, SCHEDULE_GATE))
    return checks


def check_muon_kernels(reference: Reference) -> list[Check]:
    """Compares three steps of `evolved_muon` for each stack of matrices and each ns_steps."""
    hyper = reference.json("muon/hyper")
    shapes = sorted({key.split("/")[0] for key in reference.group("muon/") if "x" in key})
    return [
        check
        for shape in shapes
        for ns_steps in hyper["ns_steps"]
        for check in check_muon_kernel(
            reference, shape, NANOCHAT._replace(ns_steps=ns_steps), key=f"ns{ns_steps}"
        )
    ]


def check_muon_kernel(
    reference: Reference, shape: str, spec: OptimizerSpec, key: str
) -> list[Check]:
    """Compares steps of `evolved_muon` under a spec for one shape and ns_steps."""
    prefix, hyper = f"muon/{shape}", reference.json("muon/hyper")
    start, grads = reference[f"{prefix}/params0"], reference[f"{prefix}/grads"]
    rows, columns = start.shape[1:]
    # The kernel's learning rate lacks the factor that the optimizer applies to tall matrices.
    aspect = max(1.0, rows / columns) ** 0.5
    lr, momentum, decay = (jnp.asarray(hyper[key]) for key in ("lr", "momentum", "wd"))
    optimizer = evolved_muon(
        spec._replace(second_moment_beta=hyper["beta2"]),
        lambda step: lr[step] / aspect,
        total_steps=len(lr),
        momentum=lambda step: momentum[step],
        weight_decay=lambda step: decay[step],
    )
    params = [jnp.asarray(x.T) for x in start]
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    seen: dict[str, list] = {"params": [], "second_momentum_buffer": [], "momentum_buffer": []}
    for step in grads:
        updates, state = update([jnp.asarray(x.T) for x in step], state, params, value=1.0)
        params = optax.apply_updates(params, updates)
        for name, matrices in zip(
            seen,
            (params, optax.tree.get(state, "second_moment"), optax.tree.get(state, "momentum")),
            strict=True,
        ):
            seen[name].append(np.stack([np.asarray(x).T for x in matrices]))
    places = {
        f"{prefix}/{key}/params": seen["params"],
        f"{prefix}/{key}/second_momentum_buffer": seen["second_momentum_buffer"],
        f"{prefix}/momentum_buffer": seen["momentum_buffer"],
    }
    return [_mostly_within(at, *reference.matching(at, got)) for at, got in places.items()]


def check_adamw_kernel(reference: Reference) -> list[Check]:
    """Compares three steps of AdamW."""
    hyper = reference.json("adamw/hyper")
    lr = jnp.asarray(hyper["lr"])
    optimizer = adamw(
        AdamWGroup(lambda k: lr[k], hyper["beta1"], hyper["beta2"], hyper["wd"], hyper["eps"])
    )
    params = jnp.asarray(reference["adamw/params0"])
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    seen: dict[str, list] = {"params": [], "exp_avg": [], "exp_avg_sq": []}
    for grad in reference["adamw/grads"]:
        updates, state = update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
        moments = optax.tree.get(state, "mu"), optax.tree.get(state, "nu")
        for key, value in zip(seen, (params, *moments), strict=True):
            seen[key].append(np.asarray(value))
    return [
        _mostly_within(f"adamw/{key}", np.stack(got), reference[f"adamw/{key}"])
        for key, got in seen.items()
    ]


def _mostly_within(name: str, got, want) -> Check:
    """Compares a kernel step within its tolerance, except for rare sign flips."""
    check = within(name, got, want, STEP_GATE)
    beyond = np.mean(np.abs(np.asarray(got, np.float64) - want) > STEP_GATE)
    passed = bool(np.isfinite(check.max_abs) and beyond <= FLIPS)
    return check._replace(gate=f"{check.gate}, {FLIPS:.1%} may flip", passed=passed)


def check_optimizer_groups(reference: Reference) -> list[Check]:
    """Compares the group of each parameter and all hyperparameters of the group."""
    wrong = []
    groups = reference.json("optimizer_groups")
    labels = nanochat_labels(reference.params)
    where = nanochat.places(reference.config)
    peaks = _peaks(reference)
    ours = nanochat_groups(make_recipe(reference.json("schedule_args"), peaks), lambda lr: lr)
    for group in groups:
        for name in group["params"]:
            label = nanochat.get(labels, where[name].path)
            if label == MATRIX:
                same = (group["kind"], group["ns_steps"], group["beta2"], group["lr"]) == (
                    "muon",
                    NANOCHAT.ns_steps,
                    NANOCHAT.second_moment_beta,
                    peaks[MATRIX],
                )
            else:
                own = ours[label]
                same = group["kind"] == "adamw" and np.allclose(
                    [own.learning_rate, own.b1, own.b2, own.eps, own.weight_decay],
                    [group["lr"], *group["betas"], group["eps"], group["weight_decay"]],
                    rtol=1e-12,
                )
            if not same:
                wrong.append(name)
    if wrong:
        return [
            Check(f"optimizer group of {name}", np.nan, np.nan, "exact", False) for name in wrong
        ]
    return [Check(f"optimizer groups ({len(groups)})", 0.0, 0.0, "exact", True)]


def _peaks(reference: Reference) -> dict[str, float]:
    """Returns the peak learning rate of each label from PyTorch's groups."""
    labels = nanochat_labels(reference.params)
    where = nanochat.places(reference.config)
    return {
        nanochat.get(labels, where[name].path): group["initial_lr"]
        for group in reference.json("optimizer_groups")
        for name in group["params"]
    }


def check_optimizer_steps(reference: Reference) -> list[Check]:
    """Compares losses, schedules, parameters and moments over steps of training."""
    args, config = reference.json("schedule_args"), reference.config
    total = args["num_iterations"]
    recipe = make_recipe(args, _peaks(reference))
    idx = reference.tokens("steps/idx")
    targets = reference.tokens("steps/targets", *idx.shape, lowest=-1)
    count = len(idx)
    params, losses, snapshots = reference.params, [], {}
    state = nanochat_optimizer(NANOCHAT, recipe, total_steps=total).init(params)
    for step in range(count):
        params, state, loss = _train_step(
            config, total, NANOCHAT, recipe, params, state, idx[step], targets[step]
        )
        losses.append(loss)
        snapshots[step + 1] = nanochat.to_nanochat(params, config)
    final = _loss(config, params, reference.tokens("idx"), _targets(reference))
    checks = [
        within("steps/loss", losses, reference.array("steps/loss", count), LOSS_GATE),
        within(f"loss_after_{count}", final, reference.array(f"loss_after_{count}"), LOSS_GATE),
    ]
    for name, got in schedule_values(recipe, np.arange(count), total).items():
        want = reference.array(f"steps/{name}", count)
        checks.append(within(f"steps/{name}", got, want, SCHEDULE_GATE))
    gate = functools.partial(within, relative=PARAMS_GATE)
    for step in (1, count):
        prefix = f"params_after_{step}/"
        checks += worst(
            prefix.rstrip("/"),
            [
                gate(name, *reference.matching(f"{prefix}{name}", value))
                for name, value in snapshots[step].items()
            ],
        )
    return [*checks, *_moments(reference, state, count)]


def _moments(reference: Reference, state: Any, count: int) -> list[Check]:
    where = nanochat.places(reference.config)
    kept = {
        "momentum_buffer": optax.tree.get(state, "momentum"),
        "second_momentum_buffer": optax.tree.get(state, "second_moment"),
    }
    checks = []
    for group in reference.json("optimizer_groups"):
        if group["kind"] != "muon":
            continue
        for buffer, tree in kept.items():
            key = f"muon_after_{count}/{group['index']}/{buffer}"
            stack = np.stack(
                [np.asarray(nanochat.get(tree, where[p].path)).T for p in group["params"]]
            )
            checks.append(within(key, *reference.matching(key, stack), relative=PARAMS_GATE))
    if not checks:
        raise BadReference(
            f"{reference.path}: 'optimizer_groups' must have a group of kind 'muon', got none"
        )
    return worst(f"muon_after_{count}", checks)


def _targets(reference: Reference) -> np.ndarray:
    return reference.tokens("targets", lowest=-1)


@functools.partial(jax.jit, static_argnums=0)
def _loss(config, params, idx, targets):
    return mean_loss(gpt.apply(config, params, idx), targets)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train_step(config, total, spec, recipe, params, state, idx, targets):
    optimizer = nanochat_optimizer(spec, recipe, total_steps=total)
    loss, grads = jax.value_and_grad(lambda p: _loss(config, p, idx, targets))(params)
    updates, state = optimizer.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state, loss
