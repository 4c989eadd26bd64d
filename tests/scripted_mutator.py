"""A command-line provider with scripted answers.

  python tests/scripted_mutator.py PROMPT_FILE ANSWER_FILE [SCRIPT]

The first line of the prompt names the proposal and the try, as in `Proposal 7, try 1: ...`. They
determine the answer, which comes from `scripted_answers` or from SCRIPT. SCRIPT is a JSON file that
maps a proposal's number to a list with one answer per try; null makes the command fail. The command
prints its usage as JSON with the same figures as `openai_server`.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

from scripted_answers import answer

FIRST_LINE = re.compile(r"Proposal (\d+), try (\d+)")


def tokens(text: str) -> int:
    """Returns the number of tokens that the command reports."""
    return 1 + len(text) // 4


def profile(table: str = "scripted", script: Path | None = None) -> str:
    """Returns the profile of this command as TOML."""
    extra = [] if script is None else [str(script)]
    command = [sys.executable, __file__, "{prompt_file}", "{answer_file}", *extra]
    return (
        f'[{table}]\nkind = "command"\nmodel = "script"\ncommand = {json.dumps(command)}\n'
        "dollars_in = 1.0\ndollars_out = 4.0\nmax_output_tokens = 2000\ntimeout_seconds = 60\n"
        'input_tokens_at = "usage.in"\noutput_tokens_at = "usage.out"\n'
    )


def provider(**fields):
    """Returns the profile of this command as a `Command`, with the given fields replaced."""
    import msgspec

    from nanoevolve_jax.codegen.mutators.providers import load

    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(profile())
        file.flush()
        return msgspec.structs.replace(load(file.name)["scripted"], **fields)


def main(prompt_file: str, answer_file: str, script: str | None = None) -> int:
    """Runs the command and returns its exit code."""
    prompt = Path(prompt_file).read_text(encoding="utf-8")
    number, try_ = map(int, FIRST_LINE.match(prompt).groups())
    if script is None:
        text = answer(number, try_)
    else:
        answers = json.loads(Path(script).read_text(encoding="utf-8"))
        text = answers[str(number)][try_ - 1]
    print(json.dumps({"usage": {"in": tokens(prompt), "out": tokens(text or "")}}))
    if text is None:
        print("scripted failure", file=sys.stderr)
        return 3
    Path(answer_file).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
