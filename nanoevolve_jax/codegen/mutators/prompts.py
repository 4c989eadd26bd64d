"""What a provider is told: a pure function of plain data."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2

from nanoevolve_jax.codegen.mutators import describe
from nanoevolve_jax.codegen.validation.language import MAX_SOURCE_BYTES
from nanoevolve_jax.codegen.validation.vocabulary import BUILTINS, MODULES
from nanoevolve_jax.policy.slots import SCOPES, SLOTS

LONGEST_QUOTE = 8_000  # bytes of an answer
LONGEST_WRONG = 1_000  # characters


class Evidence(NamedTuple):
    """What was measured of a candidate; None: was not."""

    score: float | None = None  # gain over the baseline, costs deducted; in sigmas, if known
    bpb: float | None = None  # of validation; lower is better
    baseline_bpb: float | None = None  # of the baseline on the same seeds
    cost: float | None = None  # FLOPs a step over the baseline's
    stage: str | None = None  # 'screen', 'promote' or 'confirm'
    facts: tuple[str, ...] = ()  # sentences, of telemetry for one


class Parent(NamedTuple):
    """A candidate to start from."""

    id: str
    source: str  # normalised, of the slot
    evidence: Evidence = Evidence()


class Failure(NamedTuple):
    """A candidate that was refused or died, from which there is something to learn."""

    reason: str  # a code, such as 'unbounded_loop' or 'dead'
    message: str
    source: str | None = None  # normalised; None: not worth its tokens


class Trial(NamedTuple):
    """What has been tried already, in a line."""

    id: str
    summary: str
    outcome: str


class Rules(NamedTuple):
    """What a source must keep to."""

    max_cost: float = 4.0  # times the arithmetic of the built-in function
    max_source_bytes: int = MAX_SOURCE_BYTES
    names: Mapping[str, Sequence[str]] = {}  # allowed functions by module
    builtins: Sequence[str] = ()


def language_rules(max_cost: float = 4.0, max_source_bytes: int = MAX_SOURCE_BYTES) -> Rules:
    """The rules of the language that sources are written in."""
    names = {name: MODULES[name] for name in ("jnp", "jnp.linalg", "lax", "jax.nn", "math")}
    return Rules(max_cost, max_source_bytes, names, BUILTINS)


def prompt(
    number: int,
    slot: str,
    scope: str,
    parent: Parent,
    rules: Rules,
    *,
    best: Sequence[Parent] = (),
    failures: Sequence[Failure] = (),
    tried: Sequence[Trial] = (),
    shapes: Sequence[tuple[int, int]] = (),
) -> str:
    """The prompt of a proposal.

    Sources are to be normalised, so that no comment of an earlier answer speaks to this one.

    Args:
      number: of the proposal; stands in the first line.
      slot: one of `SLOTS`.
      scope: one of `SCOPES`.
      parent: whose source is to be edited.
      rules: of the language and its limits.
      best: other good candidates.
      failures: the most instructive ones.
      tried: what has been tried, the latest last.
      shapes: of the model's matrices, [inputs, outputs].

    Raises:
      ValueError: if the scope does not contain the slot.
    """
    if slot not in SCOPES.get(scope, ()):
        raise ValueError(f"scope is {scope!r}, slot {slot!r}; allowed: {SCOPES}")
    return (
        _environment()
        .get_template("prompt.txt.jinja")
        .render(
            number=number,
            slot=slot,
            meaning=SLOTS[slot].meaning,
            aim=describe.aim_of(scope),
            signature=describe.signature_of(slot),
            arguments=describe.arguments_of(slot),
            results=describe.results_of(slot),
            outside=describe.outside_of(slot),
            parent=parent,
            rules=rules,
            best=best,
            failures=failures,
            tried=tried,
            shapes=shapes,
        )
    )


def complaint(prompt: str, answer: str, wrong: str) -> str:
    """The prompt of the second try: the first one, the answer to it and what was wrong, once.

    Args:
      prompt: of the first try.
      answer: to it; only its end is kept if it is long.
      wrong: in words; only their beginning is kept if they are many.

    Returns:
      A prompt that is at most `budget.COMPLAINT_BYTES` longer than the first one.
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
    """A text with each line behind '> ', so that it ends where it ends; its end if it is long."""
    lines = [f"> {line}".rstrip() for line in text.strip("\n").split("\n")]
    content = "\n".join(lines).encode(errors="replace")
    if len(content) <= LONGEST_QUOTE:
        return content.decode()
    kept = content[-LONGEST_QUOTE:].decode(errors="ignore")
    return f"> ...\n> {kept.partition(chr(10))[2].removeprefix('> ') or kept}"


def measured(evidence: Evidence) -> str:
    """Evidence in a line."""
    parts = []
    if evidence.score is not None:
        parts.append(f"score {evidence.score:+.4f}")
    if evidence.bpb is not None:
        against = evidence.baseline_bpb
        gain = 0.0 if against is None else against - evidence.bpb
        # In words, for less is more here.
        than = f"{abs(gain):.4f} {'better' if gain > 0 else 'worse'} than" if gain else "equal to"
        known = "" if against is None else f" ({than} the baseline)"
        parts.append(f"validation {evidence.bpb:.4f} bpb{known}")
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
        autoescape=False,  # it is read by a model, not by a browser
    )
    environment.filters["measured"] = measured
    return environment
