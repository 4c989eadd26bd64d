"""What each proposal of a run folder came to: what the ensemble learns from.

`DIR/proposals/0007/outcome.json` holds the gain of a proposal that has ended.
"""

from pathlib import Path
from typing import NamedTuple

from nanoevolve_jax.codegen.answers import ANSWER, FORMAT, REQUEST, read_answer, read_document
from nanoevolve_jax.execution.json_files import write_json

OUTCOME = "outcome.json"


class Outcome(NamedTuple):
    """One proposal that has ended."""

    provider: str
    gain: float  # score over the best known one when it was made; 0 where it is none
    dollars: float
    seconds: float  # of waiting for the provider
    failed: bool  # the provider gave no answer


def write_outcome(proposal: Path, gain: float) -> None:
    """Says what a proposal gained, whole or not at all; 0 for refused and dead ones."""
    write_json(proposal / OUTCOME, {"format": FORMAT, "gain": float(gain)})


def history_of(directory: Path) -> list[Outcome]:
    """Proposals of a run folder that have ended, in their order, whenever each of them ended.

    Raises:
      CodegenError: if a file is damaged.
    """
    found = map(_outcome, sorted(directory.glob("proposals/*")))
    return [outcome for outcome in found if outcome is not None]


def _outcome(proposal: Path) -> Outcome | None:
    tries = sorted(path.parent for path in proposal.glob(f"try-*/{REQUEST}"))
    answers = [read_answer(folder) for folder in tries if (folder / ANSWER).exists()]
    if not answers or len(answers) < len(tries):
        return None
    failed = answers[-1].failure is not None
    ended = read_document(proposal / OUTCOME)
    if ended is None and not failed:
        return None
    return Outcome(
        provider=answers[-1].provider,
        gain=ended["gain"] if ended else 0.0,
        dollars=sum(answer.dollars for answer in answers),
        seconds=sum(answer.seconds for answer in answers),
        failed=failed,
    )
