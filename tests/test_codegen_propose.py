"""One proposal from the command line, with a command and with an endpoint."""

import asyncio
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import scripted_answers
import scripted_mutator
from openai_server import Reply, Server

from nanoevolve_jax.codegen import propose as command
from nanoevolve_jax.codegen.campaign.proposal import ask_twice
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import edits
from nanoevolve_jax.codegen.mutators.budget import Limits
from nanoevolve_jax.codegen.mutators.calls import (
    Answer,
    NotPermitted,
    answers_of,
    ask,
    cost_of,
    permitted,
)
from nanoevolve_jax.codegen.mutators.providers import Api
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.policy.slots import built_in_source

REPOSITORY = Path(__file__).resolve().parent.parent
SEED = built_in_source("direction")
PLAN = scripted_answers.PLAN


def run(*arguments, folder: Path, module: str = "propose", **environment):
    return subprocess.run(
        [sys.executable, "-m", f"nanoevolve_jax.codegen.{module}", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def number_of(kind: str) -> int:
    return PLAN.index(kind)


def judged(source: str, folder: Path) -> str | None:
    try:
        language.check(source, "direction")
    except Refused as refused:
        return refused.refusal.reason
    return None


def test_a_proposal_is_made_once_and_printed(tmp_path):
    (tmp_path / "mine.toml").write_text(scripted_mutator.profile())
    asked = ("direction", "--providers=mine.toml", "--provider=scripted", "--out=run")
    first = run(*asked, "--number=0", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "-    ahead = x + knobs.momentum * (buffer - x)" in first.stdout
    assert "+    ahead = x + 0.995 * (buffer - x)" in first.stdout
    (answer,) = answers_of(tmp_path / "run")
    assert "run/proposals/0000/try-1/source.py: the new source, to be validated" in first.stdout
    spent = f"paid requests: 1; tokens: {answer.input_tokens + answer.output_tokens:,}; "
    assert spent + f"dollars: {answer.dollars:.6f}; seconds: " in first.stdout
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    again = run(*asked, "--number=0", folder=tmp_path, COLUMNS="40")  # nothing is cut off
    assert again.stdout == first.stdout and answers_of(tmp_path / "run") == [answer]
    assert [p for p in before if p.name != "source.py" and p.stat().st_mtime_ns != before[p]] == []

    bad = run(*asked, f"--number={number_of('import')}", folder=tmp_path)
    assert bad.returncode == 1
    assert bad.stdout.count("imports are not allowed") == 2
    assert "try 2: import: line" in bad.stdout and "paid requests: 2; " in bad.stdout


def test_a_proposal_over_its_limit_is_not_made(tmp_path):
    (tmp_path / "mine.toml").write_text(scripted_mutator.profile())
    asked = ("direction", "--providers=mine.toml", "--provider=scripted", "--out=run")
    result = run(*asked, "--max_dollars=0.001", folder=tmp_path)
    assert result.returncode == 1 and "not asked: limit of dollars: 0.001" in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_dry_run_prints_the_prompt_alone(tmp_path):
    result = run("gate", "--dry_run", folder=tmp_path)
    assert result.returncode == 0 and not list(tmp_path.iterdir())
    assert result.stdout.startswith("Proposal 0, try 1: rewrite the function `gate`.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["gate", "gate", "gate"],
            "the arguments must be SLOT, or SLOT FILE, got",
        ),
        (["gate", "--provider=openai"], "variable OPENAI_API_KEY is not set"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, words):
    result = run(*arguments, folder=tmp_path, OPENAI_API_KEY="")
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr and result.stderr.count("\n") == 1


def test_slots_scopes_and_files_that_cannot_be_used(tmp_path):
    (tmp_path / "bad.py").write_text("import os\n")
    (tmp_path / "binary.py").write_bytes(b"\xff")
    for call, words in [
        (lambda: command.scope_of("gates", ""), "SLOT must be one of direction, gate"),
        (
            lambda: command.scope_of("gate", "matrix"),
            "--scope must be one of gating",
        ),
        (
            lambda: command.starting_source("gate", "no.py"),
            "FILE must be a source of gate",
        ),
        (lambda: command.starting_source("gate", str(tmp_path / "bad.py")), "imports are not"),
        (lambda: command.starting_source("gate", str(tmp_path / "binary.py")), "a source of gate"),
    ]:
        with pytest.raises(CodegenError) as error:
            call()
        assert words in str(error.value)
    assert command.scope_of("direction", "routing") == "routing"
    assert command.starting_source("direction", None) == SEED


def test_the_ensemble_is_a_table_of_what_each_did(tmp_path):
    (tmp_path / "mine.toml").write_text(
        scripted_mutator.profile() + scripted_mutator.profile("other")
    )
    scripted = scripted_mutator.provider()
    for number in (number_of("nesterov"), number_of("fails")):
        place = tmp_path / "run" / "proposals" / f"{number:04}" / "try-1"
        asyncio.run(ask(scripted, f"Proposal {number}, try 1: go", place))
    result = run("run", "--providers=mine.toml", folder=tmp_path, module="ensemble")
    assert result.returncode == 0, result.stderr
    spent = cost_of(answers_of(tmp_path / "run"))
    row = next(line for line in result.stdout.splitlines() if "scripted" in line).split()
    assert row[1:5] == ["ready", "2", "1", f"{spent.tokens:,}"]
    assert f"Spent: paid requests: 2; tokens: {spent.tokens:,}; dollars: " in result.stdout
    config = {"codegen": {"providers": "mine.toml", "ensemble": "other"}}
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": config}))
    result = run("run", folder=tmp_path, module="ensemble")  # the profiles are the campaign's own
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if "ready" in line}
    assert [rows["scripted"][-1], rows["other"][-1]] == ["0%", "100%"], result.stderr
    assert rows["scripted"][2:4] == ["2", "1"]
    bad = run("nowhere", folder=tmp_path, module="ensemble")
    assert bad.returncode == 2 and "DIR must be a run folder" in bad.stderr


@pytest.mark.parametrize("kind", [*scripted_answers.GOOD, *scripted_answers.BROKEN])
def test_the_script_does_what_it_says_before_anything_runs(tmp_path, kind):
    """What only the jail or training can find passes here."""
    plan = [kind]
    text = scripted_answers.answer(0, 1, plan)
    expected = scripted_answers.EXPECTED[kind]
    if expected == "failed":
        assert text is None
        return
    try:
        source = edits.apply(text, SEED, "direction")
    except edits.EditError:
        assert expected in ("edit", "second")
        if expected == "second":
            again = scripted_answers.answer(0, 2, plan)
            assert judged(edits.apply(again, SEED, "direction"), tmp_path) is None
        return
    static = list(scripted_answers.REASONS)[:5]
    assert judged(source, tmp_path) == (scripted_answers.REASONS[kind] if kind in static else None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(scripted_answers.EXPECTED))
def test_the_script_does_what_it_says_in_the_jails_checks(kind):
    from nanoevolve_jax.codegen.validation import checks

    expected = scripted_answers.EXPECTED[kind]
    if expected in ("edit", "second", "failed"):
        return
    source = edits.apply(scripted_answers.answer(0, 1, [kind]), SEED, "direction")
    shapes = [(64, 64), (64, 256), (256, 64)]
    try:
        language.check(source, "direction")
        result = checks.check(source, "direction", shapes, "float32", 4.0)
    except Refused as refused:
        assert scripted_answers.REASONS[kind] == refused.refusal.reason
    else:
        assert expected == ("inert" if result.computation == result.seed_computation else expected)
        assert expected in ("good", "dead", "inert")


def test_no_two_good_proposals_are_the_same():
    good = [n for n, kind in enumerate(PLAN) if kind in scripted_answers.GOOD]
    assert len(good) == 19 and len(PLAN) == 30
    sources = [edits.apply(scripted_answers.answer(n, 1), SEED, "direction") for n in good]
    assert len(set(sources)) == len(sources)


def ask_in_rounds(ask_provider, prompt, folder, source=SEED, slot="direction"):
    async def check(source, place):
        return judged(source, place)

    return asyncio.run(ask_twice(ask_provider, prompt, source, slot, folder, check))


@pytest.mark.parametrize("kind", ["command", "api"])
def test_a_bad_answer_gets_one_more_try_that_quotes_what_was_wrong(tmp_path, kind):
    number = number_of("not_found")
    prompt = f"Proposal {number}, try 1: rewrite.\n\n{SEED}"
    folder = tmp_path / "proposals" / "0001"
    with Server(lambda number, try_, _: Reply(scripted_answers.answer(number, try_))) as server:
        provider = scripted_mutator.provider()
        if kind == "api":
            prices = {"dollars_in": 1.0, "dollars_out": 4.0, "max_output_tokens": 2000}
            provider = Api(name="local", model="script", base_url=server.url, **prices)
        rounds = ask_in_rounds(partial(ask, provider), prompt, folder)
        assert "is not in the source" in rounds.rounds[0].wrong
        assert rounds.source and len(rounds.rounds) == 2
        second = json.loads((folder / "try-2" / "request.json").read_text())["prompt"]
        assert rounds.rounds[0].wrong in second and "newton_schulz" in second
        assert ask_in_rounds(partial(ask, provider), prompt, folder) == rounds
        if kind == "api":
            assert dict(server.paid) == {(number, 1): 1, (number, 2): 1}
            answers = answers_of(tmp_path)
            assert sum(a.input_tokens for a in answers) == server.usage["prompt_tokens"]
            assert sum(a.output_tokens for a in answers) == server.usage["completion_tokens"]


def test_a_second_prompt_does_not_repeat_the_reasoning(tmp_path):
    asked = []

    async def answer(prompt, place):
        place.mkdir(parents=True)
        asked.append(prompt)
        block = "<<<<<<< SEARCH\nis not there\n=======\nx\n>>>>>>> REPLACE\n"
        text = f"<think>secret thoughts</think>{block}"
        return Answer(text, 1, 1, 0.0, 0.0, 1, 0, None, "a", "m")

    ask_in_rounds(answer, "Proposal 1, try 1: go\n", tmp_path)
    assert "> is not there" in asked[1] and "secret thoughts" not in asked[1]


def test_a_provider_that_fails_gets_no_second_try(tmp_path):
    prompt = f"Proposal {number_of('fails')}, try 1: rewrite."
    rounds = ask_in_rounds(partial(ask, scripted_mutator.provider()), prompt, tmp_path / "0001")
    assert len(rounds.rounds) == 1 and rounds.source is None
    assert "code 3: scripted failure" in rounds.rounds[0].wrong


def test_a_call_that_might_break_a_limit_is_not_made(tmp_path):
    provider, limits = scripted_mutator.provider(), Limits(calls=1)
    folder = tmp_path / "proposals" / "0002"
    prompt = f"Proposal {number_of('prose')}, try 1: rewrite."
    permit = partial(permitted, limits, tmp_path)

    async def carefully(asked, place):
        return await ask(provider, asked, place, permit)

    rounds = ask_in_rounds(carefully, prompt, folder)
    assert rounds.source is None and rounds.stopped.startswith("limit of calls: 1; 1 spent")
    assert cost_of(answers_of(tmp_path)).calls == 1
    assert ask_in_rounds(carefully, prompt, folder) == rounds
    with pytest.raises(NotPermitted):
        asyncio.run(carefully("anything", tmp_path / "proposals" / "0003" / "try-1"))
    assert not (tmp_path / "proposals" / "0003").exists()
