"""A code campaign of thirty scripted proposals on real text, run in a separate process.

Two providers share the campaign: a command, and an OpenAI-compatible server in the test process.
Their answers depend only on the number of the proposal (`scripted_answers`), so the choice of a
provider changes no source.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from openai_server import Reply
from scripted_answers import GOOD, PLAN, answer
from scripted_mutator import profile

REPOSITORY = Path(__file__).resolve().parent.parent
KEY = "LOCAL_KEY"
SECRET = "sk-0123456789-not-to-be-seen"
KNOWN_GOOD = (0, 7)
"""Proposals that blend half of the momentum into the look-ahead. Where the baseline's momentum is
far too slow for its horizon, as here, that is better whatever the seed."""
SETTINGS = {
    "devices": 2,
    "data.corpus": "docstrings",
    "data.vocab_size": 512,
    "data.validation_rows": 64,
    "data.folds": 3,
    "model.n_layer": 1,
    "model.n_embd": 32,
    "model.sequence_len": 64,
    "train.steps": 40,
    "train.batch_size": 8,
    "train.segment_steps": 20,
    "train.evaluations": 1,
    "recipe.momentum": 0.97,
    "recipe.second_moment_beta": 0.9,
    "codegen.scope": "matrix",
    "codegen.proposals": len(PLAN),
    "codegen.window": 3,
    "codegen.islands": 2,
    "codegen.fill": 0,
    "codegen.ensemble": "scripted,local",
    "track.tensorboard": False,
}


def table() -> dict[int, list[str | None]]:
    """Returns the answers to both tries of every proposal."""
    answers = {number: [answer(number, 1), answer(number, 2)] for number in range(len(PLAN))}
    for number in KNOWN_GOOD:
        share = {0: "0.5", 7: "0.4"}[number]
        answers[number] = [GOOD["nesterov"].replace("{share}", share)] * 2
    return answers


def script(number: int, try_: int, attempt: int) -> Reply:
    """Returns the server's reply; some first attempts meet an unbilled rate limit."""
    text = table()[number][try_ - 1]
    if text is None:
        return Reply("no answer", status=400)
    if number % 5 == 1 and attempt == 1:
        return Reply("slow down", status=429, retry_after="0.05")
    return Reply(text, seconds=0.2 * (number % 4))


def providers(folder: Path, url: str) -> Path:
    """Writes a file with both provider profiles and returns its path."""
    answers = folder / "answers.json"
    answers.write_text(json.dumps({str(number): texts for number, texts in table().items()}))
    path = folder / "providers.toml"
    path.write_text(
        profile(script=answers)
        + f'[local]\nkind = "api"\nmodel = "script"\nbase_url = "{url}"\nkey_env = "{KEY}"\n'
        "dollars_in = 1.0\ndollars_out = 4.0\nmax_output_tokens = 2000\nbackoff_seconds = 0.01\n"
    )
    return path


def start(folder: Path, workdir: Path, profiles: Path, **changes) -> subprocess.Popen:
    """Starts the command and returns its process."""
    fields = SETTINGS | {"codegen.providers": profiles, "data.cache_dir": folder / "cache"}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "nanoevolve_jax.codegen.autonomous"),
            *("--config=configs/codegen.py", f"--config.workdir={workdir}"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {KEY: SECRET},
    )


def run(*arguments, **changes) -> str:
    """Runs the command, requires that it succeeds, and returns its output."""
    process = start(*arguments, **changes)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err + out
    return out
