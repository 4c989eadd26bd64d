"""`optimizer`, one call that creates a policy for the parameters of any JAX library.

tx = ne.optimizer("winner.json", total_steps=1000, learning_rate=0.02)
state = tx.init(params)
updates, state = tx.update(grads, state, params, value=loss)
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nanoevolve_jax.errors import must
from nanoevolve_jax.policy.labels import default_labels
from nanoevolve_jax.policy.routing import summary_of, warn_of_doubts
from nanoevolve_jax.policy.spec import PRESETS, OptimizerSpec
from nanoevolve_jax.policy.spec_json import SpecError, load_spec
from nanoevolve_jax.policy.transform import AdamWGroup, beside_adamw, evolved_muon

LAYOUTS = ("inputs_outputs", "outputs_inputs")
OTHERS = AdamWGroup(learning_rate=3e-4, b1=0.9, b2=0.95, weight_decay=0.0)


def resolve_spec(policy: OptimizerSpec | str | Path) -> OptimizerSpec:
    """Returns a spec from a spec, the name of a preset, or a JSON file.

    Args:
      policy: Spec, name of a preset, or path of a JSON file with a spec, a record or an export.

    Raises:
      SpecError: If there is no such preset or file, or the file contains no valid spec.
    """
    if isinstance(policy, OptimizerSpec):
        return policy
    if not isinstance(policy, str | Path):
        raise SpecError(must("policy", "be a spec, the name of a preset or a path", policy))
    if policy in PRESETS:
        return PRESETS[policy]
    if not Path(policy).exists():
        folder, _, candidate = str(policy).rpartition(":")
        if folder and Path(folder).is_dir():
            rule = "be an exported file, because rewritten functions fit one model only"
            command = f"nanoevolve export {candidate} --to optax --workdir={folder}"
            raise SpecError(f"{must('policy', rule, str(policy))}; run `{command}`, or --to json")
        rule = f"be a JSON file or one of {', '.join(PRESETS)}"
        raise SpecError(must("policy", rule, str(policy)))
    return load_spec(policy)


def transposed(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Runs a transform for `[..., inputs, outputs]` on matrices `[..., outputs, inputs]`.

    State of a matrix has the layout of the matrix, so both can be sharded and mapped alike.
    """
    inner = optax.with_extra_args_support(inner)

    def turn_one(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.eval_shape(turn_one, x)
        return x.mT if jnp.ndim(x) >= 2 else x

    def turn(tree):
        return jax.tree.map(turn_one, tree)

    def turn_state(state, treedef):
        def is_like_params(x):
            return jax.tree.structure(x) == treedef

        return jax.tree.map(
            lambda x: turn(x) if is_like_params(x) else x, state, is_leaf=is_like_params
        )

    # Trees are put into a list, because a single array has the structure of every scalar.
    def init_fn(params):
        params = [turn(params)]
        return turn_state(inner.init(params), jax.tree.structure(params))

    def update_fn(updates, state, params=None, **extra_args):
        treedef = jax.tree.structure([updates])
        out, state = inner.update(
            [turn(updates)],
            turn_state(state, treedef),
            None if params is None else [turn(params)],
            **extra_args,
        )
        return turn(out[0]), turn_state(state, treedef)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def optimizer(
    policy: OptimizerSpec | str | Path,
    *,
    total_steps: Any,
    learning_rate: Any,
    weight_decay: Any = 0.0,
    momentum: Any = None,
    others: Mapping[str, AdamWGroup] | AdamWGroup = OTHERS,
    labels: Callable[[Any], Any] | Any = None,
    stacked: Collection[str] = (),
    layout: str = "inputs_outputs",
    dtype: Any = None,
    report: Callable[[str], None] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Creates the policy for the matrices of a model, with AdamW for all other parameters.

    It accepts the parameters of Flax (NNX and Linen), Haiku, Equinox or any other tree of arrays.
    None means that there is no parameter, as in all of optax. It can be wrapped like `optax.adamw`:
    `optax.inject_hyperparams(ne.optimizer)` needs `static_args` only for arguments that are
    functions, such as `labels`.

    Args:
      policy: Spec, name of a preset, or JSON file with a spec, a record or an export. To use a
        policy with rewritten functions, export it for optax and call that file.
      total_steps: Number of steps of the run, at least 1. The windows of the sensors and
        `step_fraction` are relative to it.
      learning_rate: Learning rate of the matrices; a number or a schedule from the step count.
        There is no default: the best one depends on the model, the batch and the horizon.
      weight_decay: Weight decay of the matrices; a number or a schedule, multiplied by the
        learning rate.
      momentum: Number or schedule; by default the policy's plateau at every step.
      others: AdamW hyperparameters by label; a single group serves the label `other`.
      labels: Tree like the parameters, or function from parameters to one, with `matrix` or a key
        of `others` for every array; by default `ne.labels`.
      stacked: Words that name stacked layers, see `ne.labels`.
      layout: Layout of a matrix: `inputs_outputs` (Flax, Haiku) or `outputs_inputs` (Equinox,
        PyTorch). It matters because the policy normalises the weights of each output.
      dtype: Dtype of the Polar Express iteration, such as "bfloat16"; float32 by default.
      report: Function that `init` calls with one line that says which arrays the policy updates,
        such as `print`.

    Returns:
      A transform; call `update(grads, state, params, value=loss)`. `value` may be omitted if the
      policy has no gate.

    Raises:
      SpecError: If there is no such policy.
      ValueError: If the layout is unknown or `total_steps` is not a whole number of at least 1.

    References:
      Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024,
      https://kellerjordan.github.io/posts/muon/
    """
    if layout not in LAYOUTS:
        raise ValueError(must("layout", f"be {' or '.join(LAYOUTS)}", layout))
    matrices = evolved_muon(
        resolve_spec(policy),
        learning_rate,
        total_steps=total_steps,
        momentum=momentum,
        weight_decay=weight_decay,
        dtype=dtype,
    )
    if layout == "outputs_inputs":
        matrices = transposed(matrices)
    chosen = labels
    if chosen is None:
        chosen = lambda params: default_labels(params, stacked)  # noqa: E731
    inner = beside_adamw(matrices, others, chosen)

    def init_fn(params):
        state = inner.init(params)
        if labels is None:
            warn_of_doubts(params, stacked)
        if report is not None:
            report(summary_of(params, chosen(params) if callable(chosen) else chosen))
        return state

    return optax.GradientTransformationExtraArgs(init_fn, inner.update)
