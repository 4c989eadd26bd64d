"""Prompts, computed by pure functions from plain data, with a description of each slot."""

from collections.abc import Sequence
from typing import NamedTuple

import jinja2

from nanoevolve_jax.codegen.validation.language import MAX_SOURCE_BYTES
from nanoevolve_jax.codegen.validation.vocabulary import BUILTINS, MODULES
from nanoevolve_jax.policy.slots import SCOPES, SLOTS, Leaf

MAX_COST = 4.0  # default of `codegen.max_cost`
_MODULES = ("jnp", "jnp.linalg", "lax", "jax.nn", "math")  # modules whose functions are listed
LONGEST_QUOTE = 8_000  # largest number of bytes that the second prompt quotes from an answer
LONGEST_WRONG = 1_000  # largest number of characters that describe the fault of the answer


class Evidence(NamedTuple):
    """Measurements of a candidate; a field is None if it was not measured."""

    score: float | None = None  # gain over the baseline minus the cost penalty, in sigmas if known
    bpb: float | None = None  # validation loss in bits per byte
    baseline_bpb: float | None = None  # validation loss of the baseline on the same seeds
    cost: float | None = None  # FLOPs per step relative to the baseline
    stage: str | None = None  # "screen", "promote" or "confirm"
    facts: tuple[str, ...] = ()  # further measurements in words, such as telemetry


class Parent(NamedTuple):
    """Candidate whose source is shown."""

    id: str
    source: str  # normalised source of the slot's function
    evidence: Evidence = Evidence()


class Failure(NamedTuple):
    """Proposal that was refused, or candidate whose training failed."""

    reason: str  # code of the reason, such as "unbounded_loop" or "dead"
    message: str
    source: str | None = None  # normalised source; None if it is not shown


class Trial(NamedTuple):
    """Earlier proposal, shown as one line."""

    id: str
    summary: str
    outcome: str


def prompt(
    number: int,
    slot: str,
    scope: str,
    parent: Parent,
    max_cost: float = MAX_COST,
    *,
    best: Sequence[Parent] = (),
    failures: Sequence[Failure] = (),
    tried: Sequence[Trial] = (),
    shapes: Sequence[tuple[int, int]] = (),
) -> str:
    """Returns the prompt of a proposal.

    Sources must be normalised, so that comments in an earlier answer cannot instruct the provider.

    Args:
      number: Number of the proposal, which appears in the first line.
      slot: Name of the slot, one of `SLOTS`.
      scope: Name of the scope, one of `SCOPES`.
      parent: Candidate whose source is to be edited.
      max_cost: Bound on the cost of the new function, as a multiple of the built-in function's.
      best: Other good candidates.
      failures: Refused proposals and candidates whose training failed.
      tried: Earlier proposals, oldest first.
      shapes: Shapes [inputs, outputs] of the model's matrices.

    Raises:
      ValueError: If the scope does not contain the slot.
    """
    if slot not in SCOPES.get(scope, ()):
        raise ValueError(f"the scope of slot {slot!r} must contain it, got {scope!r}")
    return (
        _environment()
        .get_template("prompt.txt.jinja")
        .render(
            number=number,
            slot=slot,
            meaning=SLOTS[slot].meaning,
            purpose=_PURPOSES[scope],
            signature=f"def {slot}({', '.join(SLOTS[slot].parameters)}):",
            arguments=arguments_of(slot),
            results=results_of(slot),
            outside=SLOTS[slot].outside,
            parent=parent,
            max_cost=max_cost,
            max_source_bytes=MAX_SOURCE_BYTES,
            builtins=BUILTINS,
            modules={name: MODULES[name] for name in _MODULES},
            best=best,
            failures=failures,
            tried=tried,
            shapes=shapes,
        )
    )


def complaint(prompt: str, answer: str, wrong: str) -> str:
    """Returns the prompt of a second try, which repeats the first prompt and quotes its answer.

    It is at most `budget.COMPLAINT_BYTES` bytes longer than the first prompt.

    Args:
      prompt: Prompt of the first try.
      answer: Answer of the first try. Only the end of a long answer is quoted.
      wrong: Description of the answer's fault. A long description is truncated.
    """
    first, _, rest = prompt.partition("\n")
    template = _environment().get_template("complaint.txt.jinja")
    return template.render(
        first=first.replace(", try 1:", ", try 2:", 1),
        rest=rest.strip("\n"),
        answer=quoted(answer),
        wrong=" ".join(wrong.split())[:LONGEST_WRONG],
    )


def quoted(text: str) -> str:
    """Returns a text with `> ` before each line. Only the end of a long text is kept.

    Args:
      text: Text to quote, such as an answer.
    """
    lines = [f"> {line}".rstrip() for line in text.strip("\n").split("\n")]
    content = "\n".join(lines).encode(errors="replace")
    if len(content) <= LONGEST_QUOTE:
        return content.decode()
    kept = content[-LONGEST_QUOTE:].decode(errors="ignore")
    return f"> ...\n> {kept.partition(chr(10))[2].removeprefix('> ') or kept}"


def measured(evidence: Evidence) -> str:
    """Returns the measurements of a candidate as one line.

    Args:
      evidence: Measurements of the candidate.
    """
    parts = []
    if evidence.score is not None:
        parts.append(f"score {evidence.score:+.4f}")
    if evidence.bpb is not None:
        baseline = evidence.baseline_bpb
        gain = 0.0 if baseline is None else baseline - evidence.bpb
        # The gain is given in words, because its sign is easily misread if a lower loss is better.
        than = f"{abs(gain):.4f} {'better' if gain > 0 else 'worse'} than" if gain else "equal to"
        compared = "" if baseline is None else f" ({than} the baseline)"
        parts.append(f"validation {evidence.bpb:.4f} bpb{compared}")
    if evidence.cost is not None:
        parts.append(f"cost {evidence.cost:.3f}x")
    if evidence.stage is not None:
        parts.append(f"stage {evidence.stage}")
    return ", ".join(parts) or "not measured yet"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nanoevolve_jax.codegen", "mutators"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # prompts are not HTML
    )
    environment.filters["measured"] = measured
    return environment


# The contract of a slot in words ------------------------------------------------------------

_PURPOSES = {
    "matrix": "Change the mathematics of the matrix update: momentum, orthogonalisation, scaling, "
    "normalisation.",
    "gating": "Change how the state of training steers the optimizer.",
    "routing": "Change which matrices get which treatment: branch in Python on the shape of "
    "`gradient`, which is known while the function is traced. All shapes go through one function.",
}


def arguments_of(slot: str) -> list[str]:
    """Returns descriptions of the arguments of a slot's function, one line per array.

    Args:
      slot: Name of the slot, one of `SLOTS`.
    """
    return [_line(name, leaf) for name, leaf in SLOTS[slot].named_arguments()]


def results_of(slot: str) -> list[str]:
    """Returns descriptions of the results of a slot's function, one line per result, in order.

    Args:
      slot: Name of the slot, one of `SLOTS`.
    """
    return [
        _line(name, leaf, "values outside are clipped" if leaf.low is not None else "")
        for name, leaf in SLOTS[slot].named_results()
    ]


def _line(name: str, leaf: Leaf, note: str = "") -> str:
    reach = "" if leaf.low is None else f"from {leaf.low:g} to {leaf.high:g}"
    return f"`{name}`: {'; '.join(filter(None, (leaf.form, leaf.meaning, reach, note)))}"
