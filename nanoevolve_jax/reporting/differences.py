"""What is switched differently in a policy, in words; its gate is told from its runs instead."""

from collections.abc import Collection

from nanoevolve_jax.policy.canonical import canonical, unread_fields
from nanoevolve_jax.policy.spec import (
    CLIP_GLOBAL_NORM,
    CLIP_NONE,
    CLIP_UPDATE_RMS,
    DECAY_CAUTIOUS,
    DECAY_DECOUPLED,
    DECAY_NONE,
    FIELDS,
    NANOCHAT,
    POST,
    PRE,
    OptimizerSpec,
    get_field,
)
from nanoevolve_jax.policy.spec_json import field_to_json

# What a switch does, by its position, as the rest of a sentence that begins with "It".
_SWITCHES = {
    "nesterov": ("takes the momentum as it is", "looks ahead along the momentum"),
    "momentum_placement": {
        PRE: "averages gradients before they are given a direction",
        POST: "averages directions, after each gradient was given its own",
    },
    "orthogonalize": ("takes the normalised momentum", "takes the momentum's orthogonal factor"),
    "second_moment": ("has no second moment", "divides by a factored second moment"),
    "decay": {
        DECAY_NONE: "decays no weights",
        DECAY_DECOUPLED: "decays weights everywhere",
        DECAY_CAUTIOUS: "decays weights only where update and weight agree",
    },
}
_NUMBERS = {
    "momentum": "the momentum",
    "ns_steps": "the Polar Express iterations",
    "second_moment_beta": "the second-moment decay",
    "update_multiplier": "the update multiplier",
}
_TOLD = (  # what the function `direction` alone decides on, in the order it is named
    *("momentum", "nesterov", "momentum_placement", "orthogonalize", "ns_steps"),
    *("second_moment", "second_moment_beta"),
)
_ALIKE = {  # what a policy shares with NanoChat's where all of these fields are equal
    "Nesterov momentum": ("nesterov",),
    "momentum before the direction": ("momentum_placement",),
    "five Polar Express iterations": ("orthogonalize", "ns_steps"),
    "a factored second moment": ("second_moment",),
    "decay only where update and weight agree": ("decay",),
    "no trust ratio": ("trust_ratio",),
    "no clipping": ("clip",),
}


def fixed_differences(
    spec: OptimizerSpec, baseline: OptimizerSpec, code: Collection[str] = ()
) -> list[str]:
    """What a policy does differently from its first step to its last, a sentence each.

    Args:
      spec: the policy.
      baseline: what it is compared with; its gate is off.
      code: slots with rewritten functions; what `direction` is only told is called so.

    Returns:
      Sentences such as 'It decays weights everywhere instead of only where update and weight
      agree.'; fields that nothing reads are left out.
    """
    form, read = canonical(spec), set(FIELDS) - unread_fields(canonical(spec))
    if code:
        form, read = spec, set(FIELDS)
    found = _told(form, baseline) if "direction" in code else []
    for path, phrases in _SWITCHES.items():
        if "direction" in code and path in _TOLD:
            continue
        now, before = get_field(form, path), get_field(baseline, path)
        if now != before:
            found.append(f"It {phrases[now]}; the baseline {phrases[before]}.")
    for path, name in _NUMBERS.items():
        if "direction" in code and path in _TOLD:
            continue
        now, before = get_field(form, path), get_field(baseline, path)
        if now != before and path in read and not _told_by_gate(form, path):
            found.append(f"It sets {name} to {now:.4g} instead of {before:.4g}.")
    return found + _trust_ratio(form, baseline, read) + _clipping(spec, form, baseline, read)


def _told(spec: OptimizerSpec, baseline: OptimizerSpec) -> list[str]:
    """What a rewritten direction is told, which is no promise that it does so."""
    changed = [
        f"{name} {field_to_json(name, getattr(spec, name))}"
        for name in _TOLD
        if getattr(spec, name) != getattr(baseline, name)
    ]
    return [f"Its direction is told {', '.join(changed)}."] if changed else []


def as_in_nanochat(spec: OptimizerSpec, code: Collection[str] = ()) -> str:
    """What a policy shares with NanoChat's optimizer, in one sentence.

    Args:
      spec: the policy.
      code: slots with rewritten functions, of which nothing is said.
    """
    form = canonical(spec)
    alike = [
        words
        for words, paths in _ALIKE.items()
        if not ("direction" in code and set(paths) <= set(_TOLD))
        and all(get_field(form, path) == get_field(NANOCHAT, path) for path in paths)
    ]
    alike.append("AdamW for all that is no matrix")
    return f"As in NanoChat: {', '.join(alike)}."


def _told_by_gate(spec: OptimizerSpec, path: str) -> bool:
    """Whether the actuators' own sentences have this number in them."""
    return bool(spec.control.enabled) and path == "update_multiplier"


def _trust_ratio(spec: OptimizerSpec, baseline: OptimizerSpec, read: set[str]) -> list[str]:
    if not spec.trust_ratio:
        return ["It has no trust ratio; the baseline has one."] if baseline.trust_ratio else []
    clamps = ("trust_ratio_min", "trust_ratio_max")
    if baseline.trust_ratio and all(getattr(spec, x) == getattr(baseline, x) for x in clamps):
        return []
    if not set(clamps) & read:
        return []
    low, high = (getattr(spec, clamp) for clamp in clamps)
    return [
        "It scales each matrix's update by the ratio of the norms of weight and update, kept "
        f"between {low:.3g} and {high:.3g}."
    ]


def _clipping(
    spec: OptimizerSpec, form: OptimizerSpec, baseline: OptimizerSpec, read: set[str]
) -> list[str]:
    if form.clip == CLIP_NONE:
        if spec.clip != CLIP_NONE:
            return ["Its limit on the update is never reached."]
        return ["It limits nothing; the baseline clips."] if baseline.clip != CLIP_NONE else []
    same = form.clip == baseline.clip
    if same and ("clip_threshold" not in read or form.clip_threshold == baseline.clip_threshold):
        return []
    fixed = "clip_threshold" in read  # or the gate sets it
    limit = f"{form.clip_threshold:.3g} times" if fixed else "the gate's threshold times"
    if form.control.enabled:
        ends = [
            pole.clip_threshold for pole in (form.control.aggressive, form.control.conservative)
        ]
        if ends[0] == ends[1]:
            limit = f"{ends[0]:.3g} times"
    what = {
        CLIP_UPDATE_RMS: f"It limits each update's RMS to {limit} that of an orthogonal one.",
        CLIP_GLOBAL_NORM: f"It limits the global gradient norm to {limit} its running mean.",
    }
    return [what[form.clip]]
