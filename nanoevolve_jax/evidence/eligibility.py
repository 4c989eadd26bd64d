"""Eligibility of candidates: constraints that no gain can offset, and retuned baselines."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
from scipy.special import expit

from nanoevolve_jax.errors import apart
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.seeds import PROMOTE_FOLD, Stage, stage_seed
from nanoevolve_jax.execution.settings import make_task
from nanoevolve_jax.execution.train import Candidate, Task
from nanoevolve_jax.model import gpt
from nanoevolve_jax.policy.canonical import canonical, moving_actuators, with_fixed_actuators
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.gate import blended_actuators
from nanoevolve_jax.policy.slots import SCOPES
from nanoevolve_jax.policy.spec import DECAY_NONE, OptimizerSpec

STATE_LIMIT = 1.05  # largest optimizer state, relative to NanoChat's


# Constraints ---------------------------------------------------------------------------------


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_ratio(task: Task, candidate: Candidate) -> float:
    """Returns the size of an optimizer's state relative to NanoChat's, which has no sensors.

    Args:
      task: Task that the candidate is trained on.
      candidate: Policy and recipe.

    Returns:
      Ratio of bytes, at least 1.
    """
    params = jax.eval_shape(lambda: gpt.init_params(task.model, jax.random.key(0)))
    optimizer = task.optimizer(candidate._replace(code=None), 1000)
    state = jax.eval_shape(optimizer.init, params)
    sensing = [
        optax.tree.get(state, name)
        for name in ("previous_sample", "averages", "sensors", "actuators", "gate")
    ]
    total = _num_bytes(state)
    return total / (total - _num_bytes(sensing))


class Constraints(NamedTuple):
    """Measurements by the id of an arm."""

    baseline: str  # id of the baseline
    failure_at_twice_the_lr: dict[str, str | None]  # None: it survived; includes the baseline
    state_bytes_over_nanochat: dict[str, float]  # see `state_ratio`

    def broken(self, arm: str) -> str | None:
        """Returns a description of the constraint that an arm breaks, or None.

        Args:
          arm: Id of the arm.
        """
        ratio = self.state_bytes_over_nanochat[arm]
        if ratio > STATE_LIMIT:
            times, most = apart(ratio, STATE_LIMIT, 3, "f")
            return f"its optimizer's state takes {times} times NanoChat's, above {most}"
        failure = self.failure_at_twice_the_lr[arm]
        if failure is not None and self.failure_at_twice_the_lr[self.baseline] is None:
            return f"at twice the learning rate, where the baseline survives, it fails ({failure})"
        return None


def measure(bench: Bench, baseline: Arm, arms: Sequence[Arm], stage: str) -> Constraints:
    """Trains candidates at twice their learning rate and measures the size of their states.

    Args:
      bench: Config and runs of the comparison. Runs have the screening horizon.
      baseline: Baseline. A candidate must survive if the baseline does.
      arms: Candidates.
      stage: Stage of the runs in `runs.jsonl`.

    Returns:
      Measurements of the candidates and the baseline.
    """
    steps, task = bench.config.train.steps, make_task(bench.config)
    seed = stage_seed(Stage.PROMOTE, bench.config.seed, 0)
    stressed = [baseline, *arms]
    jobs = [
        bench.job(arm._replace(lr_factor=2.0 * arm.lr_factor), seed, PROMOTE_FOLD, steps)
        for arm in stressed
    ]
    runs = bench.runs.run(jobs, stage)
    return Constraints(
        baseline.id,
        {arm.id: run.failure for arm, run in zip(stressed, runs, strict=True)},
        {arm.id: state_ratio(task, bench.candidate(arm, steps)) for arm in arms},
    )


# Retuned baselines ---------------------------------------------------------------------------


def without_still_gate(spec: OptimizerSpec) -> OptimizerSpec:
    """Removes a gate that cannot move actuators, if fixed fields can express its effect.

    A gate whose coefficients are all 0 is constant at `sigmoid(sharpness * bias)`. A gate whose
    poles are equal for every actuator in use has no effect even if it moves. There are fields for
    the multiplier, the clip threshold and the second-moment decay, but not for a partial mix, so a
    policy with a partial mix keeps its gate.

    Args:
      spec: Policy of concrete numbers.

    Returns:
      An equivalent policy.
    """
    if not spec.control.enabled or not is_static(spec):
        return spec
    gate = float(expit(spec.control.sharpness * spec.control.bias))
    return with_fixed_actuators(spec, blended_actuators(spec, gate)) or spec


def is_static(spec: OptimizerSpec, code: Code | None = None) -> bool:
    """Returns whether a policy is static: its gate never changes an actuator during training.

    This holds if the gate is off, if all its coefficients are 0, or if it moves no actuator that
    has an effect. If the gate is on and its functions are rewritten, the result is False.

    Args:
      spec: Policy of concrete numbers.
      code: Rewritten functions of the policy, or None.
    """
    if spec.control.enabled and code and any(code.of(slot) for slot in SCOPES["gating"]):
        return False
    senses = any(coefficient != 0 for coefficient in spec.control.coefficients)
    return not (spec.control.enabled and senses and moving_actuators(canonical(spec)))


def is_retuned_baseline(
    spec: OptimizerSpec, baseline: OptimizerSpec, code: Code | None = None
) -> bool:
    """Returns whether a policy differs from the baseline only in its recipe or multiplier.

    Such a policy only shows that the baseline can be tuned further. A policy without weight decay
    is treated as one with the baseline's kind of decay and a `weight_decay` of 0. A policy with
    rewritten functions is never a retuned baseline.

    Args:
      spec: Policy of concrete numbers.
      baseline: Spec of the baseline.
      code: Rewritten functions of the policy, or None.
    """
    if code is not None:
        return False
    spec = without_still_gate(spec)
    own = ["momentum", "second_moment_beta", "update_multiplier"]
    own += ["decay"] * (spec.decay == DECAY_NONE)
    reset = spec._replace(**{name: getattr(baseline, name) for name in own})
    return canonical(reset) == canonical(baseline)
