"""Calls to providers: answers, costs, retries, limits and keys."""

import asyncio
import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Reply, Server, tokens

from nanoevolve_jax.codegen.mutators import calls, commands
from nanoevolve_jax.codegen.mutators.budget import (
    BYTES_PER_TOKEN,
    COMPLAINT_BYTES,
    Limits,
    Spent,
    exceeded,
    prompt_tokens,
    total,
    worst_attempt,
    worst_call,
    worst_proposal,
)
from nanoevolve_jax.codegen.mutators.calls import cost_of, read_answer, write_request
from nanoevolve_jax.codegen.mutators.prompts import complaint
from nanoevolve_jax.codegen.mutators.providers import Api, Command, ProviderError
from nanoevolve_jax.codegen.mutators.replies import Attempt

PROMPT = "Proposal 3, try 1: rewrite the function `gate`.\n"
KEY = "sk-a-very-secret-key"
GOOD = Reply("an answer")
PRICES = {"model": "small", "dollars_in": 2.0, "dollars_out": 10.0, "max_output_tokens": 500}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("UNRELATED_SECRET", "another-secret")


def api(url, **fields) -> Api:
    values = {"name": "local", "base_url": url, "key_env": "TEST_KEY", "retries": 2}
    return Api(**PRICES | values | {"backoff_seconds": 0.01, "timeout_seconds": 20.0} | fields)


def python(code: str, *arguments: str, **fields) -> Command:
    values = {"name": "agent", "command": (sys.executable, "-c", code, *arguments)}
    return Command(**PRICES | values | {"timeout_seconds": 20.0, "prompt_on_stdin": True} | fields)


def ask(*arguments):
    return asyncio.run(calls.ask(*arguments))


def run_once(provider, environment=None):
    return asyncio.run(commands.attempt(provider, PROMPT, environment or {}))


def ask_server(tmp_path, *replies, **fields):
    """Returns an endpoint's answer to these successive replies, its provider and its server."""
    with Server(lambda *at: replies[min(at[2], len(replies)) - 1]) as server:
        provider = api(server.url, **fields)
        return ask(provider, PROMPT, tmp_path / "call"), provider, server


def test_an_answer_costs_what_the_endpoint_reports(tmp_path):
    answer, provider, server = ask_server(tmp_path, GOOD, temperature=0.5, extra_body={"seed": 1})
    used = tokens(PROMPT), tokens("an answer")
    assert (answer.text, answer.failure) == ("an answer", None)
    assert (answer.requests, answer.estimated) == (1, 0)
    assert (answer.input_tokens, answer.output_tokens) == used
    assert answer.dollars == pytest.approx(provider.dollars(*used), rel=1e-12)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    body = server.bodies[0]
    assert (body["max_completion_tokens"], body["temperature"], body["seed"]) == (500, 0.5, 1)
    assert ask(api("http://localhost:1"), "another prompt", tmp_path / "call") == answer


def test_a_folder_that_someone_else_wrote_does_not_choose_who_is_asked(tmp_path):
    mark, folder = tmp_path / "it ran", tmp_path / "call"
    folder.mkdir()
    write_request(folder, python(f"open({str(mark)!r}, 'w')"), PROMPT)
    answer = ask(python("print(input())"), PROMPT, folder)
    assert answer.text.strip() in PROMPT and not mark.exists()


@pytest.mark.parametrize(
    ("replies", "words", "requests", "billed", "estimated"),
    [
        *(((Reply(status=s, retry_after="0.01"), GOOD), None, 2, 1, 0) for s in (429, 500)),
        # After a gateway's timeout the model may have answered, and the call may be billed.
        ((Reply(status=502, retry_after="0.01"), GOOD), None, 2, 2, 1),
        ((Reply(cut=True), GOOD), None, 2, 2, 1),
        ((Reply(status=429),), "status 429", 3, 0, 0),
        ((Reply(f"bad key {KEY}", status=401),), "status 401", 1, 0, 0),
        ((Reply(status=429, retry_after="7200"),), "asks to wait 7200 s", 1, 0, 0),
        ((Reply(body=b"<html>busy</html>"),), "cannot be read", 1, 1, 1),
        ((Reply(body=b"[]"),), "no text", 1, 1, 1),
        ((Reply(""),), "no text: finish_reason 'stop'", 1, 1, 0),
        ((GOOD._replace(usage=False),), None, 1, 1, 1),
    ],
)
def test_attempts_are_repeated_if_that_may_help_and_counted_if_they_may_be_billed(
    tmp_path, replies, words, requests, billed, estimated
):
    answer, provider, server = ask_server(tmp_path, *replies)
    assert (words in answer.failure) if words else (answer.text == "an answer")
    assert server.requests.total() == requests
    assert (answer.requests, answer.estimated) == (billed, estimated)
    if estimated and billed == 1:
        worst = worst_attempt(provider, PROMPT)
        assert (answer.input_tokens, answer.output_tokens) == worst


@pytest.mark.parametrize("slow", [Reply(seconds=60.0), Reply(trickle=True)], ids=["hang", "drip"])
def test_a_call_that_takes_too_long_ends_and_counts_at_its_worst(tmp_path, slow):
    answer, provider, server = ask_server(tmp_path, slow, timeout_seconds=0.5, retries=1)
    assert "no answer within 0.5 s" in answer.failure and answer.seconds < 5.0
    worst = worst_attempt(provider, PROMPT)
    assert answer.requests == answer.estimated == server.paid.total() == 2
    assert (answer.input_tokens, answer.output_tokens) == (2 * worst[0], 2 * worst[1])
    assert answer.dollars == pytest.approx(2 * provider.dollars(*worst))


def test_an_endpoint_that_cannot_be_reached_costs_nothing(tmp_path):
    answer = ask(api("http://127.0.0.1:1/v1"), PROMPT, tmp_path)
    assert "connection to" in answer.failure and answer.requests == 0


def test_keys_reach_no_file_and_no_other_process(tmp_path):
    leak = "import os; print(dict(os.environ)); print(os.environ['TEST_KEY'])"
    ask_server(tmp_path, Reply(f"the key is {KEY}, half a character \ud83d"))
    for name, code in {"command": leak, "fails": f"{leak}; exit(os.environ['TEST_KEY'])"}.items():
        ask(python(code, key_env="TEST_KEY"), PROMPT, tmp_path / name)
    printed = read_answer(tmp_path / "command").text
    seen = set(eval(printed.splitlines()[0]))  # this test's own command printed the text
    assert seen - {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"} == {"PATH", "HOME", "TEST_KEY"} & seen
    assert "TEST_KEY" in seen and "[secret]" in printed
    assert "[secret]" in read_answer(tmp_path / "fails").failure
    assert read_answer(tmp_path / "call").text == "the key is [secret], half a character ?"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_an_endpoint_gets_no_credentials_of_another(tmp_path, monkeypatch):
    variables = {"OPENAI_API_KEY": "key-a", "OPENAI_ADMIN_KEY": "key-b", "OPENAI_ORG_ID": "key-c"}
    variables |= {"OPENAI_PROJECT_ID": "key-d", "OPENAI_CUSTOM_HEADERS": "X-More: key-e"}
    for name, value in (variables | {"HTTP_PROXY": "http://key-f:1@127.0.0.1:1"}).items():
        monkeypatch.setenv(name, value)
    answer, _, server = ask_server(tmp_path, GOOD)
    assert answer.text == "an answer" and "key-" not in str(server.headers).replace(KEY, "")
    assert all(os.environ[name] == value for name, value in variables.items())


def test_credentials_in_urls_and_each_line_of_a_key_are_redacted(tmp_path, monkeypatch):
    message = "cannot reach http://user:hunter2hunter2@proxy/v1?api_key=hunter2hunter2"
    answer = ask(python(f"raise SystemExit({message!r})"), PROMPT, tmp_path / "url")
    assert "cannot reach http://[secret]@proxy/v1?api_key=[secret]" in answer.failure
    assert "hunter2" not in (tmp_path / "url" / "answer.json").read_text()
    monkeypatch.setenv("TEST_KEY", "first-line-of-it\nsecond-line-of-it\n")
    code = "import os; raise SystemExit(os.environ['TEST_KEY'])"
    answer = ask(python(code, key_env="TEST_KEY"), PROMPT, tmp_path / "lines")
    assert answer.failure.endswith("code 1: [secret]")


def test_nothing_is_written_or_sent_without_a_key_or_with_one_in_the_url(tmp_path, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    for url, fields, words in [
        ("http://localhost/v1", {}, "TEST_KEY is not set"),
        (f"http://user:{KEY}@localhost/v1", {"key_env": ""}, "base_url must be"),
        (f"http://{KEY}@localhost/v1", {"key_env": ""}, "base_url must be"),
    ]:
        with pytest.raises(ProviderError, match=words) as error:
            ask(api(url, **fields), PROMPT, tmp_path / "call")
        assert KEY not in str(error.value) and not (tmp_path / "call").exists()
    write_request(tmp_path, api(url), PROMPT)
    assert KEY not in (tmp_path / "request.json").read_text()


def test_a_command_gets_its_prompt_and_returns_its_answer(tmp_path):
    code = (
        "import sys, pathlib, os; p, a, f = sys.argv[1:]; t = pathlib.Path(p).read_text();"
        "assert sys.stdin.read() == t and os.listdir(f) == ['prompt.txt'];"
        "pathlib.Path(a).write_text('read ' + t); print('noise')"
    )
    answer = ask(python(code, "{prompt_file}", "{answer_file}", "{folder}"), PROMPT, tmp_path)
    assert (answer.text, answer.failure) == (f"read {PROMPT}", None)


def test_usage_is_read_from_json_lines(tmp_path):
    lines = [
        {"type": "text", "part": {"text": "one"}},
        {"type": "done", "part": {"tokens": {"a": {"in": 30}, "b": {"in": 12}}, "cost": 0.25}},
        {"type": "text", "part": {"text": "two\u2028\x85"}},
        {"type": "done", "part": {"tokens": {"c": {"in": 1}, "out": 5}, "cost": 0.5}},
    ]
    printed = "warming up\n" + "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    provider = python(
        f"import sys; sys.stdout.buffer.write({printed!r}.encode())",
        text_at=("part.text",),
        input_tokens_at=("part.tokens.*.in",),
        output_tokens_at=("part.tokens.out",),
        dollars_at=("part.cost",),
    )
    answer = ask(provider, PROMPT, tmp_path)
    assert answer.text == "one\ntwo\u2028\x85"
    assert (answer.input_tokens, answer.output_tokens) == (43, 5)
    assert (answer.dollars, answer.estimated) == (0.75, 0)


@pytest.mark.parametrize(
    ("inputs", "outputs", "dollars", "counted"),
    [
        (30, 5, 0.25, (30, 5, 0.25)),
        (0, 0, 0, (None, None, None)),
        (30, 0, 0.25, (30, None, 0.25)),
        (-1, 5, -1, (None, 5, None)),
        (math.nan, math.inf, math.nan, (None, None, None)),
        ("30", True, "free", (None, None, None)),
        (None, [5], None, (None, None, None)),
        (1e300, 10**400, math.inf, (None, None, None)),
    ],
)
def test_figures_that_cannot_be_true_are_unknown(inputs, outputs, dollars, counted):
    fields = {"input_tokens_at": ("in",), "output_tokens_at": ("out",), "dollars_at": ("cost",)}
    document = {"in": inputs, "out": outputs, "cost": dollars}
    usage = commands._usage([document], python("", **fields))
    assert tuple(usage.values()) == counted


def test_commands_that_fail_report_why(tmp_path):
    code = "import sys; sys.exit('first line\\nquota exceeded')"
    failed = ask(python(code), PROMPT, tmp_path / "1")
    assert "code 1: quota exceeded" in failed.failure and failed.requests == 1
    assert run_once(python("raise SystemExit('busy')")).again and not run_once(python(code)).again
    assert "returned no answer" in run_once(python("pass")).failure


def test_a_command_that_crashes_leaves_no_core_dump(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("no core dumps are possible here")
    mark = tmp_path / "limits"
    code = (
        "import os, pathlib, resource, sys; limits = resource.getrlimit(resource.RLIMIT_CORE);"
        "pathlib.Path(sys.argv[1]).write_text(str(limits)); os.abort()"
    )
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        attempt = run_once(python(code, str(mark)), {"PATH": os.environ["PATH"]})
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert f"code {-signal.SIGABRT}" in attempt.failure and mark.read_text() == "(0, 0)"


# This command starts a child, records both processes, reports few tokens, and hangs.
HANGS = (
    "import os, subprocess, sys, time, pathlib;"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "pathlib.Path(sys.argv[1]).write_text(f'{os.getpid()} {p.pid}');"
    'print(\'{"in": 1, "out": 1}\', flush=True); time.sleep(60)'
)


@pytest.mark.parametrize("end", ["time limit", "cancelled"])
def test_a_command_that_hangs_is_killed_with_its_children(tmp_path, end):
    mark = tmp_path / "mark"
    fields = {"input_tokens_at": ("in",), "output_tokens_at": ("out",)}
    limit = 1.0 if end == "time limit" else 30.0
    provider = python(HANGS, str(mark), timeout_seconds=limit, **fields)
    if end == "time limit":
        attempt = run_once(provider)
        assert "took longer than 1 s" in attempt.failure and attempt.again
        assert (attempt.input_tokens, attempt.output_tokens) == (None, None)
    else:

        async def cancelled():
            task = asyncio.ensure_future(commands.attempt(provider, PROMPT, {}))
            while not (mark.exists() and mark.read_text()):
                await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(cancelled())
    assert all(is_gone(int(process)) for process in mark.read_text().split())


def test_a_command_dies_with_the_process_that_runs_it(tmp_path):
    mark = tmp_path / "mark"
    code = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))"
    code += "; time.sleep(60)"
    if (caller := os.fork()) == 0:
        try:
            run_once(python(code, str(mark)))
        finally:
            os._exit(1)
    wait_until(lambda: mark.exists() and mark.read_text())
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    assert is_gone(int(mark.read_text()))


def is_gone(process: int, seconds: float = 5.0) -> bool:
    for _ in range(int(seconds / 0.05)):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def wait_until(condition, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_call_that_was_lost_is_made_again_and_counts_at_its_worst(tmp_path):
    folder = tmp_path / "proposals" / "0003" / "try-1"

    async def interrupt(provider, server, count):
        task = asyncio.ensure_future(calls.ask(provider, PROMPT, folder))
        while server.requests.total() < count:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with Server(lambda *at: GOOD._replace(seconds=60.0 * (at[2] < 3))) as server:
        provider = api(server.url)
        worst = worst_call(provider, PROMPT)
        for count in (1, 2):
            asyncio.run(interrupt(provider, server, count))
            assert calls.lost_cost(tmp_path) == total([worst] * count)
        answer = ask(provider, PROMPT, folder)
    assert (answer.text, answer.requests, server.paid.total()) == ("an answer", 1, 3)
    assert calls.lost_cost(tmp_path) == total([worst] * 2)
    limits = Limits(calls=2 * worst.calls + 1 + worst.calls)
    assert calls.permitted(limits, tmp_path, provider, PROMPT) is None
    limits = limits._replace(calls=limits.calls - 1)
    assert "limit of calls" in calls.permitted(limits, tmp_path, provider, PROMPT)


# Limits -------------------------------------------------------------------------------------

PROVIDER = api(
    "http://localhost",
    dollars_call=0.01,
    timeout_seconds=30.0,
    backoff_seconds=1.0,
    backoff_max_seconds=7.0,
)
amounts = st.builds(
    Spent, st.integers(0, 1000), st.integers(0, 10**9), st.floats(0.0, 1e4), st.floats(0.0, 1e6)
)


@given(st.builds(Limits, *[st.floats(0.0, 1e6)] * 4), amounts, amounts, amounts)
def test_a_call_is_made_if_no_limit_can_break(limit, spent, reserved, worst):
    sums = [math.fsum(parts) for parts in zip(spent, reserved, worst, strict=True)]
    fits = all(amount <= most for amount, most in zip(sums, limit, strict=True))
    assert (exceeded(limit, spent, reserved, worst) is None) == fits


@given(st.lists(amounts, max_size=20), st.randoms())
def test_sums_do_not_depend_on_the_order(parts, random):
    shuffled = list(parts)
    random.shuffle(shuffled)
    assert total(parts) == total(shuffled)


attempts = st.builds(
    Attempt,
    text=st.just("x"),
    input_tokens=st.none() | st.integers(0, prompt_tokens("prompt")),
    output_tokens=st.none() | st.integers(0, PROVIDER.max_output_tokens),
    dollars=st.none() | st.just(0.005),
    failure=st.none() | st.just("failed"),
    paid=st.booleans(),
    again=st.booleans(),
    wait=st.none() | st.floats(0.0, 100.0),
).map(lambda attempt: attempt._replace(again=attempt.again and attempt.failure is not None))


def call_with(attempts, draw=0.0):
    """Returns the answer to these attempts, the pauses between them, and the unused attempts."""
    now, pauses, queue = 0.0, [], iter(attempts)

    async def attempt():
        nonlocal now
        now += PROVIDER.timeout_seconds
        return next(queue)

    async def sleep(seconds):
        nonlocal now
        now += seconds
        pauses.append(seconds)

    clock = {"sleep": sleep, "clock": lambda: now, "draw": lambda: draw}
    return asyncio.run(calls.call(PROVIDER, "prompt", attempt, **clock)), pauses, list(queue)


@given(st.lists(attempts, min_size=3, max_size=3), st.floats(0.0, 0.999))
def test_no_call_costs_more_than_its_worst_case(planned, draw):
    answer, _, unused = call_with(planned, draw)
    worst = worst_call(PROVIDER, "prompt")
    assert all(a <= b + 1e-9 for a, b in zip(cost_of([answer]), worst, strict=True))
    done = planned[: len(planned) - len(unused)]
    assert answer.requests == sum(a.paid for a in done)
    assert answer.failure is None or done[-1].failure is not None
    assert all(a.failure and a.again for a in done[:-1])


def test_pauses_double_up_to_a_limit_with_jitter_unless_the_provider_asks_for_another():
    busy = Attempt(failure="busy", again=True)
    assert call_with([busy] * 3)[1] == [1, 2]
    assert call_with([busy] * 3, draw=0.5)[1] == [0.75, 1.5]
    assert call_with([busy._replace(wait=5.0), busy, busy], draw=0.5)[1] == [5.0, 1.5]
    assert call_with([busy._replace(wait=8.0)])[1] == []


@given(st.text(max_size=400))
def test_tokens_of_a_prompt_are_not_underestimated(text):
    assert prompt_tokens(text) >= len(text.encode(errors="replace")) / BYTES_PER_TOKEN


@given(st.text(max_size=50), st.integers(1, 30_000), st.text(max_size=3000))
def test_a_second_prompt_is_no_longer_than_the_budget_assumes(piece, times, wrong):
    first = "Proposal 1, try 1: rewrite.\n\nAs follows.\n"
    second = complaint(first, (piece or "\n") * times, wrong)
    assert len(second.encode(errors="replace")) <= len(first.encode()) + COMPLAINT_BYTES
    assert worst_proposal(PROVIDER, first).tokens >= (
        worst_call(PROVIDER, first).tokens + worst_call(PROVIDER, second).tokens
    )
