"""`optimizer`, which creates a policy for the parameters of any JAX library.

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
    """Returns the spec of a policy.

    Args:
      policy: Spec, name of a preset, or path of a JSON file with a spec, a record or an export.

    Returns:
      The spec.

    Raises:
      SpecError: If there is no such preset or file, or the file does not contain a valid spec.
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
    """Transposes all matrices for a transform that expects the layout [..., inputs, outputs].

    The state of a matrix has the layout of the matrix, so both can be sharded in the same way.

    Args:
      inner: Transform for matrices of shape [..., inputs, outputs].

    Returns:
      The same transform for matrices of shape [..., outputs, inputs].
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

    # A list around each tree distinguishes parameters that are a single array from scalars.
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

    The parameters may come from Flax (NNX or Linen), Haiku, Equinox or any other library that uses
    trees of arrays. As in optax, None stands for a missing parameter. The function can be wrapped
    like `optax.adamw`. `optax.inject_hyperparams(ne.optimizer)` needs `static_args` only for
    arguments that are functions, such as `labels`.

    Args:
      policy: Spec, name of a preset, or JSON file with a spec, a record or an export. To use a
        policy with rewritten functions, export it for optax and call that file.
      total_steps: Number of steps of the run, at least 1. The windows of the sensors and
        `step_fraction` are relative to it.
      learning_rate: Learning rate of the matrices; a number or a schedule, which is a function of
        the step count. There is no default, because the best learning rate depends on the model,
        the batch size and the horizon.
      weight_decay: Weight decay of the matrices, which is multiplied by the learning rate; a number
        or a schedule.
      momentum: Momentum coefficient of the matrices, from 0 to below 1; a number or a schedule. By
        default, it is the policy's own at every step.
      others: AdamW hyperparameters by label, or a single group for the label `other`.
      labels: Tree of labels, or a function that maps parameters to such a tree. The label of an
        array is `matrix` or a key of `others`. By default, `ne.labels` computes the labels.
      stacked: Words that name stacked layers, see `ne.labels`.
      layout: Layout of the matrices, `inputs_outputs` (Flax, Haiku) or `outputs_inputs` (Equinox,
        PyTorch). It matters because the policy normalises the weights of each output.
      dtype: Dtype of the Polar Express iteration, such as "bfloat16"; float32 by default.
      report: Callback such as `print`. `init` passes it one line that lists the arrays that the
        policy updates and those that AdamW updates.

    Returns:
      A transform whose update is called as `update(grads, state, params, value=loss)`. `value` may
      be omitted if the policy has no gate.

    Raises:
      SpecError: If there is no such policy.
      ValueError: If the layout is unknown, or `total_steps` is not an integer of at least 1.

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
