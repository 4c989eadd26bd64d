"""A single proposal: the command and its two rounds."""

import asyncio
import json
from functools import partial

import pytest
import scripted_answers
import scripted_mutator
from openai_server import Reply, Server

from nanoevolve_jax.codegen.campaign.proposal import ask_twice
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
from nanoevolve_jax.codegen.propose import check_text
from nanoevolve_jax.evolution.proposals import folder_of
from nanoevolve_jax.policy.slots import built_in_source

SEED = built_in_source("direction")
PLAN = scripted_answers.PLAN


def number_of(kind: str) -> int:
    return PLAN.index(kind)


@pytest.fixture
def propose(shell, tmp_path):
    """Returns a function that runs a command in a folder with two scripted providers."""
    profiles = scripted_mutator.profile() + scripted_mutator.profile("other")
    (tmp_path / "mine.toml").write_text(profiles)

    def run(*arguments, module="propose", **environment):
        module = f"nanoevolve_jax.codegen.{module}"
        environment = {"COLUMNS": "100"} | environment
        return shell("-m", module, *arguments, folder=tmp_path, environment=environment)

    return run


ASKED = ("direction", "--providers=mine.toml", "--provider=scripted", "--out=run")


def test_a_proposal_is_made_once_and_printed(propose, tmp_path):
    first = propose(*ASKED, "--number=0")
    assert first.code == 0, first.errors
    assert "-    ahead = x + knobs.momentum * (buffer - x)" in first.output
    assert "+    ahead = x + 0.995 * (buffer - x)" in first.output
    (answer,) = answers_of(tmp_path / "run")
    assert "run/proposals/0000/try-1/source.py: the new source, to be validated" in first.output
    spent = f"paid requests: 1; tokens: {answer.input_tokens + answer.output_tokens:,}; "
    assert spent + f"dollars: {answer.dollars:.6f}; seconds: " in first.output
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    again = propose(*ASKED, "--number=0", COLUMNS="40")  # nothing is cut off
    assert again.output == first.output and answers_of(tmp_path / "run") == [answer]
    assert [p for p in before if p.name != "source.py" and p.stat().st_mtime_ns != before[p]] == []

    bad = propose(*ASKED, f"--number={number_of('import')}")
    assert bad.code == 1 and bad.output.count("imports are not allowed") == 2
    assert "try 2: import: line" in bad.output and "paid requests: 2; " in bad.output

    limited = propose(*ASKED, "--number=2", "--max_dollars=0.001")
    assert limited.code == 1 and "not asked: limit of dollars: 0.001" in limited.output
    assert not folder_of(tmp_path / "run", 2).exists()

    printed = propose("gate", "--dry_run")
    assert printed.code == 0
    assert printed.output.startswith("Proposal 0, try 1: rewrite the function `gate`.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gate", "gate", "gate"], "the arguments must be SLOT, or SLOT FILE, got"),
        (["gate", "--provider=openai"], "variable OPENAI_API_KEY is not set"),
        (["gates"], "SLOT must be one of direction, gate"),
        (["gate", "--scope=matrix"], "--scope must be one of gating"),
        (["gate", "no.py"], "FILE must be a source of gate"),
        (["gate", "bad.py"], "imports are not"),
        (["gate", "binary.py"], "FILE must be a source of gate"),
    ],
)
def test_bad_input_is_one_line(propose, tmp_path, arguments, words):
    (tmp_path / "bad.py").write_text("import os\n")
    (tmp_path / "binary.py").write_bytes(b"\xff")
    result = propose(*arguments, OPENAI_API_KEY="")
    assert (result.code, result.output) == (2, "")
    assert words in result.errors and result.errors.count("\n") == 1


def test_the_ensemble_is_a_table_of_what_each_provider_did(propose, tmp_path):
    scripted, folder = scripted_mutator.provider(), tmp_path / "run"
    for number in (number_of("nesterov"), number_of("fails")):
        place = folder_of(folder, number) / "try-1"
        asyncio.run(ask(scripted, f"Proposal {number}, try 1: go", place))
    result = propose("run", "--providers=mine.toml", module="ensemble")
    assert result.code == 0, result.errors
    spent = cost_of(answers_of(folder))
    row = next(line for line in result.output.splitlines() if "scripted" in line).split()
    assert row[1:5] == ["ready", "2", "1", f"{spent.tokens:,}"]
    assert f"Spent: paid requests: 2; tokens: {spent.tokens:,}; dollars: " in result.output
    config = {"codegen": {"providers": "mine.toml", "ensemble": "other"}}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    result = propose("run", module="ensemble")  # the campaign's own profiles
    rows = {x.split()[0]: x.split() for x in result.output.splitlines() if "ready" in x}
    assert [rows["scripted"][-1], rows["other"][-1]] == ["0%", "100%"], result.errors
    assert rows["scripted"][2:4] == ["2", "1"]
    bad = propose("nowhere", module="ensemble")
    assert bad.code == 2 and "DIR must be a run folder" in bad.errors


def ask_in_rounds(ask_provider, prompt, folder, source=SEED, slot="direction"):
    check = partial(check_text, slot)
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
