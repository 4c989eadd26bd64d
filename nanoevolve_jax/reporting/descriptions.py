"""Specs, changes and lineages in words."""

from collections.abc import Collection, Sequence
from typing import Any

from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.canonical import canonical, unread_fields
from nanoevolve_jax.policy.spec import (
    ACTUATORS,
    CLIP_GLOBAL_NORM,
    CLIP_NONE,
    CLIP_UPDATE_RMS,
    FIELDS,
    NANOCHAT,
    OptimizerSpec,
    get_field,
)
from nanoevolve_jax.policy.spec_json import field_to_json

_CONTROL_NAMES = {
    "control.enabled": "gate",
    "control.bias": "gate bias",
    "control.sharpness": "gate sharpness",
    "control.ema_beta": "sensor ema_beta",
}
# Fields that are only inputs of a rewritten `direction` function, in the order they are listed.
_DIRECTION_INPUTS = (
    *("momentum", "nesterov", "momentum_placement", "orthogonalize", "ns_steps"),
    *("second_moment", "second_moment_beta"),
)
# Features that a policy shares with NanoChat's optimizer if all of these fields are equal.
_SHARED_FEATURES = {
    "Nesterov momentum": ("nesterov",),
    "momentum before orthogonalisation": ("momentum_placement",),
    "five Polar Express iterations": ("orthogonalize", "ns_steps"),
    "a factored second moment": ("second_moment",),
    "cautious weight decay": ("decay",),
    "no trust ratio": ("trust_ratio",),
    "no clipping": ("clip",),
}


# Changes and lineages ----------------------------------------------------------------------


def lineage(records: Sequence[Record], candidate: str) -> list[str]:
    """Returns one line per ancestor, from the founder to the candidate itself.

    Args:
      records: Records of the search, including every ancestor.
      candidate: Id of the candidate.

    Returns:
      Lines such as 'generation 3, adjust_gate_weight: grad_alignment 0.7 -> 1.1'.
    """
    return [origin(record) for record in tournament.lineage(records, candidate)]


def lineage_in_one_line(records: Sequence[Record], candidate: str) -> str:
    """Returns a candidate's lineage, such as 'annealing, then control.bias -0.5 -> -0.2'."""
    chain = tournament.lineage(records, candidate)
    steps = [r.id if r.operator in (None, "preset") else str(r.change) for r in chain]
    return ", then ".join(steps[1:] if chain[-1].operator == "preset" else steps)


def origin(record: Record) -> str:
    """Returns one line that says how a candidate was created."""
    start = f"generation {record.generation}"
    if record.operator is None:
        return (
            f"{start}, {record.id}: NanoChat's optimizer with the recipe of the search (baseline)"
        )
    changes = shorten(record.change or "nothing")
    if record.operator == "preset":
        return f"{start}, preset {record.id}: {changes}"
    if record.code and record.code["slot"]:
        return f"{start}, {record.operator}: {changes}{_price(record.code['cost'])}"
    suffix = " (control: only the recipe)" if record.operator == tournament.CONTROL else ""
    return f"{start}, {record.operator}: {changes}{suffix}"


def _price(cost: dict[str, Any] | None) -> str:
    return f" (${cost['dollars']:.4f})" if cost else ""


def shorten(change: str) -> str:
    """Returns a change as stored in the archive, with short field names."""
    parts = (part.partition(" ") for part in change.split("; "))
    return "; ".join(f"{short_name(path)}{space}{rest}" for path, space, rest in parts)


def short_name(path: str) -> str:
    """Returns a unique short name for a field of a spec or a recipe.

    The name of a sensor alone stands for its weight in the gate.
    """
    if path in _CONTROL_NAMES:
        return _CONTROL_NAMES[path]
    group, _, name = path.rpartition(".")
    name = name.removesuffix("_ema")
    if group == "control.coefficients":
        return name
    if group == "control.normalisers":
        return f"{name} normaliser"
    return f"{group.removeprefix('control.')} {name}".strip()


# Specs -------------------------------------------------------------------------------------


def constant_differences(
    spec: OptimizerSpec, baseline: OptimizerSpec, code: Collection[str] = ()
) -> list[str]:
    """Returns one sentence per setting that differs from the baseline and that no gate moves.

    Args:
      spec: Spec of the policy.
      baseline: Spec to compare with; its gate is off.
      code: Slots with rewritten functions. The inputs of a rewritten `direction` are listed
        without a claim about their effect.

    Returns:
      Sentences such as 'It sets the momentum to 0.9 instead of 0.95.' Fields without an effect are
      left out.
    """
    form, read = canonical(spec), set(FIELDS) - unread_fields(canonical(spec))
    if code:
        form, read = spec, set(FIELDS)
    scaled = {row.field for row in ACTUATORS if row.scales_field}
    rewritten = _DIRECTION_INPUTS if "direction" in code else ()
    sentences = _direction_inputs(form, baseline) if rewritten else []
    for path, row in FIELDS.items():
        now, before = get_field(form, path), get_field(baseline, path)
        if row.effects and path not in rewritten and now != before:
            sentences.append(f"It {row.effects[now]}; the baseline {row.effects[before]}.")
    for path, name in [(path, row.phrase) for path, row in FIELDS.items() if row.phrase]:
        if path in rewritten or (form.control.enabled and path in scaled):
            continue  # the sentences about actuators include it
        now, before = get_field(form, path), get_field(baseline, path)
        if now != before and path in read:
            sentences.append(f"It sets {name} to {now:.4g} instead of {before:.4g}.")
    return sentences + _trust_ratio(form, baseline, read) + _clipping(spec, form, baseline, read)


def shared_with_nanochat(spec: OptimizerSpec, code: Collection[str] = ()) -> str:
    """Returns one sentence that lists what a policy shares with NanoChat's optimizer.

    Args:
      spec: Spec of the policy.
      code: Slots with rewritten functions, whose features are left out.
    """
    form = canonical(spec)
    features = [
        name
        for name, paths in _SHARED_FEATURES.items()
        if not ("direction" in code and set(paths) <= set(_DIRECTION_INPUTS))
        and all(get_field(form, path) == get_field(NANOCHAT, path) for path in paths)
    ]
    features.append("AdamW for all parameters that are not matrices")
    return f"As in NanoChat: {', '.join(features)}."


def _direction_inputs(spec: OptimizerSpec, baseline: OptimizerSpec) -> list[str]:
    changed = [
        f"{name} {field_to_json(name, getattr(spec, name))}"
        for name in _DIRECTION_INPUTS
        if getattr(spec, name) != getattr(baseline, name)
    ]
    return [f"Its direction function receives {', '.join(changed)}."] if changed else []


def _trust_ratio(spec: OptimizerSpec, baseline: OptimizerSpec, read: set[str]) -> list[str]:
    if not spec.trust_ratio:
        return ["It uses no trust ratio; the baseline uses one."] if baseline.trust_ratio else []
    clamps = ("trust_ratio_min", "trust_ratio_max")
    same = all(getattr(spec, name) == getattr(baseline, name) for name in clamps)
    if (baseline.trust_ratio and same) or not set(clamps) & read:
        return []
    low, high = (getattr(spec, clamp) for clamp in clamps)
    return [
        "It scales each matrix's update by the ratio of the weight norm to the update norm, "
        f"clamped between {low:.3g} and {high:.3g}."
    ]


def _clipping(
    spec: OptimizerSpec, form: OptimizerSpec, baseline: OptimizerSpec, read: set[str]
) -> list[str]:
    if form.clip == CLIP_NONE:
        if spec.clip != CLIP_NONE:
            return ["Its clip threshold is never reached."]
        return ["It does not clip; the baseline does."] if baseline.clip != CLIP_NONE else []
    constant = "clip_threshold" in read  # otherwise the gate sets it
    same = form.clip == baseline.clip
    if same and (not constant or form.clip_threshold == baseline.clip_threshold):
        return []
    limit = f"{form.clip_threshold:.3g} times" if constant else "the gate's threshold times"
    if form.control.enabled:
        aggressive, conservative = (
            pole.clip_threshold for pole in (form.control.aggressive, form.control.conservative)
        )
        if aggressive == conservative:
            limit = f"{aggressive:.3g} times"
    sentences = {
        CLIP_UPDATE_RMS: f"It clips each update's RMS at {limit} that of an orthogonal matrix.",
        CLIP_GLOBAL_NORM: f"It clips the global gradient norm at {limit} its running mean.",
    }
    return [sentences[form.clip]]
