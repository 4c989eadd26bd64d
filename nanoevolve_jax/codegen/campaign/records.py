"""What archive and books say of a proposal."""

from collections.abc import Mapping
from typing import Any

from nanoevolve_jax.codegen.campaign.islands import Aim
from nanoevolve_jax.codegen.campaign.pipeline import Proposed
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.archive import CODE, Record
from nanoevolve_jax.evolution.proposals import Entry

Code = dict[str, Any]  # see `archive.CODE`


def cost_of(provider: str, proposed: Proposed) -> dict[str, Any]:
    """What the calls of a proposal cost."""
    answers = proposed.answers
    return {
        "provider": provider,
        "calls": sum(answer.requests for answer in answers),
        "input_tokens": sum(answer.input_tokens for answer in answers),
        "output_tokens": sum(answer.output_tokens for answer in answers),
        "dollars": sum(answer.dollars for answer in answers),
        "seconds": sum(answer.seconds for answer in answers),
    }


def code_of_child(parent: Record, proposed: Proposed, number: int, provider: str) -> Code:
    """The code of a candidate: its parent's, with one slot rewritten.

    A slot that computes what the built-in function does is the built-in one again.

    Args:
      parent: whose code is rewritten.
      proposed: certified.
      number: of the proposal.
      provider: who wrote it.
    """
    function = proposed.certified
    inherited = parent.code or {"certificates": {}, "computation": {}}
    certificates = inherited["certificates"] | {function.slot: function.id}
    computation = inherited["computation"] | {function.slot: function.computation}
    if function.computation == function.certificate["seed_computation"]:
        del certificates[function.slot], computation[function.slot]
    return {
        "certificates": dict(sorted(certificates.items())),
        "slot": function.slot,
        "source": function.source,
        "diff": proposed.diff,
        "certificate": dict(function.certificate),
        "computation": dict(sorted(computation.items())),
        "proposal": number,
        "cost": cost_of(provider, proposed),
    }


def inherited_code(code: Code | None) -> Code | None:
    """The code of a child that rewrites nothing."""
    kept = ("certificates", "computation")
    return code and {name: code[name] if name in kept else None for name in CODE}


def computation_of(code: Code | None) -> Mapping[str, str]:
    """What code computes, by rewritten slot."""
    return code["computation"] if code else {}


def entry_of(aim: Aim, provider: str, proposed: Proposed) -> Entry:
    """The line of the books, before it is known what the candidate is worth."""
    if proposed.certified is not None:
        outcome = proposals.CANDIDATE
    else:
        outcome = proposals.FAILED if proposed.reason is None else proposals.REFUSED
    return Entry(
        number=aim.number,
        island=aim.island,
        slot=aim.slot,
        parent=aim.parent,
        outcome=outcome,
        candidate=None,
        reason=proposed.reason,
        message=proposed.message,
        gain=0.0,
        **cost_of(provider, proposed),
    )
